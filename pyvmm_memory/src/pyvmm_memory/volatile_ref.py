"""VolatileRef and VolatileArrayRef: one object, or some of one kind, in memory that others change."""

from __future__ import annotations

from pyvmm_memory.byte_valued import layout_of
from pyvmm_memory.errors import OutOfBounds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from pyvmm_memory.bitmap import Bitmap
    from pyvmm_memory.byte_valued import Kind
    from pyvmm_memory.volatile import PtrGuard, VolatileSlice


class VolatileRef:
    """One object of a kind (see `Bytes.read_obj`). Integers of 1, 2, 4 and 8 bytes are one access where aligned.

    >>> from pyvmm_memory import VolatileSlice
    >>> ref = VolatileSlice.from_buffer(bytearray(8)).get_ref("I", 4)
    >>> ref.store(7)
    >>> ref.load(), bytes(ref.to_slice()).hex()
    (7, '07000000')
    """

    __slots__ = ("_layout", "_slice")

    def __init__(self, slice_: VolatileSlice, kind: Kind, offset: int) -> None:
        self._layout = layout_of(kind)
        self._slice = slice_.subslice(offset, self._layout.size)

    def __len__(self) -> int:
        """Return its size in bytes."""
        return self._layout.size

    def __repr__(self) -> str:
        return f"<VolatileRef of {self._slice!r}>"

    def load(self) -> Any:  # noqa: ANN401 - the kind decides
        """Read it."""
        copy = bytearray(self._layout.size)
        self._slice.read_slice(copy, 0)
        return self._layout.unpack(copy)

    def store(self, value: Any) -> None:  # noqa: ANN401 - the kind decides
        """Write it. Raises GuestMemoryError where the value does not fit."""
        self._slice.write_slice(self._layout.pack(value), 0)

    def to_slice(self) -> VolatileSlice:
        """Return its bytes."""
        return self._slice

    def bitmap(self) -> Bitmap | None:
        """Return the dirty bitmap, as seen from it."""
        return self._slice.bitmap()

    def ptr_guard(self) -> PtrGuard:
        """Return its host address, to read from."""
        return self._slice.ptr_guard()

    def ptr_guard_mut(self) -> PtrGuard:
        """Return its host address, to write to."""
        return self._slice.ptr_guard_mut()


class VolatileArrayRef:
    """Objects of one kind, one after the other; also a sequence: `len`, iteration, items."""

    __slots__ = ("_count", "_kind", "_layout", "_slice")

    def __init__(self, slice_: VolatileSlice, kind: Kind, count: int) -> None:
        self._slice = slice_
        self._kind = kind
        self._layout = layout_of(kind)
        self._count = count

    def __len__(self) -> int:
        """Return how many objects."""
        return self._count

    def __repr__(self) -> str:
        return f"<VolatileArrayRef of {self._count} in {self._slice!r}>"

    def is_empty(self) -> bool:
        """Say whether there are none."""
        return not self._count

    def element_size(self) -> int:
        """Return the size of one in bytes."""
        return self._layout.size

    def ref_at(self, index: int) -> VolatileRef:
        """Return the object at `index`. Raises OutOfBounds, which is an IndexError."""
        if not 0 <= index < self._count:
            raise OutOfBounds(index)
        return VolatileRef(self._slice, self._kind, index * self._layout.size)

    def load(self, index: int) -> Any:  # noqa: ANN401 - the kind decides
        """Read the object at `index`. Raises OutOfBounds."""
        return self.ref_at(index).load()

    def store(self, index: int, value: Any) -> None:  # noqa: ANN401 - the kind decides
        """Write the object at `index`. Raises OutOfBounds, GuestMemoryError."""
        self.ref_at(index).store(value)

    __getitem__, __setitem__ = load, store

    def __iter__(self) -> Iterator[Any]:
        for index in range(self._count):
            yield self.load(index)

    def copy_to(self, values: list[Any]) -> int:
        """Replace the first items of a list, as many as both have; returns how many."""
        count = min(len(values), self._count)
        for index in range(count):
            values[index] = self.load(index)
        return count

    def copy_from(self, values: Iterable[Any]) -> None:
        """Write the first values, as many as fit."""
        for index, value in zip(range(self._count), values, strict=False):
            self.store(index, value)

    def copy_to_volatile_slice(self, other: VolatileSlice) -> None:
        """Copy as many bytes as fit to a slice."""
        self._slice.copy_to_volatile_slice(other)

    def to_slice(self) -> VolatileSlice:
        """Return the bytes of all of them."""
        return self._slice

    def bitmap(self) -> Bitmap | None:
        """Return the dirty bitmap, as seen from the first."""
        return self._slice.bitmap()

    def ptr_guard(self) -> PtrGuard:
        """Return the host address of the first, with the length of all in bytes."""
        return self._slice.ptr_guard()

    def ptr_guard_mut(self) -> PtrGuard:
        """Return the host address of the first, to write to."""
        return self._slice.ptr_guard_mut()
