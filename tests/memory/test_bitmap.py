"""Dirty bitmaps: one suite over the one in Python and the one in C."""

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyvmm_memory as pm

BITMAPS = [pm.PlainBitmap, pm.AtomicBitmap]
both = pytest.mark.parametrize("kind", BITMAPS)


@both
def test_bits_and_addresses(kind: type[pm.PlainBitmap]) -> None:
    bitmap = kind(1024, 128)
    assert (len(bitmap), bitmap.byte_size(), bitmap.page_size()) == (8, 1024, 128)
    bitmap.set_addr_range(128, 129)
    assert [bitmap.is_bit_set(bit) for bit in range(8)] == [False, True, True, *[False] * 5]
    assert bitmap.is_addr_set(255)
    assert not bitmap.is_addr_set(127)
    bitmap.reset_addr_range(128, 1)
    assert list(bitmap.dirty_ranges()) == [(256, 128)]
    bitmap.set_bit(7)
    bitmap.set_bit(8)
    bitmap.set_bit(-1)
    bitmap.reset_bit(2)
    bitmap.reset_bit(100)
    assert repr(bitmap) == f"<{kind.__name__} 1 of 8 pages of 0x80 bytes>"
    assert bitmap.get_and_reset() == [1 << 7]
    assert bitmap.get_and_reset() == [0]


@both
def test_the_edges_of_a_range(kind: type[pm.PlainBitmap]) -> None:
    bitmap = kind(1000, 100)
    bitmap.mark_dirty(0, 0)
    bitmap.mark_dirty(1000, 5)
    bitmap.mark_dirty(2**64 - 1, 2**64)
    assert bitmap.get_and_reset() == [0]
    bitmap.mark_dirty(950, 2**64)
    assert bitmap.dirty_at(999)
    assert not bitmap.dirty_at(5000)
    assert list(bitmap.dirty_ranges()) == [(900, 100)]
    bitmap.reset()
    assert list(bitmap.dirty_ranges()) == []
    for bad in ((-1, 1), (0, -1)):
        with pytest.raises(pm.InvalidLength):
            bitmap.mark_dirty(*bad)
    hostile: Any = "x"
    with pytest.raises(pm.InvalidInteger):
        bitmap.mark_dirty(hostile, 1)
    for sizes in ((-1, 1), (1, 0)):
        with pytest.raises(pm.InvalidLength):
            kind(*sizes)
    empty = kind(0, 1)
    empty.mark_dirty(0, 1)
    empty.reset()
    assert empty.get_and_reset() == []


@both
def test_slices_of_slices_keep_absolute_offsets(kind: type[pm.PlainBitmap]) -> None:
    bitmap = kind(0x10000, 0x1000)
    part = bitmap.slice_at(0x2000).slice_at(0x1000)
    part.mark_dirty(0xFFF, 2)
    assert part.dirty_at(0)
    assert part.dirty_at(0x1000)
    assert list(bitmap.dirty_ranges()) == [(0x3000, 0x2000)]
    assert "0x3000" in repr(part)
    # the base is added wrapping, so a slice of the last bytes of the address space reaches the first
    assert bitmap.slice_at(2**64 - 0x1000).slice_at(0x4000).dirty_at(0)


@both
def test_enlarging_keeps_what_was_marked(kind: type[pm.PlainBitmap]) -> None:
    bitmap = kind(64, 1)
    bitmap.set_bit(63)
    bitmap.enlarge(64)
    bitmap.set_bit(100)
    assert bitmap.get_and_reset() == [1 << 63, 1 << 36]
    with pytest.raises(pm.InvalidLength):
        bitmap.enlarge(-1)


def test_with_len_takes_host_pages_and_clone_copies() -> None:
    bitmap = pm.AtomicBitmap.with_len(0x3001)
    assert len(bitmap) == 4
    bitmap.set_bit(3)
    copy = bitmap.clone()
    bitmap.reset()
    assert list(copy.dirty_ranges()) == [(0x3000, 1)]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 700), st.integers(0, 700)), max_size=20))
def test_both_are_one_set_of_pages(steps: list[tuple[bool, int, int]]) -> None:
    pages: set[int] = set()
    bitmaps = [kind(600, 3) for kind in BITMAPS]
    for mark, start, length in steps:
        touched = {byte // 3 for byte in range(start, start + length) if byte < 600}
        pages = pages | touched if mark else pages - touched
        for bitmap in bitmaps:
            (bitmap.set_addr_range if mark else bitmap.reset_addr_range)(start, length)
    for bitmap in bitmaps:
        ranges = list(bitmap.dirty_ranges())
        assert {byte // 3 for start, length in ranges for byte in range(start, start + length)} == pages
        other = type(bitmap)(600, 3)
        other.merge(bitmap.get_and_reset())
        assert list(other.dirty_ranges()) == ranges


def test_no_mark_is_lost_between_threads() -> None:
    bitmap = pm.AtomicBitmap(64, 1)
    seen = 0
    done = threading.Event()

    def mark() -> None:
        for _ in range(2000):
            for bit in range(0, 64, 7):
                bitmap.set_bit(bit)
        done.set()

    thread = threading.Thread(target=mark)
    thread.start()
    while not done.is_set():
        (word,) = bitmap.get_and_reset()
        seen |= word
    thread.join()
    seen |= bitmap.get_and_reset()[0]
    assert seen == sum(1 << bit for bit in range(0, 64, 7))
