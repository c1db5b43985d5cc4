"""Model-specific registers: a mapping from index to value, and lists of indices."""

from __future__ import annotations

import struct

from pyvmm_kvm.errors import StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

    from typing_extensions import Buffer

_ENTRY = struct.Struct("<IIQ")
_HEADER = struct.Struct("<II")

# one less than the kernel's MAX_IO_MSRS, which it refuses itself; longer lists are sent in parts
MAX_IO_MSRS = 255


class Msrs(dict[int, int]):
    """Registers by index, in the order in which they are to be written.

    >>> msrs = Msrs({0xC0000080: 0x500, 0x10: 0})
    >>> hex(msrs[0xC0000080])
    '0x500'
    >>> Msrs.from_bytes(bytes(msrs)) == msrs
    True
    """

    __slots__ = ()
    HEADER_SIZE, ENTRY_SIZE = _HEADER.size, _ENTRY.size

    def retain(self, keep: Callable[[int, int], bool]) -> None:
        """Drop every register for which `keep(index, value)` is false."""
        for index in [index for index, value in self.items() if not keep(index, value)]:
            del self[index]

    def __bytes__(self) -> bytes:
        return pack(self.items())

    @classmethod
    def from_bytes(cls, data: Buffer) -> Self:
        """Read a struct kvm_msrs with its entries."""
        view = memoryview(data).cast("B")
        if len(view) < _HEADER.size:
            raise StateError("a list of MSRs has 8 bytes before its entries")
        count = _HEADER.unpack_from(view)[0]
        if len(view) < _HEADER.size + count * _ENTRY.size:
            raise StateError(f"{count} MSRs do not fit into {len(view)} bytes")
        return cls(unpack(view, count))

    def __repr__(self) -> str:
        return f"Msrs({{{', '.join(f'{index:#x}: {value:#x}' for index, value in self.items())}}})"


class MsrList(list[int]):
    """Indices of model-specific registers (struct kvm_msr_list).

    >>> MsrList.from_bytes(bytes(MsrList([0x10, 0x174])))
    MsrList([0x10, 0x174])
    """

    __slots__ = ()

    def retain(self, keep: Callable[[int], bool]) -> None:
        """Drop every index for which `keep` is false."""
        self[:] = filter(keep, self)

    def __bytes__(self) -> bytes:
        return struct.pack(f"<{1 + len(self)}I", len(self), *self)

    @classmethod
    def from_bytes(cls, data: Buffer) -> Self:
        """Read a struct kvm_msr_list; `StateError` where the count and the length disagree."""
        view = memoryview(data).cast("B")
        count = struct.unpack_from("<I", view)[0] if len(view) >= 4 else len(view)
        if len(view) < 4 + 4 * count:
            raise StateError(f"{len(view)} bytes do not hold the MSRs that they announce")
        return cls(struct.unpack_from(f"<{count}I", view, 4))

    def __repr__(self) -> str:
        return f"MsrList([{', '.join(format(index, '#x') for index in self)}])"


def pack(items: Iterable[tuple[int, int]]) -> bytes:
    """Return the struct kvm_msrs that holds these registers."""
    entries = [_ENTRY.pack(index, 0, value) for index, value in items]
    return _HEADER.pack(len(entries), 0) + b"".join(entries)


def unpack(view: memoryview | bytearray, count: int) -> Iterable[tuple[int, int]]:
    """Yield the first `count` registers of a struct kvm_msrs."""
    for position in range(count):
        index, _, value = _ENTRY.unpack_from(view, _HEADER.size + position * _ENTRY.size)
        yield index, value
