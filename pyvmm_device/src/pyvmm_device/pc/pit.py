"""The timer of a PC: Intel 8254, and port 0x61 beside it (speaker, gate of counter 2, refresh).

Nothing counts here: each counter knows when it was loaded and computes from the clock what it would hold by now, so a
guest that reads it pays, and one that does not pays nothing. Only counter 0, which interrupts, asks the clock to be
called, at the moments its output rises; these are computed from the moment of loading, and so do not drift.

>>> from pyvmm_device.clock import ManualClock
>>> clock, rises = ManualClock(), []
>>> class Irq0:
...     def trigger(self): rises.append(clock.now())
>>> pit = Pit(Irq0(), clock)
>>> for offset, value in [(3, 0x34), (0, 11932 & 0xFF), (0, 11932 >> 8)]:  # counter 0, mode 2: 100 Hz
...     pit.write(offset, memoryview(bytes([value])))
>>> clock.advance(1_000_000_000)
>>> len(rises)
99

Source: Intel 8254 data sheet (231164); port 0x61 as the 82371 (PIIX) has it.
"""

from __future__ import annotations

from pyvmm_device.clock import SECOND, Alarm, Stopped
from pyvmm_device.interrupt_output import InterruptOutput
from pyvmm_device.pc.pit_counter import PitCounter
from pyvmm_device.pc.port_device import PortDevice
from pyvmm_device.state import FLAG, array, nested, optional, sint, uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm_device.clock import Clock
    from pyvmm_device.interrupt import Interrupt

FREQUENCY = 1_193_182
"""In Hz: a third of the 3.579545 MHz of colour television."""
CONTROL = 3
READ_BACK = 3
PORT_61 = 4
GATE_2, SPEAKER, PARITY_MASKS, REFRESH, OUT_2 = 0x01, 0x02, 0x0C, 0x10, 0x20
REFRESH_NS = 15_085
MINIMUM_PERIOD_NS = 200_000
"""Interrupts do not come more often, whatever the guest programs (KVM: ``min_timer_period_us``)."""
MAXIMUM_OWED = 20


class Pit(PortDevice):
    """An 8254. Registers: 0 to 2 the counters, 3 the control word, 4 port 0x61.

    When a call of the clock comes late, the interrupts that were missed follow it at twice their pace, up to 20: a
    guest that counts them keeps its time.

    Args:
        interrupt: the output of counter 0: IRQ 0, input 2 of an IOAPIC.
        clock: tells the time and calls.

    Attributes:
        on_speaker: called with the frequency in Hz, 0 for silence, when the guest changes what the speaker plays.
    """

    PORTS = ((0x40, 4, 0), (0x61, 1, 4))
    STATE = {
        "counters": array(nested(PitCounter), 3, 3),
        "age": sint(),
        "port_61": uint(4),
        "level": FLAG,
        "owed": uint(8),
        "next": optional(sint()),
    }

    def __init__(self, interrupt: Interrupt, clock: Clock | None = None) -> None:
        super().__init__()
        self._line = InterruptOutput(interrupt, self.lock)
        self._clock: Clock = Stopped() if clock is None else clock
        self.on_speaker: Callable[[int], object] | None = None
        self._alarm = Alarm(self._clock, self.lock, self._on_time)
        self._epoch = self._clock.now()
        self._age = 0
        self._power_on()

    def _power_on(self) -> None:
        self._counters = [PitCounter(), PitCounter(), PitCounter()]
        self._counters[2].set_gate(False, 0)
        self._port_61 = 0
        self._level = True  # undefined; this way the first control word is no rise
        self._line.forget()
        self._owed = 0
        self._next: int | None = None  # nanoseconds from the epoch

    def reset(self) -> None:
        """Be as after power-on: nothing counts until it is programmed."""
        with self.lock:
            self._power_on()
            self._schedule(self._ticks())

    # time

    def _ticks(self) -> int:
        return (self._clock.now() - self._epoch) * FREQUENCY // SECOND

    def _moment(self, tick: int) -> int:
        """Return the first nanosecond of a tick."""
        return self._epoch - (-tick * SECOND // FREQUENCY)

    def _schedule(self, tick: int) -> None:
        """Ask to be called when the output of counter 0 rises next."""
        at = self._counters[0].next_rise(tick)
        if self._owed:
            soon = self._clock.now() + max(MINIMUM_PERIOD_NS, self._period() // 2)
            when: int | None = soon if at is None else min(soon, self._moment(at))
        elif at is None:
            when = None
        else:
            when = self._moment(at)
            if self._counters[0].periodic and self._period() < MINIMUM_PERIOD_NS:
                when = max(when, self._clock.now() + MINIMUM_PERIOD_NS)
        self._call_at(when)

    def _period(self) -> int:
        return self._counters[0].period * SECOND // FREQUENCY

    def _call_at(self, when: int | None) -> None:
        self._next = None if when is None else when - self._epoch
        self._alarm.set(when)

    def _on_time(self) -> None:
        with self.lock:
            tick = self._ticks()
            rises = self._counters[0].take_rises(tick)
            if self._counters[0].periodic and self._period() < MINIMUM_PERIOD_NS:
                rises = min(rises, 1)  # faster than it may be: nothing to make up for
            waiting = rises + self._owed
            if waiting:
                self._pulse()
                self._owed = min(waiting - 1, MAXIMUM_OWED)
            self._schedule(tick)

    def _pulse(self) -> None:
        self._level = True
        self._line.pulse()

    # the guest's side

    def _read(self, offset: int) -> int:
        if offset < CONTROL:
            return self._counters[offset].read(self._ticks())
        return self._read_port_61() if offset == PORT_61 else 0xFF

    def _read_port_61(self) -> int:
        value = self._port_61
        if (self._clock.now() - self._epoch) // REFRESH_NS & 1:
            value |= REFRESH
        return value | OUT_2 if self._counters[2].output(self._ticks()) else value

    def _write(self, offset: int, value: int) -> None:
        tick = self._ticks()
        speaker = self.speaker
        if offset in (0, CONTROL) and self._counters[0].take_rises(tick):
            # it rose before it is programmed anew, and nobody was told yet
            self._pulse()
        if offset < CONTROL:
            self._counters[offset].write(value, tick)
        elif offset == CONTROL:
            self._write_control(value, tick)
        elif offset == PORT_61:
            self._port_61 = value & (GATE_2 | SPEAKER | PARITY_MASKS)
            self._counters[2].set_gate(bool(value & GATE_2), tick)
        if offset in (0, CONTROL):
            self._follow_output(tick)
        if self.on_speaker is not None and self.speaker != speaker:
            self.lock.after(self.on_speaker, self.speaker)

    def _write_control(self, value: int, tick: int) -> None:
        select = value >> 6
        if select != READ_BACK:
            self._counters[select].control(value & 0x3F, tick)
            return
        for number, counter in enumerate(self._counters):
            if value & 2 << number:
                counter.read_back(count=not value & 0x20, status=not value & 0x10, tick=tick)

    def _follow_output(self, tick: int) -> None:
        """Move the line as programming moved the output, without waiting for the clock."""
        counter = self._counters[0]
        rises = counter.take_rises(tick)
        output = counter.output(tick)
        if rises or (output and not self._level):
            self._pulse()
        if not output and self._level:
            # also where it rose before, and nobody was told yet
            self._level = False
            self._line.set(False)
        self._schedule(tick)

    @property
    def speaker(self) -> int:
        """The frequency in Hz that the speaker plays, or 0."""
        counter = self._counters[2]
        on = self._port_61 & (GATE_2 | SPEAKER) == GATE_2 | SPEAKER
        return FREQUENCY // counter.period if on and counter.periodic and counter.period > 1 else 0

    def _before_save(self) -> None:
        self._age = self._clock.now() - self._epoch

    def _after_restore(self) -> None:
        self._epoch = self._clock.now() - self._age
        self._line.level = self._level  # as it was: what rose by then was told by then
        self._call_at(None if self._next is None else self._epoch + self._next)

    def __repr__(self) -> str:
        return f"<Pit {', '.join(map(repr, self._counters))}>"
