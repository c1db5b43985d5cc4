"""A walk through the guest's own page tables (Intel SDM volume 3, chapter 4): 32-bit, PAE, 4-level and 5-level."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyvmm_kvm.x86_64.structs import Sregs

    ReadPhysical = Callable[[int, int], bytes]

_PRESENT, _WRITE, _USER, _LARGE, _NX = 1 << 0, 1 << 1, 1 << 2, 1 << 7, 1 << 63
_ADDRESS = 0x000F_FFFF_FFFF_F000


class Mapping:
    """Where a linear address leads: `physical`, the page's `size`, and what is allowed there."""

    __slots__ = ("entries", "executable", "linear", "physical", "size", "user", "writable")

    def __init__(
        self, linear: int, physical: int, size: int, writable: bool, user: bool, executable: bool, entries: list[int]
    ) -> None:
        self.linear = linear
        self.physical = physical
        self.size = size
        self.writable = writable
        self.user = user
        self.executable = executable
        self.entries = entries

    def __repr__(self) -> str:
        rights = f"r{'w' if self.writable else '-'}{'x' if self.executable else '-'}{'u' if self.user else 's'}"
        return f"<Mapping {self.linear:#x} -> {self.physical:#x} {rights} page {self.size:#x}>"


def walk(sregs: Sregs, read: ReadPhysical, linear: int) -> Mapping | None:
    """Follow the tables for one address; None where an entry is not present.

    Args:
        sregs: the vCPU's special registers, which say the format and the root.
        read: `read(address, length)` of guest physical memory.
        linear: the address, canonical in long mode.
    """
    paging = sregs.paging
    if paging == "none":
        return Mapping(linear, linear & 0xFFFFFFFF, 1 << 32, True, True, True, [])
    # (lowest bit, bits of index) of each level, from the root
    levels = {
        "32-bit": ((22, 10), (12, 10)),
        "PAE": ((30, 2), (21, 9), (12, 9)),
        "4-level": ((39, 9), (30, 9), (21, 9), (12, 9)),
        "5-level": ((48, 9), (39, 9), (30, 9), (21, 9), (12, 9)),
    }[paging]
    width = 4 if paging == "32-bit" else 8
    table = sregs.cr3 & (~0x1F & 0xFFFFFFFF if paging == "PAE" else _ADDRESS)
    writable = user = executable = True
    entries = []
    for shift, bits in levels:
        index = linear >> shift & (1 << bits) - 1
        entry = int.from_bytes(read(table + index * width, width), "little")
        if not entry & _PRESENT:
            return None
        entries.append(entry)
        # the pointers of PAE have no rights of their own
        if not (paging == "PAE" and shift == 30):
            writable &= bool(entry & _WRITE)
            user &= bool(entry & _USER)
        executable &= not entry & _NX
        large = (
            entry & _LARGE
            and shift in ((22,) if paging == "32-bit" else (30, 21))
            and not (paging == "PAE" and shift == 30)
        )
        if large or shift == 12:
            size = 1 << shift
            base = entry & _ADDRESS & ~(size - 1)
            if large and paging == "32-bit":
                # PSE-36: bits 13 to 20 are bits 32 to 39 of the address
                base = entry & 0xFFC00000 | (entry >> 13 & 0xFF) << 32
            return Mapping(linear, base | linear & size - 1, size, writable, user, executable, entries)
        table = entry & _ADDRESS
    return None


def mappings(sregs: Sregs, read: ReadPhysical, start: int, end: int, limit: int = 65536) -> Iterator[Mapping]:
    """Yield each mapped page that touches [start, end), in order, in at most `limit` lookups of the guest's tables."""
    linear = start
    for _ in range(limit):
        if linear >= end:
            return
        found = walk(sregs, read, linear)
        if found:
            yield found
        size = found.size if found else 4096
        linear = (linear | size - 1) + 1
