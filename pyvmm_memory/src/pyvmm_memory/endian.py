"""Integers with a byte order: `Le16` to `Be64`, which compare with plain integers by value."""

from __future__ import annotations

from pyvmm_memory.address import as_int
from pyvmm_memory.errors import GuestMemoryError, InvalidLength

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar, Literal, Self

    from typing_extensions import Buffer


class EndianInteger(int):
    """An unsigned integer with the width and byte order that it has in memory.

    Its value is the number meant, whatever the order of its bytes: it compares, hashes and calculates as that number.

    >>> Be32(0x11223344).as_slice().hex(), Le32(0x11223344).as_slice().hex()
    ('11223344', '44332211')
    >>> Be32.from_slice(bytes(4)) == 0
    True
    """

    __slots__ = ()

    size: ClassVar[int] = 0
    byteorder: ClassVar[Literal["little", "big"]] = "little"

    def __new__(cls, value: int = 0) -> Self:
        """Raise GuestMemoryError where the value does not fit, InvalidInteger where it is no integer."""
        if type(value) is not int:
            value = as_int(value)
        if not 0 <= value < 1 << 8 * cls.size:
            raise GuestMemoryError(f"{value:#x} does not fit in {cls.__name__}")
        return super().__new__(cls, value)

    @classmethod
    def from_slice(cls, data: Buffer) -> Self:
        """Return the integer whose bytes are `data`; raises InvalidLength where they are not exactly its own."""
        copy = bytes(data)
        if len(copy) != cls.size:
            raise InvalidLength(len(copy))
        return cls(int.from_bytes(copy, cls.byteorder))

    def to_native(self) -> int:
        """Return the value as a plain integer."""
        return int(self)

    def as_slice(self) -> bytes:
        """Return its bytes, in its order."""
        return self.to_bytes(self.size, self.byteorder)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self):#x})"


class Le16(EndianInteger):
    """16 bits, least significant byte first."""

    __slots__ = ()
    size = 2


class Le32(EndianInteger):
    """32 bits, least significant byte first."""

    __slots__ = ()
    size = 4


class Le64(EndianInteger):
    """64 bits, least significant byte first."""

    __slots__ = ()
    size = 8


class Be16(EndianInteger):
    """16 bits, most significant byte first."""

    __slots__ = ()
    size = 2
    byteorder = "big"


class Be32(EndianInteger):
    """32 bits, most significant byte first."""

    __slots__ = ()
    size = 4
    byteorder = "big"


class Be64(EndianInteger):
    """64 bits, most significant byte first."""

    __slots__ = ()
    size = 8
    byteorder = "big"


#: as wide as a pointer, and only 64-bit hosts are known here
LeSize, BeSize = Le64, Be64
