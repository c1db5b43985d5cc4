"""What the host should do with guest memory: free it, use huge pages, keep it out of core dumps, bring it in."""

from __future__ import annotations

import errno
import mmap
from enum import IntEnum

from pyvmm_memory._memory import lib
from pyvmm_memory.errors import HostRefused, InvalidGuestAddress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyvmm_memory.collection import GuestRegionCollection

CHUNK = 64 << 20


class Advice(IntEnum):
    """The advice of madvise(2) that makes sense for a guest's memory."""

    WILLNEED = 3
    FREE_NOW = 4  # MADV_DONTNEED: gone at once, zeros (or the file's bytes) afterwards
    FREE_LAZILY = 8  # MADV_FREE: gone when the host is short of memory
    REMOVE = 9  # a hole in the file behind a shared mapping
    MERGEABLE = 12
    UNMERGEABLE = 13
    HUGEPAGE = 14
    NOHUGEPAGE = 15
    DONTDUMP = 16
    DODUMP = 17
    DONTFORK = 10
    POPULATE_READ = 22
    POPULATE_WRITE = 23
    COLLAPSE = 25


_CURES = {
    Advice.COLLAPSE: "Linux 6.1 and transparent huge pages for this kind of memory",
    Advice.HUGEPAGE: "CONFIG_TRANSPARENT_HUGEPAGE",
    Advice.FREE_LAZILY: "private anonymous memory only: FREE_NOW or REMOVE fit the others",
    Advice.REMOVE: "shared, writable memory of a file that can have holes",
}
_LOSES = (Advice.FREE_NOW, Advice.FREE_LAZILY, Advice.REMOVE)


def advise(memory: GuestRegionCollection, advice: Advice, addr: int, length: int) -> None:
    """Call madvise(2) for `length` bytes at `addr`, across regions that touch; whole pages.

    What frees memory changes what the guest reads, so it is recorded as a write. Raises InvalidGuestAddress before
    anything is done, HostRefused with the kernel's reason.
    """
    pieces = list(host_pieces(memory, addr, length))
    for where, address, count in pieces:
        result = lib.pyvmm_madvise(address, count, advice)
        if result < 0:
            raise HostRefused(-result, f"{advice.name} of {count:#x} bytes at {where:#x}", _CURES.get(advice, ""))
        if advice in _LOSES:
            memory.mark_dirty(where, count)


def host_pieces(memory: GuestRegionCollection, addr: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Yield guest address, host address and count of each region's part. Raises InvalidGuestAddress."""
    if not memory.check_range(addr, length):
        raise InvalidGuestAddress(addr)
    done = 0
    while done < length:
        region = memory.find_region(addr + done)
        assert region is not None  # checked above, and a collection never changes
        count = min(length - done, region.end - addr - done)
        yield addr + done, region.get_host_address(addr + done - region.start), count
        done += count


def prefault(
    memory: GuestRegionCollection,
    *,
    threads: int = 4,
    progress: Callable[[int, int], object] | None = None,
) -> int:
    """Make every page of guest memory present now, so that the guest never waits for one; returns the bytes.

    Args:
        memory: what to bring in; its content stays.
        threads: how many, without the GIL; the kernel clears pages in each.
        progress: called with (bytes done, bytes in all) after each 64 MiB, from the calling thread.

    Raises:
        HostRefused: the host has not so much memory; what is present stays.
    """
    from concurrent.futures import ThreadPoolExecutor

    jobs = [
        (address + at, min(CHUNK, count - at))
        for region in memory
        for _, address, count in host_pieces(memory, region.start, region.size)
        for at in range(0, count, CHUNK)
    ]
    total = sum(size for _, size in jobs)
    done = 0
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="prefault") as pool:
        for size in pool.map(lambda job: _populate(*job), jobs):
            done += size
            if progress is not None:
                progress(done, total)
    return total


def _populate(address: int, size: int) -> int:
    result = lib.pyvmm_madvise(address, size, Advice.POPULATE_WRITE)
    if result == -errno.EINVAL:  # before Linux 5.14
        lib.pyvmm_touch(address, size, mmap.PAGESIZE)
    elif result < 0:
        raise HostRefused(-result, f"bringing in {size:#x} bytes", "give the guest less memory than the host has free")
    return size
