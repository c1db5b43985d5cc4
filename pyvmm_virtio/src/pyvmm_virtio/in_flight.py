"""Requests that other threads work on, and the reset that is not over while one of them may touch guest memory."""

from __future__ import annotations

from pyvmm_device.locks import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class InFlight:
    """Counts who is about to read or write guest memory outside the device's calls.

    A worker wraps the part of its work that touches guest memory. A reset is over when nobody is within: then no touch
    of an old request is under way, and none begins, because `VirtioDevice.is_current` is asked within:

    >>> in_flight = InFlight()
    >>> with in_flight:
    ...     pass  # if device.is_current(queue, epoch): os.preadv(...)
    >>> in_flight.drain(1.0)
    True

    `VirtioDevice.finish` comes after.
    """

    __slots__ = ("_count", "_lock", "_waiting")

    def __init__(self) -> None:
        self._lock = Lock()
        self._count = 0
        self._waiting: list[Callable[[], object]] = []

    def __enter__(self) -> None:
        with self._lock:
            self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        waiting: list[Callable[[], object]] = []
        with self._lock:
            self._count -= 1
            if not self._count:
                waiting, self._waiting = self._waiting, waiting
        for each in waiting:
            each()

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:
        return True

    def when_idle(self, function: Callable[[], object]) -> None:
        """Call a function when nobody is within: now, or in the thread that leaves last."""
        with self._lock:
            if self._count:
                self._waiting.append(function)
                return
        function()

    def drain(self, seconds: float | None = None) -> bool:
        """Wait until nobody is within, for at most so many seconds; returns whether that came."""
        if not self._count:
            return True
        from threading import Event

        idle = Event()
        self.when_idle(idle.set)
        if idle.wait(seconds):
            return True
        with self._lock:
            if idle.set in self._waiting:
                self._waiting.remove(idle.set)
        return idle.is_set()
