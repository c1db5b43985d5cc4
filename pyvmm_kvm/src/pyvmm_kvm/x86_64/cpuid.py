"""What a guest's CPUID instruction answers: a sequence of entries, found by leaf."""

from __future__ import annotations

from collections.abc import MutableSequence
from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from typing_extensions import Buffer

_HEADER = Struct("<II")  # nent, padding
_ENTRY = Struct("<7I12x")


class CpuIdEntry:
    """``struct kvm_cpuid_entry2``: the answer to one leaf (``function``) and subleaf (``index``)."""

    __slots__ = ("eax", "ebx", "ecx", "edx", "flags", "function", "index")

    def __init__(
        self, function: int, index: int = 0, flags: int = 0, eax: int = 0, ebx: int = 0, ecx: int = 0, edx: int = 0
    ) -> None:
        self.function = function
        self.index = index
        self.flags = flags
        self.eax = eax
        self.ebx = ebx
        self.ecx = ecx
        self.edx = edx

    def pack(self) -> bytes:
        """Return the structure's bytes."""
        return _ENTRY.pack(self.function, self.index, self.flags, self.eax, self.ebx, self.ecx, self.edx)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CpuIdEntry) and self.pack() == other.pack()

    __hash__ = None  # type: ignore[assignment]  # entries are edited

    def __repr__(self) -> str:
        answer = f"eax={self.eax:#010x}, ebx={self.ebx:#010x}, ecx={self.ecx:#010x}, edx={self.edx:#010x}"
        return f"CpuIdEntry({self.function:#x}, {self.index}, flags={self.flags}, {answer})"


class CpuId(MutableSequence[CpuIdEntry]):
    """``struct kvm_cpuid2``: behaves as a list of `CpuIdEntry`."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Iterable[CpuIdEntry] = ()) -> None:
        self._entries = list(entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, at):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204 (as list's)
        return self._entries[at]

    def __setitem__(self, at, value) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        self._entries[at] = value

    def __delitem__(self, at: int | slice) -> None:
        del self._entries[at]

    def insert(self, index: int, value: CpuIdEntry) -> None:
        """Insert an entry before a position."""
        self._entries.insert(index, value)

    def find(self, function: int, index: int = 0) -> CpuIdEntry | None:
        """Return the entry of a leaf and subleaf, or None."""
        for entry in self._entries:
            if entry.function == function and entry.index == index:
                return entry
        return None

    @staticmethod
    def reserve(count: int) -> bytearray:
        """Return the bytes of a table with room for so many entries, for the kernel to fill."""
        table = bytearray(_HEADER.size + count * _ENTRY.size)
        table[: _HEADER.size] = _HEADER.pack(count, 0)
        return table

    @classmethod
    def unpack(cls, raw: Buffer) -> Self:
        """Read as many entries as the table's own count says."""
        view = memoryview(raw)
        (count, _) = _HEADER.unpack_from(view)
        entries = view[_HEADER.size : _HEADER.size + count * _ENTRY.size]
        return cls(CpuIdEntry(*values) for values in _ENTRY.iter_unpack(entries))

    def pack(self) -> bytes:
        """Return the structure's bytes."""
        return _HEADER.pack(len(self._entries), 0) + b"".join(entry.pack() for entry in self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CpuId) and self._entries == other._entries

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<CpuId with {len(self._entries)} entries>"
