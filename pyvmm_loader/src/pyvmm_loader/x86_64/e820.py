"""The e820 map: which physical addresses are RAM.

Source: ACPI 6.5, section 15; the kernel's arch/x86/include/uapi/asm/setup_data.h for the layout.
"""

from __future__ import annotations

from struct import Struct

from pyvmm_loader import fields
from pyvmm_loader.errors import ProtocolViolation
from pyvmm_loader.x86_64.layout import EBDA_START, HIMEM_START, MPTABLE_START, VGA_START

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

RAM, RESERVED, ACPI, NVS = 1, 2, 3, 4
NAMES = {RAM: "RAM", RESERVED: "reserved", ACPI: "ACPI", NVS: "NVS"}
ENTRY = Struct("<QQI")
MAX_ENTRIES = 128  # E820_MAX_ENTRIES_ZEROPAGE


class E820Entry:
    """One range: `addr`, `size`, `type` (1 RAM, 2 reserved, 3 ACPI, 4 NVS)."""

    __slots__ = ("addr", "size", "type")

    def __init__(self, addr: int, size: int, type: int) -> None:  # noqa: A002 - the field's name
        self.addr = addr
        self.size = size
        self.type = type

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, E820Entry):
            return NotImplemented
        return (self.addr, self.size, self.type) == (other.addr, other.size, other.type)

    def __hash__(self) -> int:
        return hash((self.addr, self.size, self.type))

    def __repr__(self) -> str:
        return f"<E820 {self.addr:#x}..{self.addr + self.size:#x} {NAMES.get(self.type, self.type)}>"


def e820(
    ranges: Iterable[tuple[int, int]],
    reserved: Iterable[tuple[int, int]] = (),
    firmware: Iterable[E820Entry] = (),
) -> list[E820Entry]:
    """Build the map of (start, size) pairs of RAM, minus what firmware keeps: EBDA, VGA and the table areas.

    `reserved` are (start, size) pairs, `firmware` entries of other types, which are no RAM either. Raises
    ProtocolViolation when the map has more than the 128 entries that the zero page holds, or where ranges of RAM are
    empty, overlap or leave 64 bits: a kernel would count them twice, or take addresses that wrap around.

    >>> e820([(0, 64 << 20)])[0]
    <E820 0x0..0x9fc00 RAM>
    """
    ranges, reserved = list(ranges), list(reserved)
    check_ram(ranges)
    holes = sorted([(EBDA_START, VGA_START - EBDA_START), *reserved, (MPTABLE_START, HIMEM_START - MPTABLE_START)])
    kept = list(firmware)
    entries = [E820Entry(start, size, RESERVED) for start, size in holes] + kept
    # 0xA0000..0xF0000 is VGA memory and option ROMs on a PC: not RAM, and not reserved either.
    cut = sorted([*holes, (VGA_START, MPTABLE_START - VGA_START), *[(entry.addr, entry.size) for entry in kept]])
    for start, size in ranges:
        at, end = start, start + size
        for hole, length in cut:
            if hole < end and hole + length > at:
                if hole > at:
                    entries.append(E820Entry(at, hole - at, RAM))
                at = max(at, hole + length)
        if at < end:
            entries.append(E820Entry(at, end - at, RAM))
    entries.sort(key=lambda entry: entry.addr)
    check_entries(entries)
    return entries


def check_ram(ranges: Iterable[tuple[int, int]]) -> None:
    """Raise ProtocolViolation where (start, size) pairs are empty, overlap or leave the 64 bits of addresses."""
    end = 0
    for start, size in sorted(ranges):
        if size <= 0 or start < end or start + size > 1 << 64:
            raise ProtocolViolation(
                f"RAM of {size:#x} bytes at {start:#x} is empty, overlaps other RAM or leaves 64 bits", start=start
            )
        end = start + size


def check_entries(entries: Iterable[E820Entry]) -> None:
    """Raise where a map has more entries than the zero page, or one that is empty or leaves 64 bits."""
    listed = list(entries)
    if len(listed) > MAX_ENTRIES:
        raise ProtocolViolation(f"{len(listed)} memory ranges; the zero page holds {MAX_ENTRIES}; merge some")
    for entry in listed:
        fields.pack(ENTRY.format, entry.addr, entry.size, entry.type)
        if not entry.size or entry.addr + entry.size > 1 << 64:
            raise ProtocolViolation(f"{entry!r} is empty or leaves 64 bits; leave it out", start=entry.addr)


def pack(entries: Iterable[E820Entry]) -> bytes:
    """Return the table as the zero page holds it, 20 bytes an entry; raises as `check_entries`."""
    listed = list(entries)
    check_entries(listed)
    return b"".join([ENTRY.pack(entry.addr, entry.size, entry.type) for entry in listed])
