"""Xen's flags, ranges and ioctl arguments, with a stand-in for the kernel's half."""

import mmap
import os
from collections.abc import Iterator
from struct import Struct, unpack_from

import pytest

import pyvmm_memory as pm
from pyvmm_memory import xen
from pyvmm_memory.xen import MmapRange, MmapXenFlags, from_range


@pytest.fixture
def device() -> Iterator[pm.FileOffset]:
    fd = os.memfd_create("device")
    os.ftruncate(fd, 0x10000)
    yield pm.FileOffset(fd)
    os.close(fd)


@pytest.mark.parametrize(
    ("flags", "valid"),
    [
        (0, True),
        (1, True),
        (2, True),
        (3, False),
        (8, False),
        (9, False),
        (10, True),
        (11, False),
        (4, False),
        (16, False),
    ],
)
def test_which_flags_name_a_kind(flags: int, valid: bool) -> None:
    assert MmapXenFlags(flags).is_valid() is valid
    if not valid:
        with pytest.raises(xen.InvalidXenFlags):
            from_range(MmapRange(0x1000, None, 0, flags, 0))


def test_ioctl_numbers_are_those_of_the_headers() -> None:
    # _IOC(_IOC_NONE, 'P', 4, 32), _IOC(_IOC_NONE, 'G', 0, 24), _IOC(_IOC_NONE, 'G', 1, 16)
    assert xen.IOCTL_PRIVCMD_MMAPBATCH_V2 == 0x205004
    assert xen.IOCTL_GNTDEV_MAP_GRANT_REF == 0x184700
    assert xen.IOCTL_GNTDEV_UNMAP_GRANT_REF == 0x104701


def test_unix_ranges(device: pm.FileOffset) -> None:
    with from_range_in(MmapRange.new_unix(0x2000, None, 0x1000)) as memory:
        memory.write_u8(1, 0)
    shared = MmapRange.new_unix(0x1000, device, 0)
    shared.set_prot(mmap.PROT_READ)
    shared.set_hugetlbfs(False)
    region = from_range(shared)
    assert (region.prot(), region.is_hugetlbfs()) == (mmap.PROT_READ, False)
    region.close()
    fixed = MmapRange.new_unix(0x1000, None, 0)
    fixed.set_flags(0x10)
    with pytest.raises(pm.MapFixed):
        from_range(fixed)


def from_range_in(range_: MmapRange) -> pm.GuestMemoryMmap:
    return pm.GuestMemoryMmap([pm.GuestRegionMmap.new(from_range(range_), 0)])


def test_foreign_frames(device: pm.FileOffset) -> None:
    calls: list[tuple[int, int, tuple[int, ...]]] = []
    memory_of_results: list[int] = []

    def ioctl(fd: int, request: int, argument: bytearray) -> int:
        calls.append((fd, request, Struct("<IHxxQQQ").unpack(argument)))
        memory_of_results.append(unpack_from("<Q", argument, 24)[0])
        return 0

    region = from_range(MmapRange(0x1800, device, 0x5000, MmapXenFlags.FOREIGN, 7), bitmap=pm.AtomicBitmap, ioctl=ioctl)
    ((fd, request, (count, domain, address, table, _)),) = calls
    assert (fd, request, count, domain) == (device.fileno(), xen.IOCTL_PRIVCMD_MMAPBATCH_V2, 2, 7)
    assert address == region.as_ptr()
    assert table
    assert "Xen foreign" in repr(region)
    assert region.bitmap is not None
    region.close()


def test_a_frame_that_cannot_be_mapped(device: pm.FileOffset) -> None:
    from pyvmm_memory._memory import ffi

    def bad_frame(fd: int, request: int, argument: bytearray) -> int:
        results = ffi.cast("int *", Struct("<IHxxQQQ").unpack(argument)[4])
        results[1] = -22
        return 0

    with pytest.raises(pm.MmapFailed, match="frame 0x6"):
        from_range(MmapRange(0x2000, device, 0x5000, 1, 7), ioctl=bad_frame)

    def refuse(fd: int, request: int, argument: bytearray) -> int:
        raise OSError(25, "Inappropriate ioctl for device")

    with pytest.raises(pm.MmapFailed, match="domain 7"):
        from_range(MmapRange(0x2000, device, 0x5000, 1, 7), ioctl=refuse)
    # the real call, on what is no device of Xen
    with pytest.raises(pm.MmapFailed):
        from_range(MmapRange(0x2000, device, 0x5000, 1, 7))


def test_grants_are_given_back(device: pm.FileOffset) -> None:
    calls: list[tuple[int, bytes]] = []

    def ioctl(fd: int, request: int, argument: bytearray) -> int:
        calls.append((request, bytes(argument)))
        if request == xen.IOCTL_GNTDEV_MAP_GRANT_REF:
            argument[8:16] = (0x2000).to_bytes(8, "little")
        return 0

    region = from_range(MmapRange(0x2000, device, xen.XEN_GRANT_ADDR_OFF | 0x5000, 2, 7), ioctl=ioctl)
    assert calls[0] == (xen.IOCTL_GNTDEV_MAP_GRANT_REF, Struct("<IIQIIII").pack(2, 0, 0, 7, 5, 7, 6))
    region.close()
    assert calls[1] == (xen.IOCTL_GNTDEV_UNMAP_GRANT_REF, Struct("<QII").pack(0x2000, 2, 0))


def test_a_grant_that_cannot_be_mapped_is_given_back(device: pm.FileOffset) -> None:
    calls: list[int] = []

    def ioctl(fd: int, request: int, argument: bytearray) -> int:
        calls.append(request)
        argument[8:16] = (0x1001).to_bytes(8, "little")
        return 0

    with pytest.raises(pm.MmapFailed):
        from_range(MmapRange(0x1000, device, 0x5000, 2, 7), ioctl=ioctl)
    assert calls == [xen.IOCTL_GNTDEV_MAP_GRANT_REF, xen.IOCTL_GNTDEV_UNMAP_GRANT_REF]


def test_what_a_device_needs(device: pm.FileOffset) -> None:
    with pytest.raises(xen.InvalidFileOffset):
        from_range(MmapRange(0x1000, None, 0, 1, 0))
    with pytest.raises(pm.InvalidOffsetLength):
        from_range(MmapRange(0x1000, pm.FileOffset(device.fileno(), 0x1000), 0, 1, 0))
    with pytest.raises(pm.InvalidRegion):
        from_range(MmapRange(0, device, 0, 1, 0))
