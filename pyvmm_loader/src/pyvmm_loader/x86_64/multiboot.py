"""Multiboot 1: the information that a kernel is given.

Source: Multiboot Specification version 0.6.96, sections 3.2 and 3.3.
"""

from __future__ import annotations

from struct import Struct

from pyvmm_loader.errors import ProtocolViolation
from pyvmm_loader.fields import pack
from pyvmm_loader.images.multiboot1_header import find
from pyvmm_loader.x86_64.multiboot_image import CMDLINE_SIZE, LOADER_NAME, add_pieces, amounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm_loader.images.elf import ElfFile
    from pyvmm_loader.images.multiboot import MultibootFile
    from pyvmm_loader.images.pieces import Loadable
    from pyvmm_loader.plan.layout import Layout, Module
    from pyvmm_loader.x86_64.e820 import E820Entry
    from pyvmm_loader.x86_64.registers import Registers

BOOTLOADER_MAGIC = 0x2BADB002
INFO = Struct("<7I16x6I")
INFO_SIZE = 116
HAS_MEMORY, HAS_CMDLINE, HAS_MODULES, HAS_MMAP, HAS_NAME = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
MODULE = Struct("<IIII")
MMAP_ENTRY = Struct("<IQQI")


def info(
    at: int, cmdline: bytes, entries: Sequence[E820Entry], modules: Sequence[Module], lower: int, upper: int
) -> bytes:
    """Return the information structure with everything it points to, to lie at `at`.

    `lower` and `upper` are KiB of RAM from 0 and from 1 MiB.
    """
    flags = HAS_MEMORY | HAS_CMDLINE | HAS_MODULES | HAS_MMAP | HAS_NAME
    table = b"".join([pack(MMAP_ENTRY.format, MMAP_ENTRY.size - 4, e.addr, e.size, e.type) for e in entries])
    mmap_at = at + INFO_SIZE
    modules_at = mmap_at + len(table)
    name_at = modules_at + MODULE.size * len(modules)
    cmdline_at = name_at + len(LOADER_NAME)
    strings = LOADER_NAME + cmdline
    rows = b""
    for module in modules:
        rows += pack(MODULE.format, module.start, module.start + module.size, name_at + len(strings), 0)
        strings += module.text.encode("ascii") + b"\0"
    head = pack(
        INFO.format, flags, lower, upper, 0, cmdline_at, len(modules), modules_at if modules else 0,
        len(table), mmap_at, 0, 0, 0, name_at,
    )  # fmt: skip
    return head.ljust(INFO_SIZE, b"\0") + table + rows + strings


def plan(boot: Layout, image: ElfFile | MultibootFile, cmdline: str) -> Registers:
    """Plan a kernel by its multiboot 1 header."""
    from pyvmm_loader.x86_64 import bios, registers

    header = find(image.view)
    if header is None:
        raise ProtocolViolation(f"{image.name}: no multiboot header")
    loadable: Loadable = image.loadable(header)
    end = add_pieces(boot, image.view, loadable)
    boot.e820 = boot.memory_map()
    line = boot.parse_cmdline(cmdline, CMDLINE_SIZE)
    modules = boot.add_modules(end, 0xFFFFFFFF)
    # a PC's protocol: Xen goes back to real mode and asks the BIOS, and finds its low memory by the data area
    bios.add(boot)
    lower, upper = amounts(boot.ranges)
    at = boot.find_room(len(info(0, line, boot.e820, modules, lower, upper)))
    block = info(at, line, boot.e820, modules, lower, upper)
    boot.add(at, block, "multiboot info", "ebx points here; memory map, modules and strings follow")
    return registers.multiboot(loadable.entry, BOOTLOADER_MAGIC, at)
