"""Mappings of a Xen guest's memory: foreign pages and grants, by the ioctls of privcmd and gntdev.

Sources: Xen's `xen/include/public/` and Linux's `include/uapi/xen/privcmd.h` and `gntdev.h`.
"""

from __future__ import annotations

import fcntl
import mmap
from enum import IntFlag
from struct import Struct

from pyvmm_memory.bitmap import new_bitmap
from pyvmm_memory.errors import InvalidOffsetLength, InvalidRegion, MapFixed, MmapFailed, MmapRegionError
from pyvmm_memory.mmap_region import ANONYMOUS, MAP_FIXED, MAP_NORESERVE, PROT_RW, MmapRegion

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm_memory.bitmap import NewBitmap
    from pyvmm_memory.file_offset import FileOffset

    Ioctl = Callable[[int, int, bytearray], int]

#: set in the address of a region that is granted
XEN_GRANT_ADDR_OFF = 1 << 63
_BATCH = Struct("<IHxxQQQ")
_GRANT_HEAD = Struct("<IIQ")
_GRANT_REF = Struct("<II")
_UNMAP = Struct("<QII")
IOCTL_PRIVCMD_MMAPBATCH_V2 = _BATCH.size << 16 | ord("P") << 8 | 4
IOCTL_GNTDEV_MAP_GRANT_REF = (_GRANT_HEAD.size + _GRANT_REF.size) << 16 | ord("G") << 8
IOCTL_GNTDEV_UNMAP_GRANT_REF = _UNMAP.size << 16 | ord("G") << 8 | 1


class MmapXenFlags(IntFlag):
    """What kind of mapping it is."""

    UNIX = 0
    FOREIGN = 1
    GRANT = 2
    NO_ADVANCE_MAP = 8
    ALL = FOREIGN | GRANT

    def is_valid(self) -> bool:
        """Say whether it names one kind; only grants may be mapped later, piece by piece."""
        if int(self) & ~11:
            return False
        if self.is_grant():
            return not self.is_foreign()
        return self.mmap_in_advance()

    def is_unix(self) -> bool:
        """Say whether it is an ordinary mapping, as without Xen."""
        return self == MmapXenFlags.UNIX

    def is_foreign(self) -> bool:
        """Say whether it is pages of another domain, by frame number."""
        return bool(self & MmapXenFlags.FOREIGN)

    def is_grant(self) -> bool:
        """Say whether it is pages that another domain granted."""
        return bool(self & MmapXenFlags.GRANT)

    def mmap_in_advance(self) -> bool:
        """Say whether it is mapped as a whole when the region is made."""
        return not self & MmapXenFlags.NO_ADVANCE_MAP


class InvalidXenFlags(MmapRegionError, ValueError):
    """The flags name no kind of mapping."""


class InvalidFileOffset(MmapRegionError, ValueError):
    """A foreign mapping or a grant needs /dev/xen/privcmd or /dev/xen/gntdev, from offset 0."""


class MmapRange:
    """What to map: `size` bytes at guest address `addr` of the domain `mmap_data`."""

    __slots__ = ("addr", "file_offset", "flags", "hugetlbfs", "mmap_data", "mmap_flags", "prot", "size")

    def __init__(self, size: int, file_offset: FileOffset | None, addr: int, mmap_flags: int, mmap_data: int) -> None:
        self.size = size
        self.file_offset = file_offset
        self.addr = addr
        self.mmap_flags = mmap_flags
        self.mmap_data = mmap_data
        self.prot: int | None = None
        self.flags: int | None = None
        self.hugetlbfs: bool | None = None

    @classmethod
    def new_unix(cls, size: int, file_offset: FileOffset | None, addr: int) -> MmapRange:
        """Describe an ordinary mapping: shared for a file, private for anonymous memory."""
        self = cls(size, file_offset, addr, MmapXenFlags.UNIX, 0)
        self.flags = ANONYMOUS if file_offset is None else MAP_NORESERVE | mmap.MAP_SHARED
        return self

    def set_prot(self, prot: int) -> None:
        """Choose the protection; read and write otherwise."""
        self.prot = prot

    def set_flags(self, flags: int) -> None:
        """Choose the flags; shared without reservation otherwise."""
        self.flags = flags

    def set_hugetlbfs(self, hugetlbfs: bool) -> None:
        """Say whether huge pages of hugetlbfs are behind it."""
        self.hugetlbfs = hugetlbfs


def from_range(range_: MmapRange, *, bitmap: NewBitmap | None = None, ioctl: Ioctl | None = None) -> MmapRegion:
    """Map a range; `ioctl(fd, request, argument)` stands in for the kernel's in tests.

    A grant is always mapped in advance here: `NO_ADVANCE_MAP` is for processes that may hold few grants at a time.
    Raises InvalidXenFlags, InvalidFileOffset, MapFixed, InvalidOffsetLength, MmapFailed.
    """
    call: Ioctl = fcntl.ioctl if ioctl is None else ioctl
    kind = MmapXenFlags(range_.mmap_flags) if 0 <= range_.mmap_flags <= 11 else None
    if kind is None or not kind.is_valid():
        raise InvalidXenFlags(f"{range_.mmap_flags:#x} names no kind of mapping: UNIX, FOREIGN, GRANT, GRANT later")
    prot = PROT_RW if range_.prot is None else range_.prot
    flags = MAP_NORESERVE | mmap.MAP_SHARED if range_.flags is None else range_.flags
    if flags & MAP_FIXED:
        raise MapFixed("MAP_FIXED would replace what is mapped at an address")
    if kind.is_unix():
        return MmapRegion.build(range_.file_offset, range_.size, prot, flags, bitmap, hugetlbfs=range_.hugetlbfs)
    file = range_.file_offset
    if file is None:
        raise InvalidFileOffset("give the open /dev/xen/privcmd or /dev/xen/gntdev")
    if file.start():
        raise InvalidOffsetLength("the devices of Xen are mapped from offset 0")
    if range_.size <= 0:
        raise InvalidRegion(f"{range_.size} bytes cannot be mapped")
    count = -(-range_.size // mmap.PAGESIZE)
    make = _foreign if kind.is_foreign() else _grant
    buffer, undo = make(call, range_, file.fileno(), count, prot, flags)
    made = None if bitmap is None else new_bitmap(bitmap, range_.size)
    label = "Xen foreign" if kind.is_foreign() else "Xen grant"
    region = MmapRegion(buffer, range_.size, prot, flags, file, made, hugetlbfs=range_.hugetlbfs, kind=label)
    region.on_close(undo)
    return region


def _map(fd: int, count: int, prot: int, flags: int, offset: int) -> mmap.mmap:
    try:
        return mmap.mmap(fd, count * mmap.PAGESIZE, flags=flags, prot=prot, offset=offset)
    except OSError as error:
        raise MmapFailed(error, f"mapping {count} pages of a Xen guest") from error


def _call(call: Ioctl, fd: int, request: int, argument: bytearray, what: str) -> None:
    try:
        call(fd, request, argument)
    except OSError as error:
        raise MmapFailed(error, what) from error


def _foreign(
    call: Ioctl, range_: MmapRange, fd: int, count: int, prot: int, flags: int
) -> tuple[mmap.mmap, Callable[[], object]]:
    from pyvmm_memory._memory import ffi

    buffer = _map(fd, count, prot, flags | mmap.MAP_SHARED, 0)
    first = range_.addr // mmap.PAGESIZE
    frames = ffi.new("uint64_t[]", [first + page for page in range(count)])
    errors = ffi.new("int[]", count)
    with ffi.from_buffer(buffer) as at:
        address, table, results = (int(ffi.cast("uintptr_t", each)) for each in (at, frames, errors))
        argument = bytearray(_BATCH.pack(count, range_.mmap_data & 0xFFFF, address, table, results))
        try:
            _call(call, fd, IOCTL_PRIVCMD_MMAPBATCH_V2, argument, f"mapping frames of domain {range_.mmap_data}")
            failed = next((page for page in range(count) if errors[page]), None)
            if failed is not None:
                raise MmapFailed(OSError(-errors[failed], "the frame cannot be mapped"), f"frame {first + failed:#x}")
        except MmapFailed:
            ffi.release(at)
            buffer.close()
            raise
    return buffer, lambda: None


def _grant(
    call: Ioctl, range_: MmapRange, fd: int, count: int, prot: int, flags: int
) -> tuple[mmap.mmap, Callable[[], object]]:
    first = (range_.addr & ~XEN_GRANT_ADDR_OFF) // mmap.PAGESIZE
    argument = bytearray(_GRANT_HEAD.pack(count, 0, 0))
    for page in range(count):
        argument += _GRANT_REF.pack(range_.mmap_data, first + page & 0xFFFF_FFFF)
    _call(call, fd, IOCTL_GNTDEV_MAP_GRANT_REF, argument, f"mapping grants of domain {range_.mmap_data}")
    index: int = _GRANT_HEAD.unpack_from(argument)[2]

    def undo() -> None:
        release = bytearray(_UNMAP.pack(index, count, 0))
        _call(call, fd, IOCTL_GNTDEV_UNMAP_GRANT_REF, release, "giving grants back")

    try:
        return _map(fd, count, prot, flags, index), undo
    except BaseException:
        undo()
        raise
