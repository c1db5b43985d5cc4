"""Guest memory in a file: holes stay holes, later files have only what changed, and reading can wait for the touch.

The file is one JSON line, padded to whole pages, then the regions one after the other, each at `offset`. Untouched
pages are holes in it. `parts`, in a file of changes, lists the bytes that are in it.
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
from bisect import bisect_right

from pyvmm_memory.address import U64_MAX
from pyvmm_memory.bytes import WRITE
from pyvmm_memory.errors import InvalidSnapshot, PartialBuffer
from pyvmm_memory.file_offset import FileOffset
from pyvmm_memory.guest_memory_mmap import GuestMemoryMmap
from pyvmm_memory.pagemap import data_of, populated
from pyvmm_memory.userfault import UserFault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, TypeAlias

    from pyvmm_memory.bitmap import NewBitmap
    from pyvmm_memory.collection import GuestRegionCollection
    from pyvmm_memory.region import GuestRegionMmap

    Progress: TypeAlias = Callable[[int, int], object]

MAGIC = "pyvmm memory"
VERSION = 1
MAX_HEADER = 64 << 20
# more than KVM has slots for
MAX_REGIONS = 1 << 16
CHUNK = 1 << 20
ZEROS = bytes(CHUNK)


def save(
    memory: GuestRegionCollection,
    path: str | os.PathLike[str],
    *,
    dirty: Iterable[tuple[int, int]] | None = None,
    progress: Progress | None = None,
) -> int:
    """Write guest memory to `path`, which is complete or not there; returns the bytes of data in it.

    Args:
        memory: nobody may write to it meanwhile, or the file has a mixture.
        path: replaced if it exists, once everything is on the disk.
        dirty: only these guest ranges `(address, length)`: a file of changes, for `load` on top of a whole one.
            `dirty_ranges` takes them from the bitmaps.
        progress: called with (bytes looked at, bytes in all).

    Raises:
        InvalidGuestAddress: a dirty range is not mapped. OSError: the file cannot be written.
    """
    page = mmap.PAGESIZE
    parts = None if dirty is None else _pages(dirty)
    header: dict[str, Any] = {"format": MAGIC, "version": VERSION, "regions": []}
    if parts is not None:
        header["parts"] = parts
        for addr, length in parts:
            memory.get_slices(addr, length)
    at = 0
    for region in memory:
        header["regions"].append({"start": region.start, "size": region.size, "offset": at})
        at += -(-region.size // page) * page
    text = json.dumps(header).encode() + b"\n"
    base = -(-len(text) // page) * page
    folder, name = os.path.split(os.path.abspath(path))
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name}.", delete=False) as file:
        try:
            file.write(text)
            file.flush()
            file.truncate(base + at)
            written = 0
            for entry, region in zip(header["regions"], memory, strict=True):
                inside = None if parts is None else _inside(parts, region)
                written += _write(region, file.fileno(), base + entry["offset"], inside, progress)
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    _sync_folder(folder)
    return written


def _sync_folder(folder: str) -> None:
    # fsync(2): "Calling fsync() does not necessarily ensure that the entry in the directory containing the file has
    # also reached disk": without this the old file, or none, may be there after a loss of power
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _pages(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the ranges sorted and joined."""
    joined: list[tuple[int, int]] = []
    for addr, length in sorted(ranges):
        if joined and addr <= sum(joined[-1]):
            start = joined[-1][0]
            joined[-1] = (start, max(sum(joined[-1]), addr + length) - start)
        elif length:
            joined.append((addr, length))
    return joined


def _inside(parts: list[tuple[int, int]], region: GuestRegionMmap) -> Iterator[tuple[int, int]]:
    # sorted and apart: there are as many looks as parts, whatever the number of regions
    first = bisect_right(parts, region.start, key=lambda part: part[0] + part[1])
    for at in range(first, len(parts)):
        addr, length = parts[at]
        if addr >= region.end:
            return
        start, end = max(addr, region.start), min(addr + length, region.end)
        if start < end:
            yield start - region.start, end - start


def _write(
    region: GuestRegionMmap, fd: int, base: int, parts: Iterator[tuple[int, int]] | None, progress: Progress | None
) -> int:
    written = 0
    view = region.view
    for start, length in populated(region) if parts is None else parts:
        for at in range(start, start + length, CHUNK):
            count = min(CHUNK, start + length - at)
            with view[at : at + count] as piece:
                # a page of zeros needs no place, unless it has to replace another one
                if parts is not None or bytes(piece) != ZEROS[:count]:
                    _write_all(fd, piece, base + at)
                    written += count
            if progress is not None:
                progress(at + count, region.size)
    if progress is not None:
        progress(region.size, region.size)
    return written


def _write_all(fd: int, piece: memoryview, at: int) -> None:
    done = 0
    while done < len(piece):
        done += os.pwrite(fd, piece[done:], at + done)


def dirty_ranges(memory: GuestRegionCollection, *, reset: bool = True) -> list[tuple[int, int]]:
    """Return the guest ranges `(address, length)` that the bitmaps of `memory` have; cleared with `reset`.

    Once they are cleared nobody else knows of them: where a `save` of them fails, they belong into the next.

    Where some regions record what is written, one without a bitmap of its own, such as one that was plugged in later,
    may have been written anywhere: it is in the result as a whole.
    """
    from pyvmm_memory.bitmap import PlainBitmap

    found: list[tuple[int, int]] = []
    for region in memory:
        bitmap = region.bitmap()
        if not isinstance(bitmap, PlainBitmap):
            if memory.dirty_tracking and bitmap is None and region.mapping.allows(WRITE):
                found.append((region.start, region.size))
            continue
        for offset, length in bitmap.dirty_ranges():
            found.append((region.start + offset, length))
            if reset:
                # cleared before the page is read: a write that comes later is in the next round
                bitmap.reset_addr_range(offset, length)
    return found


class Snapshot:
    """An open file of guest memory: what is in it, and the ways to get it back.

    Raises InvalidSnapshot where it is none, or is damaged.
    """

    __slots__ = ("_base", "_file", "parts", "regions")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close
        try:
            self._parse()
        except BaseException:
            self._file.close()
            raise

    def _parse(self) -> None:
        line = self._file.readline(MAX_HEADER)
        try:
            header = json.loads(line, object_pairs_hook=_fields)
            # of the type, for True and 1.0 are equal to 1
            if header["format"] != MAGIC or type(header["version"]) is not int or header["version"] != VERSION:
                raise InvalidSnapshot(f"{self._file.name} is no memory of version {VERSION}")
            _only(header, "format", "version", "regions", "parts")
            regions = _regions(header["regions"])
            parts = _parts(header["parts"], regions) if "parts" in header else None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            why = str(error)[:200]
            raise InvalidSnapshot(f"{self._file.name} does not begin with a description of memory: {why}") from error
        #: of each region (guest address, size, offset of its bytes)
        self.regions = regions
        #: in a file of changes, the guest ranges that are in it
        self.parts = parts
        self._base = -(-len(line) // mmap.PAGESIZE) * mmap.PAGESIZE
        need = self._base + max((offset + size for _, size, offset in regions), default=0)
        if os.fstat(self._file.fileno()).st_size < need:
            raise InvalidSnapshot(f"{self._file.name} is shorter than what it describes: {need:#x} bytes")

    def place(self, index: int) -> FileOffset:
        """Return where in the file the bytes of a region are."""
        return FileOffset(self._file, self._base + self.regions[index][2])

    def load(self, memory: GuestRegionCollection, progress: Progress | None = None) -> None:
        """Copy what is in the file into memory that has the same regions, whatever that held before.

        Pages that nobody touched are not touched where the file has none either.

        Raises InvalidSnapshot where the regions differ, PartialBuffer where the file became shorter.
        """
        if [(start, size) for start, size, _ in self.regions] != [(region.start, region.size) for region in memory]:
            raise InvalidSnapshot(f"{self._file.name} has other regions than {memory!r}")
        fd = self._file.fileno()
        for index, region in enumerate(memory):
            place = self.place(index)
            parts: Iterable[tuple[int, int]]
            if self.parts is None:
                parts = list(data_of(fd, place.start(), region.size))
                _clear_others(region, parts)
            else:
                parts = _inside(self.parts, region)
            for start, length in parts:
                _read(region, fd, place.start(), start, length)
                if progress is not None:
                    progress(start + length, region.size)

    def restore(self, *, bitmap: NewBitmap | None = None, progress: Progress | None = None) -> GuestMemoryMmap:
        """Map new guest memory with what is in the file. Raises InvalidSnapshot for a file of changes."""
        memory = self._fresh(bitmap)
        try:
            self.load(memory, progress)
        except BaseException:
            memory.close()
            raise
        return memory

    def restore_lazily(self, *, bitmap: NewBitmap | None = None) -> tuple[GuestMemoryMmap, list[UserFault]]:
        """Map new guest memory at once: each page is read when somebody touches it.

        The file must stay as it is until everything was brought in (`UserFault.populate`) or the memory is closed.
        Raises InvalidSnapshot for a file of changes, HostRefused where there is no userfaultfd.
        """
        memory = self._fresh(bitmap)
        try:
            return memory, [UserFault(region, self.place(index)) for index, region in enumerate(memory)]
        except BaseException:
            memory.close()
            raise

    def _fresh(self, bitmap: NewBitmap | None) -> GuestMemoryMmap:
        if self.parts is not None:
            raise InvalidSnapshot(f"{self._file.name} has changes only: load it on top of the whole it belongs to")
        return GuestMemoryMmap.from_ranges([(start, size) for start, size, _ in self.regions], bitmap=bitmap)

    def close(self) -> None:
        """Close the file; lazy memory keeps a descriptor of its own."""
        self._file.close()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        kind = "all" if self.parts is None else f"{len(self.parts)} changed parts"
        size = sum(size for _, size, _ in self.regions)
        return f"<Snapshot {self._file.name}: {kind} of {size:#x} bytes{' closed' * self._file.closed}>"


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise InvalidSnapshot("it says something twice")
    return fields


def _only(fields: dict[str, Any], *names: str) -> None:
    if more := set(fields).difference(names):
        raise InvalidSnapshot(f"it says {len(more)} things that are not known, such as {min(more)[:40]!r}")


def _number(value: object, least: int = 0) -> int:
    # bool is an int, and neither 1.0 nor "1" is one
    if type(value) is not int or not least <= value <= U64_MAX:
        raise InvalidSnapshot(f"{str(value)[:40]!r} is no number from {least} to 2^64 - 1")
    return value


def _regions(values: object) -> list[tuple[int, int, int]]:
    """Return regions that are as `save` writes them: sorted, apart, and one behind the other in the file."""
    if not isinstance(values, list) or not 0 < len(values) <= MAX_REGIONS:
        raise InvalidSnapshot(f"there are no regions in it, or more than {MAX_REGIONS}")
    regions: list[tuple[int, int, int]] = []
    end = at = 0
    for each in values:
        _only(each, "start", "size", "offset")
        start, size, offset = _number(each["start"]), _number(each["size"], 1), _number(each["offset"])
        if start < end or offset < at or offset % mmap.PAGESIZE or start + size > U64_MAX + 1:
            raise InvalidSnapshot(f"a region of {size:#x} bytes at {start:#x} is not behind the one before it")
        regions.append((start, size, offset))
        end, at = start + size, offset + size
    return regions


def _parts(values: object, regions: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """Return ranges that are as `save` writes them: sorted, apart, and of the regions."""
    if not isinstance(values, list):
        raise InvalidSnapshot("its parts are no list")
    parts: list[tuple[int, int]] = []
    blocks = iter(_blocks(regions))
    end = first = last = 0
    for each in values:
        if not isinstance(each, list) or len(each) != 2:
            raise InvalidSnapshot("a part is an address and a length")
        addr, length = _number(each[0]), _number(each[1], 1)
        if addr < end:
            raise InvalidSnapshot(f"the part at {addr:#x} is not behind the one before it")
        parts.append((addr, length))
        end = addr + length
        while last < end:
            # the last one is beyond whatever a part could reach
            first, last = next(blocks, (U64_MAX + 1, 1 << 80))
        if addr < first:
            raise InvalidSnapshot(f"the part at {addr:#x} is not in the regions")
    return parts


def _blocks(regions: list[tuple[int, int, int]]) -> Iterator[tuple[int, int]]:
    """Yield what the regions cover as (start, end), those without a gap between them as one."""
    first = last = 0
    for start, size, _ in regions:
        if start != last:
            yield first, last
            first = start
        last = start + size
    yield first, last


def _clear_others(region: GuestRegionMmap, parts: list[tuple[int, int]]) -> None:
    """Zero what a region holds beside these parts, which are sorted."""
    holes = zip([0, *map(sum, parts)], [*(start for start, _ in parts), region.size], strict=True)
    begin, end = next(holes)
    for start, length in list(populated(region)):
        stop = start + length
        while start < stop:
            if start >= end:
                # the last hole ends where the region does
                begin, end = next(holes)
                continue
            first, last = max(start, begin), min(stop, end)
            if first < last:
                region.fill_zero(first, last - first)
            start = min(stop, end)


def _read(region: GuestRegionMmap, fd: int, base: int, start: int, length: int) -> None:
    done = 0
    while done < length:
        with region.view[start + done : start + min(length, done + CHUNK)] as piece:
            got = os.preadv(fd, [piece], base + start + done)
        if not got:
            raise PartialBuffer(length, done)
        region.mark_dirty(start + done, got)
        done += got
