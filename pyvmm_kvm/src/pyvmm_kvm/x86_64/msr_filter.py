"""Ranges of model-specific registers for `VmFd.set_msr_filter`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

READ, WRITE = 1, 2
MAX_RANGES = 16
MAX_BITMAP = 0x600
DEFAULT_DENY = 1 << 0


class MsrFilterRange:
    r"""`count` registers from `base` on: a 1 in the bitmap allows the operations in `flags`, a 0 denies them.

    >>> MsrFilterRange(READ | WRITE, 0x174, 3, b"\x05").allows(0x175)
    False
    """

    __slots__ = ("base", "bitmap", "count", "flags")

    def __init__(self, flags: int, base: int, count: int, bitmap: bytes) -> None:
        if not flags or flags & ~(READ | WRITE):
            raise ValueError(f"a range is for reads ({READ}), writes ({WRITE}) or both, not {flags}")
        if not 0 <= base < 1 << 32:
            raise ValueError(f"a register has a number of 32 bits, not {base:#x}")
        if not 0 < count <= MAX_BITMAP * 8:
            raise ValueError(f"a range has 1 to {MAX_BITMAP * 8} registers, not {count}")
        if len(bitmap) * 8 < count:
            raise ValueError(f"{count} registers need {-(-count // 8)} bytes of bitmap, not {len(bitmap)}")
        self.flags = flags
        self.base = base
        self.count = count
        self.bitmap = bytes(bitmap)

    @classmethod
    def denying(cls, base: int, indices: Iterable[int], count: int, flags: int = READ | WRITE) -> MsrFilterRange:
        """Allow everything in the range except `indices`."""
        bits = (1 << count) - 1
        for index in indices:
            if not base <= index < base + count:
                raise ValueError(f"MSR {index:#x} is none of the {count} from {base:#x} on")
            bits &= ~(1 << index - base)
        return cls(flags, base, count, bits.to_bytes(-(-count // 8), "little"))

    def allows(self, index: int) -> bool:
        """Say whether the range allows one register in it."""
        position = index - self.base
        if not 0 <= position < self.count:
            raise ValueError(f"MSR {index:#x} is not in the range")
        return bool(self.bitmap[position // 8] >> position % 8 & 1)

    def __repr__(self) -> str:
        return f"MsrFilterRange({self.flags}, {self.base:#x}, {self.count}, {self.bitmap!r})"
