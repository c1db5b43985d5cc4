"""Access by guest address: counts, holes, alignment, lifetimes and hostile numbers."""

import doctest
import importlib
import io
import os
import pkgutil
from collections.abc import Callable, Iterator

import pytest

import pyvmm_memory as pm


@pytest.fixture
def memory() -> Iterator[pm.GuestMemoryMmap]:
    # two adjacent regions, a hole, a third
    with pm.GuestMemoryMmap.from_ranges([(0x1000, 0x1000), (0x2000, 0x1000), (0x8000, 0x1000)]) as memory:
        yield memory


def test_partial_counts_and_their_errors(memory: pm.GuestMemoryMmap) -> None:
    assert memory.write(b"x" * 0x2000, 0x2800) == 0x800
    with pytest.raises(pm.PartialBuffer) as partial:
        memory.write_slice(b"x" * 0x2000, 0x2800)
    assert (partial.value.expected, partial.value.completed) == (0x2000, 0x800)
    with pytest.raises(pm.PartialBuffer):
        memory.read_slice(bytearray(0x2000), 0x2800)
    with pytest.raises(pm.InvalidGuestAddress) as invalid:
        memory.read(bytearray(1), 0x5000)
    assert invalid.value.address == 0x5000


def test_adjacent_regions_are_crossed_by_copies_only(memory: pm.GuestMemoryMmap) -> None:
    memory.write_slice(b"0123456789", 0x1FFB)
    copy = bytearray(10)
    memory.read_slice(copy, 0x1FFB)
    assert copy == b"0123456789"
    with pytest.raises(pm.InvalidBackendAddress):
        memory.get_slice(0x1FFB, 10)
    slices = memory.get_slices(0x1FFB, 10)
    assert [bytes(each) for each in slices] == [b"01234", b"56789"]
    for each in slices:
        each.release()
    memory.write_u64(0x1122334455667788, 0x1FFD)
    assert memory.read_u64(0x1FFD) == 0x1122334455667788


def test_zero_length_always_succeeds(memory: pm.GuestMemoryMmap) -> None:
    assert memory.write(b"", 0x5000) == memory.read(bytearray(), 0x5000) == 0
    assert len(memory.get_slice(0x5000, 0)) == 0
    assert memory.get_slices(0x5000, 0) == []


@pytest.mark.parametrize(
    ("addr", "length", "expected"),
    [
        (0, 0, True),
        (0x1000, 0x2000, True),
        (0x1000, 0x2001, False),
        (0, 2**64 - 1, False),
        (-1, 1, False),
        (0x1000, -1, False),
        (2**64 - 1, 2, False),
    ],
)
def test_check_range(memory: pm.GuestMemoryMmap, addr: int, length: int, expected: bool) -> None:
    assert memory.check_range(addr, length) is expected


def test_checked_offset_looks_only_at_the_end(memory: pm.GuestMemoryMmap) -> None:
    assert memory.checked_offset(0x1000, 0x7000) == 0x8000
    assert memory.checked_offset(0x1000, 0x3000) is None
    assert memory.checked_offset(0x1000, 2**64) is None


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_scalars(memory: pm.GuestMemoryMmap, size: int) -> None:
    memory.store((1 << 8 * size) - 2, 0x1010, size)
    assert memory.load(pm.GuestAddress(0x1010), size) == (1 << 8 * size) - 2
    read = getattr(memory, f"read_u{8 * size}")
    write = getattr(memory, f"write_u{8 * size}")
    for addr in (0x1010, 0x1021):
        write(1, addr)
        assert read(addr) == 1
        with pytest.raises(pm.GuestMemoryError, match="does not fit"):
            write(1 << 8 * size, addr)
        assert read(addr) == 1
    memory.write_slice(bytes(range(1, size + 1)), 0x1010)
    copy = bytearray(size)
    memory.read_slice(copy, 0x1010)
    assert copy == bytes(range(1, size + 1))


def test_atomics_ask_for_alignment_and_width(memory: pm.GuestMemoryMmap) -> None:
    with pytest.raises(pm.Misaligned):
        memory.load(0x1001, 2)
    with pytest.raises(pm.InvalidLength):
        memory.load(0x1000, 3)


@pytest.mark.parametrize("addr", [-1, 0, 0x5000, 2**64 - 1, 2**64, 2**80])
def test_hostile_addresses(memory: pm.GuestMemoryMmap, addr: int) -> None:
    calls: list[Callable[[], object]] = [
        lambda: memory.load(addr, 8),
        lambda: memory.read_u16(addr),
        lambda: memory.write(b"xy", addr),
        lambda: memory.get_slice(addr, 1),
        lambda: memory.get_slices(addr, 1),
        lambda: memory.read_volatile_from(addr, b"x", 1),
    ]
    for call in calls:
        with pytest.raises(pm.InvalidGuestAddress):
            call()


def test_regions_are_checked() -> None:
    for ranges, error in [
        ([], pm.NoMemoryRegion),
        ([(0, 0x1000), (0xFFF, 0x1000)], pm.MemoryRegionOverlap),
        ([(0x1000, 0x1000), (0, 0x1000)], pm.UnsortedMemoryRegions),
        ([(0, 0)], pm.InvalidRegion),
        ([(2**64 - 0x1000, 0x1001)], pm.InvalidRegion),
    ]:
        with pytest.raises(error):
            pm.GuestMemoryMmap.from_ranges(ranges)


def test_weakness_region_ending_at_the_top_of_the_address_space() -> None:
    with pm.GuestMemoryMmap.from_ranges([(2**64 - 0x1000, 0x1000)]) as memory:
        memory.write_u64(7, 2**64 - 8)
        assert memory.read_u64(2**64 - 8) == 7
        assert memory.last_addr() == 2**64 - 1


def test_insert_and_remove_leave_the_old_collection_alone(memory: pm.GuestMemoryMmap) -> None:
    larger = memory.insert_region(pm.GuestRegionMmap(0x4000, 0x1000))
    assert (memory.num_regions(), larger.num_regions()) == (3, 4)
    larger.write_u8(9, 0x4000)
    with pytest.raises(pm.MemoryRegionOverlap):
        memory.insert_region(next(iter(larger)))
    with pytest.raises(pm.NoMemoryRegion):
        larger.remove_region(0x4000, 0x800)
    smaller, region = larger.remove_region(0x4000, 0x1000)
    assert smaller.num_regions() == 3
    assert larger.read_u8(0x4000) == 9
    region.close()
    with pytest.raises(pm.MemoryClosed):
        larger.read_u8(0x4000)


def test_closing_waits_for_views() -> None:
    memory = pm.GuestMemoryMmap.from_ranges([(0, 0x1000)])
    view = memory.get_slice(0, 16)
    with pytest.raises(pm.MemoryInUse):
        memory.close()
    memory.write_u32(5, 0)
    view.release()
    memory.close()
    memory.close()
    with pytest.raises(pm.MemoryClosed):
        memory.get_slice(0, 16)


class Trickle(io.RawIOBase):
    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        buffer[:3] = b"abc"
        return 3


def test_weakness_a_short_read_ends_the_transfer(memory: pm.GuestMemoryMmap) -> None:
    # vm-memory goes on in the next region, and the bytes land at the wrong address
    assert memory.read_volatile_from(0x1FF0, Trickle(), 0x20) == 3
    assert memory.read_u8(0x2000) == 0


def test_files_and_buffers(memory: pm.GuestMemoryMmap) -> None:
    assert memory.read_volatile_from(0x1FF8, io.BytesIO(b"0123456789abcdef"), 16) == 16
    target = bytearray(16)
    assert memory.write_volatile_to(0x1FF8, target, 16) == 16
    assert target == b"0123456789abcdef"
    assert memory.read_volatile_from(0x8000, b"short", 100) == 5
    sink = io.BytesIO()
    assert memory.write_volatile_to(0x8000, sink, 5) == 5
    assert sink.getvalue() == b"short"
    reader, writer = os.pipe()
    assert memory.write_volatile_to(0x1FF8, writer, 16) == 16
    assert memory.read_volatile_from(0x8000, reader, 16) == 16
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("name", sorted(module.name for module in pkgutil.iter_modules(pm.__path__)))
def test_doctests(name: str) -> None:
    module = importlib.import_module(f"pyvmm_memory.{name}")
    assert doctest.testmod(module).failed == 0


def test_every_public_name_is_there() -> None:
    assert sorted(pm.__all__) == list(pm.__all__)
    for name in pm.__all__:
        assert getattr(pm, name) is not None
    assert doctest.testmod(pm).failed == 0


def test_fill_zero_and_fence(memory: pm.GuestMemoryMmap) -> None:
    memory.write_slice(b"x" * 0x2000, 0x1000)
    memory.fill_zero(0x1FFF, 2)
    pm.fence()
    copy = bytearray(4)
    memory.read_slice(copy, 0x1FFE)
    assert copy == b"x\0\0x"
    with pytest.raises(pm.InvalidGuestAddress):
        memory.fill_zero(0x2FFF, 2)
    assert memory.read_u8(0x2FFF) == ord("x")


def test_weakness_hotplug_goes_on_beside_accesses(memory: pm.GuestMemoryMmap) -> None:
    cell = pm.GuestMemoryAtomic(memory)
    before = cell.memory()
    with cell.lock() as guard:
        guard.replace(memory.insert_region(pm.GuestRegionMmap(0x4000, 0x1000)))
    assert not before.address_in_range(0x4000)
    with cell.memory() as after:
        after.write_u64(1, 0x4000)
    assert not hasattr(pm, "no_such_name")
