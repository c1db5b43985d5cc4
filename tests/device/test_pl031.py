"""The PL031 as Linux's rtc-pl031 driver uses it: time, alarm, and a counter that wraps."""

import time

from tests.device.access import Line, get, put

from pyvmm_device import ManualClock, Pl031
from pyvmm_device.clock import SECOND

DR, MR, LR, CR, IMSC, RIS, MIS, ICR = range(0, 0x20, 4)


def test_linux_probes_reads_and_sets_the_time() -> None:
    clock = ManualClock()
    rtc = Pl031(Line(), clock, time=1_700_000_000)
    # pl031_probe() enables it where it is not, and keeps the time
    assert get(rtc, CR, 4) & 1
    clock.advance(5 * SECOND + 1)
    assert get(rtc, DR, 4) == 1_700_000_005
    put(rtc, LR, 1_000, 4)
    clock.advance(SECOND - 1)
    assert (get(rtc, DR, 4), get(rtc, LR, 4), rtc.time) == (1_000, 1_000, 1_000)
    clock.advance(1)
    assert get(rtc, DR, 4) == 1_001


def test_the_alarm_interrupts_once() -> None:
    clock, line = ManualClock(), Line()
    rtc = Pl031(line, clock, time=1_000)
    # pl031_set_alarm(): the match, then the mask
    put(rtc, MR, 1_003, 4)
    put(rtc, IMSC, 1, 4)
    clock.advance(3 * SECOND - 1)
    assert not line.level
    clock.advance(1)
    assert line.level
    assert get(rtc, MIS, 4) == 1
    # pl031_interrupt()
    put(rtc, ICR, 1, 4)
    assert not line.level
    clock.advance(10 * SECOND)
    assert line.rises == 1


def test_a_masked_match_is_seen_when_asked_for() -> None:
    clock, line = ManualClock(), Line()
    rtc = Pl031(line, clock, time=1_000)
    put(rtc, MR, 1_003, 4)
    clock.advance(100 * SECOND)
    assert (get(rtc, RIS, 4), get(rtc, MIS, 4), line.level) == (1, 0, False)
    put(rtc, IMSC, 1, 4)
    assert line.level
    put(rtc, IMSC, 0, 4)
    assert not line.level


def test_a_match_with_now_is_a_match() -> None:
    line = Line()
    rtc = Pl031(line, ManualClock(), time=1_000)
    put(rtc, IMSC, 1, 4)
    put(rtc, MR, 1_000, 4)
    assert line.level


def test_the_counter_wraps_and_meets_the_match_again() -> None:
    clock, line = ManualClock(), Line()
    rtc = Pl031(line, clock, time=0xFFFF_FFFF)
    put(rtc, MR, 1, 4)
    put(rtc, IMSC, 1, 4)
    clock.advance(2 * SECOND)
    assert (get(rtc, DR, 4), line.level) == (1, True)
    put(rtc, ICR, 1, 4)
    for _ in range(49711):  # 2**32 seconds
        clock.advance(86400 * SECOND)
    assert line.level


def test_the_alarm_survives_a_move() -> None:
    clock, line = ManualClock(), Line()
    rtc = Pl031(Line(), clock, time=1_000)
    put(rtc, MR, 1_010, 4)
    put(rtc, IMSC, 1, 4)
    clock.advance(4 * SECOND + 5)
    other_clock = ManualClock(99)
    other = Pl031(line, other_clock, time=0)
    other.restore(rtc.state())
    assert get(other, DR, 4) == 1_004
    other_clock.advance(6 * SECOND - 6)
    assert not line.level
    other_clock.advance(1)
    assert line.level


def test_a_reset_leaves_the_time() -> None:
    clock, line = ManualClock(), Line()
    rtc = Pl031(line, clock, time=1_000)
    put(rtc, MR, 1_000, 4)
    put(rtc, IMSC, 1, 4)
    clock.advance(SECOND)
    rtc.reset()
    assert (get(rtc, DR, 4), get(rtc, MIS, 4), line.level) == (1_001, 0, False)
    assert "1001 s" in repr(rtc)


def test_the_host_gives_the_time() -> None:
    assert abs(Pl031(Line()).time - time.time()) < 5
