"""Kernels in every boot protocol, the command line, the initrd and the tables a guest reads.

A kernel file is useless to a CPU that stands at its reset vector: somebody has to put its segments where they were
linked, leave a description of the machine where the kernel looks for it, and set the registers as its boot protocol
demands. `BootPlan` decides all of that for a file and a memory, says it as text, and writes it::

    with BootPlan("vmlinux", 256 << 20, "console=ttyS0", vcpus=2) as plan:
        print(plan)
        plan.apply(memory)
        plan.registers.copy_to(regs, sregs)

`images` says what a file is, `plan` says where things go, and the boot protocols under `x86_64`, `aarch64` and
`riscv64` write into the plan's layout. Below are the loaders (`Elf`, `BzImage`, `Image`), which only place one file,
and what the guest reads: `Cmdline`, the tables under `x86_64`, `acpi` and `smbios`, device trees under `fdt` with those
of whole machines under `aarch64` and `riscv64`, and `Initramfs`. Everything is imported when it is first used: starting
a guest pays for what it needs.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_loader.acpi.tables import AcpiTables as AcpiTables
    from pyvmm_loader.cmdline import Cmdline as Cmdline
    from pyvmm_loader.compression.compress import compress as compress
    from pyvmm_loader.compression.decompress import UnsupportedCompression as UnsupportedCompression
    from pyvmm_loader.errors import CmdlineError as CmdlineError
    from pyvmm_loader.errors import EntryNotOffered as EntryNotOffered
    from pyvmm_loader.errors import FieldRange as FieldRange
    from pyvmm_loader.errors import HasEquals as HasEquals
    from pyvmm_loader.errors import HasSpace as HasSpace
    from pyvmm_loader.errors import ImageEmpty as ImageEmpty
    from pyvmm_loader.errors import ImageError as ImageError
    from pyvmm_loader.errors import ImageNotFound as ImageNotFound
    from pyvmm_loader.errors import ImageTruncated as ImageTruncated
    from pyvmm_loader.errors import InitrdTooLarge as InitrdTooLarge
    from pyvmm_loader.errors import InvalidAscii as InvalidAscii
    from pyvmm_loader.errors import InvalidCapacity as InvalidCapacity
    from pyvmm_loader.errors import InvalidHeader as InvalidHeader
    from pyvmm_loader.errors import InvalidQuote as InvalidQuote
    from pyvmm_loader.errors import LoaderError as LoaderError
    from pyvmm_loader.errors import MemoryTooSmall as MemoryTooSmall
    from pyvmm_loader.errors import MissingVal as MissingVal
    from pyvmm_loader.errors import MmioSize as MmioSize
    from pyvmm_loader.errors import NoBootArgsInserted as NoBootArgsInserted
    from pyvmm_loader.errors import NoQuoteSpace as NoQuoteSpace
    from pyvmm_loader.errors import NotAKernel as NotAKernel
    from pyvmm_loader.errors import Overlap as Overlap
    from pyvmm_loader.errors import PlacementError as PlacementError
    from pyvmm_loader.errors import ProtocolViolation as ProtocolViolation
    from pyvmm_loader.errors import TooLarge as TooLarge
    from pyvmm_loader.errors import WrongArchitecture as WrongArchitecture
    from pyvmm_loader.fdt.reader import read_fdt as read_fdt
    from pyvmm_loader.fdt.tree import Fdt as Fdt
    from pyvmm_loader.images.acpi_support import reads_acpi as reads_acpi
    from pyvmm_loader.images.bzimage import BzImage as BzImage
    from pyvmm_loader.images.elf import Elf as Elf
    from pyvmm_loader.images.extraction import extract as extract
    from pyvmm_loader.images.firmware import Firmware as Firmware
    from pyvmm_loader.images.flat import Flat as Flat
    from pyvmm_loader.images.image import Image as Image
    from pyvmm_loader.images.inspection import inspect as inspect
    from pyvmm_loader.images.result import KernelLoaderResult as KernelLoaderResult
    from pyvmm_loader.images.result import PvhBootCapability as PvhBootCapability
    from pyvmm_loader.initrd.bootconfig import append_bootconfig as append_bootconfig
    from pyvmm_loader.initrd.bootconfig import split_bootconfig as split_bootconfig
    from pyvmm_loader.initrd.initramfs import Initramfs as Initramfs
    from pyvmm_loader.initrd.initramfs import read_initramfs as read_initramfs
    from pyvmm_loader.initrd.initramfs_reader import read_archives as read_archives
    from pyvmm_loader.initrd.initrd import join_initrds as join_initrds
    from pyvmm_loader.initrd.initrd import microcode_archive as microcode_archive
    from pyvmm_loader.initrd.initrd import place_initrd as place_initrd
    from pyvmm_loader.plan.placement import Placement as Placement
    from pyvmm_loader.plan.plan import BootPlan as BootPlan
    from pyvmm_loader.smbios.tables import Smbios as Smbios
    from pyvmm_loader.x86_64.layout import split_ram as split_ram

_HOMES = {
    "acpi.tables": "AcpiTables",
    "cmdline": "Cmdline",
    "compression.compress": "compress",
    "compression.decompress": "UnsupportedCompression",
    "errors": (
        "CmdlineError EntryNotOffered FieldRange HasEquals HasSpace ImageEmpty ImageError ImageNotFound "
        "ImageTruncated InitrdTooLarge InvalidAscii InvalidCapacity InvalidHeader InvalidQuote LoaderError "
        "MemoryTooSmall MissingVal MmioSize NoBootArgsInserted NoQuoteSpace NotAKernel Overlap PlacementError "
        "ProtocolViolation TooLarge WrongArchitecture"
    ),
    "fdt.reader": "read_fdt",
    "fdt.tree": "Fdt",
    "images.acpi_support": "reads_acpi",
    "images.bzimage": "BzImage",
    "images.elf": "Elf",
    "images.extraction": "extract",
    "images.firmware": "Firmware",
    "images.flat": "Flat",
    "images.image": "Image",
    "images.inspection": "inspect",
    "images.result": "KernelLoaderResult PvhBootCapability",
    "initrd.bootconfig": "append_bootconfig split_bootconfig",
    "initrd.initramfs": "Initramfs read_initramfs",
    "initrd.initramfs_reader": "read_archives",
    "initrd.initrd": "join_initrds microcode_archive place_initrd",
    "plan.placement": "Placement",
    "plan.plan": "BootPlan",
    "smbios.tables": "Smbios",
    "x86_64.layout": "split_ram",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
