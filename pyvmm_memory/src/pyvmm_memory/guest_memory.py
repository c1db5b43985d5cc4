"""GuestMemory: what guest memory offers by guest address, with and without an IOMMU in front of it."""

from __future__ import annotations

from pyvmm_memory.address import as_int
from pyvmm_memory.bytes import WRITE, Bytes, bytes_of
from pyvmm_memory.errors import InvalidGuestAddress, InvalidSlice, PartialBuffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

    from pyvmm_memory.bitmap import Bitmap
    from pyvmm_memory.permissions import Permissions
    from pyvmm_memory.pinned_buffer import PinnedBuffer
    from pyvmm_memory.struct_view import Layout, StructView
    from pyvmm_memory.volatile import VolatileSlice


class GuestMemory(Bytes):
    """Bytes by guest address. Accesses cross regions that touch; slices lie in one region.

    `get_slice` and `get_slices` give plain memoryviews, which record nothing: whoever writes through them calls
    `mark_dirty` where `dirty_tracking` is true. `get_volatile_slice` gives slices that record their own writes.

    `memory[a:b]` is `read_bytes(a, b - a)`: a copy of the bytes from `a` up to `b`. `memory[a:b] = data` replaces them
    all or raises before the first is written.

    >>> from pyvmm_memory import GuestMemoryMmap
    >>> with GuestMemoryMmap.from_ranges([(0, 0x1000), (0x1000, 0x1000)]) as memory:
    ...     memory[0xFFE:0x1002] = b"abcd"
    ...     memory[0xFFF:0x1002]
    b'bcd'

    A subclass whose writes are recorded elsewhere than in the mapping's bitmap says where in `bitmap_at`.

    Whoever keeps a view, or an answer of `check_range`, keeps `generation` with it, read before it asked: where that
    has moved, a mapping or a right was taken back, and what was kept is asked for anew. A subclass whose answers
    change moves it after each change that takes something back.
    """

    __slots__ = ()

    #: Moves, always up, when what an earlier answer said is not so any more. Regions never change, so here it stays.
    generation: int = 0

    if TYPE_CHECKING:

        def check_range(self, addr: int, length: int, permissions: Permissions = ...) -> bool:
            """Say whether all `length` bytes at `addr` may be accessed so; zero bytes always may."""
            ...

        def get_slice(self, addr: int, length: int, permissions: Permissions | None = ...) -> memoryview:
            """Return a view of `length` bytes in one region; release it before closing the memory."""
            ...

    def __getitem__(self, addresses: slice) -> bytes:
        """Return a copy of the bytes from `start` up to `stop`. Raises InvalidSlice, and what `read_bytes` does."""
        return self.read_bytes(*_range_of(addresses))

    def __setitem__(self, addresses: slice, data: Buffer) -> None:
        """Replace the bytes from `start` up to `stop` by as many others, or raise before the first is written.

        Raises InvalidSlice, InvalidBuffer, PartialBuffer at a hole, InvalidGuestAddress, ReadOnlyMemory.
        """
        addr, length = _range_of(addresses)
        source = bytes_of(data)
        if len(source) != length:
            raise InvalidSlice(
                f"{len(source)} bytes of data for the {length} of memory[{addr:#x}:{addr + length:#x}]: guest memory "
                "does not grow or shrink, give as many"
            )
        mapped = 0
        for mapping, _, count in self.pieces(addr, length, WRITE):
            mapping.place(writing=True)
            mapped += count
        if mapped < length:
            raise PartialBuffer(length, 0, addr + mapped)
        self.write_slice(source, addr)

    def get_slices(self, addr: int, length: int, permissions: Permissions | None = None) -> list[memoryview]:
        """Return views that together cover `length` bytes, one for each region; for preadv, pwritev, recvmsg_into.

        They are writable where `permissions` are, and as each region is mapped where none are given. Raises
        InvalidGuestAddress with the first unmapped address, ReadOnlyMemory where a region may not be written.
        """
        views: list[memoryview] = []
        # as plain integers: a set of rights makes another one of every intersection
        writing = permissions is not None and int(permissions) & WRITE != 0
        try:
            for mapping, offset, count in self._covered(addr, length, permissions or 0):
                view = mapping.place(writing)[offset : offset + count]
                views.append(view if writing or permissions is None else view.toreadonly())
        except BaseException:
            # the traceback would keep them, and the memory could not be closed
            for view in views:
                view.release()
            raise
        return views

    def get_volatile_slice(self, addr: int, length: int, permissions: Permissions | None = None) -> VolatileSlice:
        """Return `length` bytes in one region, as a slice that records its writes; raises what `get_slice` does."""
        from pyvmm_memory.errors import InvalidBackendAddress
        from pyvmm_memory.volatile import VolatileSlice

        slices = self.get_volatile_slices(addr, length, permissions)
        if not slices:
            return VolatileSlice.from_buffer(bytearray())
        if len(slices) > 1:
            raise InvalidBackendAddress(addr, length)
        return slices[0]

    def get_volatile_slices(
        self, addr: int, length: int, permissions: Permissions | None = None
    ) -> list[VolatileSlice]:
        """Return what `get_slices` does, as slices that record their writes."""
        from pyvmm_memory.volatile import VolatileSlice

        slices: list[VolatileSlice] = []
        done = 0
        for mapping, offset, count in self._covered(addr, length, permissions or 0):
            readonly = permissions is not None and not permissions & WRITE
            if permissions is not None and permissions & WRITE:
                mapping.place(writing=True)
            bitmap = self.bitmap_at(addr + done, mapping, offset)
            slices.append(VolatileSlice(mapping, offset, count, bitmap, readonly=readonly))
            done += count
        return slices

    def bitmap_at(self, addr: int, mapping: PinnedBuffer, offset: int) -> Bitmap | None:  # noqa: ARG002 - an IOMMU's
        """Return what records writes at `addr`, which is `offset` of `mapping`, seen from there on."""
        return None if mapping.bitmap is None else mapping.bitmap.slice_at(offset)

    def _covered(self, addr: int, length: int, access: int) -> Iterator[tuple[PinnedBuffer, int, int]]:
        done = 0
        for piece in self.pieces(addr, length, access):
            yield piece
            done += piece[2]
        if done < length:
            raise InvalidGuestAddress(addr + done)

    def struct(self, address: int, layout: Layout, *, byteorder: str = "<") -> StructView:
        """Return named fields at `address`, read and written where they are: see `StructView`."""
        from pyvmm_memory.struct_view import StructView

        return StructView(self, address, layout, byteorder)

    def hexdump(self, addr: int, length: int, *, width: int = 16) -> str:
        """Show `length` bytes at `addr` as people read them; runs of equal lines are one `*`, holes are named."""
        from pyvmm_memory.hexdump import hexdump

        return hexdump(self, addr, length, width)


def _range_of(addresses: slice) -> tuple[int, int]:
    if not isinstance(addresses, slice):
        one = as_int(addresses)
        raise InvalidSlice(
            f"memory[{one:#x}] is one address: read_u8({one:#x}) gives its byte, memory[{one:#x}:{one + 1:#x}] a copy "
            "of it, and iterating the regions"
        )
    if addresses.start is None or addresses.stop is None or addresses.step is not None:
        raise InvalidSlice("guest memory has holes and no end: say memory[start:stop], both bounds and no step")
    start, stop = as_int(addresses.start), as_int(addresses.stop)
    if stop < start:
        raise InvalidSlice(f"memory[{start:#x}:{stop:#x}] ends before it starts: say memory[start:stop]")
    return start, stop - start
