"""Multiboot 2: the tags of information that a kernel is given.

Source: Multiboot2 Specification version 2.0, sections 3.2 to 3.6.
"""

from __future__ import annotations

from pyvmm_loader.errors import ProtocolViolation
from pyvmm_loader.fields import pack
from pyvmm_loader.images.multiboot2_header import (
    INFO_CMDLINE,
    INFO_END,
    INFO_LOAD_BASE,
    INFO_MEMORY,
    INFO_MMAP,
    INFO_MODULE,
    INFO_NAME,
    find,
)
from pyvmm_loader.x86_64.multiboot_image import CMDLINE_SIZE, LOADER_NAME, add_pieces, amounts, relocate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm_loader.images.elf import ElfFile
    from pyvmm_loader.images.multiboot import MultibootFile
    from pyvmm_loader.images.pieces import Loadable
    from pyvmm_loader.plan.layout import Layout, Module
    from pyvmm_loader.x86_64.e820 import E820Entry
    from pyvmm_loader.x86_64.registers import Registers

BOOTLOADER_MAGIC = 0x36D76289


def _tag(kind: int, body: bytes) -> bytes:
    size = 8 + len(body)
    return pack("<II", kind, size) + body + bytes(-size % 8)


def info(
    cmdline: bytes,
    entries: Sequence[E820Entry],
    modules: Sequence[Module],
    lower: int,
    upper: int,
    load_base: int | None = None,
) -> bytes:
    """Return the boot information; `lower` and `upper` are KiB of RAM from 0 and from 1 MiB."""
    tags = _tag(INFO_CMDLINE, cmdline) + _tag(INFO_NAME, LOADER_NAME)
    for module in modules:
        ends = pack("<II", module.start, module.start + module.size)
        tags += _tag(INFO_MODULE, ends + module.text.encode("ascii") + b"\0")
    tags += _tag(INFO_MEMORY, pack("<II", lower, upper))
    rows = [pack("<QQII", entry.addr, entry.size, entry.type, 0) for entry in entries]
    tags += _tag(INFO_MMAP, pack("<II", 24, 0) + b"".join(rows))
    if load_base is not None:
        tags += _tag(INFO_LOAD_BASE, pack("<I", load_base))
    tags += _tag(INFO_END, b"")
    return pack("<II", 8 + len(tags), 0) + tags


def plan(boot: Layout, image: ElfFile | MultibootFile, cmdline: str) -> Registers:
    """Plan a kernel by its multiboot 2 header."""
    from pyvmm_loader.x86_64 import bios, registers

    header = find(image.view)
    if header is None:
        raise ProtocolViolation(f"{image.name}: no multiboot2 header")
    loadable: Loadable = image.loadable(header)
    base = None
    if header.relocation is not None:
        relocate(boot, image.name, loadable, header.relocation)
        base = loadable.start
    end = add_pieces(boot, image.view, loadable)
    boot.e820 = boot.memory_map()
    line = boot.parse_cmdline(cmdline, CMDLINE_SIZE)
    modules = boot.add_modules(end, 0xFFFFFFFF)
    # a PC's protocol: Xen goes back to real mode and asks the BIOS, and finds its low memory by the data area
    bios.add(boot)
    block = info(line, boot.e820, modules, *amounts(boot.ranges), base)
    at = boot.find_room(len(block))
    boot.add(at, block, "multiboot2 info", "ebx points here; tags with memory map, modules and command line")
    return registers.multiboot(loadable.entry, BOOTLOADER_MAGIC, at)
