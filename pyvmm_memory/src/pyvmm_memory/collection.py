"""GuestRegionCollection: an immutable, sorted collection of regions, and access by guest address."""

from __future__ import annotations

from bisect import bisect_right

from pyvmm_memory.access import FastAccess
from pyvmm_memory.address import U64_MAX, GuestAddress, MemoryRegionAddress, as_int
from pyvmm_memory.bytes import READ, WRITE
from pyvmm_memory.errors import (
    InvalidBackendAddress,
    InvalidGuestAddress,
    InvalidInteger,
    InvalidLength,
    MemoryRegionOverlap,
    NoMemoryRegion,
    UnsortedMemoryRegions,
)
from pyvmm_memory.guest_memory import GuestMemory
from pyvmm_memory.permissions import Permissions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from typing import Self

    from pyvmm_memory.pinned_buffer import PinnedBuffer
    from pyvmm_memory.region import GuestRegionMmap


class GuestRegionCollection(FastAccess, GuestMemory):
    """Regions never change: insert and remove return a new collection, and whoever holds the old one keeps using it.

    Iterating gives the regions, in order. Raises UnsortedMemoryRegions or MemoryRegionOverlap.
    """

    __slots__ = ("_guarded", "_last", "_regions", "_starts", "dirty_tracking")

    def __init__(self, regions: Iterable[GuestRegionMmap] = ()) -> None:
        self._regions = tuple(regions)
        for before, after in zip(self._regions, self._regions[1:], strict=False):
            if before.start > after.start:
                raise UnsortedMemoryRegions(f"{after!r} comes after {before!r}: sort the regions by address")
            if before.end > after.start:
                raise MemoryRegionOverlap(f"{after!r} overlaps {before!r}")
        self._starts = [region.start for region in self._regions]
        self._last = self._regions[0] if self._regions else None
        #: whether any region may not be both read and written: all others need no look at their rights
        self._guarded = any(not region.mapping.allows(READ | WRITE) for region in self._regions)
        #: whether any region records writes: whoever writes through raw views then calls `mark_dirty`
        self.dirty_tracking = any(region.dirty_tracking for region in self._regions)
        self.attach_windows([(region.start, region.mapping.window) for region in self._regions])

    @classmethod
    def new(cls) -> Self:
        """Make an empty collection, to insert regions into."""
        collection = cls.__new__(cls)
        GuestRegionCollection.__init__(collection)
        return collection

    @classmethod
    def from_regions(cls, regions: Iterable[GuestRegionMmap]) -> Self:
        """Raise NoMemoryRegion, UnsortedMemoryRegions or MemoryRegionOverlap."""
        regions = tuple(regions)
        if not regions:
            raise NoMemoryRegion("guest memory needs at least one region")
        return cls(regions)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap every region (snapshots that share them included). Raises MemoryInUse while slices live."""
        for region in self._regions:
            region.close()

    def __iter__(self) -> Iterator[GuestRegionMmap]:
        return iter(self._regions)

    def __len__(self) -> int:
        return len(self._regions)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        parts: list[str] = []
        # said once of all, or of each region that was closed by itself
        closed = bool(self._regions) and all(region.closed for region in self._regions)
        end = self._regions[0].start if self._regions else 0
        for region in self._regions:
            if region.start > end:
                parts.append(f"hole of {region.start - end:#x}")
            lazy, state = "lazy " * region.mapping.lazy, " closed" * (region.closed and not closed)
            parts.append(f"{region.start:#x}-{region.end - 1:#x} {lazy}{region.mapping.kind}{state}")
            end = region.end
        size = f"{sum(map(len, self._regions)):#x} bytes{' closed' * closed}"
        return f"<{type(self).__name__} {size}: {', '.join(parts) or 'no regions'}>"

    def num_regions(self) -> int:
        """Return how many regions there are."""
        return len(self._regions)

    def last_addr(self) -> GuestAddress:
        """Return the highest mapped address; raises NoMemoryRegion."""
        if not self._regions:
            raise NoMemoryRegion("the collection is empty")
        return self._regions[-1].last_addr()

    def physical_memory(self) -> Self:
        """Return this memory itself: there is no IOMMU in front of it."""
        return self

    def insert_region(self, region: GuestRegionMmap) -> Self:
        """Return a new collection with `region`; raises MemoryRegionOverlap."""
        return type(self).from_regions(sorted((*self._regions, region), key=lambda each: each.start))

    def remove_region(self, base: int, size: int) -> tuple[Self, GuestRegionMmap]:
        """Return a new collection, perhaps empty, without the region of exactly `base` and `size`, and it.

        Raises NoMemoryRegion where there is none. Closing the region is up to whoever knows that no snapshot is used.
        """
        for region in self._regions:
            if region.start == base and region.size == size:
                rest = [each for each in self._regions if each is not region]
                return (type(self).from_regions(rest) if rest else type(self).new()), region
        raise NoMemoryRegion(f"no region starts at {as_int(base):#x} with {as_int(size):#x} bytes")

    def find_region(self, addr: int) -> GuestRegionMmap | None:
        """Return the region that maps `addr`, or None. Raises InvalidInteger."""
        region = self._last
        try:
            if region is not None and region.start <= addr < region.end:
                return region
            index = bisect_right(self._starts, addr) - 1
        except TypeError as error:
            raise InvalidInteger(addr) from error
        if index < 0 or addr >= self._regions[index].end:
            return None
        self._last = region = self._regions[index]
        return region

    def address_in_range(self, addr: int) -> bool:
        """Say whether `addr` is mapped."""
        return self.find_region(as_int(addr)) is not None

    def check_address(self, addr: int) -> GuestAddress | None:
        """Return `addr`, or None where it is not mapped."""
        return GuestAddress(addr) if self.address_in_range(addr) else None

    def to_region_addr(self, addr: int) -> tuple[GuestRegionMmap, MemoryRegionAddress] | None:
        """Return the region that maps `addr` and the offset in it, or None."""
        region = self.find_region(as_int(addr))
        return None if region is None else (region, MemoryRegionAddress(as_int(addr) - region.start))

    def get_host_address(self, addr: int) -> int:
        """Return where the byte at `addr` is in this process. Raises InvalidGuestAddress, MemoryClosed."""
        region = self.find_region(as_int(addr))
        if region is None:
            raise InvalidGuestAddress(addr)
        return region.get_host_address(as_int(addr) - region.start)

    def check_range(
        self,
        addr: int,
        length: int,
        permissions: Permissions = Permissions.No,
    ) -> bool:
        """Say whether all `length` bytes at `addr` are mapped so, across adjacent regions; zero bytes always are."""
        addr, length = as_int(addr), as_int(length)
        if length < 0 or not 0 <= addr <= U64_MAX:
            return False
        end = addr + length
        while addr < end:
            region = self.find_region(addr)
            if region is None or (self._guarded and not region.mapping.allows(permissions)):
                return False
            addr = region.end
        return True

    def checked_offset(self, addr: int, offset: int) -> GuestAddress | None:
        """Return `addr + offset` where that is mapped, else None; holes between are not looked at."""
        return self.check_address(as_int(addr) + as_int(offset))

    def get_slice(
        self,
        addr: int,
        length: int,
        permissions: Permissions | None = None,
    ) -> memoryview:
        """Return a view of `length` bytes in one region, writable as that is; release it before closing the memory.

        Raises InvalidGuestAddress, InvalidBackendAddress where it would cross a region's end, ReadOnlyMemory where it
        is asked for to be written and may not be.
        """
        region = self._last
        try:
            if region is None or not region.start <= addr < region.end:
                region = self.find_region(addr)
            if length <= 0:
                if length < 0:
                    raise InvalidLength(length)
                return memoryview(bytearray())
            if region is None:
                raise InvalidGuestAddress(addr)
            offset = addr - region.start
            if offset + length > region.size:
                raise InvalidBackendAddress(addr, length)
            if self._guarded and permissions is not None and permissions & WRITE:
                region.mapping.place(writing=True)
            return region.mapping.view[offset : offset + length]  # type: ignore[index] # None is a TypeError, handled
        except (TypeError, ValueError):
            as_int(addr)
            as_int(length)
            if region is not None:
                region.mapping.place(writing=False)
            raise

    def spans(
        self,
        addr: int,
        length: int,
        access: int,  # noqa: ARG002 - only an IOMMU forbids anything
    ) -> Iterator[tuple[PinnedBuffer, int, int]]:
        """Yield the part in each region, up to the first hole. Raises InvalidGuestAddress."""
        end = addr + length
        region = self.find_region(addr)
        if region is None:
            raise InvalidGuestAddress(addr)
        while region is not None:
            count = min(end, region.end) - addr
            yield region.mapping, addr - region.start, count
            addr += count
            if addr >= end:
                return
            region = self.find_region(addr)

    def mark_dirty(self, addr: int, length: int) -> None:
        """Record a write of `length` bytes at `addr` through raw views; costs nothing where nothing is tracked.

        What is not mapped is not recorded.
        """
        if not self.dirty_tracking or length <= 0:
            return
        end = addr + length
        while addr < end:
            region = self.find_region(addr)
            if region is None:
                return
            count = min(end, region.end) - addr
            region.mark_dirty(addr - region.start, count)
            addr += count

    def search(self, pattern: bytes, *, start: int = 0, end: int | None = None, limit: int = 100) -> list[int]:
        """Return the addresses, at most `limit`, where `pattern` occurs, across regions that touch.

        Pages that were never written to are skipped where the host says which.
        """
        from pyvmm_memory.hexdump import search

        return search(self, pattern, start, end, limit)
