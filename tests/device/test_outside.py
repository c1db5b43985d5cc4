"""The package as a stranger uses it: plain buffers, names as documented, devices that come and go meanwhile."""

import threading
from typing import Any

import pytest

import pyvmm_device
from pyvmm_device import (
    AutoRetriggerInterrupt,
    Bus,
    BusRange,
    ConfigurableInterrupt,
    Device,
    DeviceNotFound,
    DeviceOverlap,
    EdgeInterrupt,
    EventFdGroup,
    EventFdInterrupt,
    EventFdLevelInterrupt,
    InterruptError,
    InterruptGroup,
    InterruptSourceGroup,
    InterruptStatusChecker,
    InvalidAccessLength,
    InvalidRange,
    IoManager,
    LegacyGroup,
    LegacyIrqConfig,
    LevelInterrupt,
    MaskableInterrupt,
    MessageGroup,
    MsiIrqConfig,
    MsiRouter,
    Ram,
    ResampleNotifier,
    Serial,
    SwitchableInterrupt,
    SystemAllocator,
    TriggerNotifier,
)
from pyvmm_device.resources import MmioAddress


def loose(value: object) -> Any:  # noqa: ANN401 - as in a script without types
    return value


class Remember:
    def __init__(self) -> None:
        self.seen: list[object] = []

    def trigger(self) -> None:
        self.seen.append("edge")

    def write(self, data: bytes) -> None:
        self.seen.append(data)


def test_plain_buffers_do() -> None:
    io, device = IoManager(), Ram(b"\x01\x02\x03\x04\x05\x06\x07\x08")
    io.register_pio(device, [BusRange(0x3F8, 8)])
    io.register_mmio(device, BusRange(0xD0000000, 8))
    for length in (1, 2, 4, 8):
        buffer = bytearray(length)
        io.pio_read(0x3F8, loose(buffer))
        assert buffer == bytes(range(1, length + 1))
        io.mmio_read(0xD0000000, loose(buffer))
        assert buffer == bytes(range(1, length + 1))
    items = bytearray(2)
    io.pio_read(0x3FF, loose(items), 1)  # as rep insb of the last port
    assert items == b"\x08\x08"
    io.pio_write(0x3FA, loose(b"\x55\x66"))
    io.mmio_write(0xD0000000, loose(bytearray(b"\x77")))
    buffer = bytearray(4)
    io.mmio_read(0xD0000000, loose(buffer))
    assert buffer == b"\x77\x02\x55\x66"


@pytest.mark.parametrize("length", [1, 2, 4, 8])
@pytest.mark.parametrize("port", [0, 0x3F7, 0x400, 0xFFF9, 0xFFFF, 0x10000, -1, -5])
def test_where_nobody_is_there_are_ones(port: int, length: int) -> None:
    io = IoManager()
    io.register_pio(Ram(1), [BusRange(0x3F9, 1)])
    io.register_mmio(Ram(1), [BusRange(0x3F9, 1)])
    for read, write in ((io.pio_read, io.pio_write), (io.mmio_read, io.mmio_write)):
        buffer = memoryview(bytearray(length))
        write(port, buffer)
        read(port, buffer)
        assert bytes(buffer) == b"\xff" * length
    assert (io.pio.unclaimed_reads, io.pio.unclaimed_writes) == (1, 1)
    assert io.pio.device(port) is None


def test_misaligned_accesses_reach_the_device_as_they_are() -> None:
    io, seen = IoManager(), list[tuple[str, int, int]]()

    class Watch:
        def read(self, offset: int, buffer: memoryview) -> None:
            seen.append(("read", offset, len(buffer)))

        def write(self, offset: int, data: memoryview) -> None:
            seen.append(("write", offset, len(data)))

    io.register_mmio(Watch(), [BusRange(0x1001, 0x20)])
    io.mmio_read(0x1004, memoryview(bytearray(8)))
    io.mmio_write(0x1003, memoryview(bytes(4)))
    assert seen == [("read", 3, 8), ("write", 2, 4)]
    assert isinstance(Watch(), Device)


def test_bus_by_its_names() -> None:
    bus, device = Bus(), Ram(8)
    bus.register(BusRange(0x10, 8), device)
    found = bus.device(0x17)
    assert found == (BusRange(0x10, 8), device)
    assert bus.check_access(0x14, 4) == (4, device)
    for call, error in (
        (lambda: bus.check_access(0x14, 5), DeviceNotFound),
        (lambda: bus.check_access(0x14, 0), InvalidAccessLength),
        (lambda: bus.check_access((1 << 64) - 1, 2), InvalidAccessLength),
        (lambda: bus.register(BusRange(0x17, 1), Ram(1)), DeviceOverlap),
        (lambda: bus.deregister(0x18), DeviceNotFound),
        (lambda: BusRange(0, 0), InvalidRange),
    ):
        with pytest.raises(error):
            call()
    assert bus.deregister(0x13) is device
    assert 0x13 in BusRange(0x10, 8)
    assert "without devices" in repr(bus)
    assert hash(BusRange(1, 2)) == hash(BusRange(1, 2))


def test_serial_by_its_names() -> None:
    world = Remember()
    serial = Serial(world, world)
    assert serial.enqueue(b"hello") == 5
    assert serial.enqueue(b"x" * 100) == 59
    assert serial.room() == 0
    one = bytearray(1)
    serial.read(0, loose(one))
    assert one == b"h"
    serial.write(0, loose(b"!"))
    assert b"!" in world.seen
    other = Serial(world, world)
    other.restore(serial.state())
    assert other.state() == serial.state()
    assert (other.modem_control, other.baud_rate) == ((False, False), 9600)
    assert "63 bytes received" in repr(other)


def test_devices_come_and_go_while_others_look() -> None:
    io, stop, errors = IoManager(), threading.Event(), list[BaseException]()
    steady = Ram(b"\xaa" * 16)
    io.register_mmio(steady, [BusRange(0x2000, 16)])

    def look() -> None:
        buffer = memoryview(bytearray(4))
        try:
            while not stop.is_set():
                io.mmio_read(0x2004, buffer)
                assert bytes(buffer) == b"\xaa" * 4
                io.mmio_read(0x1000, buffer)
                assert bytes(buffer) in (b"\x11" * 4, b"\xff" * 4)
        except BaseException as error:  # noqa: BLE001 - to be raised in the test's thread
            errors.append(error)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        io.register_mmio(Ram(b"\x11" * 16), [BusRange(0x1000, 16), BusRange(0x3000, 16)])
        io.deregister_mmio(0x1000)
        io.deregister_mmio(0x3000)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(io.mmio) == 1
    assert list(io.mmio) == [(BusRange(0x2000, 16), steady)]
    assert io.statistics()[0].reads > 0
    assert "0 ranges of ports" in repr(io)
    assert "reads" in repr(io.statistics()[0])


class Line:
    def assert_(self) -> None:
        pass

    def clear(self) -> None:
        pass


class Router:
    def attach(self, fd: int, config: MsiIrqConfig) -> None:
        pass

    def detach(self, fd: int) -> None:
        pass


def test_what_is_here_fits_the_protocols() -> None:
    with EventFdInterrupt() as edge, EventFdLevelInterrupt() as level, EventFdGroup(2, Router()) as group:
        assert isinstance(edge, EdgeInterrupt)
        assert isinstance(edge, TriggerNotifier)
        assert not isinstance(edge, LevelInterrupt)
        assert isinstance(level, LevelInterrupt)
        assert isinstance(level, ResampleNotifier)
        assert isinstance(level, AutoRetriggerInterrupt)
        assert isinstance(group, InterruptSourceGroup)
        assert isinstance(group, SwitchableInterrupt)
        assert isinstance(Router(), MsiRouter)
        one = group.get(1)
        assert isinstance(one, EdgeInterrupt)
        assert isinstance(one, MaskableInterrupt)
        assert isinstance(one, ConfigurableInterrupt)
        assert one.fileno() == group.notifier(1)
        one.trigger()
        assert one.is_pending()

        class Status:
            def is_active(self) -> bool:
                return True

        assert isinstance(Status(), InterruptStatusChecker)
        level.set_status_checker(Status())
        import os

        os.eventfd_write(level.resample_fd(), 1)
        level.on_resample()
        assert os.eventfd_read(level.fileno()) == 1
        assert "asserted" in repr(level)


def test_one_interrupt_of_a_group() -> None:
    sent: list[MsiIrqConfig] = []
    with MessageGroup(2, sent.append) as group:
        one = group.get(1)
        one.mask()
        group.enable()
        one.update(MsiIrqConfig(0, 0xFEE00000, 9))
        one.trigger()
        assert not sent
        one.unmask()
        assert sent == [one.get_config()]
        with pytest.raises(InterruptError, match="no eventfds"):
            one.fileno()
        with pytest.raises(InterruptError):
            group.get(2)
        assert "GroupInterrupt 1" in repr(one)
    one.trigger()
    assert len(sent) == 1  # closed groups keep quiet


def test_a_group_of_ones_own_says_how_to_deliver() -> None:
    class Incomplete(InterruptGroup):
        pass

    class Complete(InterruptGroup):
        def _deliver(self, index: int) -> None:
            delivered.append(index)

    delivered: list[int] = []
    with pytest.raises(TypeError, match="_deliver"):
        loose(Incomplete)(1)
    group = Complete(2)
    group.enable()
    group.update(1, MsiIrqConfig(0, 0, 0))
    group.trigger(1)
    assert delivered == [1]
    assert isinstance(LegacyGroup(1, Line()), InterruptSourceGroup)


def test_a_wired_pin_is_a_value() -> None:
    assert LegacyIrqConfig(10, 1) == LegacyIrqConfig(10, 1) != LegacyIrqConfig()
    assert hash(LegacyIrqConfig(10, 1)) == hash(LegacyIrqConfig(10, 1))
    assert repr(LegacyIrqConfig(10, 1)) == "LegacyIrqConfig(10, 1)"


def test_high_addresses_go_back_to_the_pool_they_came_from() -> None:
    low, high = BusRange(0x10000000, 0x1000000), BusRange(0x80000000, 0x1000000)
    machine = SystemAllocator(mmio_low=low, mmio_high=high)
    given = machine.allocate([MmioAddress(0x1000, range=(high.base, high.last)), MmioAddress(0x1000)])
    assert [one.base for one in given.get_mmio_address_ranges()] == [high.base, low.base]
    machine.free(given)
    assert machine.mmio_high.free_bytes() == machine.mmio_low.free_bytes() == 0x1000000


def test_every_name_is_there() -> None:
    for name in pyvmm_device.__all__:
        assert getattr(pyvmm_device, name).__doc__, name
    assert set(pyvmm_device.__all__) <= set(dir(pyvmm_device))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        loose(pyvmm_device).Nothing  # noqa: B018 - the look-up is what is tested


def test_an_output_that_fails_loses_bytes_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def write(self, data: bytes) -> None:
            raise BrokenPipeError("nobody reads")

    serial = Serial(Remember(), Broken())
    breaks: list[bool] = []
    lines: list[tuple[bool, bool]] = []
    serial.on_break, serial.on_modem_control = breaks.append, lambda *both: lines.append(both)
    for _ in range(3):
        serial.write(0, memoryview(b"x"))
    assert serial.lost_output == 3
    assert len(caplog.records) == 1
    serial.write(3, memoryview(b"\x43"))
    serial.write(3, memoryview(b"\x03"))
    serial.write(4, memoryview(b"\x0b"))
    assert breaks == [True, False]
    assert lines == [(True, True)]
    serial.set_modem_lines(cts=False)
    buffer = memoryview(bytearray(4))
    serial.read(6, buffer)
    assert bytes(buffer) == b"\xa1\xff\xff\xff"
    serial.enqueue_error(0x41, 4)
    serial.enqueue(b"x" * 64)
    serial.enqueue_error(0x42, 4)
    serial.read(5, buffer)
    assert buffer[0] == 0x67  # data ready, overrun, parity error
