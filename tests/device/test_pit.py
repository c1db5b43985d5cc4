"""The 8254 against its data sheet and in the sequences of Linux's drivers."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.device.access import Line, get, put

from pyvmm_device import ManualClock, Pit, Timer
from pyvmm_device.pc.pit import FREQUENCY, PORT_61, REFRESH_NS

TICK = 1_000_000_000 / FREQUENCY


class Machine:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.line = Line()
        self.pit = Pit(self.line, self.clock)

    def program(self, counter: int, mode: int, count: int, *, bcd: bool = False) -> None:
        put(self.pit, 3, counter << 6 | 0x30 | mode << 1 | bcd)
        put(self.pit, counter, count & 0xFF)
        put(self.pit, counter, count >> 8)

    def at(self, tick: int) -> None:
        """Let time pass until a tick has just begun."""
        self.clock.advance(-(-tick * 1_000_000_000 // FREQUENCY) - self.clock.now())

    def count(self, counter: int) -> int:
        put(self.pit, 3, counter << 6)
        return get(self.pit, counter) | get(self.pit, counter) << 8

    def status(self, counter: int) -> int:
        put(self.pit, 3, 0xE0 | 2 << counter)
        return get(self.pit, counter)

    def out(self, counter: int) -> int:
        return self.status(counter) >> 7

    def gate(self, level: bool) -> None:
        put(self.pit, PORT_61, int(level))


def test_linux_periodic_ticks_do_not_drift() -> None:
    # pit_set_periodic(): mode 2, LSB and MSB
    machine = Machine()
    machine.program(0, 2, FREQUENCY // 250)
    machine.clock.advance(100_000_000_000)
    assert machine.line.rises == 100 * FREQUENCY // (FREQUENCY // 250)


def test_linux_one_shot() -> None:
    # pit_set_oneshot(): mode 4; pit_next_event() writes the count
    machine = Machine()
    put(machine.pit, 3, 0x38)
    assert machine.line.rises == 0
    for _ in range(2):
        put(machine.pit, 0, 0x00)
        put(machine.pit, 0, 0x10)
        machine.clock.advance(int(0x1000 * TICK))
        machine.clock.advance(int(2 * TICK))
    assert machine.line.rises == 2
    machine.clock.advance(10**9)
    assert machine.line.rises == 2


def test_linux_shuts_the_timer_down() -> None:
    # pit_shutdown(): mode 0 with the count 0, which interrupts once more, 55 ms later, as on the chip
    machine = Machine()
    machine.program(0, 2, 1000)
    machine.program(0, 0, 0)
    assert not machine.line.level
    machine.clock.advance(54_000_000)
    assert machine.line.rises == 0
    machine.clock.advance(1_000_000_000)
    assert machine.line.rises == 1


def test_linux_calibrates_the_tsc_with_counter_2() -> None:
    # pit_calibrate_tsc(): gate on, speaker off, mode 0, wait for OUT2 in port 0x61
    machine = Machine()
    put(machine.pit, PORT_61, get(machine.pit, PORT_61) & ~2 | 1)
    machine.program(2, 0, 50_000)
    machine.at(49_999)
    assert not get(machine.pit, PORT_61) & 0x20
    machine.at(50_000)
    assert get(machine.pit, PORT_61) & 0x20


def test_mode_0_stops_with_its_gate_and_at_a_first_byte() -> None:
    machine = Machine()
    machine.gate(True)
    machine.program(2, 0, 100)
    machine.at(40)
    machine.gate(False)
    machine.at(1000)
    assert machine.count(2) == 60
    machine.gate(True)
    machine.at(1059)
    assert (machine.count(2), machine.out(2)) == (1, 0)
    machine.at(1062)
    assert (machine.count(2), machine.out(2)) == (0xFFFE, 1)
    put(machine.pit, 2, 7)  # the first byte of a new count
    assert machine.out(2) == 0
    machine.at(2000)
    assert machine.status(2) & 0xC0 == 0x40  # low, nothing loaded
    put(machine.pit, 2, 0)
    machine.at(2007)
    assert machine.out(2) == 1


def test_mode_1_waits_for_triggers() -> None:
    machine = Machine()
    machine.program(2, 1, 100)
    machine.at(500)
    assert machine.status(2) == 0xC0 | 0x32
    machine.gate(True)
    machine.at(599)
    assert (machine.count(2), machine.out(2)) == (1, 0)
    machine.gate(False)
    machine.gate(True)  # again from the beginning
    machine.at(698)
    assert machine.out(2) == 0
    machine.at(699)
    assert machine.out(2) == 1


def test_mode_2_is_low_for_one_tick_and_changes_its_count_at_the_end() -> None:
    machine = Machine()
    machine.gate(True)
    machine.program(2, 2, 10)
    levels = ""
    for tick in range(20):
        machine.at(tick)
        levels += str(machine.out(2))
    assert levels == "11111111101111111110"
    assert machine.count(2) == 1
    machine.at(21)
    put(machine.pit, 2, 5)
    put(machine.pit, 2, 0)
    assert machine.status(2) & 0x40  # not loaded yet
    machine.at(29)
    assert machine.count(2) == 1
    machine.at(34)
    assert (machine.count(2), machine.out(2), machine.status(2) & 0x40) == (1, 0, 0)
    machine.gate(False)
    assert machine.out(2) == 1
    machine.at(100)
    machine.gate(True)
    assert machine.count(2) == 5


@pytest.mark.parametrize(("count", "wave"), [(8, "1111000011110000"), (7, "11110001111000")])
def test_mode_3_is_a_square_wave(count: int, wave: str) -> None:
    machine = Machine()
    machine.gate(True)
    machine.program(2, 3, count)
    seen = ""
    for tick in range(2 * count):
        machine.at(tick)
        seen += str(machine.out(2))
        assert machine.count(2) % 2 == 0  # it goes in twos
    assert seen == wave


def test_mode_3_changes_its_count_after_half_a_cycle() -> None:
    machine = Machine()
    machine.program(0, 3, 1000)
    machine.at(100)
    put(machine.pit, 0, 0)
    put(machine.pit, 0, 4)  # 1024: loaded at tick 500, rises 512 ticks later
    machine.at(1011)
    assert machine.line.rises == 0
    machine.at(1012)
    assert machine.line.rises == 1
    machine.at(1013)
    put(machine.pit, 0, 0)
    put(machine.pit, 0, 8)
    machine.at(1012 + 700)
    put(machine.pit, 0, 0)
    put(machine.pit, 0, 3)  # written again in the low half of 2048, which began with its high half as low
    machine.at(1012 + 512 + 1024)
    assert machine.line.rises == 2


def test_mode_5_strobes_after_a_trigger() -> None:
    machine = Machine()
    machine.program(2, 5, 10)
    machine.at(50)
    machine.gate(True)
    for tick, out in ((59, 1), (60, 0), (61, 1), (500, 1)):
        machine.at(tick)
        assert machine.out(2) == out


def test_bcd() -> None:
    machine = Machine()
    machine.gate(True)
    machine.program(2, 0, 0x1000, bcd=True)
    machine.at(1)
    assert machine.count(2) == 0x0999
    machine.program(2, 0, 0, bcd=True)
    machine.at(3)
    assert machine.count(2) == 0x9998


def test_bytes_are_latched_and_alternate() -> None:
    machine = Machine()
    machine.gate(True)
    machine.program(2, 0, 0x1234)
    put(machine.pit, 3, 0x80)
    machine.at(0x40)
    put(machine.pit, 3, 0x80)  # ignored: the first has not been read
    assert (get(machine.pit, 2), get(machine.pit, 2)) == (0x34, 0x12)
    assert (get(machine.pit, 2), get(machine.pit, 2)) == (0xF4, 0x11)
    put(machine.pit, 3, 0xC8)  # status and count of counter 2
    assert [get(machine.pit, 2) for _ in range(3)] == [0x30, 0xF4, 0x11]
    for access, value in ((0x90, 0xF4), (0xA0, 0x11)):
        put(machine.pit, 3, access)
        put(machine.pit, 2, value)
        put(machine.pit, 3, 0x80)
        assert get(machine.pit, 2) == get(machine.pit, 2) == value
    assert get(machine.pit, 3) == 0xFF
    put(machine.pit, 5, 1)
    assert get(machine.pit, 5) == 0xFF


def test_refresh_toggles() -> None:
    machine = Machine()
    seen = []
    for _ in range(4):
        seen.append(get(machine.pit, PORT_61) >> 4 & 1)
        machine.clock.advance(REFRESH_NS)
    assert seen == [0, 1, 0, 1]


def test_speaker() -> None:
    machine = Machine()
    played: list[int] = []
    machine.pit.on_speaker = played.append
    machine.program(2, 3, FREQUENCY // 440)
    put(machine.pit, PORT_61, 3)
    put(machine.pit, PORT_61, 0)
    assert played == [440, 0]
    machine.pit.reset()
    assert machine.pit.speaker == 0
    assert "mode 0" in repr(machine.pit)


def test_interrupts_faster_than_they_may_be_are_thinned_out() -> None:
    machine = Machine()
    machine.program(0, 2, 2)
    machine.clock.advance(1_000_000_000)
    assert 4_900 <= machine.line.rises <= 5_000
    machine.program(0, 2, 1)  # "a count of 1 is illegal"
    before = machine.line.rises
    machine.clock.advance(1_000_000_000)
    assert machine.line.rises == before


class LateClock(ManualClock):
    """A clock whose calls come late, as those of a loop that was busy."""

    late = False

    def call_at(self, when: int, callback: Callable[[], object]) -> Timer:
        return super().call_at(max(when, self.now() + 50_000_000) if self.late else when, callback)


def test_missed_interrupts_are_made_up_for() -> None:
    clock, line = LateClock(), Line()
    pit = Pit(line, clock)
    clock.late = True
    for offset, value in ((3, 0x34), (0, 11932 & 0xFF), (0, 11932 >> 8)):  # 100 Hz
        put(pit, offset, value)
    clock.advance(50_000_000)
    assert line.rises == 1
    clock.late = False
    clock.advance(100_000_000)
    assert line.rises >= 5
    clock.advance(850_000_000)
    assert line.rises == 100 - 1
    assert pit.state()["owed"] == 0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 255), st.integers(0, 3000)), max_size=30))
def test_the_calls_do_not_change_what_is_read(steps: list[tuple[int, int, int]]) -> None:
    """A counter that is looked at all the time and one that is not agree: it is a function of time."""
    one, other = Machine(), Machine()
    for offset, value, ticks in steps:
        for machine in (one, other):
            put(machine.pit, offset, value)
        for _ in range(3):
            one.clock.advance(int(ticks * TICK) // 3)
            one.pit.state()
        other.clock.advance(int(ticks * TICK) // 3 * 3)
    for counter in range(3):
        assert one.status(counter) == other.status(counter)
        assert one.count(counter) == other.count(counter)
