"""Which pages of guest memory the host holds, so that nobody has to touch the others to learn that they are zeros."""

from __future__ import annotations

import errno
import mmap
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvmm_memory.region import GuestRegionMmap

_ENTRIES = 1 << 17


def populated(region: GuestRegionMmap) -> Iterator[tuple[int, int]]:
    """Yield the parts `(offset, length)` of a region that may hold more than zeros; whole pages, in order.

    Private anonymous memory is asked from /proc/self/pagemap, a shared file from SEEK_DATA. Where neither says,
    that is the whole region, as for lazy memory, whose untouched pages are anything but zeros.
    """
    if region.mapping.lazy:
        yield 0, region.size
        return
    file = region.file_offset()
    if file is not None:
        if region.get_mmap().flags() & mmap.MAP_SHARED:
            yield from data_of(file.fileno(), file.start(), region.size)
        else:
            yield 0, region.size
        return
    try:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield 0, region.size
        return
    try:
        yield from _present(fd, region.get_host_address(0) // mmap.PAGESIZE, region.size)
    finally:
        os.close(fd)


def _present(fd: int, first: int, size: int) -> Iterator[tuple[int, int]]:
    pages = -(-size // mmap.PAGESIZE)
    nothing = bytes(8 * _ENTRIES)
    start = -1
    for at in range(0, pages, _ENTRIES):
        count = min(_ENTRIES, pages - at)
        entries = os.pread(fd, 8 * count, 8 * (first + at))
        # bits 63 and 62: present, swapped; a page that is neither was never touched
        empty = entries == nothing[: 8 * count]
        words = memoryview(entries).cast("Q")
        for page in (0,) if empty and start < 0 else range(count):
            held = not empty and bool(words[page] >> 62)
            if held and start < 0:
                start = at + page
            elif not held and start >= 0:
                yield start * mmap.PAGESIZE, (at + page - start) * mmap.PAGESIZE
                start = -1
            if empty:
                break
    if start >= 0:
        yield start * mmap.PAGESIZE, size - start * mmap.PAGESIZE


def data_of(fd: int, start: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the parts `(offset from start, length)` of a file that are no holes; all of it where nobody knows."""
    at, end = start, start + size
    while at < end:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                # hugetlbfs, guest_memfd and devices have no answer
                yield at - start, end - at
            # otherwise only a hole follows
            return
        if data >= end:
            return
        at = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        yield data - start, at - data
