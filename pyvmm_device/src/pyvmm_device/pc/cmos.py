"""The CMOS memory and clock of a PC: Motorola MC146818, with the century and the sizes of memory that a PC adds.

Nothing counts here: the time is computed when a guest reads it, and the clock is asked for a call only while the
guest waits for an interrupt.

>>> from pyvmm_device.clock import ManualClock
>>> clock, rings = ManualClock(), []
>>> class Irq8:
...     def trigger(self): rings.append(clock.now())
>>> cmos = Cmos(Irq8(), clock, time=0)
>>> for index, value in [(0x0B, 0x22), (5, 0x00), (3, 0x01), (1, 0x30)]:  # an alarm at 00:01:30
...     cmos.write(INDEX, memoryview(bytes([index])))
...     cmos.write(DATA, memoryview(bytes([value])))
>>> clock.advance(100 * 1_000_000_000)
>>> rings
[90000000000]

Source: MC146818 data sheet (the registers), "CMOS RAM map" of the IBM PC AT Technical Reference (what memory holds).
"""

from __future__ import annotations

from pyvmm_device.clock import SECOND, Alarm, Stopped
from pyvmm_device.errors import DeviceStateError
from pyvmm_device.interrupt_output import InterruptOutput
from pyvmm_device.pc.cmos_time import (
    CENTURY,
    SECONDS_OF_DAY,
    TIME_REGISTERS,
    alarm,
    from_registers,
    host_time,
    period,
    seconds_to_alarm,
    to_registers,
)
from pyvmm_device.pc.port_device import PortDevice
from pyvmm_device.state import blob, number, optional, sint, uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm_device.clock import Clock
    from pyvmm_device.interrupt import Interrupt

INDEX, DATA = 0, 1
STATUS_A, STATUS_B, STATUS_C, STATUS_D = 10, 11, 12, 13

STATUS_A_DIVIDER = 0x26  # 32.768 kHz time base, 1024 Hz
DIVIDER_RESET = 0x60
UPDATE_IN_PROGRESS = 0x80
UPDATE_WARNING_NS = 244_000
"""UIP comes before the update ("t_BUC"); the update itself takes no time here."""
STATUS_B_24_HOURS = 0x02  # and numbers in BCD
SET, PERIODIC, ALARM, UPDATE, SQUARE_WAVE = 0x80, 0x40, 0x20, 0x10, 0x08
"""Of register B; the three interrupts are the same bits in register C."""
INTERRUPTS = PERIODIC | ALARM | UPDATE
REQUEST = 0x80
STATUS_D_VALID = 0x80
CRYSTAL = 32768
"""In Hz."""
MOST_SECONDS = 1 << 39
"""Of a state: over 17,000 years, more than the century byte can say."""

BASE_MEMORY, EXTENDED_MEMORY, EXTENDED_MEMORY_2, MEMORY_ABOVE_16M, MEMORY_ABOVE_4G = 0x15, 0x17, 0x30, 0x34, 0x5B


class Cmos(PortDevice):
    """An index port and a data port over 128 bytes: the clock, its interrupts, and memory that a battery keeps.

    Args:
        interrupt: IRQ 8; without one the flags are there to be polled.
        clock: tells the time and calls.
        time: what the clock says at first, in seconds since 1970; the host's time without it.
        local: start with the host's local time, as other systems than Linux expect, instead of UTC.

    The time goes on by ``clock`` from there, and from where it was after `restore`; `set_time` sets it anew. Daylight
    saving (DSE) is stored and does nothing, as in the chips of today.
    """

    PORTS = ((0x70, 2, 0),)
    STATE = {
        "index": uint(7),
        "memory": blob(128, 128),
        "flags": uint(8),
        "age": optional(sint()),
        "epoch": sint(),
        "weekday": number(0, 6),
    }

    def __init__(
        self,
        interrupt: Interrupt | None = None,
        clock: Clock | None = None,
        *,
        time: int | None = None,
        local: bool = False,
    ) -> None:
        super().__init__()
        self._line = InterruptOutput(interrupt, self.lock)
        self._clock: Clock = Stopped() if clock is None else clock
        self._alarm = Alarm(self._clock, self.lock, self._on_time)
        self._index = 0
        self._flags = 0
        self._memory = bytearray(128)
        self._memory[STATUS_A] = STATUS_A_DIVIDER
        self._memory[STATUS_B] = STATUS_B_24_HOURS
        self._memory[STATUS_D] = STATUS_D_VALID
        now = host_time(local=local) if time is None else time * SECOND
        self._start: int | None = self._clock.now() - now % SECOND  # when the divider was 0; None: it is held in reset
        self._seen = now % SECOND  # until when, of the divider's time, the flags are known
        self._age: int | None = None
        self._epoch = now // SECOND  # the calendar's time when the divider was 0
        self._weekday = 0

    def reset(self) -> None:
        """Be as after the RESET pin: interrupts are off; the time and the memory stay (data sheet, "RESET")."""
        with self.lock:
            self._settle()
            self._memory[STATUS_B] &= ~(INTERRUPTS | SQUARE_WAVE)
            self._index = self._flags = 0
            self._update_line()

    # the owner's side

    @property
    def time(self) -> int:
        """What the clock says, in seconds since 1970."""
        with self.lock:
            return self._now() if self._updating else from_registers(self._memory, self._memory[STATUS_B])[0]

    def set_time(self, seconds: int) -> None:
        """Let the clock say another time: after `restore`, to be with the host again."""
        with self.lock:
            self._settle()
            self._weekday = 0
            self._set_time(seconds)
            self._update_line()

    def set_memory_size(self, below_4g: int, above_4g: int = 0) -> None:
        """Tell firmware how much memory there is, in bytes, where SeaBIOS and older ones look for it."""
        kib = below_4g >> 10
        with self.lock:
            for index, length, value in (
                (BASE_MEMORY, 2, min(kib, 640)),
                (EXTENDED_MEMORY, 2, kib - 1024),
                (EXTENDED_MEMORY_2, 2, kib - 1024),
                (MEMORY_ABOVE_16M, 2, (below_4g - (16 << 20)) >> 16),
                (MEMORY_ABOVE_4G, 3, above_4g >> 16),
            ):
                most = (1 << 8 * length) - 1
                self._memory[index : index + length] = min(max(value, 0), most).to_bytes(length, "little")

    # time

    @property
    def _updating(self) -> bool:
        return self._start is not None and not self._memory[STATUS_B] & SET

    def _divider(self) -> int:
        return 0 if self._start is None else self._clock.now() - self._start

    def _now(self) -> int:
        return self._epoch + self._divider() // SECOND

    def _set_time(self, seconds: int) -> None:
        if self._updating:
            self._epoch = seconds - self._divider() // SECOND
        else:
            self._freeze(seconds)

    def _freeze(self, seconds: int) -> None:
        for index, value in to_registers(seconds, self._weekday, self._memory[STATUS_B]).items():
            self._memory[index] = value

    def _change(self, index: int, value: int) -> None:
        """Write register A or B, and stop or start the clock as they say."""
        was_updating, now = self._updating, self._now()
        held = self._memory[STATUS_A] & DIVIDER_RESET == DIVIDER_RESET
        if was_updating:
            self._freeze(now)  # in the format that holds until now
        self._memory[index] = value
        if held is not (self._memory[STATUS_A] & DIVIDER_RESET == DIVIDER_RESET):
            # "the first update cycle begins one-half second later"
            self._start = self._clock.now() - SECOND // 2 if held else None
            self._seen = self._divider()
        if not self._updating:
            return
        if not was_updating:
            now, self._weekday = from_registers(self._memory, self._memory[STATUS_B])
        self._epoch = now - self._divider() // SECOND

    # interrupts

    def _next(self, flag: int) -> int | None:
        """Return when, of the divider's time, a flag rises first after `_seen`."""
        if flag == PERIODIC:
            ticks = period(self._memory[STATUS_A])
            if not ticks or self._start is None:
                return None
            tick = (self._seen * CRYSTAL // SECOND // ticks + 1) * ticks
            return -(-tick * SECOND // CRYSTAL)
        if not self._updating:
            return None
        second, wait = self._seen // SECOND, 1
        if flag == ALARM:
            at = alarm(self._memory, self._memory[STATUS_B])
            if at is None:
                return None
            wait = seconds_to_alarm((self._epoch + second) % SECONDS_OF_DAY, *at)
        return (second + wait) * SECOND

    def _settle(self) -> None:
        """Raise the flags whose moments have passed."""
        now = self._divider()
        for flag in (PERIODIC, ALARM, UPDATE):
            if not self._flags & flag:
                at = self._next(flag)
                if at is not None and at <= now:
                    self._flags |= flag
        self._seen = now

    def _update_line(self) -> None:
        """Set the line as flags and enables say, and ask to be called when that changes by itself."""
        enabled = self._memory[STATUS_B] & INTERRUPTS
        pending = self._flags & enabled
        self._line.set(bool(pending))
        waited = () if pending else tuple(bit for bit in (PERIODIC, ALARM, UPDATE) if enabled & bit)
        moments = [at for at in map(self._next, waited) if at is not None]
        self._alarm.set(self._start + min(moments) if moments and self._start is not None else None)

    def _on_time(self) -> None:
        with self.lock:
            self._catch_up()

    # the guest's side

    def _read(self, offset: int) -> int:
        return self._value(self._index) if offset == DATA else 0xFF  # the index cannot be read back

    def _value(self, index: int) -> int:
        if index in TIME_REGISTERS and self._updating:
            return to_registers(self._now(), self._weekday, self._memory[STATUS_B])[index]
        if index == STATUS_A:
            soon = self._updating and self._divider() % SECOND >= SECOND - UPDATE_WARNING_NS
            return self._memory[STATUS_A] | (UPDATE_IN_PROGRESS if soon else 0)
        if index == STATUS_C:
            return self._take_flags()
        return self._memory[index]

    def _catch_up(self) -> None:
        """Bring flags and line up to now: a flag that the guest is about to clear made an edge when it rose."""
        self._settle()
        self._update_line()

    def _take_flags(self) -> int:
        self._catch_up()
        flags, self._flags = self._flags, 0
        self._update_line()
        return flags | (REQUEST if flags & self._memory[STATUS_B] else 0)

    def _write(self, offset: int, value: int) -> None:
        if offset == INDEX:
            self._index = value & 0x7F  # bit 7 is the NMI mask of the PC, not an address
            return
        index = self._index
        if offset != DATA or index in (STATUS_C, STATUS_D):
            return
        if index > STATUS_D and index != CENTURY:
            self._memory[index] = value
            return
        self._catch_up()
        if index == STATUS_A:
            self._change(index, value & ~UPDATE_IN_PROGRESS)
        elif index == STATUS_B:
            # "SET ... clears UIE"
            self._change(index, value & ~UPDATE if value & SET else value)
        elif index in TIME_REGISTERS and self._updating:
            self._freeze(self._now())
            self._memory[index] = value
            now, self._weekday = from_registers(self._memory, self._memory[STATUS_B])
            self._set_time(now)
        else:
            self._memory[index] = value
        self._update_line()

    # state

    def _before_save(self) -> None:
        self._settle()
        self._age = None if self._start is None else self._divider()
        if self._updating:
            self._freeze(self._now())

    def _check_fields(self, fields: dict[str, Any]) -> None:
        memory = fields["memory"]
        held = memory[STATUS_A] & DIVIDER_RESET == DIVIDER_RESET
        # a divider that stands although it should not, a time beyond what a calendar has: not by us
        if held is not (fields["age"] is None) or memory[STATUS_A] & UPDATE_IN_PROGRESS or memory[STATUS_C]:
            raise DeviceStateError(type(self).__name__, "its registers contradict each other")
        if not abs(fields["epoch"]) < MOST_SECONDS or not 0 <= (fields["age"] or 0) < MOST_SECONDS * SECOND:
            raise DeviceStateError(type(self).__name__, "its time is none")

    def _after_restore(self) -> None:
        self._start = None if self._age is None else self._clock.now() - self._age
        self._seen = self._age or 0
        self._line.forget()  # whoever took over the interrupt does not know whether it was pending
        self._update_line()

    def __repr__(self) -> str:
        import time

        return f"<Cmos memory and clock, {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(self.time))}>"
