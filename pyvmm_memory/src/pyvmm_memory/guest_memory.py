"""GuestMemoryMmap: an immutable, sorted collection of regions, and every access by guest address."""

from __future__ import annotations

from bisect import bisect_right

from .address import U64_MAX, GuestAddress
from .errors import (
    GuestMemoryError,
    InvalidBackendAddress,
    InvalidGuestAddress,
    InvalidLength,
    MemoryClosed,
    MemoryRegionOverlap,
    Misaligned,
    NoMemoryRegion,
    PartialBuffer,
    UnsortedMemoryRegions,
)
from .io import read_into, write_from
from .region import GuestRegionMmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer

    from .io import Sink, Source


def _bytes_of(buffer: Buffer) -> memoryview:
    view = memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


class GuestMemoryMmap:
    """The guest's physical memory. Regions never change: insert and remove return a new collection.

    `read` and `write` stop at the first hole and return the count; `read_slice` and `write_slice` raise
    PartialBuffer instead. Scalars are little-endian; aligned ones are one access, never torn, and unaligned ones may
    cross into a region that touches. Zero bytes always succeed.

    >>> with GuestMemoryMmap.from_ranges([(0, 0x1000), (0x4000, 0x1000)]) as memory:
    ...     memory.write_slice(b"hello", 0x4000)
    ...     memory
    <GuestMemoryMmap 0x2000 bytes: 0x0-0xfff anonymous, hole of 0x3000, 0x4000-0x4fff anonymous>
    """

    __slots__ = ("_last", "_regions", "_starts")

    def __init__(self, regions: Iterable[GuestRegionMmap]) -> None:
        """Raise NoMemoryRegion, UnsortedMemoryRegions or MemoryRegionOverlap."""
        self._regions = tuple(regions)
        if not self._regions:
            raise NoMemoryRegion("guest memory needs at least one region")
        for before, after in zip(self._regions, self._regions[1:], strict=False):
            if before.start > after.start:
                raise UnsortedMemoryRegions(f"{after!r} comes after {before!r}: sort the regions by address")
            if before.end > after.start:
                raise MemoryRegionOverlap(f"{after!r} overlaps {before!r}")
        self._starts = [region.start for region in self._regions]
        self._last = self._regions[0]

    @classmethod
    def from_ranges(cls, ranges: Iterable[tuple[int, int]]) -> Self:
        """Anonymous memory for each `(address, size in bytes)`, not backed by host pages until touched."""
        regions: list[GuestRegionMmap] = []
        try:
            for start, size in ranges:
                regions.append(GuestRegionMmap(start, size))
            return cls(regions)
        except BaseException:
            for region in regions:
                region.close()
            raise

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

    def __repr__(self) -> str:
        parts: list[str] = []
        end = self._regions[0].start
        for region in self._regions:
            if region.start > end:
                parts.append(f"hole of {region.start - end:#x}")
            parts.append(f"{region.start:#x}-{region.end - 1:#x} anonymous")
            end = region.end
        return f"<GuestMemoryMmap {sum(map(len, self._regions)):#x} bytes: {', '.join(parts)}>"

    def num_regions(self) -> int:
        """How many regions there are."""
        return len(self._regions)

    def last_addr(self) -> GuestAddress:
        """The highest mapped address."""
        return self._regions[-1].last_addr()

    def insert_region(self, region: GuestRegionMmap) -> Self:
        """A new collection with `region`; raises MemoryRegionOverlap."""
        return type(self)(sorted((*self._regions, region), key=lambda each: each.start))

    def remove_region(self, base: int, size: int) -> tuple[Self, GuestRegionMmap]:
        """A new collection without the region of exactly `base` and `size`, and that region.

        Raises NoMemoryRegion where there is none, or where it is the only one.
        """
        for region in self._regions:
            if region.start == base and region.size == size:
                return type(self)(each for each in self._regions if each is not region), region
        raise NoMemoryRegion(f"no region starts at {base:#x} with {size:#x} bytes")

    def find_region(self, addr: int) -> GuestRegionMmap | None:
        """The region that maps `addr`, or None."""
        region = self._last
        if region.start <= addr < region.end:
            return region
        index = bisect_right(self._starts, addr) - 1
        if index < 0 or addr >= self._regions[index].end:
            return None
        self._last = region = self._regions[index]
        return region

    def _region(self, addr: int, length: int) -> GuestRegionMmap:
        region = self.find_region(addr)
        if region is None:
            raise InvalidGuestAddress(addr)
        if addr + length > region.end:
            raise InvalidBackendAddress(addr, length)
        return region

    def address_in_range(self, addr: int) -> bool:
        """Whether `addr` is mapped."""
        return self.find_region(addr) is not None

    def check_range(self, addr: int, length: int) -> bool:
        """Whether all `length` bytes at `addr` are mapped, across adjacent regions; zero bytes always are."""
        if length < 0 or not 0 <= addr <= U64_MAX:
            return False
        end = addr + length
        while addr < end:
            region = self.find_region(addr)
            if region is None:
                return False
            addr = region.end
        return True

    def checked_offset(self, addr: int, offset: int) -> GuestAddress | None:
        """`addr + offset` where that is mapped, else None; holes between are not looked at."""
        return GuestAddress(addr + offset) if self.find_region(addr + offset) is not None else None

    def get_slice(self, addr: int, length: int) -> memoryview:
        """A writable view of `length` bytes in one region; release it before closing the memory.

        Raises InvalidGuestAddress, InvalidBackendAddress where it would cross a region's end.
        """
        if length <= 0:
            if length < 0:
                raise InvalidLength(length)
            return memoryview(bytearray())
        region = self._region(addr, length)
        offset = addr - region.start
        try:
            return region.view[offset : offset + length]
        except ValueError as error:
            raise MemoryClosed(f"{region!r} is closed") from error

    def _pieces(self, addr: int, length: int) -> Iterator[memoryview]:
        if length < 0:
            raise InvalidLength(length)
        done = 0
        while done < length:
            region = self.find_region(addr + done)
            if region is None:
                if done == 0:
                    raise InvalidGuestAddress(addr)
                return
            count = min(length - done, region.end - addr - done)
            yield self.get_slice(addr + done, count)
            done += count

    def get_slices(self, addr: int, length: int) -> list[memoryview]:
        """Views that together cover `length` bytes, one for each region; for preadv, pwritev, recvmsg_into.

        Raises InvalidGuestAddress with the first unmapped address.
        """
        views = list(self._pieces(addr, length))
        covered = sum(map(len, views))
        if covered < length:
            raise InvalidGuestAddress(addr + covered)
        return views

    def write(self, buffer: Buffer, addr: int) -> int:
        """Copy `buffer` to `addr` up to the first hole; returns the count. Raises InvalidGuestAddress."""
        source = _bytes_of(buffer)
        length = len(source)
        if length in (2, 4, 8) and addr % length == 0:
            region = self.find_region(addr)
            if region is not None and addr + length <= region.end and region.start % length == 0:
                self.store(int.from_bytes(source, "little"), addr, length)
                return length
        done = 0
        for view in self._pieces(addr, length):
            with view:
                count = len(view)
                view[:] = source[done : done + count]
                done += count
        return done

    def read(self, buffer: Buffer, addr: int) -> int:
        """Fill the writable `buffer` from `addr` up to the first hole; returns the count."""
        target = _bytes_of(buffer)
        length = len(target)
        if length in (2, 4, 8) and addr % length == 0:
            region = self.find_region(addr)
            if region is not None and addr + length <= region.end and region.start % length == 0:
                target[:] = self.load(addr, length).to_bytes(length, "little")
                return length
        done = 0
        for view in self._pieces(addr, length):
            with view:
                count = len(view)
                target[done : done + count] = view
                done += count
        return done

    def write_slice(self, buffer: Buffer, addr: int) -> None:
        """Copy all of `buffer` to `addr`; raises PartialBuffer at a hole, InvalidGuestAddress."""
        expected = len(buffer) if type(buffer) is bytes else len(_bytes_of(buffer))
        region = self._last
        offset = addr - region.start
        # 8 bytes or fewer go the way that does not tear them
        if type(buffer) is bytes and expected > 8 and 0 <= offset <= region.size - expected and not region.closed:
            region.view[offset : offset + expected] = buffer
            return
        completed = self.write(buffer, addr)
        if completed < expected:
            raise PartialBuffer(expected, completed)

    def read_slice(self, buffer: Buffer, addr: int) -> None:
        """Fill all of `buffer` from `addr`; raises PartialBuffer at a hole, InvalidGuestAddress."""
        expected = len(buffer) if type(buffer) is bytearray else len(_bytes_of(buffer))
        region = self._last
        offset = addr - region.start
        if type(buffer) is bytearray and expected > 8 and 0 <= offset <= region.size - expected and not region.closed:
            with memoryview(buffer) as target:
                target[:] = region.view[offset : offset + expected]
            return
        completed = self.read(buffer, addr)
        if completed < expected:
            raise PartialBuffer(expected, completed)

    def read_volatile_from(self, addr: int, source: Source, count: int) -> int:
        """Read up to `count` bytes from a file, fd, socket, stream or buffer into `addr`, without a copy between.

        Stops at the first short read or hole and returns the count. Raises InvalidGuestAddress, OSError.
        """
        return self._transfer(addr, count, lambda view, done: read_into(source, view, done))

    def write_volatile_to(self, addr: int, sink: Sink, count: int) -> int:
        """Write up to `count` bytes from `addr` to a file, fd, socket, stream or writable buffer.

        Stops at the first short write or hole and returns the count. Raises InvalidGuestAddress, OSError.
        """
        return self._transfer(addr, count, lambda view, done: write_from(sink, view, done))

    def _transfer(self, addr: int, count: int, step: Callable[[memoryview, int], int]) -> int:
        done = 0
        for view in self._pieces(addr, count):
            with view:
                moved = step(view, done)
                done += moved
                # bytes of the next region would land beyond a gap
                if moved < len(view):
                    break
        return done

    def fill_zero(self, addr: int, length: int) -> None:
        """Zero `length` bytes at `addr`; a hole raises what `get_slices` does, before anything is written."""
        for view in self.get_slices(addr, length):
            with view:
                for start in range(0, len(view), 1 << 20):
                    count = min(1 << 20, len(view) - start)
                    view[start : start + count] = bytes(count)

    def load(self, addr: int, size: int) -> int:
        """One untorn little-endian load of 1, 2, 4 or 8 bytes.

        Raises Misaligned, InvalidLength, InvalidGuestAddress, InvalidBackendAddress.
        """
        cells, index = self._cell(addr, size)
        return cells[index]

    def store(self, value: int, addr: int, size: int) -> None:
        """One untorn little-endian store of 1, 2, 4 or 8 bytes; raises what `load` does.

        A `value` that does not fit in `size` bytes is a GuestMemoryError and changes nothing.
        """
        cells, index = self._cell(addr, size)
        try:
            cells[index] = value
        except ValueError as error:
            raise GuestMemoryError(f"{value:#x} does not fit in {size} bytes") from error

    def _cell(self, addr: int, size: int) -> tuple[memoryview, int]:
        if size not in (1, 2, 4, 8):
            raise InvalidLength(size)
        region = self._region(addr, size)
        offset = addr - region.start
        # the mapping starts on a page, so an aligned offset is an aligned host address
        if offset % size:
            raise Misaligned(addr, size)
        if region.closed:
            raise MemoryClosed(f"{region!r} is closed")
        cells = region.view if size == 1 else region.u16 if size == 2 else region.u32 if size == 4 else region.u64
        return cells, offset // size

    def _get(self, addr: int, size: int) -> int:
        try:
            return self.load(addr, size)
        except (Misaligned, InvalidBackendAddress):
            copy = bytearray(size)
            self.read_slice(copy, addr)
            return int.from_bytes(copy, "little")

    def _set(self, value: int, addr: int, size: int) -> None:
        try:
            self.store(value, addr, size)
        except (Misaligned, InvalidBackendAddress):
            try:
                copy = value.to_bytes(size, "little")
            except OverflowError as error:
                raise GuestMemoryError(f"{value:#x} does not fit in {size} bytes") from error
            self.write_slice(copy, addr)

    def read_u8(self, addr: int) -> int:
        """The little-endian 8-bit value at `addr`."""
        return self._get(addr, 1)

    def write_u8(self, value: int, addr: int) -> None:
        """Store `value` as 8 little-endian bits at `addr`."""
        self._set(value, addr, 1)

    def read_u16(self, addr: int) -> int:
        """The little-endian 16-bit value at `addr`."""
        region = self._last
        offset = addr - region.start
        if offset & 1 or not 0 <= offset <= region.size - 2 or region.closed:
            return self._get(addr, 2)
        return region.u16[offset >> 1]

    def write_u16(self, value: int, addr: int) -> None:
        """Store `value` as 16 little-endian bits at `addr`."""
        self._set(value, addr, 2)

    def read_u32(self, addr: int) -> int:
        """The little-endian 32-bit value at `addr`."""
        region = self._last
        offset = addr - region.start
        if offset & 3 or not 0 <= offset <= region.size - 4 or region.closed:
            return self._get(addr, 4)
        return region.u32[offset >> 2]

    def write_u32(self, value: int, addr: int) -> None:
        """Store `value` as 32 little-endian bits at `addr`."""
        self._set(value, addr, 4)

    def read_u64(self, addr: int) -> int:
        """The little-endian 64-bit value at `addr`."""
        region = self._last
        offset = addr - region.start
        if offset & 7 or not 0 <= offset <= region.size - 8 or region.closed:
            return self._get(addr, 8)
        return region.u64[offset >> 3]

    def write_u64(self, value: int, addr: int) -> None:
        """Store `value` as 64 little-endian bits at `addr`."""
        self._set(value, addr, 8)
