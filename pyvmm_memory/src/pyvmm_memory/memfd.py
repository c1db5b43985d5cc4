"""Memory behind memfds, huge pages included, and behind guest_memfds: descriptors that others can map too."""

from __future__ import annotations

import mmap
import os

from pyvmm_memory.errors import HostRefused
from pyvmm_memory.file_offset import FileOffset
from pyvmm_memory.guest_memory_mmap import GuestMemoryMmap
from pyvmm_memory.mmap_region import MAP_NORESERVE, PROT_RW, MmapRegion
from pyvmm_memory.region import GuestRegionMmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pyvmm_memory.bitmap import NewBitmap


def memfd_region(
    start: int, size: int, *, name: str = "guest-memory", hugetlb: int = 0, bitmap: NewBitmap | None = None
) -> GuestRegionMmap:
    """Map a shared region behind a memfd of its own, which `file_offset()` has and which closes with it.

    `hugetlb` is the size of the huge pages in bytes (2 MiB, 1 GiB), 0 for ordinary ones. Raises HostRefused, and
    MmapFailed where there are not so many huge pages.
    """
    flags = os.MFD_CLOEXEC
    if hugetlb:
        flags |= os.MFD_HUGETLB | (hugetlb.bit_length() - 1) << os.MFD_HUGE_SHIFT
    try:
        fd = os.memfd_create(name, flags)
    except OSError as error:
        cure = f"is there a /sys/kernel/mm/hugepages/hugepages-{hugetlb >> 10}kB?" if hugetlb else ""
        raise HostRefused(error.errno or 0, "creating a memfd", cure) from error
    return _own(fd, start, size, "hugetlbfs" if hugetlb else "memfd", bool(hugetlb) or None, bitmap, resize=True)


def from_memfd(
    ranges: Iterable[tuple[int, int]], *, hugetlb: int = 0, bitmap: NewBitmap | None = None
) -> GuestMemoryMmap:
    """Map guest memory, each range as `memfd_region` does."""
    return _all(memfd_region(start, size, hugetlb=hugetlb, bitmap=bitmap) for start, size in ranges)


def guest_memfd_region(
    start: int, size: int, create: Callable[[int], int], *, bitmap: NewBitmap | None = None
) -> GuestRegionMmap:
    """Map a region behind a guest_memfd that the host may map (GUEST_MEMFD_FLAG_MMAP, Linux 6.18).

    `create(size)` returns its descriptor, which the region closes: pass what your hypervisor offers, for KVM
    `lambda size: vm.create_guest_memfd(size, flags)`. The same descriptor goes into
    `set_user_memory_region2`; `file_offset()` has it. Raises MmapFailed where the kernel does not let it be mapped.
    """
    return _own(create(size), start, size, "guest_memfd", None, bitmap, resize=False)


def from_guest_memfd(
    ranges: Iterable[tuple[int, int]], create: Callable[[int], int], *, bitmap: NewBitmap | None = None
) -> GuestMemoryMmap:
    """Map guest memory, each range as `guest_memfd_region` does."""
    return _all(guest_memfd_region(start, size, create, bitmap=bitmap) for start, size in ranges)


def _own(
    fd: int, start: int, size: int, kind: str, hugetlbfs: bool | None, bitmap: NewBitmap | None, *, resize: bool
) -> GuestRegionMmap:
    try:
        if resize:
            os.ftruncate(fd, size)
        flags = mmap.MAP_SHARED | MAP_NORESERVE if resize else mmap.MAP_SHARED
        mapping = MmapRegion.build(FileOffset(fd), size, PROT_RW, flags, bitmap, hugetlbfs=hugetlbfs, kind=kind)
    except BaseException:
        os.close(fd)
        raise
    mapping.on_close(lambda: os.close(fd))
    return GuestRegionMmap(start, size, mapping)


def _all(regions: Iterable[GuestRegionMmap]) -> GuestMemoryMmap:
    made: list[GuestRegionMmap] = []
    try:
        for region in regions:
            made.append(region)
        return GuestMemoryMmap(made)
    except BaseException:
        for region in made:
            region.close()
        raise
