"""Kernels in every boot protocol, the command line, the initrd and the tables a guest reads.

A kernel file is useless to a CPU that stands at its reset vector: somebody has to put its segments where they were
linked, leave a description of the machine where the kernel looks for it, and set the registers as its boot protocol
demands. `BootPlan` decides all of that for a file and a memory, says it as text, and writes it::

    with BootPlan("vmlinux", 256 << 20, "console=ttyS0", vcpus=2) as plan:
        print(plan)
        plan.apply(memory)
        plan.registers.copy_to(regs, sregs)

Below it are the loaders (`Elf`, `BzImage`, `Image`), which only place one file, and what the guest reads: `Cmdline`,
the tables under `x86_64`, `acpi` and `smbios`, device trees under `fdt` with those of whole machines under `aarch64`
and `riscv64`, and `Initramfs`. Everything is imported when it is first used: starting a guest pays for what it needs.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_loader.acpi.tables import AcpiTables
    from pyvmm_loader.cmdline import Cmdline
    from pyvmm_loader.compression.compress import compress
    from pyvmm_loader.compression.decompress import UnsupportedCompression
    from pyvmm_loader.errors import (
        CmdlineError,
        EntryNotOffered,
        FieldRange,
        HasEquals,
        HasSpace,
        ImageEmpty,
        ImageError,
        ImageNotFound,
        ImageTruncated,
        InitrdTooLarge,
        InvalidAscii,
        InvalidCapacity,
        InvalidHeader,
        InvalidQuote,
        LoaderError,
        MemoryTooSmall,
        MissingVal,
        MmioSize,
        NoBootArgsInserted,
        NoQuoteSpace,
        NotAKernel,
        Overlap,
        PlacementError,
        ProtocolViolation,
        TooLarge,
        WrongArchitecture,
    )
    from pyvmm_loader.fdt.reader import read_fdt
    from pyvmm_loader.fdt.tree import Fdt
    from pyvmm_loader.images.bzimage import BzImage
    from pyvmm_loader.images.elf import Elf
    from pyvmm_loader.images.extraction import extract
    from pyvmm_loader.images.firmware import Firmware
    from pyvmm_loader.images.flat import Flat
    from pyvmm_loader.images.image import Image
    from pyvmm_loader.images.inspection import inspect
    from pyvmm_loader.images.result import KernelLoaderResult, PvhBootCapability
    from pyvmm_loader.initrd.bootconfig import append_bootconfig, split_bootconfig
    from pyvmm_loader.initrd.initramfs import Initramfs, read_initramfs
    from pyvmm_loader.initrd.initramfs_reader import read_archives
    from pyvmm_loader.initrd.initrd import join_initrds, microcode_archive, place_initrd
    from pyvmm_loader.plan.placement import Placement
    from pyvmm_loader.plan.plan import BootPlan
    from pyvmm_loader.smbios.tables import Smbios
    from pyvmm_loader.x86_64.layout import split_ram

_HOME = {
    "AcpiTables": "acpi.tables",
    "Smbios": "smbios.tables",
    "Fdt": "fdt.tree",
    "read_fdt": "fdt.reader",
    "join_initrds": "initrd.initrd",
    "microcode_archive": "initrd.initrd",
    "append_bootconfig": "initrd.bootconfig",
    "split_bootconfig": "initrd.bootconfig",
    "compress": "compression.compress",
    "read_archives": "initrd.initramfs_reader",
    "BzImage": "images.bzimage",
    "Cmdline": "cmdline",
    "Elf": "images.elf",
    "UnsupportedCompression": "compression.decompress",
    "extract": "images.extraction",
    "Firmware": "images.firmware",
    "Flat": "images.flat",
    "Image": "images.image",
    "Initramfs": "initrd.initramfs",
    "place_initrd": "initrd.initrd",
    "read_initramfs": "initrd.initramfs",
    "inspect": "images.inspection",
    "BootPlan": "plan.plan",
    "Placement": "plan.placement",
    "KernelLoaderResult": "images.result",
    "PvhBootCapability": "images.result",
    "split_ram": "x86_64.layout",
}

__all__ = [
    "AcpiTables",
    "BootPlan",
    "BzImage",
    "Cmdline",
    "CmdlineError",
    "Elf",
    "EntryNotOffered",
    "Fdt",
    "FieldRange",
    "Firmware",
    "Flat",
    "HasEquals",
    "HasSpace",
    "Image",
    "ImageEmpty",
    "ImageError",
    "ImageNotFound",
    "ImageTruncated",
    "Initramfs",
    "InitrdTooLarge",
    "InvalidAscii",
    "InvalidCapacity",
    "InvalidHeader",
    "InvalidQuote",
    "KernelLoaderResult",
    "LoaderError",
    "MemoryTooSmall",
    "MissingVal",
    "MmioSize",
    "NoBootArgsInserted",
    "NoQuoteSpace",
    "NotAKernel",
    "Overlap",
    "Placement",
    "PlacementError",
    "ProtocolViolation",
    "PvhBootCapability",
    "Smbios",
    "TooLarge",
    "UnsupportedCompression",
    "WrongArchitecture",
    "append_bootconfig",
    "compress",
    "extract",
    "inspect",
    "join_initrds",
    "microcode_archive",
    "place_initrd",
    "read_archives",
    "read_fdt",
    "read_initramfs",
    "split_bootconfig",
    "split_ram",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
