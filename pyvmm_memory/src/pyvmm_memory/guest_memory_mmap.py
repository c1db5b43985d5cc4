"""GuestMemoryMmap: guest memory out of host mappings."""

from __future__ import annotations

from pyvmm_memory.collection import GuestRegionCollection
from pyvmm_memory.errors import NoMemoryRegion
from pyvmm_memory.region import GuestRegionMmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from pyvmm_memory.bitmap import NewBitmap
    from pyvmm_memory.file_offset import FileOffset


class GuestMemoryMmap(GuestRegionCollection):
    """The guest's physical memory. Regions never change: insert and remove return a new collection.

    `read` and `write` stop at the first hole and return the count; `read_slice` and `write_slice` raise
    PartialBuffer instead. Scalars are little-endian; aligned ones are one access, never torn, and unaligned ones may
    cross into a region that touches. Zero bytes always succeed.

    >>> with GuestMemoryMmap.from_ranges([(0, 0x1000), (0x4000, 0x1000)]) as memory:
    ...     memory.write_slice(b"hello", 0x4000)
    ...     memory
    <GuestMemoryMmap 0x2000 bytes: 0x0-0xfff anonymous, hole of 0x3000, 0x4000-0x4fff anonymous>
    """

    __slots__ = ()

    def __init__(self, regions: Iterable[GuestRegionMmap]) -> None:
        """Raise NoMemoryRegion, UnsortedMemoryRegions or MemoryRegionOverlap."""
        super().__init__(regions)
        if not self.num_regions():
            raise NoMemoryRegion("guest memory needs at least one region")

    @classmethod
    def from_ranges(cls, ranges: Iterable[tuple[int, int]], *, bitmap: NewBitmap | None = None) -> Self:
        """Map anonymous memory for each `(address, size in bytes)`, not backed by host pages until touched.

        Args:
            ranges: sorted by address.
            bitmap: `AtomicBitmap`, to record what is written, by pages.

        Raises:
            InvalidRegion, MmapFailed, NoMemoryRegion, UnsortedMemoryRegions, MemoryRegionOverlap.
        """
        return cls.from_ranges_with_files(((start, size, None) for start, size in ranges), bitmap=bitmap)

    @classmethod
    def from_ranges_with_files(
        cls, ranges: Iterable[tuple[int, int, FileOffset | None]], *, bitmap: NewBitmap | None = None
    ) -> Self:
        """Map memory for each `(address, size in bytes, file)`: a file shared, anonymous memory with None.

        Raises what `from_ranges` does, and InvalidOffsetLength or MappingPastEof where the file does not fit.
        """
        regions: list[GuestRegionMmap] = []
        try:
            for start, size, file in ranges:
                regions.append(GuestRegionMmap.from_range(start, size, file, bitmap=bitmap))
            return cls(regions)
        except BaseException:
            for region in regions:
                region.close()
            raise
