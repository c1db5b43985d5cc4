"""The keyboard controller, the clock and the event loop."""

import os
import threading
import time

import pytest

from pyvmm_device import I8042, Cmos, EventFdInterrupt, EventLoop
from pyvmm_device.cmos import bcd


def test_only_the_reset_command_resets() -> None:
    resets = []
    keyboard = I8042(lambda: resets.append(1))
    for offset, value in [(0, 0xFE), (4, 0xAA), (4, 0xFF)]:
        keyboard.write(offset, memoryview(bytes([value])))
    assert not resets
    keyboard.write(4, memoryview(b"\xfe"))
    assert resets
    status = memoryview(bytearray(b"\xff"))
    keyboard.read(4, status)
    assert status[0] == 0  # the driver waits for an empty input buffer


def cmos(device: Cmos, index: int) -> int:
    device.write(0, memoryview(bytes([index])))
    value = memoryview(bytearray(1))
    device.read(1, value)
    return value[0]


def test_clock_gives_the_time_in_bcd() -> None:
    device = Cmos()
    before = time.gmtime()
    read = [cmos(device, index) for index in (0x32, 9, 8, 7)]
    if time.gmtime()[:3] == before[:3]:
        assert read == [bcd(before.tm_year // 100), bcd(before.tm_year % 100), bcd(before.tm_mon), bcd(before.tm_mday)]
    assert not cmos(device, 10) & 0x80  # no update in progress, or a kernel would wait for its end
    assert cmos(device, 13) & 0x80


def test_memory_behind_the_clock_holds() -> None:
    device = Cmos()
    device.write(0, memoryview(b"\x8f"))  # bit 7 is the NMI mask
    device.write(1, memoryview(b"\x55"))
    assert cmos(device, 0x0F) == 0x55


def test_event_loop_reads_times_and_is_asked() -> None:
    seen: list[str] = []
    with EventLoop() as loop, EventFdInterrupt() as event:

        def on_event() -> None:
            os.eventfd_read(event.fileno())
            seen.append("event")

        loop.add_reader(event.fileno(), on_event)
        loop.call_later(0.02, event.trigger)
        loop.call_later(0.2, loop.stop)
        other = threading.Thread(target=lambda: loop.call_soon(lambda: seen.append("asked")))
        other.start()
        loop.run()
        other.join()
    assert seen == ["asked", "event"]


def test_event_loop_stops_from_another_thread() -> None:
    with EventLoop() as loop:
        threading.Timer(0.05, loop.stop).start()
        loop.run()


def test_event_loop_lets_exceptions_out() -> None:
    with EventLoop() as loop:
        loop.call_soon(lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            loop.run()


def test_removed_readers_are_not_called() -> None:
    with EventLoop() as loop, EventFdInterrupt() as event:
        loop.add_reader(event.fileno(), lambda: pytest.fail("called"))
        loop.remove_reader(event.fileno())
        loop.remove_reader(event.fileno())
        event.trigger()
        loop.call_later(0.02, loop.stop)
        loop.run()
