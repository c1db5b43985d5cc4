"""One suite over every backing and over the view of an IOMMU: what an access by guest address does."""

import contextlib
import io
import os
import socket
from collections.abc import Callable
from pathlib import Path
from struct import Struct
from typing import Any

import pytest
from typing_extensions import Buffer

import pyvmm_memory as pm

HOSTILE = [-1, 0, 0x5000, 0x3000, 0x9000, 2**63, 2**64 - 1, 2**64, 2**80, -(2**80)]


def test_counts_stop_at_the_first_hole(each: pm.GuestMemory) -> None:
    assert each.write(b"x" * 0x2000, 0x2800) == 0x800
    with pytest.raises(pm.PartialBuffer) as partial:
        each.write_slice(b"y" * 0x2000, 0x2800)
    assert (partial.value.expected, partial.value.completed) == (0x2000, 0x800)
    assert each.read_u8(0x2FFF) == ord("y")
    with pytest.raises(pm.PartialBuffer):
        each.read_slice(bytearray(0x2000), 0x2800)
    target = bytearray(0x2000)
    assert each.read(target, 0x2800) == 0x800
    assert target == b"y" * 0x800 + bytes(0x1800)
    with pytest.raises(pm.InvalidGuestAddress) as invalid:
        each.read(bytearray(1), 0x5000)
    assert invalid.value.address == 0x5000


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 9, 16, 512, 0x1FFF])
@pytest.mark.parametrize("addr", [0x1000, 0x1001, 0x1004])
def test_what_is_written_is_read(each: pm.GuestMemory, addr: int, length: int) -> None:
    data = bytes((index * 7 + 1) % 256 for index in range(length))[: 0x3000 - addr]
    each.write_slice(data, addr)
    copy = bytearray(len(data))
    each.read_slice(copy, addr)
    assert copy == data
    assert b"".join(map(bytes, each.get_volatile_slices(addr, len(data)))) == data


def test_copies_cross_where_regions_touch_and_slices_do_not(each: pm.GuestMemory) -> None:
    each.write_slice(b"0123456789", 0x1FFB)
    with pytest.raises(pm.InvalidBackendAddress):
        each.get_slice(0x1FFB, 10)
    with pytest.raises(pm.InvalidBackendAddress):
        each.get_volatile_slice(0x1FFB, 10)
    slices = each.get_slices(0x1FFB, 10)
    assert [bytes(part) for part in slices] == [b"01234", b"56789"]
    slices[1][0] = ord("x")
    for part in slices:
        part.release()
    each.write_u64(0x1122334455667788, 0x1FFD)
    assert each.read_u64(0x1FFD) == 0x1122334455667788
    with pytest.raises(pm.InvalidBackendAddress):
        each.load(0x1FFC, 8)
    with pytest.raises(pm.InvalidGuestAddress) as invalid:
        each.get_slices(0x2FF8, 0x10)
    assert invalid.value.address in (0x3000, 0x2FF8)


def test_zero_length_always_succeeds(each: pm.GuestMemory) -> None:
    for addr in (0x1000, 0x5000, 2**64 - 1):
        assert each.write(b"", addr) == each.read(bytearray(), addr) == 0
        each.write_slice(b"", addr)
        each.read_slice(bytearray(), addr)
        assert len(each.get_slice(addr, 0)) == len(each.get_volatile_slice(addr, 0)) == 0
        assert each.get_slices(addr, 0) == []
        assert each.read_bytes(addr, 0) == each[addr:addr] == b""
        each[addr:addr] = b""
        assert each.check_range(addr, 0)
        each.fill_zero(addr, 0)
        assert each.read_volatile_from(addr, b"x", 0) == each.write_volatile_to(addr, bytearray(1), 0) == 0
        each.read_exact_volatile_from(addr, b"x", 0)
        each.write_all_volatile_to(addr, bytearray(1), 0)


@pytest.mark.parametrize("length", [1, 2, 4, 8, 13, 0x800, 0x1801])
def test_bytes_and_slices_are_copies_across_regions(each: pm.GuestMemory, length: int) -> None:
    data = bytes(index % 251 + 1 for index in range(length))
    start = 0x2000 - length // 2
    each[start : start + length] = memoryview(data)
    assert each[start : start + length] == each.read_bytes(start, length) == data
    assert each[pm.GuestAddress(start - 1) : pm.GuestAddress(start + length + 1)] == b"\0" + data + b"\0"
    copy = each[start : start + length]
    each[start : start + length] = bytearray(length)
    assert copy == data
    assert type(copy) is bytes
    assert each.read_bytes(start, length) == bytes(length)


def test_bytes_and_slices_are_all_or_nothing(each: pm.GuestMemory) -> None:
    each.write_slice(b"a" * 0x10, 0x2FF0)
    reads: list[Callable[[], bytes]] = [lambda: each.read_bytes(0x2FF0, 0x20), lambda: each[0x2FF0:0x3010]]
    for read in reads:
        with pytest.raises(pm.PartialBuffer, match=r"16 of 32 .* nothing at 0x3000, where read") as partial:
            read()
        assert (partial.value.expected, partial.value.completed, partial.value.address) == (0x20, 0x10, 0x3000)
    with pytest.raises(pm.PartialBuffer, match="nothing at 0x3000") as partial:
        each[0x2FF0:0x3010] = b"b" * 0x20
    assert (partial.value.expected, partial.value.completed, partial.value.address) == (0x20, 0, 0x3000)
    assert each[0x2FF0:0x3000] == b"a" * 0x10
    # what is not there is not allocated
    for stop in (2**40, 2**64):
        with pytest.raises((pm.PartialBuffer, pm.CannotResolve)):
            each[0x1000:stop]
        with pytest.raises((pm.PartialBuffer, pm.CannotResolve)):
            each.read_bytes(0x1000, stop)


def test_slices_that_are_none(each: pm.GuestMemory) -> None:
    each[0x1000:0x1004] = b"1234"
    wrong: Any
    for wrong, why in (
        (slice(None, 0x1004), "say memory.start:stop., both bounds and no step"),
        (slice(0x1000, None), "both bounds"),
        (slice(None), "both bounds"),
        (slice(0x1000, 0x1004, 1), "no step"),
        (slice(0x1004, 0x1000), "memory.0x1004:0x1000. ends before it starts"),
        (0x1000, r"one address: read_u8\(0x1000\) gives its byte"),
        (-1, "one address"),
        (pm.GuestAddress(0x1000), "one address"),
    ):
        with pytest.raises(pm.InvalidSlice, match=why):
            each[wrong]
        with pytest.raises(pm.InvalidSlice, match=why):
            each[wrong] = b"4321"
    for data in (b"", b"123", b"12345"):
        with pytest.raises(pm.InvalidSlice, match=f"{len(data)} bytes of data for the 4 of memory.0x1000:0x1004."):
            each[0x1000:0x1004] = data
    for wrong in ("text", 5, None, [1, 2, 3, 4]):
        with pytest.raises(pm.InvalidBuffer):
            each[0x1000:0x1004] = wrong
    assert each[0x1000:0x1004] == b"1234"
    # not a sequence of bytes: a collection iterates over its regions, an IOMMU's view over nothing
    if isinstance(each, pm.GuestRegionCollection):
        assert [region.start for region in each] == [0x1000, 0x2000, 0x8000]
    else:
        with pytest.raises(TypeError, match="not iterable"):
            iter(each)  # type: ignore[call-overload]  # what is tested


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_scalars(each: pm.GuestMemory, size: int) -> None:
    largest = (1 << 8 * size) - 1
    each.store(largest - 1, 0x1010, size)
    assert each.load(pm.GuestAddress(0x1010), size) == largest - 1
    each.store(largest, 0x1010, size, pm.Ordering.Release)
    assert each.load(0x1010, size, pm.Ordering.Acquire) == largest
    read = getattr(each, f"read_u{8 * size}")
    write = getattr(each, f"write_u{8 * size}")
    for addr in (0x1010, 0x1021, 0x2FFF - size):
        write(1, pm.GuestAddress(addr))
        assert read(addr) == 1
        for bad in (largest + 1, -1):
            with pytest.raises(pm.GuestMemoryError, match="does not fit"):
                write(bad, addr)
            with pytest.raises(pm.GuestMemoryError):
                each.store(bad, 0x1010, size)
        assert read(addr) == 1
    each.write_slice(bytes(range(1, size + 1)), 0x1010)
    assert read(0x1010) == int.from_bytes(bytes(range(1, size + 1)), "little")


def test_atomics_ask_for_alignment_width_and_order(each: pm.GuestMemory) -> None:
    for access in (lambda addr, size: each.load(addr, size), lambda addr, size: each.store(0, addr, size)):
        with pytest.raises(pm.Misaligned):
            access(0x1001, 2)
        for size in (0, 3, 16, -1):
            with pytest.raises(pm.InvalidLength):
                access(0x1000, size)
    for order in (pm.Ordering.Release, pm.Ordering.AcqRel):
        with pytest.raises(pm.InvalidOrdering):
            each.load(0x1000, 8, order)
    for order in (pm.Ordering.Acquire, pm.Ordering.AcqRel):
        with pytest.raises(pm.InvalidOrdering):
            each.store(0, 0x1000, 8, order)


def accesses(memory: pm.GuestMemory, addr: int, length: int) -> list[Callable[[], object]]:
    return [
        lambda: memory.load(addr, 8),
        lambda: memory.store(0, addr, 8),
        lambda: memory.read_u8(addr),
        lambda: memory.read_u16(addr),
        lambda: memory.write_u32(0, addr),
        lambda: memory.write_u64(0, addr),
        lambda: memory.write(b"xy", addr),
        lambda: memory.read(bytearray(16), addr),
        lambda: memory.write_slice(b"x" * 9, addr),
        lambda: memory.read_slice(bytearray(1), addr),
        lambda: memory.write_obj(pm.Le16(1), addr),
        lambda: memory.read_obj("I", addr),
        lambda: memory.fill_zero(addr, length),
        lambda: memory.get_slice(addr, length),
        lambda: memory.get_slices(addr, length),
        lambda: memory.get_volatile_slice(addr, length),
        lambda: memory.read_bytes(addr, length),
        lambda: memory.read_volatile_from(addr, b"x", length),
        lambda: memory.write_volatile_to(addr, bytearray(1), length),
        lambda: memory.read_exact_volatile_from(addr, b"x", length),
        lambda: memory.write_all_volatile_to(addr, bytearray(1), length),
    ]


@pytest.mark.parametrize("addr", HOSTILE)
def test_addresses_that_are_not_mapped(each: pm.GuestMemory, addr: int) -> None:
    for access in accesses(each, addr, 8):
        with pytest.raises(pm.InvalidGuestAddress):
            access()
    with pytest.raises(pm.InvalidGuestAddress):
        each[addr : addr + 8]
    with pytest.raises(pm.InvalidGuestAddress):
        each[addr : addr + 8] = bytes(8)
    assert not each.check_range(addr, 1)


@pytest.mark.parametrize("wrong", [1.5, "0x1000", None, b"\0", [], 0x1000 + 0j, float("nan")])
def test_what_is_no_integer(each: pm.GuestMemory, wrong: int) -> None:
    for access in accesses(each, wrong, 8):
        with pytest.raises(pm.InvalidInteger):
            access()
    for access in accesses(each, 0x1000, wrong)[12:]:
        with pytest.raises(pm.InvalidInteger):
            access()
    for write in (each.write_u8, each.write_u64):
        with pytest.raises(pm.InvalidInteger):
            write(wrong, 0x1000)
    with pytest.raises(pm.InvalidInteger):
        each.store(wrong, 0x1000, 8)
    with pytest.raises(pm.InvalidInteger):
        each.load(0x1000, wrong)
    with pytest.raises(pm.InvalidInteger):
        each.check_range(wrong, 1)
    if wrong is not None:
        addresses: Any
        for addresses in (slice(wrong, 0x1010), slice(0x1000, wrong), wrong):
            with pytest.raises(pm.InvalidInteger):
                each[addresses]
            with pytest.raises(pm.InvalidInteger):
                each[addresses] = bytes(16)


@pytest.mark.parametrize("length", [-1, -(2**64), 2**32, 2**63, 2**64, 2**70])
def test_lengths_that_are_none(each: pm.GuestMemory, length: int) -> None:
    for access in accesses(each, 0x1000, length)[12:17]:
        with pytest.raises(pm.GuestMemoryError):
            access()
    assert not each.check_range(0x1000, length)
    if length < 0:
        with pytest.raises(pm.InvalidLength):
            each.read_volatile_from(0x1000, b"x", length)
    elif each.check_range(0x1000, 0x2000):
        # as far as the source goes; an IOMMU refuses the whole of it
        with contextlib.suppress(pm.CannotResolve):
            assert each.read_volatile_from(0x1000, b"x", length) == 1


def test_any_object_that_is_an_integer(each: pm.GuestMemory) -> None:
    class Register:
        def __index__(self) -> int:
            return 0x1010

    addr: Any = Register()
    each.write_u32(Register(), addr)  # type: ignore[arg-type]
    assert each.read_u32(addr) == 0x1010
    each.write(b"x" * 20, addr)
    each.fill_zero(addr, 4)
    each.store(7, addr, 4)
    assert each.load(addr, 4) == 7
    assert each.read_volatile_from(addr, b"abc", 3) == 3


def test_buffers_that_are_none(each: pm.GuestMemory) -> None:
    strided: Any = memoryview(bytearray(20))[::2]
    wrong: Any
    for wrong in ("text", 5, None, strided):
        for access in (each.write, each.write_slice, each.read, each.read_slice):
            with pytest.raises(pm.InvalidBuffer):
                access(wrong, 0x1000)
    for read in (each.read, each.read_slice):
        with pytest.raises(pm.InvalidBuffer):
            read(b"read-only", 0x1000)
    words = memoryview(bytearray(16)).cast("I")
    each.write_slice(b"a" * 16, 0x1000)
    each.read_slice(words, 0x1000)
    assert words.tobytes() == b"a" * 16


def test_objects(each: pm.GuestMemory) -> None:
    each.write_obj(pm.Be32(0x11223344), 0x1FFE)
    assert each.read_u32(0x1FFE) == 0x44332211
    assert each.read_obj(pm.Be32, 0x1FFE) == 0x11223344
    layout = Struct("<QIHH")
    each.write_obj(layout.pack(1, 2, 3, 4), 0x1100)
    assert each.read_obj(layout, 0x1100) == each.read_obj("QIHH", 0x1100) == (1, 2, 3, 4)
    assert each.read_obj("I", 0x1108) == 2
    with pytest.raises(pm.PartialBuffer):
        each.read_obj(layout, 0x2FF8)
    wrong: Any
    for wrong in ("nonsense", 5, None):
        with pytest.raises(pm.InvalidBuffer):
            each.read_obj(wrong, 0x1000)
    for wrong in (object(), "text"):
        with pytest.raises(pm.InvalidBuffer):
            each.write_obj(wrong, 0x1000)


class Trickle(io.RawIOBase):
    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        buffer[:1] = b"a"
        return 1

    def write(self, data: Buffer) -> int:
        return 1


def test_weakness_a_short_read_ends_the_transfer(each: pm.GuestMemory) -> None:
    # vm-memory goes on in the next region, and the bytes land at the wrong address
    assert each.read_volatile_from(0x1FF0, Trickle(), 0x20) == 1
    assert each.read_u8(0x2000) == 0
    assert each.write_volatile_to(0x1FF0, Trickle(), 0x20) == 1


def test_exact_transfers_go_on_until_all_is_done(each: pm.GuestMemory) -> None:
    each.read_exact_volatile_from(0x1FF0, Trickle(), 0x20)
    assert each.read_u64(0x2008) == 0x6161616161616161
    each.write_all_volatile_to(0x1FF0, Trickle(), 0x20)
    with pytest.raises(pm.UnexpectedEof) as ended:
        each.read_exact_volatile_from(0x1FF0, io.BytesIO(b"12345"), 0x20)
    assert (ended.value.expected, ended.value.completed) == (0x20, 5)
    with pytest.raises(pm.UnexpectedEof):
        each.write_all_volatile_to(0x1FF0, bytearray(5), 0x20)


def test_exact_transfers_end_at_a_hole(each: pm.GuestMemory) -> None:
    with pytest.raises(pm.PartialBuffer):
        each.read_exact_volatile_from(0x2FF0, Trickle(), 0x20)
    with pytest.raises(pm.PartialBuffer):
        each.write_all_volatile_to(0x2FF0, Trickle(), 0x20)


def test_files_sockets_pipes_and_buffers(each: pm.GuestMemory) -> None:
    assert each.read_volatile_from(0x1FF8, io.BytesIO(b"0123456789abcdef"), 16) == 16
    target = bytearray(16)
    assert each.write_volatile_to(0x1FF8, target, 16) == 16
    assert target == b"0123456789abcdef"
    assert each.read_volatile_from(0x8000, b"short", 100) == 5
    sink = io.BytesIO()
    assert each.write_volatile_to(0x8000, sink, 5) == 5
    assert sink.getvalue() == b"short"
    left, right = socket.socketpair()
    with left, right:
        assert each.write_volatile_to(0x8000, left, 5) == 5
        assert each.read_volatile_from(0x1100, right, 100) == 5
    reader, writer = os.pipe()
    assert each.write_volatile_to(0x1FF8, writer, 16) in (8, 16)
    assert each.read_volatile_from(0x8000, reader, 8) == 8
    os.close(reader)
    os.close(writer)
    with pytest.raises(OSError, match="Bad file"):
        each.read_volatile_from(0x1000, writer, 8)


def test_fill_zero(each: pm.GuestMemory) -> None:
    each.write_slice(b"x" * 0x2000, 0x1000)
    each.fill_zero(0x1FFF, 2)
    copy = bytearray(4)
    each.read_slice(copy, 0x1FFE)
    assert copy == b"x\0\0x"
    with pytest.raises(pm.InvalidGuestAddress):
        each.fill_zero(0x2FFF, 2)
    assert each.read_u8(0x2FFF) == ord("x")


def test_a_snapshot_has_it_all(each: pm.GuestMemory, tmp_path: Path) -> None:
    each.write_slice(b"0123456789", 0x1FFB)
    each.write_u8(7, 0x8FFF)
    memory = each.physical_memory()  # type: ignore[attr-defined]
    if memory is None:
        memory = each.get_backend()  # type: ignore[attr-defined]
    pm.save(memory, tmp_path / "saved")
    with pm.Snapshot(tmp_path / "saved") as file, file.restore() as again:
        for mine, theirs in zip(memory, again, strict=True):
            with mine.view[:] as left, theirs.view[:] as right:
                assert left == right


def test_structs_and_dumps(each: pm.GuestMemory) -> None:
    descriptor = each.struct(0x1FF8, {"addr": "Q", "len": "I", "flags": "H", "next": "H"})
    descriptor.addr = 0x1000
    descriptor.write(len=7, flags=1)
    assert each.read_u32(0x2000) == 7
    assert descriptor.read() == {"addr": 0x1000, "len": 7, "flags": 1, "next": 0}
    assert "00001ff8  00 10 00 00" in each.hexdump(0x1FF8, 16)
    assert "not mapped" in each.hexdump(0x3000, 16)
