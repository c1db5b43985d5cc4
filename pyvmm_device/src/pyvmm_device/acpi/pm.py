r"""ACPI's fixed hardware: PM1 event and control registers, the PM timer, general purpose events, and their interrupt.

>>> from pyvmm_device.clock import ManualClock
>>> class Irq9:
...     def assert_(self): print("SCI raised")
...     def clear(self): print("SCI lowered")
>>> pm = AcpiPm(Sci(Irq9()), ManualClock(), on_sleep=lambda kind: print("sleep type", kind))
>>> pm.write(PM1_ENABLE, memoryview(b"\x00\x01"))
>>> pm.press()
SCI raised
>>> pm.write(PM1_STATUS, memoryview(b"\x00\x01"))
SCI lowered
>>> pm.write(PM1_CONTROL, memoryview(b"\x01\x34"))
sleep type 5

The machine is in ACPI mode from the start, as a FADT without an SMI command port says, unless an `AcpiMode` is there.

Source: ACPI 6.5, 4.8.3 (fixed hardware) and 4.8.4.1 (general purpose events).
"""

from __future__ import annotations

from pyvmm_device.clock import SECOND, Alarm, Stopped
from pyvmm_device.interrupt import SharedLine
from pyvmm_device.register_device import Register, RegisterDevice
from pyvmm_device.state import uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm_device.clock import Clock

FREQUENCY = 3_579_545
"""Of the PM timer, in Hz: "The power management timer ... runs off a 3.579545 MHz clock"."""
PM1_STATUS, PM1_ENABLE, PM1_CONTROL, PM_TIMER, SIZE = 0, 2, 4, 8, 12
TMR, BM, GBL, PWRBTN, SLPBTN, RTC, WAK = 1 << 0, 1 << 4, 1 << 5, 1 << 8, 1 << 9, 1 << 10, 1 << 15
"""Of the status register; the enable register has the same but BM and WAK."""
ENABLES = TMR | GBL | PWRBTN | SLPBTN | RTC
SCI_EN, BM_RLD, GBL_RLS, SLP_EN = 1 << 0, 1 << 1, 1 << 2, 1 << 13
SLP_TYP_SHIFT = 10


class Sci(SharedLine):
    """The system control interrupt: one level line, which is up while any of several sources holds it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<Sci {'up' if self.active else 'down'}>"


class AcpiPm(RegisterDevice):
    """The PM1 event block, the PM1 control block at 4, and the PM timer at 8.

    Args:
        sci: the interrupt, which is shared with the general purpose events.
        clock: what the timer counts by; one that never rings reports no overflow by interrupt.
        on_sleep: called with SLP_TYP (5 is what these packages' tables give S5) when the guest sets SLP_EN.
        wide: whether the timer has 32 bits (TMR_VAL_EXT of the FADT), or 24.
    """

    status = Register(PM1_STATUS, 2, writable=0, clears=0xFFFF)
    enable = Register(PM1_ENABLE, 2, writable=ENABLES)
    # "SCI_EN ... is set by firmware; OSPM always preserves this bit position"; SLP_EN "always returns zero"
    control = Register(PM1_CONTROL, 2, reset=SCI_EN, writable=0x7 << SLP_TYP_SHIFT | BM_RLD)
    timer = Register(PM_TIMER, 4, writable=0)
    STATE = {"age": uint(60), "halves": uint(40)}

    def __init__(
        self,
        sci: Sci,
        clock: Clock | None = None,
        on_sleep: Callable[[int], object] | None = None,
        *,
        wide: bool = True,
    ) -> None:
        super().__init__()
        self._sci = sci
        self._clock: Clock = clock or Stopped()
        self._alarm = Alarm(self._clock, self.lock, self._on_time)
        self._on_sleep = on_sleep
        self._bits = 32 if wide else 24
        self._age = 0
        self._halves = 0
        self._epoch = self._clock.now()
        with self.lock:
            self._schedule()

    def reset(self) -> None:
        """Be as after power-on, in ACPI mode, with a timer that counts from 0."""
        with self.lock:
            super().reset()
            self._halves = 0
            self._epoch = self._clock.now()
            self._update()

    def press(self) -> None:
        """Press the power button."""
        self.set_status(PWRBTN)

    def press_sleep(self) -> None:
        """Press the sleep button."""
        self.set_status(SLPBTN)

    def set_status(self, bits: int) -> None:
        """Let events happen: bits of the status register, such as RTC or, after a sleep, WAK."""
        with self.lock:
            self.status |= bits
            self._update()

    def set_acpi_mode(self, on: bool) -> None:
        """Set SCI_EN: firmware does it when the guest asks through the SMI command port."""
        with self.lock:
            self.control = self.control & ~SCI_EN | (SCI_EN if on else 0)
            self._update()

    def write(self, offset: int, data: memoryview) -> None:
        """Write registers; an overflow before this moment is told first: it is there to be cleared."""
        with self.lock:
            self._catch_up()
            super().write(offset, data)

    def _ticks(self) -> int:
        return (self._clock.now() - self._epoch) * FREQUENCY // SECOND

    def _follow_timer(self) -> bool:
        """Set TMR_STS "any time the most significant bit of a 24/32-bit counter changes", and return whether it did."""
        halves = self._ticks() >> self._bits - 1
        if halves == self._halves:
            return False
        self._halves = halves
        self.status |= TMR
        return True

    def _catch_up(self) -> None:
        if self._follow_timer():
            self._update()

    def _update(self) -> None:
        self._follow_timer()
        level = bool(self.control & SCI_EN and self.status & self.enable & ENABLES)
        self.lock.after(self._sci.set, self, level)
        self._schedule()

    def _schedule(self) -> None:
        """Ask to be called at the next overflow, while the guest waits for its interrupt."""
        tick = self._halves + 1 << self._bits - 1
        self._alarm.set(self._epoch - (-tick * SECOND // FREQUENCY) if self.enable & TMR else None)

    def _on_time(self) -> None:
        with self.lock:
            self._update()

    @status.on_read
    def _read_status(self) -> int:
        self._catch_up()
        return self.status

    @status.on_write
    def _write_status(self, _: int) -> None:
        self._update()

    @enable.on_write
    def _write_enable(self, _: int) -> None:
        self._update()

    @control.on_write
    def _write_control(self, value: int) -> None:
        if value & SLP_EN and self._on_sleep is not None:
            self.lock.after(self._on_sleep, value >> SLP_TYP_SHIFT & 7)

    @timer.on_read
    def _read_timer(self) -> int:
        return self._ticks() & (1 << self._bits) - 1

    def _before_save(self) -> None:
        self._follow_timer()
        self._age = self._clock.now() - self._epoch

    def _after_restore(self) -> None:
        self._epoch = self._clock.now() - self._age
        self._update()


class AcpiGpe(RegisterDevice):
    """A block of 16 general purpose events: status, then enable, a bit an event.

    Args:
        sci: the interrupt, which is shared with the fixed events.
    """

    status = Register(0, 2, writable=0, clears=0xFFFF)
    enable = Register(2, 2)

    def __init__(self, sci: Sci) -> None:
        super().__init__()
        self._sci = sci

    def trigger(self, event: int) -> None:
        """Let an event happen, 0 to 15.

        Raises:
            ValueError: there is no such event.
        """
        if not 0 <= event < 16:
            raise ValueError(f"general purpose event {event}: this block has 0 to 15")
        with self.lock:
            self.status |= 1 << event
            self._update()

    def reset(self) -> None:
        """Forget every event, with none enabled."""
        with self.lock:
            super().reset()
            self._update()

    def _update(self) -> None:
        self.lock.after(self._sci.set, self, bool(self.status & self.enable))

    @status.on_write
    def _write_status(self, _: int) -> None:
        self._update()

    @enable.on_write
    def _write_enable(self, _: int) -> None:
        self._update()

    def _after_restore(self) -> None:
        self._update()
