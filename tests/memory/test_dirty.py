"""Every write of the memory marks exactly its own bytes, and raw views mark what their user says."""

import io
from collections.abc import Callable, Iterator

import pytest

import pyvmm_memory as pm


def small_pages(size: int) -> pm.AtomicBitmap:
    return pm.AtomicBitmap(size, 1)


@pytest.fixture
def memory() -> Iterator[pm.GuestMemoryMmap]:
    with pm.GuestMemoryMmap.from_ranges([(0x1000, 0x1000), (0x2000, 0x1000)], bitmap=small_pages) as memory:
        yield memory


def marked(memory: pm.GuestMemoryMmap) -> list[tuple[int, int]]:
    found = []
    for region in memory:
        bitmap = region.bitmap()
        assert isinstance(bitmap, pm.AtomicBitmap)
        found += [(region.start + offset, length) for offset, length in bitmap.dirty_ranges()]
        bitmap.reset()
    return found


WRITES: list[tuple[Callable[[pm.GuestMemoryMmap], object], list[tuple[int, int]]]] = [
    (lambda m: m.write(b"x" * 100, 0x1010), [(0x1010, 100)]),
    (lambda m: m.write(b"x" * 0x2000, 0x2FF0), [(0x2FF0, 0x10)]),
    (lambda m: m.write_slice(b"x" * 16, 0x1FF8), [(0x1FF8, 8), (0x2000, 8)]),
    (lambda m: m.write(b"", 0x1000), []),
    (lambda m: m.__setitem__(slice(0x1FF8, 0x2008), b"x" * 16), [(0x1FF8, 8), (0x2000, 8)]),
    (lambda m: m[0x1FF8:0x2008], []),
    (lambda m: m.store(1, 0x1008, 4), [(0x1008, 4)]),
    (lambda m: m.write_u8(1, 0x1001), [(0x1001, 1)]),
    (lambda m: m.write_u16(1, 0x1001), [(0x1001, 2)]),
    (lambda m: m.write_u32(1, 0x1002), [(0x1002, 4)]),
    (lambda m: m.write_u64(1, 0x1FFC), [(0x1FFC, 4), (0x2000, 4)]),
    (lambda m: m.write_obj(pm.Be32(1), 0x1100), [(0x1100, 4)]),
    (lambda m: m.fill_zero(0x1FFF, 2), [(0x1FFF, 1), (0x2000, 1)]),
    (lambda m: m.read_volatile_from(0x1000, b"abc", 10), [(0x1000, 3)]),
    (lambda m: m.read_exact_volatile_from(0x1000, io.BytesIO(b"abcdef"), 6), [(0x1000, 6)]),
    (lambda m: m.mark_dirty(0x1FFF, 2), [(0x1FFF, 1), (0x2000, 1)]),
    (lambda m: m.mark_dirty(0x2FFF, 2), [(0x2FFF, 1)]),
    (lambda m: m.mark_dirty(0x2FFF, 0), []),
    (lambda m: m.get_volatile_slice(0x1100, 16).write(b"ab", 2), [(0x1102, 2)]),
    (lambda m: m.get_volatile_slice(0x1100, 16).get_ref("H", 4).store(1), [(0x1104, 2)]),
    (lambda m: m.get_volatile_slice(0x1100, 16).get_array_ref("I", 4, 2).store(1, 9), [(0x1108, 4)]),
    (lambda m: m.find_region(0x2000).write(b"ab", 5), [(0x2005, 2)]),  # type: ignore[union-attr]
    (lambda m: m.find_region(0x2000).get_slice(5, 9).copy_from(b"0123456789"), [(0x2005, 9)]),  # type: ignore[union-attr]
    (lambda m: m.get_volatile_slice(0x2000, 4).copy_to_volatile_slice(m.get_volatile_slice(0x1000, 9)), [(0x1000, 4)]),
    (lambda m: m.read(bytearray(9), 0x1000), []),
    (lambda m: m.read_u64(0x1000), []),
    (lambda m: m.load(0x1000, 8), []),
    (lambda m: m.write_volatile_to(0x1000, bytearray(4), 4), []),
]


@pytest.mark.parametrize(("write", "expected"), WRITES, ids=range(len(WRITES)))
def test_exactly_what_was_written(
    memory: pm.GuestMemoryMmap, write: Callable[[pm.GuestMemoryMmap], object], expected: list[tuple[int, int]]
) -> None:
    assert memory.dirty_tracking
    write(memory)
    assert marked(memory) == expected


def test_a_failed_read_marks_the_whole_target(memory: pm.GuestMemoryMmap) -> None:
    with pytest.raises(OSError, match="Bad file"):
        memory.read_volatile_from(0x1FF0, 10_000, 0x20)
    assert marked(memory) == [(0x1FF0, 0x10)]


def test_views_mark_nothing_and_nothing_is_tracked_by_default(memory: pm.GuestMemoryMmap) -> None:
    with memory.get_slice(0x1000, 8) as view:
        view[:] = bytes(8)
    assert marked(memory) == []
    with pm.GuestMemoryMmap.from_ranges([(0, 0x1000)]) as plain:
        assert not plain.dirty_tracking
        plain.mark_dirty(0, 10)
        region = next(iter(plain))
        region.mark_dirty(0, 10)
        assert region.bitmap() is None
        assert plain.get_volatile_slice(0, 4).bitmap() is None


def test_a_bitmap_by_its_kind() -> None:
    with pm.GuestMemoryMmap.from_ranges([(0, 0x3000)], bitmap=pm.AtomicBitmap) as memory:
        memory.write_u8(1, 0x1000)
        bitmap = next(iter(memory)).bitmap()
        assert isinstance(bitmap, pm.AtomicBitmap)
        assert list(bitmap.dirty_ranges()) == [(0x1000, 0x1000)]
        assert memory.insert_region(pm.GuestRegionMmap(0x8000, 0x1000)).dirty_tracking
