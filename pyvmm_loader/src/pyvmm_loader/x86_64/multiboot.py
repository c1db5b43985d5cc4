"""Multiboot 1: the header that a kernel carries, and the information that it is given.

Source: Multiboot Specification version 0.6.96, sections 3.1 to 3.3.
"""

from __future__ import annotations

from struct import Struct

from pyvmm_loader.errors import ProtocolViolation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm_loader.images.elf import ElfFile
    from pyvmm_loader.memory import Loadable
    from pyvmm_loader.plan.plan import BootPlan, Module
    from pyvmm_loader.x86_64.e820 import E820Entry
    from pyvmm_loader.x86_64.multiboot_image import MultibootFile
    from pyvmm_loader.x86_64.registers import Registers

HEADER_MAGIC, BOOTLOADER_MAGIC = 0x1BADB002, 0x2BADB002
SEARCH = 8192
"""3.1: "completely within the first 8192 bytes", "longword (32-bit) aligned"."""
FIELDS = Struct("<III")
ADDRESSES = Struct("<IIIII")
PAGE_ALIGN, MEMORY_INFO, VIDEO_MODE, ADDRESS_FIELDS = 1 << 0, 1 << 1, 1 << 2, 1 << 16
UNDERSTOOD = PAGE_ALIGN | MEMORY_INFO | VIDEO_MODE
REQUIRED = 0xFFFF

INFO = Struct("<7I16x6I")
INFO_SIZE = 116
HAS_MEMORY, HAS_CMDLINE, HAS_MODULES, HAS_MMAP, HAS_NAME = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
MODULE = Struct("<IIII")
MMAP_ENTRY = Struct("<IQQI")
LOADER_NAME = b"pyvmm\0"
CMDLINE_SIZE = 4095


class Header:
    """A header whose checksum is right: `offset` in the file, `flags`, and `addresses` where it has them."""

    __slots__ = ("addresses", "flags", "offset")

    def __init__(self, offset: int, flags: int, addresses: tuple[int, int, int, int, int] | None) -> None:
        self.offset = offset
        self.flags = flags
        self.addresses = addresses

    def refusal(self) -> str | None:
        """Say why the kernel cannot be started as it asks, or return None."""
        # 3.1.2: for a bit of 0..15 that it does not understand, the loader "must notify the user and fail".
        unknown = self.flags & REQUIRED & ~UNDERSTOOD
        if unknown:
            return f"its multiboot header requires features that multiboot 1 does not define (flags {unknown:#x})"
        return None


def find(view: memoryview) -> Header | None:
    """Return the first valid header, or None."""
    head = bytes(view[:SEARCH])
    magic = HEADER_MAGIC.to_bytes(4, "little")
    at = head.find(magic)
    while at >= 0:
        if at % 4 == 0 and at + FIELDS.size <= len(head):
            _, flags, checksum = FIELDS.unpack_from(head, at)
            if HEADER_MAGIC + flags + checksum & 0xFFFFFFFF == 0:
                addresses = None
                if flags & ADDRESS_FIELDS and at + FIELDS.size + ADDRESSES.size <= len(head):
                    addresses = ADDRESSES.unpack_from(head, at + FIELDS.size)
                return Header(at, flags, addresses)
        at = head.find(magic, at + 1)
    return None


def info(
    at: int, cmdline: bytes, entries: Sequence[E820Entry], modules: Sequence[Module], lower: int, upper: int
) -> bytes:
    """Return the information structure with everything it points to, to lie at `at`.

    `lower` and `upper` are KiB of RAM from 0 and from 1 MiB.
    """
    flags = HAS_MEMORY | HAS_CMDLINE | HAS_MODULES | HAS_MMAP | HAS_NAME
    table = b"".join([MMAP_ENTRY.pack(MMAP_ENTRY.size - 4, e.addr, e.size, e.type) for e in entries])
    mmap_at = at + INFO_SIZE
    modules_at = mmap_at + len(table)
    name_at = modules_at + MODULE.size * len(modules)
    cmdline_at = name_at + len(LOADER_NAME)
    strings = LOADER_NAME + cmdline
    rows = b""
    for module in modules:
        rows += MODULE.pack(module.start, module.start + module.size, name_at + len(strings), 0)
        strings += module.text.encode("ascii") + b"\0"
    head = INFO.pack(
        flags, lower, upper, 0, cmdline_at, len(modules), modules_at if modules else 0,
        len(table), mmap_at, 0, 0, 0, name_at,
    )  # fmt: skip
    return head.ljust(INFO_SIZE, b"\0") + table + rows + strings


def amounts(ranges: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return KiB of RAM below 640 KiB and from 1 MiB to the first hole, as mem_lower and mem_upper want them."""
    from pyvmm_loader.x86_64.layout import EBDA_START, HIMEM_START

    upper = max([start + size - HIMEM_START for start, size in ranges if start <= HIMEM_START], default=0)
    return EBDA_START >> 10, max(0, upper) >> 10


def plan(boot: BootPlan, image: ElfFile | MultibootFile, cmdline: str) -> Registers:
    """Plan a kernel by its multiboot 1 header."""
    from pyvmm_loader.x86_64 import bios, registers
    from pyvmm_loader.x86_64.multiboot_image import add_pieces

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
