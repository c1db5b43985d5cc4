"""Register devices, composites and traces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm_device import (
    Access,
    BusRange,
    Composite,
    DeviceStateError,
    IoManager,
    ManualClock,
    Ram,
    Register,
    RegisterDevice,
)


class Sample(RegisterDevice):
    plain = Register(0x0, reset=0x11223344)
    narrow = Register(0x4, 2, writable=0x0FF0)
    flags = Register(0x8, 1, reset=0xFF, writable=0x00, clears=0x0F)
    computed = Register(0xC, writable=0)
    written = Register(0x10, 8)

    def __init__(self) -> None:
        super().__init__()
        self.log: list[int] = []

    @computed.on_read
    def _compute(self) -> int:
        return 0x1_0000_0007  # longer than the register: the rest is cut off

    @written.on_write
    def _note(self, value: int) -> None:
        self.log.append(value)


def get(device: RegisterDevice, offset: int, length: int) -> int:
    buffer = memoryview(bytearray(length))
    device.read(offset, buffer)
    return int.from_bytes(buffer, "little")


def put(device: RegisterDevice, offset: int, value: int, length: int) -> None:
    device.write(offset, memoryview(value.to_bytes(length, "little")))


def test_every_width_and_alignment() -> None:
    device = Sample()
    assert get(device, 0, 4) == 0x11223344
    assert get(device, 1, 2) == 0x2233
    assert get(device, 2, 4) == 0x1122
    assert get(device, 0, 8) == 0x11223344
    put(device, 1, 0xAABB, 2)
    assert get(device, 0, 4) == 0x11AABB44
    assert get(device, 0xC, 4) == 7
    assert get(device, 0x6, 2) == 0  # between registers
    assert get(device, 0x100, 4) == 0


def test_masks() -> None:
    device = Sample()
    put(device, 4, 0xFFFF, 2)
    assert device.narrow == 0x0FF0
    put(device, 8, 0x05, 1)
    assert device.flags == 0xFA
    put(device, 7, 0xFFFFFFFF, 4)
    assert device.flags == 0xF0
    put(device, 0x10, 5, 4)
    put(device, 0x14, 6, 4)
    assert device.log == [5, 6 << 32 | 5]


def test_a_wide_write_reaches_every_register_once() -> None:
    device = Sample()
    put(device, 0xC, 0x1122334455667788, 8)
    assert device.written == 0x11223344
    assert device.computed == 0


def test_reset_and_state() -> None:
    device = Sample()
    put(device, 0, 1, 4)
    saved = device.state()
    device.reset()
    assert device.plain == 0x11223344
    device.restore(saved)
    assert device.plain == 1
    assert "plain=0x1" in repr(device)
    with pytest.raises(DeviceStateError, match="version"):
        device.restore({**saved, "version": 2})
    with pytest.raises(DeviceStateError, match="no plain"):
        device.restore({name: value for name, value in saved.items() if name != "plain"})
    with pytest.raises(DeviceStateError, match="16 bits"):
        device.restore({**saved, "plain": 7, "narrow": 1 << 16})
    assert device.plain == 1  # nothing changed


def test_overlapping_registers_are_refused_with_the_class() -> None:
    with pytest.raises(TypeError, match="overlaps"):

        class Overlapping(RegisterDevice):
            one = Register(0)
            other = Register(2)


def test_subclasses_add_registers() -> None:
    class More(Sample):
        extra = Register(0x20, reset=9)

    assert get(More(), 0x20, 4) == 9
    assert get(More(), 0, 4) == 0x11223344


@given(st.integers(0, 24), st.binary(min_size=1, max_size=12))
def test_any_write_is_what_bytewise_writes_are(offset: int, data: bytes) -> None:
    one, other = Sample(), Sample()
    one.write(offset, memoryview(data))
    for at, value in enumerate(data):
        other.write(offset + at, memoryview(bytes([value])))
    assert one.state() == other.state()


def test_composite() -> None:
    whole = Composite(0x30, {0: Ram(b"0123"), 0x10: Ram(4)})
    buffer = memoryview(bytearray(2))
    whole.read(1, buffer)
    assert bytes(buffer) == b"12"
    for offset in (3, 8, 0x13):
        whole.read(offset, buffer)
        assert bytes(buffer) == b"\0\0"
    whole.write(0x10, memoryview(b"ab"))
    whole.write(0x13, memoryview(b"cd"))  # leaves its part
    whole.read(0x10, buffer)
    assert bytes(buffer) == b"ab"
    assert len(whole) == 0x30


def test_trace_says_who_accessed_what() -> None:
    io = IoManager()
    seen: list[Access] = []
    io.register_mmio(Ram(b"\x01\x02\x03\x04"), [BusRange(0x1000, 4)])
    io.trace(seen.append)
    buffer = memoryview(bytearray(2))
    io.mmio_read(0x1002, buffer)
    io.mmio_write(0x1000, memoryview(b"\x09"))
    io.trace(None)
    io.mmio_write(0x1000, memoryview(b"\x08"))
    read, write = seen
    assert (read.write, read.address, read.offset, read.value) == (False, 0x1002, 2, 0x0403)
    assert (write.write, write.address, write.value, write.error) == (True, 0x1000, 9, None)
    assert "mmio R.2 0x1002 (Ram+0x2) -> 0x403" in repr(read)
    assert "<- 0x9" in repr(write)
    eval(read.replay(), {"io": io})
    assert io.statistics()[0].reads == 2


def test_trace_shows_a_devices_exception() -> None:
    class Broken:
        def read(self, offset: int, buffer: memoryview) -> None:
            raise ZeroDivisionError

        write = read

    io = IoManager()
    seen: list[Access] = []
    io.trace(seen.append)
    io.register_pio(Broken(), [BusRange(1, 1)])
    with pytest.raises(ZeroDivisionError):
        io.pio_read(1, memoryview(bytearray(1)))
    with pytest.raises(ZeroDivisionError):
        io.pio_write(1, memoryview(bytearray(1)))
    assert all("ZeroDivisionError" in repr(access) for access in seen)


def test_string_accesses_are_taken_apart() -> None:
    class Counter:
        value = 0

        def read(self, offset: int, buffer: memoryview) -> None:
            self.value += 1
            buffer[:] = self.value.to_bytes(len(buffer), "little")

        def write(self, offset: int, data: memoryview) -> None:
            self.value = data[0]

    io, counter = IoManager(), Counter()
    io.register_pio(counter, [BusRange(0x511, 1)])
    buffer = memoryview(bytearray(4))
    io.pio_read(0x511, buffer, 1)
    assert bytes(buffer) == b"\x01\x02\x03\x04"
    io.pio_write(0x511, memoryview(b"abc"), 1)
    assert counter.value == ord("c")
    io.pio_read(0x511, buffer)  # as one access it leaves the range
    assert bytes(buffer) == b"\xff" * 4
    assert (io.pio.unclaimed_reads, io.pio.unclaimed_writes) == (1, 0)


def test_manual_clock_rings_in_order() -> None:
    clock = ManualClock(100)
    rung: list[int] = []
    clock.call_at(300, lambda: rung.append(clock.now()))
    clock.call_at(200, lambda: clock.call_at(250, lambda: rung.append(clock.now())))
    clock.call_at(50, lambda: rung.append(clock.now()))
    clock.advance(1000)
    assert rung == [100, 250, 300]
