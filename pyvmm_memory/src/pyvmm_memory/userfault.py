"""UserFault: memory that is filled, or watched for writes, page by page as somebody touches it."""

from __future__ import annotations

import errno
import mmap
import os

from pyvmm_memory._memory import ffi, lib
from pyvmm_memory.bitmap import AtomicBitmap
from pyvmm_memory.errors import GuestMemoryError, HostRefused, InvalidRegion, MappingPastEof

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Self

    from pyvmm_memory.file_offset import FileOffset
    from pyvmm_memory.region import GuestRegionMmap

CHUNK = 64 << 10
_STEPS = {
    0: ("starting", ""),
    1: (
        "userfaultfd",
        "it needs root, CAP_SYS_PTRACE, `sysctl vm.unprivileged_userfaultfd=1` or the right to open /dev/userfaultfd",
    ),
    2: ("asking userfaultfd for its features", "write-protection needs Linux 6.4"),
    3: ("registering the region", "private anonymous memory, shmem and hugetlbfs can be served"),
    4: ("starting the thread", ""),
}


class UserFaultError(GuestMemoryError):
    """Pages of lazy memory could not be read; a touch of them is SIGBUS."""


class UserFault:
    """Serves the faults of one region from a thread that needs no interpreter.

    With `source` the region is lazy: a page has the file's bytes once it is touched, by whoever, the guest included;
    what lies beyond the end of the file is zeros. With `track_writes` the region is write-protected after each
    `collect`, and the first write to each page, by whoever, is in its result.

    Args:
        region: fresh memory: pages that are present already keep their content.
        source: the file and the offset of the region's first byte in it.
        track_writes: watch for writes.

    Raises:
        HostRefused: with what this host needs.
        MappingPastEof: the offset is beyond the end of the file.
    """

    __slots__ = ("_handle", "bitmap", "region")

    def __init__(
        self, region: GuestRegionMmap, source: FileOffset | None = None, *, track_writes: bool = False
    ) -> None:
        if source is None and not track_writes:
            raise InvalidRegion("neither a source to fill the region from nor writes to watch for")
        page = mmap.PAGESIZE
        if region.size % page:
            raise InvalidRegion(f"{region!r} is not made of whole pages")
        size = 0
        if source is not None:
            size = min(os.fstat(source.fileno()).st_size - source.start(), region.size)
            if size < 0:
                raise MappingPastEof(f"{source!r} is beyond the end of the file")
        self.region = region
        self.bitmap = AtomicBitmap(region.size, page) if track_writes else None
        dirty = ffi.NULL if self.bitmap is None else self.bitmap.pointer()
        handle, step = ffi.new("pyvmm_userfault **"), ffi.new("int *")
        fd, start = (-1, 0) if source is None else (source.fileno(), source.start())
        result = lib.pyvmm_userfault_start(
            handle, region.get_host_address(0), region.size, page, CHUNK, fd, start, size, dirty, step
        )
        if result < 0:
            what, cure = _STEPS[step[0]]
            raise HostRefused(-result, what, cure)
        self._handle: Any = handle[0]
        region.mapping.lazy = source is not None
        # the thread must not outlive the memory, and the region may be closed by whoever holds it
        region.get_mmap().on_close(self.close)
        if self.bitmap is not None and source is None:
            self._protect(0, region.size)

    def _alive(self) -> Any:  # noqa: ANN401 - a cffi pointer
        if self._handle is None:
            raise GuestMemoryError("the region is no longer served")
        return self._handle

    def _protect(self, offset: int, length: int) -> None:
        result = lib.pyvmm_userfault_protect(self._alive(), offset, length, True)
        if result < 0:
            raise HostRefused(-result, "write-protecting the region", "Linux 5.7 for anonymous, 5.19 for shared memory")

    def collect(self) -> list[tuple[int, int]]:
        """Return the guest ranges `(address, length)` written since the last call; watching goes on.

        A page whose mark is set may be written. Its mark is taken away before it is protected, and a write in between
        is in memory when this returns. The other way round, the mark of a write in between would be taken away with
        the page left open, and what is written after that never seen.
        """
        if self.bitmap is None:
            raise InvalidRegion("the region is not watched for writes")
        found = [(self.region.start + offset, length) for offset, length in self.bitmap.dirty_ranges()]
        for addr, length in found:
            self.bitmap.reset_addr_range(addr - self.region.start, length)
            self._protect(addr - self.region.start, length)
        return found

    def populate(self, progress: Callable[[int, int], object] | None = None) -> None:
        """Bring in all that is still missing, in pieces of 16 MiB. Raises UserFaultError, HostRefused."""
        size, step = self.region.size, 16 << 20
        for done in range(0, size, step):
            count = min(step, size - done)
            result = lib.pyvmm_userfault_fill(self._alive(), done, count)
            if result < 0:
                raise UserFaultError(f"filling {self.region!r}: {os.strerror(-result)}")
            if progress is not None:
                progress(done + count, size)

    def counters(self) -> dict[str, int]:
        """Return how many faults were served, bytes brought in, writes seen and pages that could not be read."""
        values = ffi.new("uint64_t[5]")
        lib.pyvmm_userfault_counters(self._alive(), values)
        return dict(zip(("faults", "bytes", "writes", "poisoned", "errno"), map(int, values), strict=True))

    def check(self) -> None:
        """Raise UserFaultError where a page could not be read."""
        counters = self.counters()
        if counters["poisoned"]:
            reason = os.strerror(counters["errno"] or errno.EIO)
            raise UserFaultError(f"{counters['poisoned']} pages of {self.region!r} could not be read: {reason}")

    def close(self) -> None:
        """Stop serving; idempotent. Pages that were never touched are zeros from then on."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self.region.mapping.lazy = False
            lib.pyvmm_userfault_stop(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._handle is None else f"{self.counters()['bytes']:#x} bytes brought in"
        return f"<UserFault of {self.region!r}: {state}>"
