"""Guests of Debian's riscv64 kernel in a host of the lab."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lab
from guest import initramfs
from lab import image
from tests.lab import drivers

if TYPE_CHECKING:
    from pathlib import Path

RISCV64 = lab.ARCHITECTURES["riscv64"]
DRIVERS = ("virtio_mmio", "virtio_blk", "virtio_rng", "crc32c_generic", "ext4")
FOLDER = "/tmp/riscv64"
QUIET = "console=ttyS0 panic=-1 quiet"


class Guests:
    """Starts guests in a host.

    Args:
        host: of riscv64; it gets its own kernel's file, which it has started from, and two initramfs images.
    """

    def __init__(self, host: lab.Host) -> None:
        self.host = host
        self.host.put(image.base(RISCV64) / "vmlinuz", FOLDER)
        self.demo = self.put(initramfs.demo("riscv64"))
        self.devices = self.put(initramfs.virtio("riscv64", drivers.modules(RISCV64, DRIVERS)))

    def put(self, path: Path) -> str:
        """Copy a file there; returns its path."""
        self.host.put(path, FOLDER)
        return f"{FOLDER}/{path.name}"

    def boot(self, initrd: str, words: str, *options: str, program: str = "examples/riscv64_vmm.py") -> lab.Completed:
        """Run a guest to its end."""
        command = ["python3", program, "--kernel", f"{FOLDER}/vmlinuz", "--initrd", initrd, *options]
        path = {"PYTHONPATH": "examples:."}
        return self.host.run([*command, "--cmdline", f"{QUIET} {words}"], env=path, timeout=300)
