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

    __slots__ = ("_after", "_fall", "_rise", "level")

    def __init__(self, interrupt: Interrupt | Callable[[bool], object] | None, lock: DeferringLock) -> None:
        self._after = lock.after
        self._rise: tuple[Callable[..., object], *tuple[bool, ...]] | None = None
        self._fall: tuple[Callable[..., object], *tuple[bool, ...]] | None = None  # an edge interrupt does not fall
        assert_ = getattr(interrupt, "assert_", None)
        if assert_ is not None:
            self._rise, self._fall = (assert_,), (interrupt.clear,)  # type: ignore[union-attr]  # it has both
        elif callable(interrupt):
            self._rise, self._fall = (interrupt, True), (interrupt, False)
        elif interrupt is not None:
            self._rise = (interrupt.trigger,)  # type: ignore[union-attr]  # it is no level, so it is an edge
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
        call = self._rise if level else self._fall
        if call is not None:
            self._after(*call)

    def __repr__(self) -> str:
        return f"<InterruptOutput {'up' if self.level else 'down'}>"
