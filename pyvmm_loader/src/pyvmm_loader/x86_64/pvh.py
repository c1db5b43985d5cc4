"""PVH's start_info: command line, modules and memory map for a 32-bit entry.

Source: Xen's public/arch-x86/hvm/start_info.h.
"""

from __future__ import annotations

from struct import Struct

from pyvmm_loader.errors import ProtocolViolation
from pyvmm_loader.fields import pack
from pyvmm_loader.x86_64.e820 import check_entries
from pyvmm_loader.x86_64.layout import (
    CMDLINE_START,
    PVH_INFO_START,
    PVH_MEMMAP_MAX,
    PVH_MEMMAP_START,
    PVH_MODLIST_MAX,
    PVH_MODLIST_START,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm_loader.images.elf import ElfFile
    from pyvmm_loader.plan.layout import Layout
    from pyvmm_loader.x86_64.e820 import E820Entry
    from pyvmm_loader.x86_64.registers import Registers

XEN_HVM_START_MAGIC_VALUE = 0x336EC578
START_INFO = Struct("<IIIIQQQQII")
MODLIST_ENTRY = Struct("<QQQQ")
MEMMAP_ENTRY = Struct("<QQII")

# COMMAND_LINE_SIZE of Linux on x86 is 2048 with the NUL.
CMDLINE_SIZE = 2047
INITRD_ADDR_MAX = 0x7FFFFFFF


def plan(boot: Layout, elf: ElfFile, cmdline: str) -> Registers:
    """Plan an ELF kernel by the entry that its PVH note names."""
    from pyvmm_loader.x86_64 import registers
    from pyvmm_loader.x86_64.linux_boot import add_segments

    entry = elf.pvh_entry()
    if entry is None:
        raise ProtocolViolation(f"{elf.name}: no PVH note")
    end = add_segments(boot, elf)
    boot.add_cmdline(cmdline, CMDLINE_SIZE)
    modules = boot.add_modules(end, INITRD_ADDR_MAX)
    boot.e820 = boot.memory_map()
    rows: list[tuple[int, int, int]] = []
    words = "".join([f"{module.text}\0" for module in modules if module.text]).encode("ascii")
    at = boot.find_room(len(words)) if words else 0
    if words:
        boot.add(at, words, "module words", "PVH: the command lines of the modules")
    for module in modules:
        rows.append((module.start, module.size, at if module.text else 0))
        at += len(module.text) + 1 if module.text else 0
    info = start_info(CMDLINE_START, boot.e820, rows, boot.rsdp)
    boot.add(PVH_INFO_START, info, "start_info", "PVH: ebx points here; modules and memory map follow")
    return registers.pvh(entry)


def start_info(
    cmdline: int, entries: Sequence[E820Entry], modules: Sequence[tuple[int, int, int]] = (), rsdp: int = 0
) -> bytes:
    """Return start_info, module list and memory map as one block for PVH_INFO_START.

    `cmdline` and `rsdp` are addresses, `modules` are (address, size, address of its words or 0), the
    first one the initrd.
    """
    if len(modules) > PVH_MODLIST_MAX or len(entries) > PVH_MEMMAP_MAX:
        raise ProtocolViolation(
            f"{len(modules)} modules, {len(entries)} ranges: more than {PVH_MODLIST_MAX} and {PVH_MEMMAP_MAX}"
        )
    check_entries(entries)
    if any(start + size > 1 << 64 for start, size, _ in modules):
        raise ProtocolViolation("a module that leaves the 64 bits of addresses", modules=list(modules))
    info = pack(
        START_INFO.format, XEN_HVM_START_MAGIC_VALUE, 1, 0, len(modules), PVH_MODLIST_START if modules else 0,
        cmdline, rsdp, PVH_MEMMAP_START, len(entries), 0,
    )  # fmt: skip
    block = info.ljust(PVH_MODLIST_START - PVH_INFO_START, b"\0")
    block += b"".join([pack(MODLIST_ENTRY.format, start, size, words, 0) for start, size, words in modules])
    block = block.ljust(PVH_MEMMAP_START - PVH_INFO_START, b"\0")
    return block + b"".join([pack(MEMMAP_ENTRY.format, entry.addr, entry.size, entry.type, 0) for entry in entries])
