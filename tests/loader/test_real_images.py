"""Images that others built, out of Debian packages: inspected, and planned by every entry they offer."""

import gzip
from pathlib import Path
from typing import Any

import pytest
from guest import packages
from guest.host import GuestError

from pyvmm_loader import BootPlan, BzImage, Image, MemoryTooSmall, NotAKernel, extract, inspect
from pyvmm_loader.aarch64 import registers as arm64_registers
from pyvmm_loader.riscv64 import registers as riscv64_registers
from pyvmm_memory import GuestMemoryMmap


def file_of(package: str, path: str) -> Path:
    try:
        return packages.content(package) / path
    except GuestError as error:
        pytest.skip(str(error).splitlines()[0])


@pytest.mark.parametrize(
    ("package", "path", "kind", "entries"),
    [
        ("ipxe", "boot/ipxe.lkrn", "bzimage", ["linux16"]),
        ("memtest86+", "boot/memtest86+ia32.bin", "bzimage", ["linux32", "linux16"]),
        ("memtest86+", "boot/memtest86+x64.bin", "bzimage", ["linux64", "linux32", "linux16"]),
        ("seabios", "usr/share/seabios/bios-256k.bin", "firmware", ["reset"]),
        ("ovmf", "usr/share/OVMF/OVMF_CODE_4M.fd", "firmware", ["reset"]),
        ("ovmf", "usr/share/ovmf/OVMF.fd", "firmware", ["reset"]),
        ("u-boot-qemu", "usr/lib/u-boot/qemu-x86/u-boot.rom", "firmware", ["reset"]),
        ("u-boot-qemu", "usr/lib/u-boot/qemu-x86_64/u-boot.rom", "firmware", ["reset"]),
        ("qemu-system-data", "usr/share/qemu/qboot.rom", "firmware", ["reset"]),
        ("grub-coreboot-bin", "usr/lib/grub/i386-coreboot/kernel.img", "multiboot", ["multiboot"]),
        ("xen-hypervisor-4.17-amd64", "boot/xen-4.17-amd64.gz", "multiboot2", ["multiboot2", "multiboot"]),
    ],
)
def test_image_is_inspected_and_planned(package: str, path: str, kind: str, entries: list[str]) -> None:
    image = file_of(package, path)
    found = inspect(image)
    assert (found["format"], found["entries"]) == (kind, entries)
    for entry in entries:
        with BootPlan(image, 64 << 20, entry=entry) as plan:
            assert plan.entry == entry


def test_ovmf_with_its_variables_fills_4_mib() -> None:
    folder = file_of("ovmf", "usr/share/OVMF")
    variables = folder / "OVMF_VARS_4M.fd"
    with BootPlan(folder / "OVMF_CODE_4M.fd", 64 << 20, variables=variables) as plan:
        assert min(start for start, _ in plan.roms) == 0xFFC00000
    with pytest.raises(NotAKernel, match="variable store"):
        inspect(variables)


def load_image(image: Path, found: dict[str, Any]) -> None:
    """Load an Image above its RAM's start, as it is and compressed, and compare what is in memory then."""
    base, end = 0x80000000, found["text_offset"] + found["image_size"]
    content = image.read_bytes() if found["compression"] is None else extract(image)
    for kernel in (image, gzip.compress(content, 1)):
        with GuestMemoryMmap.from_ranges([(base, end)]) as memory:
            memory.write_slice(b"\xaa" * (1 << 20), base + end - (1 << 20))
            loaded = Image.load(memory, base, kernel, base)
            assert (loaded.kernel_load, loaded.kernel_end) == (base + found["text_offset"], base + end)
            written = bytearray(found["image_size"])
            memory.read_slice(written, loaded.kernel_load)
            assert written == content.ljust(found["image_size"], b"\0")
    with GuestMemoryMmap.from_ranges([(base, end - 1)]) as memory, pytest.raises(MemoryTooSmall):
        Image.load(memory, base, image)


@pytest.mark.slow  # package lists of their own and up to 80 MB for each kernel
@pytest.mark.parametrize(
    ("architecture", "package", "suite", "release"),
    [
        ("amd64", "linux-image-cloud-amd64", "bookworm", "6.1."),
        ("amd64", "linux-image-cloud-amd64", "bookworm-backports", "6.12."),
        ("arm64", "linux-image-cloud-arm64", "bookworm", "6.1."),
        ("riscv64", "linux-image-riscv64", "trixie", "6."),
    ],
)
def test_debians_kernels(architecture: str, package: str, suite: str, release: str) -> None:
    try:
        image = packages.foreign_kernel(architecture, package, suite)
    except GuestError as error:
        pytest.skip(str(error).splitlines()[-1])
    found = inspect(image)
    if architecture == "amd64":
        assert (found["format"], found["arch"]) == ("bzimage", "x86_64")
        assert found["entries"] == ["linux64", "linux32", "linux16"]
        assert found["version"].startswith(release)
        inside = inspect(extract(image))
        assert (inside["format"], inside["entries"]) == ("elf64", ["pvh", "linux64"])
        assert inside["version"] == found["version"].split()[0]
        loaded = BzImage.load(GuestMemoryMmap.from_ranges([(0, 256 << 20)]), None, image)
        assert loaded.setup_header is not None
    else:
        assert (found["format"], found["arch"]) == (f"{architecture}-image", architecture)
        assert found["version"].startswith(release)
        load_image(image, found)
    for entry in found["entries"]:
        with BootPlan(image, 512 << 20, "console=ttyS0", vcpus=2, entry=entry) as plan:
            assert plan.entry == entry
            with GuestMemoryMmap.from_ranges(plan.ranges) as memory:
                plan.apply(memory)
            if architecture != "amd64":
                ids = {"arm64": arm64_registers, "riscv64": riscv64_registers}[architecture]
                assert plan.boot_registers["pc"] in dict(ids.one_regs(plan.boot_registers)).values()
                tree = next(placed for placed in plan.placements if placed.name == "device tree")
                assert tree.start in plan.boot_registers.values()
