"""GuestMemory: what guest memory offers by guest address, with and without an IOMMU in front of it."""

from __future__ import annotations

from pyvmm_memory.bytes import WRITE, Bytes
from pyvmm_memory.errors import InvalidGuestAddress
from pyvmm_memory.permissions import Permissions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvmm_memory.bitmap import Bitmap
    from pyvmm_memory.pinned_buffer import PinnedBuffer
    from pyvmm_memory.struct_view import Layout, StructView
    from pyvmm_memory.volatile import VolatileSlice


class GuestMemory(Bytes):
    """Bytes by guest address. Accesses cross regions that touch; slices lie in one region.

    `get_slice` and `get_slices` give plain memoryviews, which record nothing: whoever writes through them calls
    `mark_dirty` where `dirty_tracking` is true. `get_volatile_slice` gives slices that record their own writes.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        def check_range(self, addr: int, length: int, permissions: Permissions = ...) -> bool:
            """Say whether all `length` bytes at `addr` may be accessed so; zero bytes always may."""
            ...

        def get_slice(self, addr: int, length: int, permissions: Permissions = ...) -> memoryview:
            """Return a writable view of `length` bytes in one region; release it before closing the memory."""
            ...

    def get_slices(self, addr: int, length: int, permissions: Permissions = Permissions.ReadWrite) -> list[memoryview]:
        """Return views that together cover `length` bytes, one for each region; for preadv, pwritev, recvmsg_into.

        Raises InvalidGuestAddress with the first unmapped address.
        """
        views: list[memoryview] = []
        try:
            for mapping, offset, count in self._covered(addr, length, permissions):
                view = mapping.place(writing=False)[offset : offset + count]
                views.append(view if permissions & WRITE else view.toreadonly())
        except BaseException:
            # the traceback would keep them, and the memory could not be closed
            for view in views:
                view.release()
            raise
        return views

    def get_volatile_slice(
        self, addr: int, length: int, permissions: Permissions = Permissions.ReadWrite
    ) -> VolatileSlice:
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
        self, addr: int, length: int, permissions: Permissions = Permissions.ReadWrite
    ) -> list[VolatileSlice]:
        """Return what `get_slices` does, as slices that record their writes."""
        from pyvmm_memory.volatile import VolatileSlice

        slices: list[VolatileSlice] = []
        done = 0
        for mapping, offset, count in self._covered(addr, length, permissions):
            bitmap = self.bitmap_at(addr + done, mapping, offset)
            slices.append(VolatileSlice(mapping, offset, count, bitmap, readonly=not permissions & WRITE))
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
