"""Host mappings: files, memfds, protection, flags, raw pointers, lifetimes."""

import errno
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyvmm_memory as pm
from pyvmm_memory.mmap_region import ANONYMOUS, MAP_FIXED, PROT_RW

MIB = 1 << 20


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 0x4000)
    yield fd
    os.close(fd)


def test_a_shared_file_has_what_the_guest_wrote(memfd: int) -> None:
    with pm.GuestMemoryMmap.from_ranges_with_files(
        [(0, 0x1000, None), (0x1000, 0x2000, pm.FileOffset(memfd, 0x1000))]
    ) as memory:
        memory.write_slice(b"hello", 0x1FFE)
        assert os.pread(memfd, 5, 0x1FFE) == b"hello"
        region = memory.find_region(0x1000)
        assert region is not None
        offset = region.file_offset()
        assert offset is not None
        assert (offset.start(), offset.file(), offset.fileno()) == (0x1000, memfd, memfd)
        assert "0x1000" in repr(offset)
        assert "0x1000-0x2fff file" in repr(memory)
        assert region.get_mmap().owned()


def test_a_private_file_keeps_its_bytes(memfd: int) -> None:
    os.pwrite(memfd, b"before", 0)
    mapping = pm.MmapRegion.build(pm.FileOffset(memfd), 0x1000, PROT_RW, mmap.MAP_PRIVATE)
    with pm.GuestMemoryMmap([pm.GuestRegionMmap.new(mapping, 0)]) as memory:
        memory.write_slice(b"after!", 0)
        assert os.pread(memfd, 6, 0) == b"before"
        assert "private file" in repr(memory)


def test_the_file_may_be_closed_once_it_is_mapped() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(0x1000)
        memory = pm.GuestMemoryMmap.from_ranges_with_files([(0, 0x1000, pm.FileOffset(file))])
    memory.write_u64(1, 0)
    memory.close()


def test_weakness_a_file_that_ends_early_is_refused(memfd: int) -> None:
    # vm-memory maps beyond the end of a file since 0.17, and the first touch is SIGBUS
    with pytest.raises(pm.MappingPastEof, match="SIGBUS"):
        pm.MmapRegion.from_file(pm.FileOffset(memfd, 0x3000), 0x2000)
    for start in (1, 0x800):
        with pytest.raises(pm.InvalidOffsetLength):
            pm.MmapRegion.from_file(pm.FileOffset(memfd, start), 0x1000)
    with pytest.raises(pm.InvalidOffsetLength):
        pm.MmapRegion.from_file(pm.FileOffset(memfd, 1 << 62), 1 << 63)
    with pytest.raises(pm.InvalidOffsetLength):
        pm.FileOffset(memfd, -1)
    with pytest.raises(pm.MmapFailed) as failed:
        pm.MmapRegion.from_file(pm.FileOffset(10_000), 0x1000)
    assert failed.value.errno == errno.EBADF


def test_what_cannot_be_mapped() -> None:
    for size in (0, -1, 1 << 70):
        with pytest.raises(pm.InvalidRegion):
            pm.MmapRegion.new(size)
    with pytest.raises(pm.MmapFailed):
        pm.MmapRegion.new(1 << 62)
    with pytest.raises(pm.MapFixed):
        pm.MmapRegion.build(None, 0x1000, PROT_RW, ANONYMOUS | MAP_FIXED)
    with pytest.raises(pm.InvalidRegion):
        pm.GuestRegionMmap(0, 0x1000, pm.MmapRegion.new(0x2000))
    with pytest.raises(pm.InvalidRegion):
        pm.GuestRegionMmap.new(pm.MmapRegion.new(0x2000), 2**64 - 0x1000)


def test_protection_is_kept() -> None:
    with pm.GuestMemoryMmap(
        [pm.GuestRegionMmap.new(pm.MmapRegion.build(None, 0x1000, mmap.PROT_READ, ANONYMOUS), 0)]
    ) as memory:
        assert memory.read_u64(0) == 0
        for write in (
            lambda: memory.write_u64(1, 0),
            lambda: memory.write_slice(b"123", 0),
            lambda: memory.store(1, 0, 8),
            lambda: memory.read_volatile_from(0, b"123", 3),
            lambda: memory.fill_zero(0, 1),
            lambda: memory.__setitem__(slice(0, 3), b"123"),
            lambda: memory.get_volatile_slice(0, 8).ptr_guard_mut(),
        ):
            with pytest.raises(pm.ReadOnlyMemory):
                write()
        assert memory.get_slice(0, 8).readonly
        mapping = next(iter(memory)).get_mmap()
        assert (mapping.prot(), mapping.flags()) == (mmap.PROT_READ, ANONYMOUS)


def test_a_slice_that_ends_in_protected_memory_is_not_begun() -> None:
    protected = pm.GuestRegionMmap.new(pm.MmapRegion.build(None, 0x1000, mmap.PROT_READ, ANONYMOUS), 0x1000)
    with pm.GuestMemoryMmap([pm.GuestRegionMmap(0, 0x1000), protected]) as memory:
        memory[0xFFE:0x1000] = b"ab"
        with pytest.raises(pm.ReadOnlyMemory):
            memory[0xFFE:0x1002] = b"1234"
        assert memory[0xFFE:0x1002] == b"ab\0\0"


def test_memory_nobody_may_touch_is_not_touched() -> None:
    with pm.GuestMemoryMmap([pm.GuestRegionMmap.new(pm.MmapRegion.build(None, 0x1000, 0, ANONYMOUS), 0)]) as memory:
        for access in (lambda: memory.read_u8(0), lambda: memory.get_slice(0, 1), lambda: memory.write(b"1", 0)):
            with pytest.raises(pm.HostAddressNotAvailable):
                access()
        assert memory.get_host_address(0) % mmap.PAGESIZE == 0


def test_weakness_descriptors_of_one_file_are_one_file(memfd: int, tmp_path: Path) -> None:
    # vm-memory compares descriptor numbers, and a duplicate is another number
    twin = os.dup(memfd)
    first = pm.MmapRegion.from_file(pm.FileOffset(memfd, 0), 0x2000)
    second = pm.MmapRegion.from_file(pm.FileOffset(twin, 0x1000), 0x2000)
    third = pm.MmapRegion.from_file(pm.FileOffset(twin, 0x2000), 0x1000)
    (tmp_path / "other").write_bytes(bytes(0x2000))
    with (tmp_path / "other").open("r+b") as file:
        other = pm.MmapRegion.from_file(pm.FileOffset(file, 0), 0x2000)
        assert not first.fds_overlap(other)
    assert first.fds_overlap(second)
    assert second.fds_overlap(first)
    assert second.fds_overlap(third)
    assert not first.fds_overlap(third)
    assert not first.fds_overlap(pm.MmapRegion.new(0x1000))
    os.close(twin)


def test_two_regions_may_share_a_mapping() -> None:
    mapping = pm.MmapRegion.new(0x1000)
    with pm.GuestMemoryMmap([pm.GuestRegionMmap.new(mapping, 0), pm.GuestRegionMmap.new(mapping, 0x8000)]) as memory:
        memory.write_u64(7, 0x10)
        assert memory.read_u64(0x8010) == 7
    assert mapping.closed
    assert "closed" in repr(mapping)
    for use in (mapping.as_ptr, lambda: mapping.place(writing=False)):
        with pytest.raises(pm.MemoryClosed):
            use()


def test_a_refused_close_leaves_every_access_working() -> None:
    memory = pm.GuestMemoryMmap.from_ranges([(0, 0x1000)])
    view = memory.get_slice(0, 16)
    with pytest.raises(pm.MemoryInUse):
        memory.close()
    memory.write_u32(5, 0)
    assert bytes(view[:4]) == b"\5\0\0\0"
    view.release()
    memory.close()
    for use in (lambda: memory.read_u32(0), lambda: memory.write_u32(1, 0), lambda: memory.get_host_address(0)):
        with pytest.raises(pm.MemoryClosed):
            use()


def test_hugetlbfs_is_yes_no_or_unknown() -> None:
    mapping = pm.MmapRegion.new(0x1000)
    region = pm.GuestRegionMmap.new(mapping, 0)
    assert region.is_hugetlbfs() is None
    for value in (True, False):
        mapping.set_hugetlbfs(value)
        assert region.is_hugetlbfs() is value
    region.close()


def test_region_addresses() -> None:
    with pm.GuestMemoryMmap.from_ranges([(0x1000, 0x1000)]) as memory:
        (region,) = memory
        assert region.to_region_addr(0x1010) == 0x10
        assert region.to_region_addr(0xFFF) is None
        assert region.check_address(0x1000) is None
        assert region.checked_offset(0xFF0, 0xF) == 0xFFF
        assert region.checked_offset(0xFF0, 0x10) is None
        assert memory.to_region_addr(0x1010) == (region, 0x10)
        assert memory.to_region_addr(0) is None
        assert memory.get_host_address(0x1010) == region.get_host_address(0x10)
        with pytest.raises(pm.InvalidBackendAddress):
            region.get_host_address(0x1000)
        with pytest.raises(pm.InvalidGuestAddress):
            memory.get_host_address(0)
        assert region.last_addr() == 0x1FFF
        assert 0x1FFF in region
        assert 0x2000 not in region
        assert memory.physical_memory() is memory
        assert (memory.check_address(0x1000), memory.check_address(0)) == (0x1000, None)
        assert len(region.view) == 0x1000
        assert len(region.as_volatile_slice()) == 0x1000


def test_weakness_a_region_of_no_bytes_has_no_last_address() -> None:
    # in vm-memory its last address underflows
    for start in (0, 0x1000, 2**64 - 1):
        with pytest.raises(pm.InvalidRegion):
            pm.GuestRegionMmap(start, 0)


def test_an_empty_collection_grows_and_shrinks() -> None:
    empty = pm.GuestMemoryMmap.new()
    assert (empty.num_regions(), len(empty), bool(empty)) == (0, 0, True)
    assert repr(empty) == "<GuestMemoryMmap 0x0 bytes: no regions>"
    with pytest.raises(pm.NoMemoryRegion):
        empty.last_addr()
    with pytest.raises(pm.InvalidGuestAddress):
        empty.read_u8(0)
    with pytest.raises(pm.InvalidGuestAddress):
        empty.get_slice(0, 1)
    one = empty.insert_region(pm.GuestRegionMmap(0, 0x1000))
    rest, region = one.remove_region(0, 0x1000)
    assert rest.num_regions() == 0
    region.close()
    with pytest.raises(pm.NoMemoryRegion):
        pm.GuestRegionCollection.from_regions([])
