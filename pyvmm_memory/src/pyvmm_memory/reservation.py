"""HostReservation: one range of host addresses, so that what touches in the guest touches in the host."""

from __future__ import annotations

import mmap

from pyvmm_memory.bitmap import new_bitmap
from pyvmm_memory.errors import InvalidRegion, MapFixed, MemoryInUse, MemoryRegionOverlap
from pyvmm_memory.guest_memory_mmap import GuestMemoryMmap
from pyvmm_memory.mmap_region import ANONYMOUS, MAP_FIXED, MAP_NORESERVE, PROT_RW, MmapRegion, check_file
from pyvmm_memory.raw import HostRange, map_at, unmap
from pyvmm_memory.region import GuestRegionMmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

    from pyvmm_memory.bitmap import NewBitmap
    from pyvmm_memory.file_offset import FileOffset

PROT_NONE = 0


class HostReservation:
    """`size` bytes of addresses that nothing else in this process gets; mappings are built inside.

    A reservation costs address space and no memory. Regions added later, by hotplug, find the place beside their
    neighbours still free. What is closed becomes a hole again that nobody can touch.

    >>> with HostReservation(0x4000) as reservation:
    ...     low, high = reservation.map(0, 0x1000), reservation.map(0x1000, 0x1000)
    ...     high.as_ptr() - low.as_ptr()
    ...     low.close(), high.close()
    4096
    (None, None)
    """

    __slots__ = ("_used", "address", "closed", "size")

    def __init__(self, size: int) -> None:
        if size <= 0 or size > 1 << 62:
            raise InvalidRegion(f"{size} bytes cannot be reserved")
        self.size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.address = map_at(0, self.size, PROT_NONE, ANONYMOUS | MAP_NORESERVE)
        self.closed = False
        self._used: dict[int, int] = {}

    def map(
        self,
        offset: int,
        size: int,
        file_offset: FileOffset | None = None,
        *,
        prot: int = PROT_RW,
        flags: int | None = None,
        bitmap: NewBitmap | None = None,
    ) -> MmapRegion:
        """Map `size` bytes at `offset` of the reservation: anonymous, or a shared mapping of a file.

        Raises InvalidRegion outside or off a page, MemoryRegionOverlap, and what `MmapRegion.build` does.
        """
        if offset < 0 or size <= 0 or offset % mmap.PAGESIZE or offset + size > self.size:
            raise InvalidRegion(
                f"{size:#x} bytes at {offset:#x} are not whole pages of a reservation of {self.size:#x}"
            )
        if any(start < offset + size and offset < end for start, end in self._used.items()):
            raise MemoryRegionOverlap(f"{size:#x} bytes at {offset:#x} of the reservation are in use")
        if flags is None:
            flags = MAP_NORESERVE | (ANONYMOUS if file_offset is None else mmap.MAP_SHARED)
        elif flags & MAP_FIXED:
            raise MapFixed("the reservation places its mappings itself")
        fd, start = -1, 0
        if file_offset is not None:
            fd, start = file_offset.fileno(), file_offset.start()
            check_file(fd, start, size)
        address = map_at(self.address + offset, size, prot, flags | MAP_FIXED, fd, start)
        end = offset + -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._used[offset] = end
        owner = HostRange(address, size, lambda: self._give_back(offset, end))
        made = None if bitmap is None else new_bitmap(bitmap, size)
        return MmapRegion(owner.buffer(), size, prot, flags, file_offset, made, owner=owner)

    def _give_back(self, offset: int, end: int) -> None:
        map_at(self.address + offset, end - offset, PROT_NONE, ANONYMOUS | MAP_NORESERVE | MAP_FIXED)
        del self._used[offset]

    def close(self) -> None:
        """Give the addresses back; idempotent. Raises MemoryInUse while mappings inside are open."""
        if self.closed:
            return
        if self._used:
            raise MemoryInUse(f"{len(self._used)} mappings of the reservation are open: close the memory first")
        unmap(self.address, self.size)
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self.address:#x}, {len(self._used)} mappings"
        return f"<HostReservation {self.size:#x} bytes {state}>"


def contiguous(
    ranges: Iterable[tuple[int, int] | tuple[int, int, FileOffset | None]],
    *,
    room: int = 0,
    bitmap: NewBitmap | None = None,
) -> tuple[GuestMemoryMmap, HostReservation]:
    """Map guest memory whose every byte lies at one distance from its guest address; return it and its reservation.

    The reservation reaches from the first range to the last, holes included, and `room` bytes beyond for hotplug;
    a region that ends in a hole may grow into it. Close the memory, then the reservation.
    """
    wanted = [(entry[0], entry[1], entry[2] if len(entry) > 2 else None) for entry in ranges]
    if not wanted:
        return GuestMemoryMmap.from_ranges([]), HostReservation(room)
    first = min(start for start, _, _ in wanted)
    reservation = HostReservation(max(start + size for start, size, _ in wanted) - first + room)
    regions: list[GuestRegionMmap] = []
    try:
        for start, size, file in wanted:
            regions.append(GuestRegionMmap.new(reservation.map(start - first, size, file, bitmap=bitmap), start))
        return GuestMemoryMmap(regions), reservation
    except BaseException:
        for region in regions:
            region.close()
        reservation.close()
        raise
