"""The buffers of a chain as one stream of bytes, without copies: `Reader` and `Writer`."""

from __future__ import annotations

from itertools import accumulate

from pyvmm_memory import GuestMemoryError, InvalidBackendAddress, Permissions, ReadOnlyMemory
from pyvmm_virtio.constants.ring import VRING_DESC_F_WRITE
from pyvmm_virtio.errors import BufferTooShort, InvalidBuffer, RequestTooLarge, SplitOutOfBounds
from pyvmm_virtio.memory import dirty_marker, is_translated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from struct import Struct
    from types import TracebackType
    from typing import Any, Self

    from typing_extensions import Buffer

    from pyvmm_virtio.memory import DirtyMarker, GuestMemory
    from pyvmm_virtio.queue.chain import DescriptorChain


COPY_LIMIT = 1 << 20
"""How many bytes of a request are copied where nobody says how many may be."""
MAX_VIEWS = 4096
"""In how many pieces of memory the buffers of a request may lie: 16 MiB of single pages, behind an IOMMU."""
CHUNK = 4 << 20
"""So much of a buffer is looked up at once where addresses are translated, for it may be in pieces of any size."""


class _Buffers:
    """A position in a list of views. ``_views[0]`` starts at the position; what was passed is dropped."""

    __slots__ = ("_addresses", "_available", "_head", "_passed", "_queue", "_views")

    _flag = 0
    _permissions = Permissions.Read

    def __init__(self, memory: GuestMemory, chain: DescriptorChain) -> None:
        views: list[memoryview] = []
        addresses: list[int] = []
        flag, permissions = self._flag, self._permissions
        available = 0
        get_slice = memory.get_slice
        for addr, length, flags, _ in chain.raw:
            if flags & VRING_DESC_F_WRITE != flag or not length:
                continue
            available += length
            if length > CHUNK and is_translated(memory):
                self._add_pieces(memory, chain, addr, length, views, addresses)
                continue
            try:
                view = get_slice(addr, length, permissions)
                if flag and view.readonly:
                    raise ReadOnlyMemory("it cannot be written")
                views.append(view)
                addresses.append(addr)
            except InvalidBackendAddress:
                self._add_pieces(memory, chain, addr, length, views, addresses)
            except GuestMemoryError as error:
                # whoever keeps the error would keep them alive, and the memory open
                views.clear()
                raise self._outside(chain, addr, length, error) from error.with_traceback(None)
        self._views = views
        self._addresses = addresses
        self._available = available
        self._passed = 0
        self._head = chain.head_index
        self._queue = chain.queue_index

    @classmethod
    def _add_pieces(
        cls,
        memory: GuestMemory,
        chain: DescriptorChain,
        addr: int,
        length: int,
        views: list[memoryview],
        addresses: list[int],
    ) -> None:
        """Add a buffer that is in pieces: as many as its memory is in, which behind an IOMMU is a guest's to say."""
        at, end = addr, addr + length
        found: list[memoryview] = []
        try:
            while at < end and len(views) <= MAX_VIEWS:
                found = memory.get_slices(at, min(CHUNK, end - at), cls._permissions)
                if cls._flag and any(view.readonly for view in found):
                    raise ReadOnlyMemory("it cannot be written")
                views += found
                addresses += accumulate(map(len, found[:-1]), initial=at)
                at = addresses[-1] + len(found[-1])
        except GuestMemoryError as error:
            views.clear()
            found.clear()
            raise cls._outside(chain, addr, length, error) from error.with_traceback(None)
        if at < end:
            views.clear()
            found.clear()
            reason = f"its buffers are in more than {MAX_VIEWS} pieces of memory"
            raise RequestTooLarge(chain.queue_index, chain.head_index, None, reason)

    @classmethod
    def _outside(cls, chain: DescriptorChain, addr: int, length: int, error: GuestMemoryError) -> InvalidBuffer:
        reason = f"the buffer of {length} bytes at {addr:#x} is not in guest memory, or not for that: {error}"
        same = (raw[:2] == (addr, length) and raw[2] & VRING_DESC_F_WRITE == cls._flag for raw in chain.raw)
        return InvalidBuffer(chain.queue_index, chain.head_index, list(same).index(True), reason)

    def available_bytes(self) -> int:
        """Return how many bytes are left."""
        return self._available

    def pieces(self) -> int:
        """Return in how many pieces of memory that is."""
        return len(self._views)

    def __len__(self) -> int:
        return self._available

    def __bool__(self) -> bool:
        return True

    def views(self, count: int | None = None) -> list[memoryview]:
        """Return views of what is left, or of its first `count` bytes: for ``preadv``, ``pwritev``, ``recvmsg_into``.

        The position stays; `advance` moves it. Raises BufferTooShort.
        """
        if count is None or count == self._available:
            return list(self._views)
        self._need(count)
        taken: list[memoryview] = []
        for view in self._views:
            if not count:
                break
            if len(view) > count:
                view = view[:count]
            taken.append(view)
            count -= len(view)
        return taken

    def _need(self, count: int) -> None:
        if not 0 <= count <= self._available:
            raise BufferTooShort(self._queue, self._head, count, self._available)

    def advance(self, count: int) -> None:
        """Pass over `count` bytes; raises BufferTooShort."""
        self._need(count)
        self._available -= count
        self._passed += count
        views, addresses = self._views, self._addresses
        done = 0
        while count:
            length = len(views[done])
            if length > count:
                views[done] = views[done][count:]
                addresses[done] += count
                break
            count -= length
            done += 1
        del views[:done], addresses[:done]

    def split_at(self, offset: int) -> Self:
        """Cut: this keeps the next `offset` bytes, and what comes after is returned.

        Raises SplitOutOfBounds where there are not so many; the end itself is a place to cut.
        """
        if not 0 <= offset <= self._available:
            raise SplitOutOfBounds(f"a cut at {offset} of {self._available} bytes")
        rest = self._empty_like()
        rest._views, rest._addresses = list(self._views), list(self._addresses)
        rest._available = self._available
        rest.advance(offset)
        rest._passed = 0
        kept = self.views(offset)
        self._addresses = self._addresses[: len(kept)]
        self._views = kept
        self._available = offset
        return rest

    def _empty_like(self) -> Self:
        other: Self = object.__new__(type(self))
        other._head, other._queue, other._passed = self._head, self._queue, 0
        return other

    def release(self) -> None:
        """Let go of guest memory now instead of when this object goes away."""
        for view in self._views:
            view.release()
        self._views.clear()
        self._addresses.clear()
        self._available = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of chain {self._head}: {self._passed} bytes passed, {self._available} left>"


class Reader(_Buffers):
    """What the driver gives the device, as a stream.

    Args:
        memory: guest memory.
        chain: whose readable buffers to read; each may cross regions of memory.

    Raises:
        InvalidBuffer: one of them is not in memory.
    """

    __slots__ = ()

    def bytes_read(self) -> int:
        """Return how many bytes were read so far."""
        return self._passed

    def peek(self, count: int = -1) -> bytes:
        """Copy up to `count` bytes out, or all, and stay where you are; raises RequestTooLarge as `read` does."""
        if count < 0 and self._available > COPY_LIMIT:
            # 2.7.5.2 bounds the sum of a chain's buffers, which may overlap, by 2^32 alone
            reason = f"{self._available} bytes are to be copied at once: give read() the most that may be, or use views"
            raise RequestTooLarge(self._queue, self._head, None, reason)
        count = min(count, self._available) if count >= 0 else self._available
        views = self._views
        if views and len(views[0]) >= count:
            return bytes(views[0][:count])
        return b"".join(self.views(count))

    def read(self, count: int = -1) -> bytes:
        """Copy up to `count` bytes out, or all.

        Raises:
            RequestTooLarge: no count was given, and there are more than `COPY_LIMIT`. A driver decides how many there
                are, and a device how many it holds: give the most that a request may have.
        """
        data = self.peek(count)
        self.advance(len(data))
        return data

    def read_exact(self, count: int) -> bytes:
        """Copy `count` bytes out; raises BufferTooShort and reads nothing where there are not so many."""
        self._need(count)
        return self.read(count)

    def readinto(self, buffer: Buffer) -> int:
        """Fill a buffer as far as there is something; returns the count."""
        done = 0
        with memoryview(buffer).cast("B") as target:
            for view in self.views(min(len(target), self._available)):
                target[done : done + len(view)] = view
                done += len(view)
        self.advance(done)
        return done

    def read_obj(self, layout: Struct) -> tuple[Any, ...]:
        """Read one structure: ``reader.read_obj(Struct("<IIQ"))``. Raises BufferTooShort."""
        return layout.unpack(self.read_exact(layout.size))


class Writer(_Buffers):
    """What the device gives the driver, as a stream.

    Whoever writes into `views` itself calls `advance` afterwards, which also marks the pages as dirty.

    Args:
        memory: guest memory.
        chain: whose writable buffers to write; each may cross regions of memory.

    Raises:
        InvalidBuffer: one of them is not in memory.
    """

    __slots__ = ("_mark",)

    _flag = VRING_DESC_F_WRITE
    _permissions = Permissions.Write

    def __init__(self, memory: GuestMemory, chain: DescriptorChain) -> None:
        super().__init__(memory, chain)
        self._mark: DirtyMarker | None = dirty_marker(memory)

    def _empty_like(self) -> Self:
        other = super()._empty_like()
        other._mark = None  # what is passed over in cutting was not written
        return other

    def split_at(self, offset: int) -> Self:
        """Cut: this keeps the next `offset` bytes, and what comes after is returned; see `Reader`'s."""
        rest = super().split_at(offset)
        rest._mark = self._mark
        return rest

    def bytes_written(self) -> int:
        """Return how many bytes were written so far: the length for `Queue.add_used`."""
        return self._passed

    def advance(self, count: int) -> None:
        """Pass over `count` bytes that were written through `views`; raises BufferTooShort."""
        if self._mark is not None:
            self._need(count)
            left = count
            for view, addr in zip(self._views, self._addresses, strict=True):
                if not left:
                    break
                self._mark(addr, min(left, len(view)))
                left -= min(left, len(view))
        super().advance(count)

    def write(self, data: Buffer) -> int:
        """Write as much as fits; returns the count."""
        done = 0
        with memoryview(data) as whole, whole.cast("B") as source:
            for view in self.views(min(len(source), self._available)):
                view[:] = source[done : done + len(view)]
                done += len(view)
        self.advance(done)
        return done

    def write_all(self, data: Buffer) -> None:
        """Write all of it; raises BufferTooShort and writes nothing where it does not fit."""
        with memoryview(data) as view:
            self._need(view.nbytes)
        self.write(data)

    def write_obj(self, layout: Struct, *values: Any) -> None:  # noqa: ANN401 - as Struct.pack
        """Write one structure: ``writer.write_obj(Struct("<IIQ"), 1, 2, 3)``. Raises BufferTooShort."""
        self.write_all(layout.pack(*values))
