"""MmapRegion: one host mapping, whatever is behind it, with its views, its dirty bitmap and its lifetime."""

from __future__ import annotations

import errno
import mmap
import os

from pyvmm_memory.bitmap import new_bitmap
from pyvmm_memory.errors import (
    InvalidOffsetLength,
    InvalidRegion,
    MapFixed,
    MappingPastEof,
    MemoryClosed,
    MemoryInUse,
    MmapFailed,
)
from pyvmm_memory.pinned_buffer import PinnedBuffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol, Self

    from typing_extensions import Buffer

    from pyvmm_memory.bitmap import Bitmap, NewBitmap
    from pyvmm_memory.file_offset import FileOffset
    from pyvmm_memory.volatile import VolatileSlice

    class Owner(Protocol):
        """What unmaps a range."""

        def buffer(self) -> Buffer:
            """Return the range as a buffer."""
            ...

        def close(self) -> None:
            """Unmap; raises BufferError while views of the buffer live."""
            ...


# mmap.MAP_NORESERVE exists from Python 3.13 on; the values are those of every Linux architecture KVM runs on.
MAP_NORESERVE = 0x4000
MAP_FIXED = 0x10
MAP_FIXED_NOREPLACE = 0x100000
PROT_RW = mmap.PROT_READ | mmap.PROT_WRITE
ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class MmapRegion(PinnedBuffer):
    """`size` bytes mapped into this process.

    `buffer` is the mapping itself, `view` a memoryview of it and `window` its single accesses. Closing unmaps and
    raises MemoryInUse while anybody else holds a view. A file that shrinks after it was mapped turns every touch of
    the lost part into SIGBUS: its length is checked when it is mapped, and whoever else can truncate it is trusted.
    """

    __slots__ = (
        "_after",
        "_file_offset",
        "_flags",
        "_hugetlbfs",
        "_owned",
        "_owner",
        "_prot",
        "kind",
        "lazy",
    )

    def __init__(
        self,
        buffer: Buffer,
        size: int,
        prot: int,
        flags: int,
        file_offset: FileOffset | None = None,
        bitmap: Bitmap | None = None,
        *,
        owned: bool = True,
        hugetlbfs: bool | None = None,
        kind: str = "",
        owner: Owner | None = None,
    ) -> None:
        super().__init__(buffer, size, _view_of(buffer, prot), bitmap)
        #: what unmaps where `buffer` cannot
        self._owner = owner
        #: whether untouched pages are still elsewhere, and not zeros
        self.lazy = False
        #: what is behind it, in a word, for people
        self.kind = kind or ("file" if file_offset is not None else "anonymous")
        self._prot = prot
        self._flags = flags
        self._file_offset = file_offset
        self._owned = owned
        self._hugetlbfs = hugetlbfs
        self._after: list[Callable[[], object]] = []

    @classmethod
    def new(cls, size: int, bitmap: NewBitmap | None = None) -> Self:
        """Map zeroed, private, anonymous memory without reserving swap. Raises InvalidRegion, MmapFailed."""
        return cls.build(None, size, PROT_RW, ANONYMOUS | MAP_NORESERVE, bitmap)

    @classmethod
    def from_file(cls, file_offset: FileOffset, size: int, bitmap: NewBitmap | None = None) -> Self:
        """Map a file, shared: what the guest writes is in the file. Raises what `build` does."""
        return cls.build(file_offset, size, PROT_RW, mmap.MAP_SHARED | MAP_NORESERVE, bitmap)

    @classmethod
    def build(
        cls,
        file_offset: FileOffset | None,
        size: int,
        prot: int,
        flags: int,
        bitmap: NewBitmap | None = None,
        *,
        hugetlbfs: bool | None = None,
        kind: str = "",
    ) -> Self:
        """Map with the protection and flags of mmap(2).

        Raises:
            InvalidRegion: the size is not positive.
            MapFixed: MAP_FIXED is among the flags.
            InvalidOffsetLength: the offset is not on a page, or overflows with the size.
            MappingPastEof: the file is shorter than that.
            MmapFailed: the host refuses, with its errno.
        """
        if size <= 0 or size > 1 << 63:
            raise InvalidRegion(f"{size} bytes cannot be mapped")
        if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE):
            raise MapFixed("MAP_FIXED replaces what is mapped at an address: use HostReservation, which owns the range")
        fd, start = -1, 0
        if file_offset is not None:
            fd, start = file_offset.fileno(), file_offset.start()
            check_file(fd, start, size)
        try:
            buffer = mmap.mmap(fd, size, flags=flags, prot=prot, offset=start)
        except OSError as error:
            raise MmapFailed(error, f"mapping {size:#x} bytes{_advice(error, flags)}") from error
        except (ValueError, OverflowError) as error:
            raise InvalidRegion(f"{size} bytes cannot be mapped: {error}") from error
        made: Bitmap | None = None if bitmap is None else new_bitmap(bitmap, size)
        private = file_offset is not None and flags & mmap.MAP_PRIVATE
        return cls(
            buffer,
            size,
            prot,
            flags,
            file_offset,
            made,
            hugetlbfs=hugetlbfs,
            kind=kind or ("private file" if private else ""),
        )

    @classmethod
    def build_raw(cls, addr: int, size: int, prot: int, flags: int, bitmap: NewBitmap | None = None) -> Self:
        """Use memory that somebody else mapped at `addr` of this process, and unmaps after this is closed.

        Raises InvalidPointer where `addr` is not the start of a page.
        """
        from pyvmm_memory.raw import from_pointer

        return from_pointer(cls, addr, size, prot, flags, bitmap)

    def as_ptr(self) -> int:
        """Return the host address of the first byte."""
        if self.closed:
            raise MemoryClosed(f"{self!r} is closed")
        if self.view is not None:
            return self.window.address
        from pyvmm_memory._memory import ffi

        return int(ffi.cast("uintptr_t", ffi.from_buffer(self.buffer)))

    def file_offset(self) -> FileOffset | None:
        """Return the file behind it, if there is one."""
        return self._file_offset

    def prot(self) -> int:
        """Return the protection it was mapped with."""
        return self._prot

    def flags(self) -> int:
        """Return the flags it was mapped with."""
        return self._flags

    def owned(self) -> bool:
        """Say whether closing unmaps it."""
        return self._owned

    def is_hugetlbfs(self) -> bool | None:
        """Say whether huge pages of hugetlbfs are behind it: yes, no, or nobody said."""
        return self._hugetlbfs

    def set_hugetlbfs(self, hugetlbfs: bool) -> None:
        """Say whether huge pages of hugetlbfs are behind it."""
        self._hugetlbfs = hugetlbfs

    def fds_overlap(self, other: MmapRegion) -> bool:
        """Say whether both map some of the same bytes of one file, by whichever descriptors."""
        mine, theirs = self._file_offset, other._file_offset
        if mine is None or theirs is None or not mine.same_file(theirs):
            return False
        return mine.start() < theirs.start() + other.size and theirs.start() < mine.start() + self.size

    def as_volatile_slice(self) -> VolatileSlice:
        """Return all of it as a VolatileSlice, which keeps the dirty bitmap."""
        from pyvmm_memory.volatile import VolatileSlice

        return VolatileSlice(self, 0, self.size)

    def get_slice(self, offset: int, count: int) -> VolatileSlice:
        """Return `count` bytes at `offset`. Raises OutOfBounds, Overflow."""
        return self.as_volatile_slice().subslice(offset, count)

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call `callback` once this is unmapped: for what belongs to the mapping, such as its file."""
        self._after.append(callback)

    def close(self) -> None:
        """Unmap; idempotent. Raises MemoryInUse, changing nothing, while views of it live."""
        if self.closed:
            return
        self.window.release()
        if self.view is not None:
            self.view.release()
        try:
            if self._owner is not None:
                self.buffer = b""
                self._owner.close()
            elif isinstance(self.buffer, mmap.mmap):
                self.buffer.close()
        except BufferError as error:
            if self._owner is not None:
                self.buffer = self._owner.buffer()
            self.view = _view_of(self.buffer, self._prot)
            self.window.reopen(b"" if self.view is None else self.view)
            raise MemoryInUse(f"{self!r} is still in use: release its slices, close the VM, then close") from error
        self.closed = True
        while self._after:
            self._after.pop()()

    def __repr__(self) -> str:
        return f"<MmapRegion {self.size:#x} bytes {self.kind}{' closed' if self.closed else ''}>"


def _view_of(buffer: Buffer, prot: int) -> memoryview | None:
    if not prot & mmap.PROT_READ:
        return None
    view = memoryview(buffer)
    return view if prot & mmap.PROT_WRITE else view.toreadonly()


def check_file(fd: int, start: int, size: int) -> None:
    """Raise InvalidOffsetLength or MappingPastEof where `size` bytes at `start` of a file cannot be mapped."""
    import stat

    if start < 0 or start % mmap.ALLOCATIONGRANULARITY or start + size > 1 << 63:
        raise InvalidOffsetLength(
            f"offset {start:#x} with {size:#x} bytes: an offset is a multiple of {mmap.ALLOCATIONGRANULARITY:#x}"
        )
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise MmapFailed(error, "looking at the file to map") from error
    if stat.S_ISREG(status.st_mode) and start + size > status.st_size:
        raise MappingPastEof(
            f"the file has {status.st_size:#x} bytes, the mapping would end at {start + size:#x}: "
            "ftruncate it first, or the first touch beyond the end is SIGBUS"
        )


def _advice(error: OSError, flags: int) -> str:
    if error.errno == errno.ENOMEM and flags & getattr(mmap, "MAP_HUGETLB", 0x40000):
        return " of huge pages (reserve some in /proc/sys/vm/nr_hugepages)"
    if error.errno == errno.ENOMEM and not flags & MAP_NORESERVE:
        return " (MAP_NORESERVE maps more than there is memory)"
    return ""
