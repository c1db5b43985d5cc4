r"""Arm's real-time clock: PrimeCell PL031 (technical reference manual, Arm DDI 0224).

It counts seconds and matches one value. Nothing counts here: the time is computed when a guest reads it, and the clock
is asked for a call only while the guest waits for the alarm.

>>> from pyvmm_device.clock import ManualClock
>>> clock, line = ManualClock(), []
>>> class Irq:
...     def assert_(self): line.append(clock.now())
...     def clear(self): line.append("clear")
>>> rtc = Pl031(Irq(), clock, time=1000)
>>> rtc.write(0x04, memoryview((1010).to_bytes(4, "little")))  # match
>>> rtc.write(0x10, memoryview(b"\x01\0\0\0"))  # interrupt
>>> clock.advance(60 * 1_000_000_000)
>>> line
[10000000000]
"""

from __future__ import annotations

from pyvmm_device.arm.amba import AmbaDevice
from pyvmm_device.clock import SECOND, Alarm, Stopped
from pyvmm_device.interrupt_output import InterruptOutput
from pyvmm_device.register_device import Register
from pyvmm_device.state import uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

    from pyvmm_device.clock import Clock
    from pyvmm_device.interrupt import Interrupt
    from pyvmm_device.state import Kind

SECONDS = 1 << 32
TURN = SECONDS * SECOND
"""After which the counter is where it was, in nanoseconds."""
LONGEST_SLEEP = 86400 * SECOND
"""For which a call is asked at once; an event loop need not know of a time in a hundred years."""


class Pl031(AmbaDevice):
    """A PL031.

    Args:
        interrupt: RTCINTR: a level follows it, an edge interrupt is triggered when it rises.
        clock: tells the time and calls.
        time: what the counter says at first, in seconds since 1970; the host's time without it.

    It runs from the start, as one that firmware has enabled, and a reset leaves the time alone.
    """

    IDS = bytes.fromhex("311004000df005b1")
    STATE: ClassVar[dict[str, Kind]] = {"age": uint(63), "left": uint(63)}

    data = Register(0x00, writable=0)
    match = Register(0x04)
    load = Register(0x08)
    # "Once the RTC is enabled then any writes to this bit have no effect on the RTC until a system reset"
    control = Register(0x0C, reset=1, writable=0)
    mask = Register(0x10, writable=1)
    raw_status = Register(0x14, writable=0)
    masked_status = Register(0x18, writable=0)
    clear = Register(0x1C, writable=0)

    def __init__(self, interrupt: Interrupt, clock: Clock | None = None, time: int | None = None) -> None:
        super().__init__()
        self._line = InterruptOutput(interrupt, self.lock)
        self._clock: Clock = Stopped() if clock is None else clock
        self._alarm = Alarm(self._clock, self.lock, self._on_timer)
        if time is None:
            from time import time as host_time

            time = int(host_time())
        with self.lock:
            self._begin(time)
            self._await_match()

    def _begin(self, seconds: int) -> None:
        self.load = seconds
        self._start = self._clock.now()

    def _seconds(self) -> int:
        return (self.load + (self._clock.now() - self._start) // SECOND) % SECONDS

    def _await_match(self) -> None:
        """Find out when the counter is at the match value next; at once, where it is already."""
        whole = (self._clock.now() - self._start) // SECOND
        self._due = self._start + (whole + (self.match - self._seconds()) % SECONDS) * SECOND
        self._catch_up()

    def _catch_up(self) -> None:
        """Bring the interrupt up to now."""
        now = self._clock.now()
        if now >= self._due:
            self.raw_status = 1
            self._due += (now - self._due) // TURN * TURN + TURN
        level = bool(self.raw_status & self.mask)
        self._line.set(level)
        if not self.mask or level:
            self._alarm.set(None)
        elif self._due <= now + LONGEST_SLEEP:
            self._alarm.set(self._due)
        elif self._alarm.when is None or not now < self._alarm.when < self._due:
            self._alarm.set(now + LONGEST_SLEEP)

    def _on_timer(self) -> None:
        with self.lock:
            self._catch_up()

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read registers."""
        with self.lock:
            self._catch_up()
            super().read(offset, buffer)

    def write(self, offset: int, data: memoryview) -> None:
        """Write registers."""
        with self.lock:
            self._catch_up()
            super().write(offset, data)
            self._catch_up()

    @data.on_read
    def _read_data(self) -> int:
        return self._seconds()

    @masked_status.on_read
    def _read_masked_status(self) -> int:
        return self.raw_status & self.mask

    @match.on_write
    def _write_match(self, value: int) -> None:  # noqa: ARG002 - it is stored
        self._await_match()

    @load.on_write
    def _write_load(self, value: int) -> None:
        self._begin(value)
        self._await_match()

    @clear.on_write
    def _write_clear(self, value: int) -> None:
        if value & 1:
            self.raw_status = 0
            self._catch_up()

    @property
    def time(self) -> int:
        """What the counter says, in seconds."""
        with self.lock:
            return self._seconds()

    def reset(self) -> None:
        """Forget the alarm; the time goes on."""
        with self.lock:
            seconds = self.load
            super().reset()
            self.load = seconds
            self._await_match()
            self.raw_status = 0
            self._catch_up()

    def _before_save(self) -> None:
        self._catch_up()
        now = self._clock.now()
        self._age, self._left = (now - self._start) % TURN, self._due - now

    def _check_fields(self, fields: dict[str, Any]) -> None:
        super()._check_fields(fields)
        fields["age"] %= TURN
        fields["left"] = min(fields["left"], TURN)

    def _after_restore(self) -> None:
        now = self._clock.now()
        self._start, self._due = now - self._age, now + self._left
        self._line.forget()  # whoever took over the interrupt does not know whether it was pending
        self._catch_up()

    def __repr__(self) -> str:
        return f"<Pl031 at {self._seconds()} s, match {self.match}, {'interrupt' if self.mask else 'no interrupt'}>"
