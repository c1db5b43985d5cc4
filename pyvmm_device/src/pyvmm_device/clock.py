"""Time for devices: now, and a call at some later moment. `EventLoop` is one such clock; tests use `ManualClock`."""

from __future__ import annotations

import heapq

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Clock(Protocol):
        """A clock that counts nanoseconds from anywhere and never goes back."""

        def now(self) -> int:
            """Return the nanoseconds."""
            ...

        def call_at(self, when: int, callback: Callable[[], object]) -> Timer:
            """Call back once at a moment, or at once if it has passed; never from within this call."""
            ...


SECOND = 1_000_000_000


class Timer:
    """A call to come; `cancel` it from any thread, as often as you like."""

    __slots__ = ("callback", "when")

    def __init__(self, when: int, callback: Callable[[], object]) -> None:
        self.when = when
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """Do not call. A call that has begun is not stopped."""
        self.callback = None

    def fire(self) -> None:
        """Call, unless it was cancelled."""
        callback, self.callback = self.callback, None
        if callback is not None:
            callback()

    def __repr__(self) -> str:
        return f"<Timer at {self.when} ns {'done' if self.callback is None else f'calls {self.callback!r}'}>"


class ManualClock:
    """A clock that stands until it is told to advance, so that what depends on time can be tested without waiting.

    >>> clock, rung = ManualClock(), []
    >>> timer = clock.call_at(500, lambda: rung.append(clock.now()))
    >>> clock.advance(1000)
    >>> rung, clock.now()
    ([500], 1000)
    """

    __slots__ = ("_heap", "_now", "_number")

    def __init__(self, now: int = 0) -> None:
        self._now = now
        self._number = 0
        self._heap: list[tuple[int, int, Timer]] = []

    def now(self) -> int:
        """Return the nanoseconds it was advanced by."""
        return self._now

    def call_at(self, when: int, callback: Callable[[], object]) -> Timer:
        """Call back once, while it is advanced over a moment."""
        timer = Timer(when, callback)
        self._number += 1
        heapq.heappush(self._heap, (when, self._number, timer))
        return timer

    def advance(self, nanoseconds: int) -> None:
        """Let time pass, and call what comes due, in order and each at its own moment."""
        end = self._now + nanoseconds
        while self._heap and self._heap[0][0] <= end:
            when, _, timer = heapq.heappop(self._heap)
            self._now = max(self._now, when)
            timer.fire()
        self._now = end

    def __repr__(self) -> str:
        return f"<ManualClock at {self._now} ns>"


class Stopped:
    """A clock that never rings: for a device without timed events, and as the default where there is no loop."""

    __slots__ = ()

    def now(self) -> int:
        """Return the host's monotonic time in nanoseconds."""
        import time

        return time.monotonic_ns()

    def call_at(self, when: int, callback: Callable[[], object]) -> Timer:
        """Return a timer that is never fired."""
        return Timer(when, callback)
