"""Guest physical addresses: plain integers with a name and overflow checks."""

from __future__ import annotations

from operator import index

from pyvmm_memory.errors import GuestAddressOverflow, InvalidInteger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

U64_MAX = 0xFFFF_FFFF_FFFF_FFFF


def as_int(value: object) -> int:
    """Return `value` as a plain integer; raises InvalidInteger where it is none."""
    try:
        return index(value)  # type: ignore[arg-type] # what it takes is decided by asking it
    except TypeError as error:
        raise InvalidInteger(value) from error


class GuestAddress(int):
    """A guest physical address, 0 to 2**64 - 1. An `int` is accepted wherever this is, and the reverse.

    Arithmetic with operators gives a plain `int`, which is not limited; the methods keep to 64 bits. `checked_` returns
    None where the result leaves them, `overflowing_` wraps and says so, `wrapping_` wraps.

    >>> GuestAddress(0x1000).checked_add(0x10)
    GuestAddress(0x1010)
    >>> GuestAddress(2**64 - 1).overflowing_add(2)
    (GuestAddress(0x1), True)
    """

    __slots__ = ()

    def __new__(cls, value: int = 0) -> Self:
        """Raise GuestAddressOverflow outside 64 bits, InvalidInteger."""
        value = as_int(value)
        if not 0 <= value <= U64_MAX:
            raise GuestAddressOverflow(value, 0)
        return super().__new__(cls, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self):#x})"

    def raw_value(self) -> int:
        """Return the address as a plain integer."""
        return int(self)

    def mask(self, mask: int) -> int:
        """Return the bits of the address that `mask` names, as a plain integer."""
        return int(self) & mask

    def checked_add(self, offset: int) -> Self | None:
        """Add: this address plus `offset` bytes, or None where that leaves 64 bits."""
        value = int(self) + offset
        return type(self)(value) if 0 <= value <= U64_MAX else None

    def checked_sub(self, offset: int) -> Self | None:
        """Subtract: this address minus `offset` bytes, or None where that leaves 64 bits."""
        return self.checked_add(-offset)

    def overflowing_add(self, offset: int) -> tuple[Self, bool]:
        """Add, wrapping at 64 bits, and say whether it wrapped."""
        value = int(self) + offset
        return type(self)(value & U64_MAX), not 0 <= value <= U64_MAX

    def overflowing_sub(self, offset: int) -> tuple[Self, bool]:
        """Subtract, wrapping at 64 bits, and say whether it wrapped."""
        return self.overflowing_add(-offset)

    def wrapping_add(self, offset: int) -> Self:
        """Add, wrapping at 64 bits."""
        return self.overflowing_add(offset)[0]

    def unchecked_add(self, offset: int) -> Self:
        """Add; raises GuestAddressOverflow where Rust would panic in a debug build and wrap in another."""
        return type(self)(int(self) + offset)

    def unchecked_sub(self, offset: int) -> Self:
        """Subtract; raises GuestAddressOverflow where Rust would panic in a debug build and wrap in another."""
        return type(self)(int(self) - offset)

    def checked_offset_from(self, base: int) -> int | None:
        """Return the distance in bytes from `base` up to here, or None where `base` is above."""
        return int(self) - base if base <= int(self) else None

    def unchecked_offset_from(self, base: int) -> int:
        """Return the distance in bytes from `base` up to here; raises GuestAddressOverflow where `base` is above."""
        if base > int(self):
            raise GuestAddressOverflow(int(self), -base)
        return int(self) - base

    def checked_align_up(self, power_of_two: int) -> Self | None:
        """Return the next multiple of `power_of_two`, or None where that leaves 64 bits.

        Raises ValueError where `power_of_two` is not one.
        """
        return self.checked_add(self._to_multiple(power_of_two))

    def unchecked_align_up(self, power_of_two: int) -> Self:
        """Return the next multiple of `power_of_two`; raises GuestAddressOverflow, ValueError."""
        return self.unchecked_add(self._to_multiple(power_of_two))

    def _to_multiple(self, power_of_two: int) -> int:
        if power_of_two <= 0 or power_of_two & (power_of_two - 1):
            raise ValueError(f"{power_of_two} is not a power of two")
        return -int(self) & (power_of_two - 1)


class MemoryRegionAddress(GuestAddress):
    """An offset in bytes within a region."""

    __slots__ = ()
