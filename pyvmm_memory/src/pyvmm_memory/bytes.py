"""Bytes: every access to memory, written once for guest memory, a region, a slice and an IOMMU's view.

This is the specification. Where `_window.c` is built, accesses to guest memory that lie in one region take a shorter
way to the same result.
"""

from __future__ import annotations

from pyvmm_memory.address import as_int
from pyvmm_memory.errors import (
    GuestMemoryError,
    InvalidBackendAddress,
    InvalidBuffer,
    InvalidGuestAddress,
    InvalidLength,
    Misaligned,
    PartialBuffer,
    UnexpectedEof,
)
from pyvmm_memory.io import read_into, write_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from typing_extensions import Buffer

    from pyvmm_memory.io import Sink, Source
    from pyvmm_memory.ordering import Ordering
    from pyvmm_memory.pinned_buffer import PinnedBuffer

READ, WRITE = 1, 2
_WIDTHS = (1, 2, 4, 8)
#: so many bytes are allocated without asking first whether they are there
_UNASKED = 1 << 16


def bytes_of(buffer: Buffer, writable: bool = False) -> memoryview:
    """Return the bytes of a contiguous buffer; raises InvalidBuffer."""
    try:
        view = memoryview(buffer)
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
    except (TypeError, ValueError, BufferError) as error:
        raise InvalidBuffer(f"{type(buffer).__name__} is no contiguous buffer of bytes: {error}") from error
    if not view.contiguous or (writable and view.readonly):
        raise InvalidBuffer(f"{type(buffer).__name__} is {'read-only' if view.contiguous else 'not contiguous'}")
    return view


class Bytes:
    """Access by address.

    `read` and `write` stop at the first hole and return the count; `read_slice` and `write_slice` raise PartialBuffer
    instead, and what came before the hole was transferred. Zero bytes always succeed. Scalars are little-endian;
    aligned ones are one access, never torn. Every write is recorded where dirty pages are tracked.

    Addresses and lengths are int or GuestAddress; anything else is InvalidInteger, a negative length InvalidLength.

    A subclass says where its bytes are in `spans`, records writes in `mark_dirty` where its `dirty_tracking` is true,
    and asks `pieces` for what it reads or writes itself. `access` is READ, WRITE, both or neither of them.
    """

    __slots__ = ()

    dirty_tracking: bool

    if TYPE_CHECKING:

        def spans(self, addr: int, length: int, access: int) -> Iterator[tuple[PinnedBuffer, int, int]]:
            """Yield what `pieces` does, for integers and at least one byte; raise where the first is missing."""
            ...

        def mark_dirty(self, addr: int, length: int) -> None:
            """Record a write of `length` bytes at `addr` that went around this object."""
            ...

    def pieces(self, addr: int, length: int, access: int) -> Iterator[tuple[PinnedBuffer, int, int]]:
        """Return mapping, offset and count of each piece of `length` bytes at `addr`, up to the first hole.

        The first piece missing raises InvalidGuestAddress (an offset in a region or a slice: OutOfBounds). Raises
        InvalidInteger and InvalidLength at once.
        """
        if type(length) is not int:
            length = as_int(length)
        if length <= 0:
            if length < 0:
                raise InvalidLength(length)
            return iter(())
        return self.spans(addr if type(addr) is int else as_int(addr), length, access)

    # buffers

    def write(self, buffer: Buffer, addr: int) -> int:
        """Copy `buffer` to `addr` up to the first hole; returns the count. Raises InvalidGuestAddress."""
        source = bytes_of(buffer)
        addr = as_int(addr)
        done = 0
        for mapping, offset, count in self.pieces(addr, len(source), WRITE):
            view = mapping.place(writing=True)
            if count in _WIDTHS:
                # one access where it is aligned: a ring's index is written this way too
                mapping.window.store(int.from_bytes(bytes(source[done : done + count]), "little"), offset, count)
            else:
                view[offset : offset + count] = source[done : done + count]
            if self.dirty_tracking:
                self.mark_dirty(addr + done, count)
            done += count
        return done

    def read(self, buffer: Buffer, addr: int) -> int:
        """Fill the writable `buffer` from `addr` up to the first hole; returns the count."""
        target = bytes_of(buffer, writable=True)
        done = 0
        for mapping, offset, count in self.pieces(addr, len(target), READ):
            view = mapping.place(writing=False)
            if count in _WIDTHS:
                target[done : done + count] = mapping.window.load(offset, count).to_bytes(count, "little")
            else:
                target[done : done + count] = view[offset : offset + count]
            done += count
        return done

    def write_slice(self, buffer: Buffer, addr: int) -> None:
        """Copy all of `buffer` to `addr`; raises PartialBuffer at a hole, InvalidGuestAddress."""
        expected = bytes_of(buffer).nbytes
        completed = self.write(buffer, addr)
        if completed < expected:
            raise PartialBuffer(expected, completed, as_int(addr) + completed)

    def read_slice(self, buffer: Buffer, addr: int) -> None:
        """Fill all of `buffer` from `addr`; raises PartialBuffer at a hole, InvalidGuestAddress."""
        expected = bytes_of(buffer).nbytes
        completed = self.read(buffer, addr)
        if completed < expected:
            raise PartialBuffer(expected, completed, as_int(addr) + completed)

    def read_bytes(self, addr: int, length: int) -> bytes:
        """Return a copy of `length` bytes at `addr`, read as `read_slice` does: all of them, or its error."""
        if type(length) is not int:
            length = as_int(length)
        if not 0 <= length <= _UNASKED:
            # a length may come from a guest: what is not mapped is not allocated either
            mapped = sum(count for _, _, count in self.pieces(addr, length, READ))
            if mapped < length:
                raise PartialBuffer(length, mapped, as_int(addr) + mapped)
        copy = bytearray(length)
        self.read_slice(copy, addr)
        return bytes(copy)

    def fill_zero(self, addr: int, length: int) -> None:
        """Zero `length` bytes at `addr`; a hole raises InvalidGuestAddress before any is written."""
        addr = as_int(addr)
        pieces = list(self.pieces(addr, length, WRITE))
        covered = sum(count for _, _, count in pieces)
        if covered < length:
            raise InvalidGuestAddress(addr + covered)
        for mapping, offset, count in pieces:
            view = mapping.place(writing=True)
            for start in range(offset, offset + count, 1 << 20):
                size = min(1 << 20, offset + count - start)
                view[start : start + size] = bytes(size)
            if self.dirty_tracking:
                self.mark_dirty(addr, count)
            addr += count

    # objects

    def read_obj(self, kind: Any, addr: int) -> Any:  # noqa: ANN401 - the kind decides
        """Read one object at `addr`, as `read_slice` does.

        `kind` is an integer type of `endian` (`Le32`), a `struct.Struct` (the result is a tuple), a struct format
        (`"<QIHH"`) or anything with `size` and `from_slice(bytes)`.
        """
        from pyvmm_memory.byte_valued import layout_of

        layout = layout_of(kind)
        copy = bytearray(layout.size)
        self.read_slice(copy, addr)
        return layout.unpack(copy)

    def write_obj(self, value: Any, addr: int) -> None:  # noqa: ANN401 - whatever has bytes
        """Write an object to `addr` as `write_slice` does: an integer of `endian`, a buffer, or an `as_slice()`."""
        from pyvmm_memory.byte_valued import as_bytes

        self.write_slice(as_bytes(value), addr)

    # files, sockets, streams

    def read_volatile_from(self, addr: int, source: Source, count: int) -> int:
        """Read up to `count` bytes from a file, fd, socket, stream or buffer into `addr`, without a copy between.

        Stops at the first short read or hole and returns the count. Raises InvalidGuestAddress, OSError.
        """
        return self._transfer(addr, count, WRITE, lambda view, done: read_into(source, view, done))

    def write_volatile_to(self, addr: int, sink: Sink, count: int) -> int:
        """Write up to `count` bytes from `addr` to a file, fd, socket, stream or writable buffer.

        Stops at the first short write or hole and returns the count. Raises InvalidGuestAddress, OSError.
        """
        return self._transfer(addr, count, READ, lambda view, done: write_from(sink, view, done))

    def read_exact_volatile_from(self, addr: int, source: Source, count: int) -> None:
        """Do as `read_volatile_from` until all of `count` is read.

        Raises UnexpectedEof where the source ends before, PartialBuffer at a hole.
        """
        done = self._transfer(addr, count, WRITE, lambda view, done: read_into(source, view, done), exact=True)
        if done < count:
            raise PartialBuffer(count, done, as_int(addr) + done)

    def write_all_volatile_to(self, addr: int, sink: Sink, count: int) -> None:
        """Do as `write_volatile_to` until all of `count` is written.

        Raises UnexpectedEof where the sink takes no more, PartialBuffer at a hole.
        """
        done = self._transfer(addr, count, READ, lambda view, done: write_from(sink, view, done), exact=True)
        if done < count:
            raise PartialBuffer(count, done, as_int(addr) + done)

    def _transfer(
        self, addr: int, count: int, access: int, step: Callable[[memoryview, int], int], *, exact: bool = False
    ) -> int:
        addr = as_int(addr)
        done = 0
        for mapping, offset, length in self.pieces(addr, count, access):
            end = offset + length
            while offset < end:
                view = mapping.place(access == WRITE)[offset:end]
                try:
                    moved = step(view, done)
                except BaseException:
                    # nobody knows what a failed read left behind
                    if access == WRITE and self.dirty_tracking:
                        self.mark_dirty(addr + done, end - offset)
                    raise
                finally:
                    view.release()
                if access == WRITE and self.dirty_tracking:
                    self.mark_dirty(addr + done, moved)
                done += moved
                offset += moved
                # bytes of the next region would land beyond a gap
                if offset < end and not exact:
                    return done
                if not moved:
                    raise UnexpectedEof(count, done)
        return done

    # scalars

    def _one(self, addr: int, size: int, access: int) -> tuple[PinnedBuffer, int]:
        if size not in _WIDTHS:
            raise InvalidLength(as_int(size))
        mapping, offset, count = next(self.pieces(addr, size, access))
        if count < size:
            raise InvalidBackendAddress(addr, size)
        mapping.place(access == WRITE)
        if (mapping.window.address + offset) % size:
            raise Misaligned(addr, size)
        return mapping, offset

    def load(self, addr: int, size: int, order: Ordering | None = None) -> int:
        """Load 1, 2, 4 or 8 little-endian bytes, untorn; every `order` is served by the strongest, SeqCst.

        Raises Misaligned, InvalidLength, InvalidGuestAddress, InvalidBackendAddress.
        """
        if order is not None:
            order.check_load()
        mapping, offset = self._one(addr, size, READ)
        return mapping.window.load(offset, size)

    def store(self, value: int, addr: int, size: int, order: Ordering | None = None) -> None:
        """Store 1, 2, 4 or 8 little-endian bytes, untorn, SeqCst; raises what `load` does.

        A `value` that does not fit in `size` bytes is a GuestMemoryError and changes nothing.
        """
        if order is not None:
            order.check_store()
        addr = as_int(addr)
        mapping, offset = self._one(addr, size, WRITE)
        to_bytes(value, size)
        mapping.window.store(as_int(value), offset, size)
        if self.dirty_tracking:
            self.mark_dirty(addr, size)

    def _get(self, addr: int, size: int) -> int:
        copy = bytearray(size)
        self.read_slice(copy, addr)
        return int.from_bytes(copy, "little")

    def _set(self, value: int, addr: int, size: int) -> None:
        self.write_slice(to_bytes(value, size), addr)

    def read_u8(self, addr: int) -> int:
        """Return the 8-bit value at `addr`."""
        return self._get(addr, 1)

    def write_u8(self, value: int, addr: int) -> None:
        """Store `value` as 8 bits at `addr`."""
        self._set(value, addr, 1)

    def read_u16(self, addr: int) -> int:
        """Return the little-endian 16-bit value at `addr`."""
        return self._get(addr, 2)

    def write_u16(self, value: int, addr: int) -> None:
        """Store `value` as 16 little-endian bits at `addr`."""
        self._set(value, addr, 2)

    def read_u32(self, addr: int) -> int:
        """Return the little-endian 32-bit value at `addr`."""
        return self._get(addr, 4)

    def write_u32(self, value: int, addr: int) -> None:
        """Store `value` as 32 little-endian bits at `addr`."""
        self._set(value, addr, 4)

    def read_u64(self, addr: int) -> int:
        """Return the little-endian 64-bit value at `addr`."""
        return self._get(addr, 8)

    def write_u64(self, value: int, addr: int) -> None:
        """Store `value` as 64 little-endian bits at `addr`."""
        self._set(value, addr, 8)

    # where the compiled fast path hands back
    _read, _write, _read_slice, _write_slice, _load, _store = read, write, read_slice, write_slice, load, store


def to_bytes(value: int, size: int) -> bytes:
    """Return `value` in `size` little-endian bytes. Raises GuestMemoryError where it does not fit, InvalidInteger."""
    value = as_int(value)
    try:
        return value.to_bytes(size, "little")
    except OverflowError as error:
        raise GuestMemoryError(f"{value:#x} does not fit in {size} bytes") from error
