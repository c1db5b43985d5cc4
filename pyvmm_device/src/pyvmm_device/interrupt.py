"""How a device asks for attention, and what can be behind that; whoever wires a machine decides.

The protocols (`protocols`) are those of vm-device's interrupt traits: an interrupt is an *edge* that is triggered, or a
*level* that is asserted and cleared; a *group* (`interrupt_group`) is several that a driver configures, MSI or MSI-X. A
device names what it needs in its annotations and gets anything that fits: eventfds that a hypervisor turns into
interrupts, lines of a software controller, or a counter in a test.
"""

from __future__ import annotations

import os

from pyvmm_device.locks import DeferringLock, Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self, TypeAlias

    from pyvmm_device.protocols import EdgeInterrupt as EdgeInterrupt
    from pyvmm_device.protocols import InterruptStatusChecker as InterruptStatusChecker
    from pyvmm_device.protocols import LevelInterrupt as LevelInterrupt

    Interrupt: TypeAlias = EdgeInterrupt | LevelInterrupt
    SetLevel: TypeAlias = Callable[[bool], object]


class EventFdInterrupt:
    """An edge interrupt as an eventfd, which a hypervisor turns into an interrupt (KVM: ``VmFd.register_irqfd``)."""

    __slots__ = ("_fd", "_lock")

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = Lock()  # or what is closed while it is about to be written to is somebody else's descriptor

    def fileno(self) -> int:
        """Return the eventfd, which stays ours."""
        return self._fd

    def trigger(self) -> None:
        """Send one edge; ValueError where it was closed."""
        with self._lock:
            os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        """Close the eventfd; idempotent."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<EventFdInterrupt {'closed' if self._fd < 0 else f'fd={self._fd}'}>"


class EventFdLevelInterrupt:
    """A level interrupt as two eventfds: one asserts, the other says that the guest ended the interrupt.

    KVM lowers the line itself at the end of the interrupt (``VmFd.register_irqfd_with_resample``). Add
    `resample_fd` to the event loop with `on_resample` as its handler: a device that still wants attention then asserts
    again. A line that was cleared in between stays up until that end, and the guest finds one spurious interrupt.
    """

    __slots__ = ("_asserted", "_is_active", "_lock", "_moves", "_resample", "_trigger")

    def __init__(self) -> None:
        self._trigger = EventFdInterrupt()
        self._resample = EventFdInterrupt()
        self._lock = Lock()  # the device moves it while the event loop takes the end of an interrupt
        self._asserted = False
        self._moves = 0
        self._is_active: Callable[[], bool] | None = None

    def fileno(self) -> int:
        """Return the eventfd that asserts."""
        return self._trigger.fileno()

    def resample_fd(self) -> int:
        """Return the eventfd that becomes readable when the guest ended the interrupt."""
        return self._resample.fileno()

    def assert_(self) -> None:
        """Raise the line."""
        with self._lock:
            self._moves += 1
            if not self._asserted:
                self._asserted = True
                self._trigger.trigger()

    def clear(self) -> None:
        """Lower the line: it is not raised again at the end of the interrupt."""
        with self._lock:
            self._moves += 1
            self._asserted = False

    def set_status_checker(self, checker: InterruptStatusChecker | Callable[[], bool]) -> None:
        """Ask this object, or call this function, instead of going by what was asserted last."""
        self._is_active = checker if callable(checker) else checker.is_active

    def on_resample(self) -> None:
        """Take the guest's end of interrupt, and raise the line again if the device still wants attention."""
        try:
            os.eventfd_read(self._resample.fileno())
        except BlockingIOError:
            return
        moves = self._moves
        asked = self._is_active() if self._is_active is not None else None
        with self._lock:
            # what the device did while it was asked is later than its answer
            if asked is not None and moves == self._moves:
                self._asserted = asked
            if self._asserted:
                self._trigger.trigger()

    def close(self) -> None:
        """Close both eventfds; idempotent."""
        self._trigger.close()
        self._resample.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<EventFdLevelInterrupt {'asserted' if self._asserted else 'clear'}, {self._trigger!r}>"


class SharedLine:
    """One level interrupt with several devices on it, as PCI's INTx: asserted while any of them asserts.

    Args:
        line: where it goes; of an edge interrupt, each rise triggers it.
    """

    __slots__ = ("_holders", "_lock", "_set_level")

    def __init__(self, line: Interrupt) -> None:
        self._lock = DeferringLock()  # vCPUs move their devices' ends of it at the same time
        self._set_level = line_of(line)
        self._holders: set[object] = set()

    @property
    def active(self) -> bool:
        """Whether the line is up."""
        return bool(self._holders)

    def attach(self) -> SharedLineInput:
        """Return one more input."""
        return SharedLineInput(self)

    def set(self, who: object, active: bool) -> None:
        """Let somebody hold the line, or let go of it, and move it when that changes it.

        It ends at the level that was wanted last, in whichever thread it is moved.
        """
        with self._lock:
            before = bool(self._holders)
            (self._holders.add if active else self._holders.discard)(who)
            after = bool(self._holders)
            if after != before:
                self._lock.after(self._set_level, after)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'up' if self.active else 'down'}, held by {len(self._holders)}>"


class SharedLineInput:
    """A device's end of a `SharedLine`, itself a level interrupt."""

    __slots__ = ("_shared",)

    def __init__(self, shared: SharedLine) -> None:
        self._shared = shared

    def assert_(self) -> None:
        """Raise the line."""
        self._shared.set(self, True)

    def clear(self) -> None:
        """Lower it, as far as this device is concerned."""
        self._shared.set(self, False)


class FanOut:
    """One level interrupt that moves several lines: a PC's IRQ 4 is input 4 of its 8259s and of its IOAPIC."""

    __slots__ = ("lines",)

    def __init__(self, *lines: LevelInterrupt) -> None:
        self.lines = lines

    def assert_(self) -> None:
        """Raise them all."""
        for line in self.lines:
            line.assert_()

    def clear(self) -> None:
        """Lower them all."""
        for line in self.lines:
            line.clear()

    def trigger(self) -> None:
        """Send an edge to each."""
        for line in self.lines:
            line.assert_()
            line.clear()

    def __repr__(self) -> str:
        return f"<FanOut to {', '.join(map(repr, self.lines))}>"


def line_of(interrupt: Interrupt) -> SetLevel:
    """Return a function that sets the level of any interrupt; of an edge interrupt, rising triggers it."""
    assert_ = getattr(interrupt, "assert_", None)
    if assert_ is not None:
        clear = interrupt.clear  # type: ignore[union-attr]  # who has the one has the other
        return lambda active: (assert_ if active else clear)()
    trigger = interrupt.trigger  # type: ignore[union-attr]  # it is no level, so it is an edge
    return lambda active: trigger() if active else None
