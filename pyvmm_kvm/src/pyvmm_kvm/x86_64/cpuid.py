"""CPUID tables as sequences of entries: indexed by position or by (leaf, subleaf), edited in place, saved as bytes."""

from __future__ import annotations

import struct

from pyvmm_kvm.errors import StateError
from pyvmm_kvm.near import Exact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Self

    from typing_extensions import Buffer

_ENTRY = struct.Struct("<7I12x")
_HEADER = struct.Struct("<II")

MAX_CPUID_ENTRIES = 256
SIGNIFICANT_INDEX = 1 << 0


class CpuIdEntry(Exact):
    """One answer of the CPUID instruction (struct kvm_cpuid_entry2)."""

    __slots__ = ("eax", "ebx", "ecx", "edx", "flags", "function", "index")
    __match_args__ = ("function", "index", "eax", "ebx", "ecx", "edx")

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

    def __setattr__(self, name: str, value: object) -> None:
        # what the table has room for; other names are the base's
        if name in CpuIdEntry.__slots__ and not (isinstance(value, int) and 0 <= value < 1 << 32):
            raise ValueError(f"{name} is a number of 32 bits, not {value!r:.40}")
        super().__setattr__(name, value)

    def _values(self) -> tuple[int, int, int, int, int, int, int]:
        return self.function, self.index, self.flags, self.eax, self.ebx, self.ecx, self.edx

    def copy(self) -> CpuIdEntry:
        """Return an independent entry with the same values."""
        return CpuIdEntry(*self._values())

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, CpuIdEntry) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        return (
            f"CpuIdEntry({self.function:#x}, {self.index:#x}, eax={self.eax:#010x}, ebx={self.ebx:#010x}, "
            f"ecx={self.ecx:#010x}, edx={self.edx:#010x})"
        )


class CpuId(list[CpuIdEntry]):
    """The CPUID table of a vCPU: a list of `CpuIdEntry`, at most 256 of them.

    >>> table = CpuId([CpuIdEntry(0, eax=7), CpuIdEntry(7, 0, 1, ebx=0x80), CpuIdEntry(7, 1, 1)])
    >>> table.leaf(7, 0).ebx
    128
    >>> CpuId.from_bytes(bytes(table)) == table
    True
    """

    __slots__ = ()

    def leaf(self, function: int, index: int = 0) -> CpuIdEntry:
        """Return the entry that answers this leaf; KeyError where there is none. Entries may be changed in place."""
        entry = self.find(function, index)
        if entry is None:
            raise KeyError(f"CPUID leaf {function:#x}, subleaf {index:#x}")
        return entry

    def find(self, function: int, index: int = 0) -> CpuIdEntry | None:
        """Return the same, or None."""
        for entry in self:
            if entry.function == function and (entry.index == index or not entry.flags & SIGNIFICANT_INDEX):
                return entry
        return None

    def set(self, function: int, index: int = 0, **registers: int) -> CpuIdEntry:
        """Change eax, ebx, ecx or edx of a leaf, adding the leaf where it is missing."""
        entry = self.find(function, index)
        if entry is None:
            entry = CpuIdEntry(function, index, SIGNIFICANT_INDEX if index else 0)
            self.append(entry)
        for name, value in registers.items():
            if name not in ("eax", "ebx", "ecx", "edx"):
                raise TypeError(f"CPUID has eax, ebx, ecx and edx, not {name!r}")
            # kept in 32 bits: ~bit is a mask of all others, but what is above the register is a mistake
            if not -1 << 32 <= value < 1 << 32:
                raise ValueError(f"{name}={value:#x} is no number of 32 bits")
            setattr(entry, name, value & 0xFFFFFFFF)
        return entry

    def retain(self, keep: Callable[[CpuIdEntry], bool]) -> None:
        """Drop every entry for which `keep` is false."""
        self[:] = [entry for entry in self if keep(entry)]

    def functions(self) -> Iterator[int]:
        """Return every leaf number, each once, in the order of the table."""
        return iter(dict.fromkeys(entry.function for entry in self))

    def copy(self) -> Self:
        """Return a table of copied entries: editing one leaves the other alone."""
        return type(self)(entry.copy() for entry in self)

    def __bytes__(self) -> bytes:
        if len(self) > MAX_CPUID_ENTRIES:
            raise StateError(f"{len(self)} CPUID entries; KVM takes {MAX_CPUID_ENTRIES}")
        return _HEADER.pack(len(self), 0) + b"".join(_ENTRY.pack(*entry._values()) for entry in self)

    @classmethod
    def from_bytes(cls, data: Buffer) -> Self:
        """Read a struct kvm_cpuid2 with its entries; `StateError` where the count and the length disagree."""
        view = memoryview(data).cast("B")
        if len(view) < _HEADER.size:
            raise StateError("a CPUID table has 8 bytes before its entries")
        count = _HEADER.unpack_from(view)[0]
        if count > MAX_CPUID_ENTRIES or len(view) < _HEADER.size + count * _ENTRY.size:
            raise StateError(f"{count} CPUID entries do not fit into {len(view)} bytes")
        return cls(CpuIdEntry(*values) for values in _entries(view, count))


def _entries(view: memoryview, count: int) -> Iterable[tuple[int, int, int, int, int, int, int]]:
    return (_ENTRY.unpack_from(view, _HEADER.size + index * _ENTRY.size) for index in range(count))


def room_for(count: int) -> bytearray:
    """Return an empty struct kvm_cpuid2 with room for `count` entries, for the kernel to fill."""
    buffer = bytearray(_HEADER.size + count * _ENTRY.size)
    _HEADER.pack_into(buffer, 0, count, 0)
    return buffer
