"""Guests of Debian's kernels in hosts of the lab that are no PCs: arm64 and riscv64."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest import initramfs
from lab import image
from tests.lab import drivers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import lab


class Guests:
    """Starts guests in a host.

    Args:
        host: it gets its own kernel's file, which it has started from, and two initramfs images.
        name: what Debian calls the architecture, and the example's machine for it.
        console: where the guest's kernel writes.
        modules: what the kernel does not have built in, for the guests that use devices.
        moving: a program whose guests move into another VM (`moving`).
    """

    def __init__(self, host: lab.Host, name: str, console: str, modules: Sequence[str], moving: str) -> None:
        self.host = host
        self.name = name
        self.vmm = f"examples/{name}_vmm.py"
        self.moving = moving
        self._folder = f"/tmp/{name}"
        self._words = f"console={console} panic=-1 quiet"
        architecture = host.architecture
        self.kernel = self.put(image.base(architecture) / "vmlinuz")
        self.demo = self.put(initramfs.demo(architecture.name))
        self.devices = self.put(initramfs.virtio(architecture.name, drivers.modules(architecture, modules)))

    def put(self, path: Path) -> str:
        """Copy a file there; returns its path."""
        self.host.put(path, self._folder)
        return f"{self._folder}/{path.name}"

    def boot(self, initrd: str, words: str, *options: str, program: str = "") -> lab.Completed:
        """Run a guest to its end, by default in the example's machine."""
        command = ["python3", program or self.vmm, "--kernel", self.kernel, "--initrd", initrd, *options]
        path = {"PYTHONPATH": "examples:."}
        return self.host.run([*command, "--cmdline", f"{self._words} {words}"], env=path, timeout=300)


def arm64(host: lab.Host) -> Guests:
    """Return what starts guests in an arm64 host."""
    modules = ("virtio_mmio", "virtio_pci", "virtio_blk", "virtio_rng", "virtio_net")
    return Guests(host, "arm64", "ttyAMA0", modules, "tests/lab/vcpu_states.py")


def riscv64(host: lab.Host) -> Guests:
    """Return what starts guests in a riscv64 host."""
    modules = ("virtio_mmio", "virtio_blk", "virtio_rng", "crc32c_generic", "ext4")
    return Guests(host, "riscv64", "ttyS0", modules, "tests/lab/riscv64_states.py")
