"""Volatile slices, references, arrays, integers with a byte order, and what they say to wrong arguments."""

from array import array
from typing import Any

import pytest

import pyvmm_memory as pm
from pyvmm_memory.volatile import compute_offset


def test_offsets_never_wrap() -> None:
    assert compute_offset(2**64 - 2, 1) == 2**64 - 1
    with pytest.raises(pm.Overflow):
        compute_offset(2**64 - 1, 1)
    with pytest.raises(pm.InvalidLength):
        compute_offset(-1, 1)
    part = pm.VolatileSlice.from_buffer(bytearray(5))
    assert part.compute_end_offset(5, 0) == 5
    for base, offset in ((6, 0), (0, 6), (5, 1)):
        with pytest.raises(pm.OutOfBounds):
            part.compute_end_offset(base, offset)
    with pytest.raises(pm.Overflow):
        part.subslice(1, 2**64 - 1)


def test_parts_of_parts() -> None:
    whole = pm.VolatileSlice.from_buffer(bytearray(b"0123456789"))
    assert bytes(whole.offset(4)) == b"456789"
    first, rest = whole.split_at(3)
    assert (bytes(first), bytes(rest), len(whole.offset(10)), whole.offset(10).is_empty()) == (
        b"012",
        b"3456789",
        0,
        True,
    )
    assert whole.as_volatile_slice() is whole
    assert "0xa bytes" in repr(whole)
    for bad in (lambda: whole.offset(11), lambda: whole.split_at(11), lambda: whole.subslice(9, 2)):
        with pytest.raises(pm.OutOfBounds):
            bad()


def test_a_buffer_of_items_is_its_bytes() -> None:
    numbers = array("I", [1, 2, 3])
    part = pm.VolatileSlice.from_buffer(numbers)
    assert (len(part), part.read_bytes(4, 8), bytes(part.subslice(8, 4))) == (12, bytes(numbers[1:]), b"\3\0\0\0")
    part.write(b"\7\0\0", 0)
    assert numbers[0] == 7


def test_bytes_by_offset() -> None:
    part = pm.VolatileSlice.from_buffer(b"0123456789")
    assert (part.read_bytes(2, 4), part.read_bytes(10, 0)) == (b"2345", b"")
    with pytest.raises(pm.PartialBuffer, match="2 of 4 bytes transferred: there is nothing at 0xa"):
        part.read_bytes(8, 4)
    for wrong, error in ((-1, pm.InvalidLength), (1.5, pm.InvalidInteger)):
        with pytest.raises(error):
            part.read_bytes(0, wrong)  # type: ignore[arg-type]
    with pytest.raises(pm.OutOfBounds):
        part.read_bytes(10, 1)
    with pytest.raises(pm.PartialBuffer):
        part.read_bytes(0, 1 << 62)


def test_access_by_offset() -> None:
    part = pm.VolatileSlice.from_buffer(bytearray(16))
    # as Rust: nothing is written at an offset beyond the end, and that is no error
    assert part.write(b"", 100) == part.read(bytearray(), 100) == 0
    assert part.write(b"abcdef", 12) == 4
    with pytest.raises(pm.OutOfBounds):
        part.write(b"a", 16)
    with pytest.raises(pm.PartialBuffer):
        part.write_slice(b"abcdef", 12)
    part.store(5, 8, 8)
    assert part.load(8, 8) == part.read_u64(8) == 5
    with pytest.raises(pm.OutOfBounds):
        part.load(16, 8)
    with pytest.raises(pm.InvalidBackendAddress):
        part.load(12, 8)
    with pytest.raises(pm.OutOfBounds):
        part.fill_zero(17, 1)
    with pytest.raises(pm.InvalidGuestAddress):
        part.fill_zero(12, 8)


def test_alignment_is_that_of_the_host_address() -> None:
    with pm.GuestMemoryMmap.from_ranges([(0, 0x1000)]) as memory:
        part = memory.get_volatile_slice(1, 16)
        assert part.load(7, 8) == 0
        with pytest.raises(pm.Misaligned):
            part.load(0, 8)
        part.get_atomic_ref("Q", 7).store(1)
        assert part.aligned_as_mut("I", 3).load() == 0
        for get in (part.get_atomic_ref, part.aligned_as_ref):
            with pytest.raises(pm.Misaligned):
                get("I", 0)
        with part.ptr_guard() as guard:
            assert (guard.as_ptr(), len(guard)) == (memory.get_host_address(1), 16)
            with pytest.raises(pm.MemoryInUse):
                memory.close()


def test_copies_take_whole_items() -> None:
    part = pm.VolatileSlice.from_buffer(bytearray(range(10)), pm.PlainBitmap(10, 1))
    words = array("I", [0, 0, 0])
    assert part.copy_to(words) == 2
    assert words.tobytes() == bytes(range(8)) + bytes(4)
    part.copy_from(array("I", [1, 2, 3]))
    assert bytes(part)[8:] == b"\x08\x09"
    bitmap = part.bitmap()
    assert isinstance(bitmap, pm.BitmapSlice)
    assert list(bitmap.inner.dirty_ranges()) == [(0, 8)]
    target = bytearray(4)
    assert part.copy_to(target) == 4
    part.subslice(0, 8).copy_to_volatile_slice(part.offset(1))
    assert bytes(part)[1:9] == b"\1\0\0\0\2\0\0\0"


def test_read_only_buffers() -> None:
    part = pm.VolatileSlice.from_buffer(b"constant")
    assert part.read_u8(0) == ord("c")
    for write in (
        lambda: part.write(b"x", 0),
        lambda: part.copy_from(b"x"),
        lambda: pm.VolatileSlice.from_buffer(b"x").copy_to_volatile_slice(part),
        part.ptr_guard_mut,
    ):
        with pytest.raises(pm.ReadOnlyMemory):
            write()


def test_references_and_arrays() -> None:
    part = pm.VolatileSlice.from_buffer(bytearray(64), pm.PlainBitmap(64, 1))
    ref = part.get_ref("QIHH", 8)
    ref.store((1, 2, 3, 4))
    assert (len(ref), ref.load()) == (16, (1, 2, 3, 4))
    assert len(ref.to_slice()) == len(ref.ptr_guard()) == len(ref.ptr_guard_mut()) == 16
    assert ref.bitmap().dirty_at(0)  # type: ignore[union-attr]
    big = part.get_array_ref(pm.Be16, 0, 4)
    big.copy_from([1, 2, 3, 4, 5])
    assert bytes(part)[:8] == b"\0\1\0\2\0\3\0\4"
    assert (list(big), big[1], len(big), big.element_size(), big.is_empty()) == ([1, 2, 3, 4], 2, 4, 2, False)
    big[0] = pm.Be16(9)
    values = [0, 0]
    assert big.copy_to(values) == 2
    assert values == [9, 2]
    big.copy_to_volatile_slice(part.offset(32))
    assert bytes(part)[32:34] == b"\0\x09"
    assert len(big.to_slice()) == 8
    assert big.bitmap() is not None
    for bad in (4, -1):
        with pytest.raises(IndexError):
            big.load(bad)
    with pytest.raises(pm.OutOfBounds):
        part.get_ref("Q", 57)
    with pytest.raises(pm.TooBig):
        part.get_array_ref("Q", 0, 1 << 61)
    with pytest.raises(pm.InvalidLength):
        part.get_array_ref("Q", 0, -1)
    with pytest.raises(pm.GuestMemoryError, match="does not fit"):
        part.get_ref("H", 0).store(1 << 16)


def test_weakness_the_guard_of_an_array_has_its_length_in_bytes() -> None:
    # vm-memory gives the number of elements
    part = pm.VolatileSlice.from_buffer(bytearray(64))
    array_ref = part.get_array_ref("Q", 0, 8)
    assert len(array_ref.ptr_guard()) == len(array_ref.ptr_guard_mut()) == 64


def test_integers_with_a_byte_order() -> None:
    for little, big, size in ((pm.Le16, pm.Be16, 2), (pm.Le32, pm.Be32, 4), (pm.Le64, pm.Be64, 8)):
        value = int.from_bytes(bytes(range(1, size + 1)), "big")
        assert big(value).as_slice() == bytes(range(1, size + 1))
        assert little(value).as_slice() == bytes(range(size, 0, -1))
        assert {big(value), little(value), value, big(value).to_native()} == {value}
        assert big.from_slice(bytes(range(1, size + 1))) == value
        with pytest.raises(pm.GuestMemoryError, match="does not fit"):
            little(1 << 8 * size)
        with pytest.raises(pm.InvalidLength):
            little.from_slice(bytes(size + 1))
    assert (pm.LeSize, pm.BeSize) == (pm.Le64, pm.Be64)
    assert repr(pm.Le16(5)) == "Le16(0x5)"


def test_addresses() -> None:
    addr = pm.GuestAddress(0x1001)
    assert addr.mask(0xFFF) == 1
    assert (addr.checked_sub(0x1001), addr.checked_sub(0x1002)) == (0, None)
    assert addr.checked_align_up(0x1000) == addr.unchecked_align_up(0x1000) == 0x2000
    assert pm.GuestAddress(2**64 - 1).checked_align_up(2) is None
    assert (addr.checked_offset_from(1), addr.checked_offset_from(0x2000)) == (0x1000, None)
    assert addr.unchecked_offset_from(1) == 0x1000
    assert addr.overflowing_sub(0x1002) == (2**64 - 1, True)
    assert addr.wrapping_add(2**64 - 0x1001) == 0
    assert type(addr.unchecked_add(1)) is pm.GuestAddress
    assert type(pm.MemoryRegionAddress(5).unchecked_sub(1)) is pm.MemoryRegionAddress
    assert addr.raw_value() == 0x1001
    with pytest.raises(pm.GuestAddressOverflow):
        pm.GuestAddress(-1)
    with pytest.raises(pm.GuestAddressOverflow):
        addr.unchecked_add(2**64)
    with pytest.raises(pm.GuestAddressOverflow):
        addr.unchecked_sub(2**64)
    with pytest.raises(pm.GuestAddressOverflow):
        addr.unchecked_offset_from(0x2000)
    with pytest.raises(ValueError, match="power of two"):
        addr.checked_align_up(3)
    wrong: Any = "5"
    with pytest.raises(pm.InvalidInteger):
        pm.GuestAddress(wrong)
