"""The CMOS clock as Linux's mc146818-lib and rtc-cmos use it, its interrupts, and the memory that firmware reads."""

import os
import time
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm_device import Cmos, DeviceStateError, IoManager, ManualClock, register_ports
from pyvmm_device.clock import SECOND
from pyvmm_device.pc.cmos_time import bcd, days_from_civil, seconds_to_alarm

A, B, C, D = 10, 11, 12, 13
SET, PIE, AIE, UIE, BINARY, HOURS_24 = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
LEAP_DAY = 1709251199  # 2024-02-29 23:59:59, a Thursday


class Line:
    """A level interrupt that remembers its level and when it rose."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.level = False
        self.rises: list[int] = []

    def assert_(self) -> None:
        assert not self.level
        self.level = True
        self.rises.append(self.clock.now())

    def clear(self) -> None:
        self.level = False


class Machine:
    """A clock at a time, with IRQ 8."""

    def __init__(self, seconds: int = LEAP_DAY) -> None:
        self.clock = ManualClock()
        self.line = Line(self.clock)
        self.cmos = Cmos(self.line, self.clock, time=seconds)

    def __getitem__(self, index: int) -> int:
        self.cmos.write(0, memoryview(bytes([index])))
        value = memoryview(bytearray(1))
        self.cmos.read(1, value)
        return value[0]

    def __setitem__(self, index: int, value: int) -> None:
        self.cmos.write(0, memoryview(bytes([index, value])))  # both ports at once, as the ISA bus splits it

    def date(self) -> list[int]:
        """Century, year, month, day, weekday, hours, minutes, seconds."""
        return [self[index] for index in (0x32, 9, 8, 7, 6, 4, 2, 0)]

    def set_date(self, registers: dict[int, int]) -> None:
        """As mc146818_set_time does it."""
        control, frequency = self[B], self[A]
        self[B] = control | SET
        self[A] = frequency | 0x70
        for index, value in registers.items():
            self[index] = value
        self[B] = control
        self[A] = frequency


def test_it_starts_with_the_hosts_time() -> None:
    before = int(time.time())
    assert before <= Cmos().time <= int(time.time())


def test_it_can_start_with_local_time() -> None:
    zone = os.environ.get("TZ")
    os.environ["TZ"] = "XXX-5"
    time.tzset()
    try:
        assert 0 <= Cmos(local=True).time - int(time.time()) - 5 * 3600 <= 1
    finally:
        os.environ.pop("TZ") if zone is None else os.environ.update(TZ=zone)
        time.tzset()


def test_it_is_where_a_pc_has_it() -> None:
    io, value = IoManager(), memoryview(bytearray(1))
    register_ports(io, Cmos(time=0))
    io.pio_write(0x70, memoryview(b"\x8d"))  # bit 7 is the NMI mask
    io.pio_read(0x71, value)
    assert value[0] == 0x80  # "valid RAM and time"
    io.pio_read(0x70, value)
    assert value[0] == 0xFF


@pytest.mark.parametrize(
    ("mode", "before", "after"),
    [
        (HOURS_24, [0x20, 0x24, 2, 0x29, 5, 0x23, 0x59, 0x59], [0x20, 0x24, 3, 1, 6, 0, 0, 0]),
        (0, [0x20, 0x24, 2, 0x29, 5, 0x91, 0x59, 0x59], [0x20, 0x24, 3, 1, 6, 0x12, 0, 0]),
        (BINARY | HOURS_24, [20, 24, 2, 29, 5, 23, 59, 59], [20, 24, 3, 1, 6, 0, 0, 0]),
        (BINARY, [20, 24, 2, 29, 5, 0x8B, 59, 59], [20, 24, 3, 1, 6, 12, 0, 0]),
    ],
)
def test_time_in_every_format(mode: int, before: list[int], after: list[int]) -> None:
    machine = Machine()
    machine[B] = mode
    assert machine.date() == before
    machine.clock.advance(SECOND)
    assert machine.date() == after
    machine.set_date(dict(zip((0x32, 9, 8, 7, 6, 4, 2, 0), before, strict=True)))
    assert machine.date() == before
    machine.clock.advance(SECOND // 2 - 1)
    assert machine.date() == before
    machine.clock.advance(1)  # the first update comes half a second after the divider starts
    assert machine.date() == after


def test_a_date_that_is_none_is_a_later_one() -> None:
    machine = Machine()
    machine.set_date({0x32: 0x20, 9: 0x23, 8: 2, 7: 0x31})
    assert machine.date()[:4] == [0x20, 0x23, 3, 3]


def test_a_single_register_changes_while_the_clock_runs() -> None:
    machine = Machine()
    machine[9] = 0x25  # there is no 29th of February
    assert machine.date() == [0x20, 0x25, 3, 1, 5, 0x23, 0x59, 0x59]
    machine[6] = 1
    assert machine[6] == 1


def test_set_stops_the_time_and_what_is_written_stands() -> None:
    machine = Machine()
    machine[B] = SET | HOURS_24 | UIE
    assert machine[B] == SET | HOURS_24  # "UIE is cleared"
    machine[8] = 0x99
    machine.clock.advance(10 * SECOND)
    assert (machine[8], machine[0]) == (0x99, 0x59)
    machine.cmos.set_time(0)
    assert machine.date()[:4] == [0x19, 0x70, 1, 1]
    assert machine.cmos.time == 0


def test_the_owner_sets_the_time() -> None:
    machine = Machine()
    machine[6] = 1
    machine.cmos.set_time(LEAP_DAY + 1)
    assert machine.date() == [0x20, 0x24, 3, 1, 6, 0, 0, 0]
    assert repr(machine.cmos) == "<Cmos memory and clock, 2024-03-01 00:00:00>"


def test_update_in_progress_before_every_second() -> None:
    machine = Machine()
    machine.clock.advance(SECOND - 244_001)
    assert machine[A] == 0x26
    machine.clock.advance(1)
    assert machine[A] == 0xA6
    machine.clock.advance(244_000)
    assert machine[A] == 0x26
    machine[A] = 0xFF
    assert machine[A] == 0x7F  # it cannot be written, and nothing is updated while the divider is held


@pytest.mark.parametrize(
    ("rate", "hertz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (7, 512), (10, 64), (13, 8), (15, 2)]
)
def test_periodic_interrupt(rate: int, hertz: int) -> None:
    machine = Machine()
    machine[A] = 0x20 | rate
    machine[B] = HOURS_24 | PIE
    for _ in range(hertz):
        while not machine.line.level:
            machine.clock.advance(30_000)
        assert machine[C] & 0xC0 == 0xC0
        assert not machine.line.level
    assert machine.clock.now() - SECOND in range(60_000)
    assert machine.line.rises[-1] == SECOND


def test_a_periodic_interrupt_that_is_not_taken_does_not_come_again() -> None:
    machine = Machine()
    machine[B] = HOURS_24 | PIE
    machine.clock.advance(SECOND)
    assert len(machine.line.rises) == 1
    machine[A] = 0x20
    assert machine[C] & 0xC0 == 0xC0
    machine.clock.advance(SECOND)
    assert machine[C] == 0x10  # the rate is none


def test_update_ended_interrupt_comes_each_second() -> None:
    machine = Machine()
    machine[B] = HOURS_24 | UIE
    for number in range(1, 4):
        machine.clock.advance(SECOND)
        assert machine.line.rises == [second * SECOND for second in range(1, number + 1)]
        assert machine[C] & 0x90 == 0x90
        assert machine[C] == 0
    machine[B] = HOURS_24
    machine.clock.advance(SECOND)
    assert not machine.line.level
    assert machine[C] & 0x90 == 0x10  # the flag rises all the same
    machine.clock.advance(SECOND)
    machine[B] = HOURS_24 | UIE
    assert machine.line.level  # and interrupts as soon as it may


def set_alarm(machine: Machine, hours: int, minutes: int, seconds: int) -> None:
    """As cmos_set_alarm does it: off, flags away, the registers, on."""
    machine[B] = machine[B] & ~AIE
    assert machine[C] < 0x80
    machine[5], machine[3], machine[1] = hours, minutes, seconds
    machine[B] = machine[B] | AIE


@pytest.mark.parametrize(
    ("mode", "alarm", "seconds"),
    [
        (HOURS_24, (0x00, 0x00, 0x00), 1),
        (HOURS_24, (0x23, 0x59, 0x59), 86400),
        (HOURS_24, (0xC0, 0x59, 0x59), 3600),
        (HOURS_24, (0xFF, 0xFF, 0x10), 11),
        (HOURS_24, (0xFF, 0xFF, 0xFF), 1),
        (0, (0x12, 0x00, 0x30), 31),
        (0, (0x81, 0x30, 0x00), 13 * 3600 + 1801),
        (BINARY | HOURS_24, (12, 34, 56), 12 * 3600 + 34 * 60 + 57),
        (HOURS_24, (0x24, 0x00, 0x00), None),
        (HOURS_24, (0x00, 0x60, 0x00), None),
    ],
)
def test_alarm(mode: int, alarm: tuple[int, int, int], seconds: int | None) -> None:
    machine = Machine()
    machine[B] = mode
    set_alarm(machine, *alarm)
    machine.clock.advance(2 * 86400 * SECOND)
    assert machine.line.rises == ([] if seconds is None else [seconds * SECOND])
    assert machine[C] & 0x20 == (0 if seconds is None else 0x20)


def test_an_alarm_follows_the_time_that_is_set() -> None:
    machine = Machine()
    set_alarm(machine, 0x12, 0, 0)
    machine.cmos.set_time(12 * 3600 - 3)
    machine.clock.advance(10 * SECOND)
    assert machine.line.rises == [3 * SECOND]


FIELD = st.none() | st.integers(0, 59)


@settings(max_examples=50, deadline=None)
@given(now=st.integers(0, 86399), hour=st.none() | st.integers(0, 23), minute=FIELD, second=FIELD)
def test_the_next_alarm_is_the_first_that_matches(
    now: int, hour: int | None, minute: int | None, second: int | None
) -> None:
    hours, minutes, seconds = (
        range(most) if field is None else [field] for field, most in ((hour, 24), (minute, 60), (second, 60))
    )
    moments = [h * 3600 + m * 60 + s for h, m, s in product(hours, minutes, seconds)]
    first = min((moment - now - 1) % 86400 + 1 for moment in moments)
    assert seconds_to_alarm(now, hour, minute, second) == first


@given(seconds=st.integers(-60_000_000_000, 200_000_000_000))
def test_days_are_those_of_the_calendar(seconds: int) -> None:
    date = time.gmtime(seconds)
    assert days_from_civil(date.tm_year, date.tm_mon, date.tm_mday) == seconds // 86400


def test_a_reset_keeps_time_and_memory() -> None:
    machine = Machine()
    machine[0x40] = 0x12
    machine[B] = HOURS_24 | BINARY | UIE
    machine.clock.advance(SECOND)
    assert machine.line.level
    machine.cmos.reset()
    assert not machine.line.level
    assert (machine[0x40], machine[B], machine[C]) == (0x12, HOURS_24 | BINARY, 0)
    assert machine.cmos.time == LEAP_DAY + 1


def test_memory_holds_and_the_index_has_seven_bits() -> None:
    machine = Machine()
    machine[0x8F] = 0x55
    assert machine[0x0F] == 0x55
    machine[C] = machine[D] = 0
    assert machine[D] == 0x80


def test_memory_sizes_are_where_firmware_looks() -> None:
    machine = Machine()
    machine.cmos.set_memory_size(3 << 30, 5 << 30)
    assert [machine[index] for index in (0x15, 0x16, 0x17, 0x18, 0x30, 0x31)] == [0x80, 2, 255, 255, 255, 255]
    assert machine[0x34] | machine[0x35] << 8 == (3 << 30) - (16 << 20) >> 16
    assert [machine[index] for index in (0x5B, 0x5C, 0x5D)] == [0x00, 0x40, 0x01]
    machine.cmos.set_memory_size(8 << 20)
    assert machine[0x30] | machine[0x31] << 8 == 7 << 10
    assert not any(machine[index] for index in (0x34, 0x35, 0x5B, 0x5C, 0x5D))


def test_a_restored_clock_goes_on_and_rings() -> None:
    machine, other = Machine(), Machine(0)
    machine[B] = HOURS_24 | UIE
    machine.clock.advance(SECOND // 4)
    other.clock.advance(7 * SECOND)
    other.cmos.restore(machine.cmos.state())
    other.clock.advance(SECOND)
    assert other.line.rises == [7 * SECOND + SECOND * 3 // 4]
    assert other.cmos.time == LEAP_DAY + 1
    third = Machine(0)
    third.cmos.restore(other.cmos.state())
    assert third.line.level  # what is pending is raised again


@pytest.mark.parametrize("change", [{"age": None}, {"age": -1}, {"epoch": 1 << 62}])
def test_a_state_that_no_clock_can_be_in(change: dict[str, object]) -> None:
    machine = Machine()
    with pytest.raises(DeviceStateError):
        machine.cmos.restore({**machine.cmos.state(), **change})
    assert machine.cmos.time == LEAP_DAY


def test_bcd() -> None:
    assert [bcd(number) for number in (0, 9, 10, 59, 99)] == [0, 9, 0x10, 0x59, 0x99]
