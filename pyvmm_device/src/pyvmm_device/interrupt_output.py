"""A device's own end of its interrupt line: it is set under the device's lock, and moves when that has been released.

An output follows its sources. What is easily lost is a source that goes and comes back within one access of the guest,
as the transmitter of a serial port that is empty again when the byte has been written: the level is the same before and
after, but the line was down in between, and a controller that listens to edges has to see that. So a device moves the
output at each step of an access, or says `pulse`, and what moved is told in order, afterwards.

>>> from pyvmm_device.locks import DeferringLock
>>> class Irq:
...     def trigger(self): print("an edge")
>>> lock = DeferringLock()
>>> output = InterruptOutput(Irq(), lock)
>>> with lock:
...     output.set(True)
...     output.pulse()
an edge
an edge
"""

from __future__ import annotations

from pyvmm_device.interrupt import line_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm_device.interrupt import Interrupt
    from pyvmm_device.locks import DeferringLock


class InterruptOutput:
    """One output of a device.

    Args:
        interrupt: where it goes: an edge interrupt is triggered when it rises, a level follows it; a function is called
            with the level; None is nowhere.
        lock: the device's, which is held in each of the calls.

    Attributes:
        level: whether it is up; None where that is not known.
    """

    __slots__ = ("_after", "_move", "level")

    def __init__(self, interrupt: Interrupt | Callable[[bool], object] | None, lock: DeferringLock) -> None:
        self._after = lock.after
        self._move = interrupt if interrupt is None or callable(interrupt) else line_of(interrupt)
        self.level: bool | None = False

    def set(self, level: bool) -> None:
        """Raise it or lower it."""
        if level is not self.level:
            self._send(level)

    def pulse(self) -> None:
        """Let it be down for a moment, and then up: a source went and came back."""
        if self.level:
            self._send(False)
        self._send(True)

    def forget(self) -> None:
        """Say the level in the next `set`, whatever it is: after a restore, nobody outside knows it."""
        self.level = None

    def _send(self, level: bool) -> None:
        self.level = level
        if self._move is not None:
            self._after(self._move, level)

    def __repr__(self) -> str:
        return f"<InterruptOutput {'up' if self.level else 'down'}>"
