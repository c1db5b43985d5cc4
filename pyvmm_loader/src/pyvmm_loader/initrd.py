"""Where an initrd may lie.

Source: Documentation/x86/boot.rst: "initrd_addr_max"; "the highest address for initrd", and its advice to load high.
"""

from __future__ import annotations

from .errors import InitrdTooLarge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PAGE = 4096


def place_initrd(size: int, ranges: Iterable[tuple[int, int]], kernel_end: int, addr_max: int) -> int:
    """Return the highest page-aligned address for `size` bytes in RAM, behind the kernel, not above `addr_max`.

    `ranges` are (start, size) pairs. An initrd that ends exactly at the end of RAM is fine. Raises InitrdTooLarge.

    >>> hex(place_initrd(5000, [(0, 64 << 20)], 0x200000, 0x7FFFFFFF))
    '0x3ffe000'
    """
    room = 0
    for start, length in sorted(ranges, reverse=True):
        low = max(start, kernel_end)
        high = min(start + length, addr_max + 1)
        at = (high - size) & ~(PAGE - 1)
        if at >= low and high > low:
            return at
        room = max(room, high - low)
    raise InitrdTooLarge(
        f"initrd of {size} bytes: the largest room behind the kernel is {max(room, 0)} bytes; "
        "give the guest more memory",
        size=size,
        room=max(room, 0),
    )
