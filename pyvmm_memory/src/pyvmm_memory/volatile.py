"""VolatileSlice: some bytes of a mapping, with the dirty bitmap that belongs to them."""

from __future__ import annotations

from pyvmm_memory.address import U64_MAX, as_int
from pyvmm_memory.bytes import WRITE, Bytes, bytes_of
from pyvmm_memory.errors import (
    InvalidBackendAddress,
    InvalidLength,
    Misaligned,
    OutOfBounds,
    Overflow,
    ReadOnlyMemory,
    TooBig,
)
from pyvmm_memory.pinned_buffer import PinnedBuffer
from pyvmm_memory.volatile_ref import VolatileArrayRef, VolatileRef

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

    from pyvmm_memory.bitmap import Bitmap
    from pyvmm_memory.byte_valued import Kind


def compute_offset(base: int, offset: int) -> int:
    """Return `base + offset`; raises Overflow where that leaves 64 bits, InvalidLength where one is negative."""
    base, offset = as_int(base), as_int(offset)
    if base < 0 or offset < 0:
        raise InvalidLength(min(base, offset))
    if base + offset > U64_MAX:
        raise Overflow(base, offset)
    return base + offset


class PtrGuard:
    """The host address of a slice, valid while this is kept or its `with` block runs: it keeps the memory mapped."""

    __slots__ = ("_address", "_length", "_view")

    def __init__(self, view: memoryview, address: int) -> None:
        self._view = view
        self._address = address
        self._length = len(view)

    def as_ptr(self) -> int:
        """Return the host address."""
        return self._address

    def __len__(self) -> int:
        """Return how many bytes."""
        return self._length

    def __repr__(self) -> str:
        try:
            state = f"at {self._address:#x} of {len(self._view)} bytes"
        except ValueError:
            state = "released"
        return f"<PtrGuard {state}>"

    def __enter__(self) -> PtrGuard:
        return self

    def __exit__(self, *exception: object) -> None:
        self._view.release()


class VolatileSlice(Bytes):
    """Some bytes of memory that others change at any time.

    The access methods take offsets in the slice and raise OutOfBounds beyond it. Slices of slices are cheap, keep
    their dirty bitmap, and do not keep the memory mapped: using one of a closed mapping raises MemoryClosed.

    >>> slice = VolatileSlice.from_buffer(bytearray(b"0123456789"))
    >>> bytes(slice.subslice(2, 4)), slice.write(b"ab", 9)
    (b'2345', 1)
    """

    __slots__ = ("_bitmap", "_mapping", "_readonly", "_size", "_start", "dirty_tracking")

    def __init__(
        self,
        mapping: PinnedBuffer,
        start: int,
        size: int,
        bitmap: Bitmap | None = None,
        *,
        readonly: bool = False,
    ) -> None:
        """Take a `bitmap` that starts where the slice does; without one it is the mapping's own."""
        if bitmap is None and mapping.bitmap is not None:
            bitmap = mapping.bitmap.slice_at(start)
        self._mapping = mapping
        self._start = start
        self._size = size
        self._bitmap = bitmap
        self._readonly = readonly
        #: whether writes are recorded in a bitmap
        self.dirty_tracking = bitmap is not None

    @classmethod
    def from_buffer(cls, buffer: Buffer, bitmap: Bitmap | None = None) -> VolatileSlice:
        """Pin all of any buffer, writable or not, as long as the slice lives. Raises InvalidBuffer."""
        view = bytes_of(buffer)
        return cls(PinnedBuffer(buffer, len(view), view, bitmap), 0, len(view))

    def __len__(self) -> int:
        """Return how many bytes."""
        return self._size

    def is_empty(self) -> bool:
        """Say whether it has no bytes."""
        return not self._size

    def __bytes__(self) -> bytes:
        with self.as_view() as view:
            return bytes(view)

    def __repr__(self) -> str:
        return f"<VolatileSlice {self._size:#x} bytes at {self._start:#x} of {self._mapping!r}>"

    def bitmap(self) -> Bitmap | None:
        """Return the dirty bitmap, as seen from the start of the slice."""
        return self._bitmap

    def as_view(self) -> memoryview:
        """Return a plain view, which records nothing and keeps the memory mapped until it is released."""
        view = self._mapping.place(writing=False)[self._start : self._start + self._size]
        return view.toreadonly() if self._readonly else view

    def _address(self) -> int:
        self._mapping.place(writing=False)
        return self._mapping.window.address + self._start

    def ptr_guard(self) -> PtrGuard:
        """Return the host address, to read from."""
        return PtrGuard(self.as_view(), self._address())

    def ptr_guard_mut(self) -> PtrGuard:
        """Return the host address, to write to. Raises ReadOnlyMemory; records nothing, `mark_dirty` does."""
        self._writable()
        return self.ptr_guard()

    def _writable(self) -> None:
        self._mapping.place(writing=True)
        if self._readonly:
            raise ReadOnlyMemory("the slice was asked for without permission to write")

    # parts

    def compute_end_offset(self, base: int, offset: int) -> int:
        """Return `base + offset`, at most the length; raises Overflow, OutOfBounds. The end itself is no error."""
        end = compute_offset(base, offset)
        if end > self._size:
            raise OutOfBounds(end)
        return end

    def subslice(self, offset: int, count: int) -> VolatileSlice:
        """Return `count` bytes at `offset`. Raises OutOfBounds, Overflow."""
        self.compute_end_offset(offset, count)
        bitmap = None if self._bitmap is None else self._bitmap.slice_at(offset)
        return VolatileSlice(self._mapping, self._start + offset, count, bitmap, readonly=self._readonly)

    get_slice = subslice

    def offset(self, count: int) -> VolatileSlice:
        """Return what comes after the first `count` bytes. Raises OutOfBounds, Overflow."""
        return self.subslice(count, self._size - self.compute_end_offset(count, 0))

    def split_at(self, mid: int) -> tuple[VolatileSlice, VolatileSlice]:
        """Return the first `mid` bytes and the rest. Raises OutOfBounds."""
        return self.subslice(0, mid), self.offset(mid)

    def as_volatile_slice(self) -> VolatileSlice:
        """Return this slice."""
        return self

    def get_ref(self, kind: Kind, offset: int) -> VolatileRef:
        """Return one object at `offset`: see `Bytes.read_obj` for the kinds. Raises OutOfBounds."""
        return VolatileRef(self, kind, offset)

    def get_array_ref(self, kind: Kind, offset: int, n: int) -> VolatileArrayRef:
        """Return `n` objects at `offset`. Raises OutOfBounds, TooBig."""
        from pyvmm_memory.byte_valued import layout_of

        size = layout_of(kind).size
        n = as_int(n)
        if n < 0:
            raise InvalidLength(n)
        if n * size >= 1 << 63:
            raise TooBig(n, size)
        return VolatileArrayRef(self.subslice(offset, n * size), kind, n)

    def get_atomic_ref(self, kind: Kind, offset: int) -> VolatileRef:
        """Return an integer whose every access is one, at an aligned host address. Raises Misaligned, OutOfBounds."""
        return self._aligned(self.get_ref(kind, offset), offset)

    def aligned_as_ref(self, kind: Kind, offset: int) -> VolatileRef:
        """Do as `get_ref`, at an aligned host address. Raises Misaligned, OutOfBounds."""
        return self._aligned(self.get_ref(kind, offset), offset)

    aligned_as_mut = aligned_as_ref

    def _aligned(self, ref: VolatileRef, offset: int) -> VolatileRef:
        alignment = min(len(ref) & -len(ref), 8) or 1
        if (self._address() + offset) % alignment:
            raise Misaligned(offset, alignment)
        return ref

    # copies

    def copy_to(self, buffer: Buffer) -> int:
        """Copy as many whole items as fit to a writable buffer; returns how many. Items are those of the buffer."""
        width = memoryview(buffer).itemsize
        target = bytes_of(buffer, writable=True)
        total = min(self._size, len(target))
        total -= total % width
        self.read(target[:total], 0)
        return total // width

    def copy_from(self, buffer: Buffer) -> None:
        """Copy as many whole items as fit from a buffer, and record exactly those bytes."""
        width = memoryview(buffer).itemsize
        source = bytes_of(buffer)
        total = min(self._size, len(source))
        self.write(source[: total - total % width], 0)

    def copy_to_volatile_slice(self, other: VolatileSlice) -> None:
        """Copy as many bytes as fit to another slice, which may overlap this one."""
        count = min(self._size, other._size)
        other._writable()
        with self.as_view() as source, other.as_view() as target:
            target[:count] = source[:count]
        if other.dirty_tracking:
            other.mark_dirty(0, count)

    def mark_dirty(self, addr: int, length: int) -> None:
        """Record a write of `length` bytes at `addr` through a plain view or a pointer."""
        if self._bitmap is not None:
            self._bitmap.mark_dirty(addr, length)

    def spans(self, addr: int, length: int, access: int) -> Iterator[tuple[PinnedBuffer, int, int]]:
        """Yield what of the slice comes at the offset `addr`. Raises OutOfBounds, ReadOnlyMemory."""
        if not 0 <= addr < self._size:
            raise OutOfBounds(addr)
        if access == WRITE and self._readonly:
            self._writable()
        yield self._mapping, self._start + addr, min(length, self._size - addr)


__all__ = ["InvalidBackendAddress", "PtrGuard", "VolatileSlice", "compute_offset"]
