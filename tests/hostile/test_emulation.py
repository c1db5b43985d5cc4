"""Emulation wrong in the same way: a source that is cleared and set within one access makes an edge, everywhere.

What is tried are drivers that listen to edges, each for one way in which a device ends a reason to interrupt and begins
the next in the same access. Every class of the code that has an interrupt output has to have some here.
"""

import inspect
import random
from collections import deque
from collections.abc import Callable
from itertools import pairwise

import pytest
from tests.device.access import get, put
from tests.hostile.devices import DEVICES, Case, Output, modules

from pyvmm_device import I8042, AcpiGpe, AcpiPm, Cmos, ManualClock, Pic, Pit, Pl011, Pl031, Plic, Ps2Keyboard, Serial
from pyvmm_device.acpi.pm import PM1_ENABLE, PM1_STATUS, PWRBTN, SLPBTN, TMR, Sci
from pyvmm_device.clock import SECOND, Timer
from pyvmm_device.interrupt_output import InterruptOutput
from pyvmm_device.riscv.plic import claim_at, enables_at, priority_at

TEXT = b"one byte for each interrupt"


class Edge:
    """An interrupt controller's edge-triggered input."""

    def __init__(self) -> None:
        self.edges = 0

    def trigger(self) -> None:
        self.edges += 1

    def take(self) -> bool:
        """Whether the driver is called: an edge came. Those that came since the last are one interrupt."""
        came, self.edges = bool(self.edges), 0
        return came


class LevelEdge(Edge):
    """The same behind a line that has a level."""

    def __init__(self) -> None:
        super().__init__()
        self.level = False

    def assert_(self) -> None:
        self.edges += not self.level
        self.level = True

    def clear(self) -> None:
        self.level = False


class Printed:
    def __init__(self) -> None:
        self.text = b""

    def write(self, data: bytes) -> None:
        self.text += data


Driver = Callable[[Edge], None]
DRIVERS: dict[str, tuple[type, Driver]] = {}


def driver(kind: type) -> Callable[[Driver], Driver]:
    """Register what drives a class by edges alone."""

    def add(function: Driver) -> Driver:
        DRIVERS[f"{kind.__name__} {function.__name__.replace('_', ' ')}"] = kind, function
        return function

    return add


def transmit(serial: Serial, edge: Edge, printed: Printed, sent: bytes) -> None:
    waiting = deque(sent)
    while waiting and edge.take():
        put(serial, 0, waiting.popleft())
    assert not waiting


@driver(Serial)
def writes_a_byte_for_each_edge(edge: Edge) -> None:
    printed = Printed()
    serial = Serial(edge, printed)
    put(serial, 1, 0x02)
    transmit(serial, edge, printed, TEXT)
    assert printed.text == TEXT


@driver(Serial)
def writes_in_loopback(edge: Edge) -> None:
    serial = Serial(edge, Printed())
    put(serial, 4, 0x10)
    put(serial, 1, 0x02)
    transmit(serial, edge, Printed(), TEXT)


def receive(serial: Serial, edge: Edge, each: int) -> bytes:
    got = b""
    serial.enqueue(TEXT)
    while edge.take():
        for _ in range(each):
            if get(serial, 5) & 1:
                got += bytes([get(serial, 0)])
    return got


@driver(Serial)
def reads_a_byte_for_each_edge_of_a_16450(edge: Edge) -> None:
    serial = Serial(edge, Printed())
    put(serial, 1, 0x01)
    assert receive(serial, edge, 1) == TEXT


@driver(Serial)
def reads_what_the_trigger_level_promises(edge: Edge) -> None:
    serial = Serial(edge, Printed())
    put(serial, 2, 0x81)  # a FIFO, 8 bytes
    put(serial, 1, 0x01)
    serial.enqueue(TEXT)
    got = b""
    while edge.take():
        for _ in range(8 if get(serial, 2) & 0x0F == 0x04 else 1):  # data available, or its timeout
            got += bytes([get(serial, 0)])
        while get(serial, 2) & 0x0F == 0x04:  # until the reason is gone, as the data sheet says
            got += bytes([get(serial, 0)])
    assert got == TEXT


@driver(Serial)
def reads_errors_after_errors(edge: Edge) -> None:
    serial, seen = Serial(edge, Printed()), 0
    put(serial, 1, 0x04)
    for _ in range(5):
        serial.enqueue_error(0x41, 0x08)
    while edge.take():
        seen += bool(get(serial, 5) & 0x08)
        get(serial, 0)
    assert seen == 5


@driver(Pl011)
def writes_a_word_for_each_edge(edge: Edge) -> None:
    printed, waiting = Printed(), deque(TEXT)
    uart = Pl011(edge, printed)
    put(uart, 0x38, 0x20, 4)
    put(uart, 0x00, waiting.popleft(), 4)  # the first makes a transition
    while waiting and edge.take():
        put(uart, 0x00, waiting.popleft(), 4)
    assert printed.text == TEXT


@driver(Pl011)
def reads_until_the_level_and_then_by_timeout(edge: Edge) -> None:
    uart, got = Pl011(edge, Printed()), b""
    put(uart, 0x2C, 0x10, 4)  # FIFOs, half full
    put(uart, 0x30, 0x301, 4)
    put(uart, 0x38, 0x50, 4)
    uart.enqueue(TEXT)
    while edge.take():
        reason = get(uart, 0x40, 4)
        while reason and get(uart, 0x40, 4) == reason:
            got += bytes([get(uart, 0x00, 4) & 0xFF])
    assert got == TEXT


@driver(Pl011)
def two_registers_in_one_access(edge: Edge) -> None:
    """The levels of the FIFOs end one reason, the mask behind them lets in another."""
    uart = Pl011(edge, Printed())
    put(uart, 0x2C, 0x10, 4)
    put(uart, 0x34, 0x00, 4)  # from an eighth on
    put(uart, 0x30, 0x301, 4)
    put(uart, 0x38, 0x10, 4)
    uart.enqueue(b"12345")
    assert edge.take()
    put(uart, 0x34, 0x20 | 0x40 << 32, 8)
    assert edge.take()


@driver(I8042)
def takes_a_code_for_each_edge(edge: Edge) -> None:
    keyboard, got = Ps2Keyboard(), []
    controller = I8042(lambda: None, keyboard=keyboard, keyboard_interrupt=edge)
    keyboard.press(bytes(range(1, 9)))
    while edge.take():
        got.append(get(controller, 0))
    assert len(got) == 8


@driver(Pic)
def all_inputs_with_automatic_end_of_interrupt(edge: Edge) -> None:
    pic = pair(edge, icw4=3)
    irqs = [8, 10, 15, 0, 1, 7]
    for irq in irqs:
        pic.line(irq).trigger()
    got = []
    while edge.take():
        got.append(pic.acknowledge())
    assert sorted(got) == sorted(0x20 + irq for irq in irqs)


@driver(Pic)
def all_inputs_by_polling(edge: Edge) -> None:
    for icw4 in (1, 3):
        pic = pair(edge, icw4)
        for irq in (9, 11, 12):
            pic.line(irq).trigger()
        got = []
        while edge.take():
            put(pic, 0, 0x0C)
            assert get(pic, 0) == 0x82
            put(pic, 2, 0x0C)
            got.append(get(pic, 2))
            if icw4 == 1:
                put(pic, 2, 0x20)
                put(pic, 0, 0x20)
        assert got == [0x81, 0x83, 0x84]


@driver(Pic)
def special_mask_mode_of_the_second(edge: Edge) -> None:
    pic = pair(edge, icw4=1)
    put(pic, 2, 0x68)
    for irq in (9, 11):
        pic.line(irq).trigger()
    assert edge.take()
    assert pic.acknowledge() == 0x29
    put(pic, 3, 0x02)  # mask what is served: others may come
    put(pic, 0, 0x20)
    assert edge.take()
    assert pic.acknowledge() == 0x2B


def pair(edge: Edge, icw4: int) -> Pic:
    pic = Pic(lambda level: move(edge, level))
    words = [(0, 0x11), (1, 0x20), (1, 4), (1, icw4), (2, 0x11), (3, 0x28), (3, 2), (3, icw4), (1, 0), (3, 0)]
    for offset, value in words:
        put(pic, offset, value)
    return pic


def move(edge: Edge, level: bool) -> None:
    if isinstance(edge, LevelEdge):
        (edge.assert_ if level else edge.clear)()
    elif level:
        edge.trigger()


@driver(Pit)
def a_rise_that_nobody_was_told_when_the_output_is_programmed(edge: Edge) -> None:
    clock = Late()
    pit = Pit(edge, clock)
    for offset, value in ((3, 0x36), (0, 0), (0, 0x10)):  # mode 3, 4096 ticks
        put(pit, offset, value)
    edge.take()
    # one and three quarters of a period: it rose once, nobody was called, and it is low again
    clock.advance((4096 + 3072) * SECOND // 1_193_182)
    put(pit, 0, 0)
    assert edge.take()


@driver(Pit)
def a_rise_that_nobody_was_told_when_the_next_is_programmed(edge: Edge) -> None:
    """One shot after the other, as Linux's clock events are: the one that is over is not lost with its count."""
    for mode in (0, 4):
        clock = Late()
        pit = Pit(edge, clock)
        put(pit, 3, 0x30 | mode << 1)
        for _ in range(5):
            for value in (0, 0x10):
                put(pit, 0, value)
            edge.take()
            clock.advance(4200 * SECOND // 1_193_182)
            put(pit, 3, 0x30 | mode << 1)
            assert edge.take()
            for value in (0, 0x10):
                put(pit, 0, value)
            edge.take()
            clock.advance(4200 * SECOND // 1_193_182)
            put(pit, 0, 0)  # without a control word
            assert edge.take()
            put(pit, 0, 0x10)


class Late(ManualClock):
    """A clock that calls ten seconds late."""

    def call_at(self, when: int, callback: Callable[[], object]) -> Timer:
        return super().call_at(when + 10 * SECOND, callback)


@driver(Cmos)
def reads_register_c_for_each_edge(edge: Edge) -> None:
    clock, taken = ManualClock(), 0
    cmos = Cmos(edge, clock, time=0)
    for index, value in ((0x0A, 0x2F), (0x0B, 0x52)):  # 2 Hz, periodic and update interrupts
        put(cmos, 0, index)
        put(cmos, 1, value)
    for _ in range(40):
        clock.advance(SECOND // 4)
        while edge.take():
            put(cmos, 0, 0x0C)
            taken += bool(get(cmos, 1) & 0x40)
    assert taken in (19, 20)


@driver(Cmos)
def clears_a_flag_that_nobody_was_told(edge: Edge) -> None:
    for index, value in ((0x0C, None), (0x0B, 0x02)):  # by reading it, or by turning its interrupt off
        clock = Late()
        cmos = Cmos(edge, clock, time=0)
        for at, first in ((0x0A, 0x26), (0x0B, 0x42)):
            put(cmos, 0, at)
            put(cmos, 1, first)
        clock.advance(SECOND // 100)
        put(cmos, 0, index)
        get(cmos, 1) if value is None else put(cmos, 1, value)
        assert edge.take()


@driver(Pl031)
def sets_the_next_alarm_for_each_edge(edge: Edge) -> None:
    clock, rung = ManualClock(), 0
    rtc = Pl031(edge, clock, time=100)
    put(rtc, 0x10, 1, 4)
    put(rtc, 0x04, 101, 4)
    for _ in range(20):
        clock.advance(SECOND)
        while edge.take():
            rung += 1
            put(rtc, 0x1C, 1, 4)
            put(rtc, 0x04, get(rtc, 0, 4) + 1, 4)
    assert rung == 20


@driver(Pl031)
def sets_an_alarm_for_now(edge: Edge) -> None:
    rtc = Pl031(edge, ManualClock(), time=100)
    put(rtc, 0x10, 1, 4)
    for _ in range(5):
        put(rtc, 0x04, 100, 4)
        assert edge.take()
        put(rtc, 0x1C, 1, 4)


@driver(Plic)
def claims_until_there_is_none_and_completes(edge: Edge) -> None:
    plic, got = Plic([lambda level: move(edge, level)], 31), []
    put(plic, enables_at(0), 0xFE, 4)
    for number in range(1, 8):
        put(plic, priority_at(number), 1, 4)
        plic.source(number).assert_()
    for _ in range(3):
        assert edge.take()
        while number := get(plic, claim_at(0), 4):
            got.append(number)
        for number in got[-7:]:
            put(plic, claim_at(0), number, 4)  # and they ask again at once
    assert got == list(range(1, 8)) * 3


@driver(AcpiPm)
def clears_one_status_and_gets_another(edge: Edge) -> None:
    if not isinstance(edge, LevelEdge):
        edge = LevelEdge()
    pm = AcpiPm(Sci(edge), ManualClock())
    put(pm, PM1_ENABLE, PWRBTN | SLPBTN, 2)
    for _ in range(3):
        pm.press()
        assert edge.take()
        put(pm, PM1_STATUS, PWRBTN, 2)
        pm.press_sleep()
        assert edge.take()
        put(pm, PM1_STATUS, SLPBTN, 2)


@driver(AcpiPm)
def clears_an_overflow_that_nobody_was_told(edge: Edge) -> None:
    for looks in (False, True):
        line, clock = LevelEdge(), Late()
        pm = AcpiPm(Sci(line), clock, wide=False)
        put(pm, PM1_ENABLE, TMR, 2)
        clock.advance(3 * SECOND)  # the 24 bits' highest has changed
        if looks:
            assert get(pm, PM1_STATUS, 2) & TMR
        put(pm, PM1_STATUS, TMR, 2)
        assert line.take()
        assert not line.level


@driver(AcpiGpe)
def clears_an_event_and_gets_it_again(edge: Edge) -> None:
    gpe = AcpiGpe(Sci(edge))
    put(gpe, 2, 0xFFFF, 2)
    for event in range(16):
        gpe.trigger(event)
        assert edge.take()
        put(gpe, 0, 1 << event, 2)


@pytest.mark.parametrize("line", [Edge, LevelEdge])
@pytest.mark.parametrize("drive", [drive for _, drive in DRIVERS.values()], ids=DRIVERS)
def test_a_driver_by_edges_is_never_left_alone(line: type[Edge], drive: Driver) -> None:
    drive(line())


def test_every_device_with_an_interrupt_output_is_driven() -> None:
    """Whoever moves a line of its own: by an `InterruptOutput`, or as one of several on a `SharedLine`."""
    having = {
        value
        for module in modules()
        for value in vars(module).values()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and value.__init__ is not object.__init__
        and any(word in inspect.getsource(value) for word in ("InterruptOutput(", "self._sci = "))
    }
    assert having - {InterruptOutput} == {kind for kind, _ in DRIVERS.values()}


@pytest.mark.parametrize("case", DEVICES.values(), ids=DEVICES)
def test_a_line_goes_up_and_down_in_turn(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is accessed: what is told of an output alternates, and ends with what the output says of itself."""
    told: dict[InterruptOutput, list[bool]] = {}
    init = InterruptOutput.__init__

    def watch(output: InterruptOutput, interrupt: object, lock: object) -> None:
        levels: list[bool] = []
        init(output, levels.append, lock)  # type: ignore[arg-type]
        told[output] = levels

    monkeypatch.setattr(InterruptOutput, "__init__", watch)
    chance, clock = random.Random(6), ManualClock()
    device = case.make(Output(), clock)
    for _ in range(3000):
        buffer = memoryview(bytearray(chance.randbytes(chance.choice((1, 1, 1, 2, 4, 8)))))
        (device.read if chance.random() < 0.4 else device.write)(chance.randrange(case.size), buffer)
        if chance.random() < 0.1:
            case.outside(device, chance.randrange(256))
            clock.advance(chance.randrange(1 << 27))
        for output, levels in told.items():
            assert not any(one is other for one, other in pairwise(levels))
            if levels:
                assert levels[-1] is output.level
                del levels[:-1]
