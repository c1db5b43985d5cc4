"""What the loader asks of a guest memory, and small things on top of it."""

from __future__ import annotations

from operator import index

from pyvmm_loader.errors import MemoryTooSmall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Protocol, SupportsIndex

    from typing_extensions import Buffer

    class GuestMemory(Protocol):
        """The part of `pyvmm_memory.GuestMemoryMmap` that loading needs.

        Where there is `read_exact_volatile_from(addr, source, count)` as well, files are read by it, from a source with
        `readinto`.
        """

        def check_range(self, addr: int, length: int, /) -> bool:
            """Say whether all of [addr, addr + length) is RAM."""
            ...

        def write_slice(self, buffer: Buffer, addr: int, /) -> None:
            """Write the whole buffer or raise."""
            ...

    Ranges = Iterable[tuple[int, int]]

ZEROS = bytes(0x10000)


def address(value: SupportsIndex) -> int:
    """Accept an int or a GuestAddress."""
    raw = getattr(value, "raw_value", None)
    return index(raw() if callable(raw) else value)


def need_ram(memory: GuestMemory, start: int, length: int, what: str) -> None:
    """Raise MemoryTooSmall unless [start, start + length) is RAM."""
    if length and (start < 0 or start + length > 1 << 64 or not memory.check_range(start, length)):
        raise MemoryTooSmall(
            f"{what} needs {start:#x}..{start + length:#x}, which is not all guest RAM; give the guest more memory",
            what=what,
            start=start,
            end=start + length,
        )


def write_zeros(memory: GuestMemory, start: int, length: int) -> None:
    """Fill with zeros; guest memory may be reused or restored, so it is never taken to be zero already."""
    for offset in range(0, length, len(ZEROS)):
        left = length - offset
        memory.write_slice(ZEROS if left >= len(ZEROS) else ZEROS[:left], start + offset)


RAM_START = {"arm64": 0x40000000, "riscv64": 0x80000000}
"""Where RAM begins on the machines that QEMU and others call `virt`."""


def ranges_of(memory: object, arch: str = "x86_64") -> list[tuple[int, int]]:
    """Return the (start, size) pairs of RAM: of a size in bytes, of pairs, or of a guest memory's regions."""
    if isinstance(memory, int):
        from pyvmm_loader.x86_64.layout import split_ram

        ranges = split_ram(memory)
        return [(RAM_START[arch], memory)] if arch in RAM_START else ranges
    regions: Any = memory
    found: list[tuple[int, int]] = []
    for region in regions:
        start, size = region if isinstance(region, tuple) else (region.start_addr(), len(region))
        start, size = address(start), address(size)
        if found and sum(found[-1]) == start:
            found[-1] = (found[-1][0], found[-1][1] + size)
        else:
            found.append((start, size))
    return found
