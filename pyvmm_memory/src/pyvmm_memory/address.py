"""Guest physical addresses: plain integers with a name and overflow checks."""

from __future__ import annotations

from .errors import GuestAddressOverflow

U64_MAX = 0xFFFF_FFFF_FFFF_FFFF


class GuestAddress(int):
    """A guest physical address, 0 to 2**64 - 1. An `int` is accepted wherever this is, and the reverse.

    >>> GuestAddress(0x1000).checked_add(0x10)
    GuestAddress(0x1010)
    """

    __slots__ = ()

    def __new__(cls, value: int = 0) -> GuestAddress:
        """Raise GuestAddressOverflow outside 64 bits."""
        if not 0 <= value <= U64_MAX:
            raise GuestAddressOverflow(value, 0)
        return super().__new__(cls, value)

    def __repr__(self) -> str:
        return f"GuestAddress({int(self):#x})"

    def raw_value(self) -> int:
        """The address as a plain integer."""
        return int(self)

    def checked_add(self, offset: int) -> GuestAddress | None:
        """Add: this address plus `offset` bytes, or None where that leaves 64 bits."""
        value = int(self) + offset
        return GuestAddress(value) if 0 <= value <= U64_MAX else None

    def checked_sub(self, offset: int) -> GuestAddress | None:
        """Subtract: this address minus `offset` bytes, or None where that leaves 64 bits."""
        return self.checked_add(-offset)

    def checked_offset_from(self, base: int) -> int | None:
        """The distance in bytes from `base` up to here, or None where `base` is above."""
        return int(self) - base if base <= int(self) else None

    def checked_align_up(self, power_of_two: int) -> GuestAddress | None:
        """The next multiple of `power_of_two`, or None where that leaves 64 bits.

        Raises ValueError where `power_of_two` is not one.
        """
        if power_of_two <= 0 or power_of_two & (power_of_two - 1):
            raise ValueError(f"{power_of_two} is not a power of two")
        return self.checked_add(-int(self) & (power_of_two - 1))
