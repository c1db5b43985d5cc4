"""Time for devices: now, and a call at some later moment. `EventLoop` is one such clock; tests use `ManualClock`."""

from __future__ import annotations

from bisect import bisect_left, insort

from pyvmm_device.locks import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from pyvmm_device.locks import DeferringLock

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
    """A call to come; `cancel` it from any thread, as often as you like: nothing is left of it then."""

    __slots__ = ("_number", "_timers", "callback", "when")

    def __init__(
        self, when: int, callback: Callable[[], object], timers: Timers | None = None, number: int = 0
    ) -> None:
        self.when = when
        self.callback: Callable[[], object] | None = callback
        self._timers = timers
        self._number = number

    def cancel(self) -> None:
        """Do not call. A call that has begun is not stopped."""
        if self.callback is not None:
            self.callback = None
            if self._timers is not None:
                self._timers.remove(self.when, self._number)

    def take(self) -> Callable[[], object] | None:
        """Return what is to be called, once; None if it was cancelled or taken before."""
        callback, self.callback = self.callback, None
        return callback

    def fire(self) -> None:
        """Call, unless it was cancelled."""
        callback = self.take()
        if callback is not None:
            callback()

    def __repr__(self) -> str:
        return f"<Timer at {self.when} ns {'done' if self.callback is None else f'calls {self.callback!r}'}>"


class Timers:
    """The timers of a clock, in order; of those with the same moment, the first that was asked for comes first.

    It holds those that wait and nothing else: a timer that is cancelled leaves at once, so that whoever sets and
    cancels one timer for ever holds one timer. A sorted list does that faster than a heap, which cannot find what is to
    leave: both ends of the work are in C, and a machine has dozens of timers, not millions.
    """

    __slots__ = ("_lock", "_number", "_waiting")

    def __init__(self) -> None:
        # re-entrant: a signal handler may ask for a timer while its thread is in here
        self._lock = Lock()
        self._number = 0
        self._waiting: list[tuple[int, int, Timer]] = []

    def add(self, when: int, callback: Callable[[], object]) -> tuple[Timer, bool]:
        """Return a new timer, and whether it is the first of all."""
        with self._lock:
            self._number += 1
            timer = Timer(when, callback, self, self._number)
            insort(self._waiting, (when, self._number, timer))
            return timer, self._waiting[0][2] is timer

    def remove(self, when: int, number: int) -> None:
        """Forget the timer with this moment and number, if it is still there."""
        with self._lock:
            at = bisect_left(self._waiting, (when, number))
            if self._waiting[at : at + 1] and self._waiting[at][1] == number:
                del self._waiting[at]

    def next(self) -> int | None:
        """Return the moment of the first, or None where there is none."""
        waiting = self._waiting
        try:
            return waiting[0][0]
        except IndexError:
            return None

    def take_due(self, now: int) -> list[tuple[int, int, Timer]]:
        """Remove those whose moment has come, and return them in order."""
        with self._lock:
            due = self._waiting[: bisect_left(self._waiting, (now + 1, 0))]
            del self._waiting[: len(due)]
        return due

    def put_back(self, due: list[tuple[int, int, Timer]]) -> None:
        """Let those wait again that were taken and not called; the cancelled among them are gone."""
        with self._lock:
            self._waiting[:0] = [item for item in due if item[2].callback is not None]
            self._waiting.sort()

    def __len__(self) -> int:
        return len(self._waiting)


class ManualClock:
    """A clock that stands until it is told to advance, so that what depends on time can be tested without waiting.

    >>> clock, rung = ManualClock(), []
    >>> timer = clock.call_at(500, lambda: rung.append(clock.now()))
    >>> clock.advance(1000)
    >>> rung, clock.now()
    ([500], 1000)
    """

    __slots__ = ("_now", "_timers")

    def __init__(self, now: int = 0) -> None:
        self._now = now
        self._timers = Timers()

    def now(self) -> int:
        """Return the nanoseconds it was advanced by."""
        return self._now

    def call_at(self, when: int, callback: Callable[[], object]) -> Timer:
        """Call back once, while it is advanced over a moment."""
        return self._timers.add(when, callback)[0]

    def advance(self, nanoseconds: int) -> None:
        """Let time pass, and call what comes due, in order and each at its own moment."""
        end = self._now + nanoseconds
        while (when := self._timers.next()) is not None and when <= end:
            self._now = max(self._now, when)
            due = self._timers.take_due(when)
            self._timers.put_back(due[1:])
            due[0][2].fire()
        self._now = end

    @property
    def waiting(self) -> int:
        """How many timers there are."""
        return len(self._timers)

    def __repr__(self) -> str:
        return f"<ManualClock at {self._now} ns, {len(self._timers)} timers>"


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


class Alarm:
    """A device's one timer: it is set under the device's lock, and the clock hears of it when that has been released.

    However often a guest sets it, the clock has one timer of it at most. It rings once; a ring that was on its way when
    it was set anew comes none the less, so who is called looks at the time.

    >>> from pyvmm_device.locks import DeferringLock
    >>> clock, lock = ManualClock(), DeferringLock()
    >>> alarm = Alarm(clock, lock, lambda: print("at", clock.now()))
    >>> with lock:
    ...     alarm.set(100)
    ...     alarm.set(200)
    >>> clock.advance(1000)
    at 200

    Args:
        clock: what rings.
        lock: the device's, held in each call of `set`.
        ring: called by the clock, with no lock held.
    """

    __slots__ = ("_clock", "_lock", "_ring", "_timer", "when")

    def __init__(self, clock: Clock, lock: DeferringLock, ring: Callable[[], object]) -> None:
        self._clock = clock
        self._lock = lock
        self._ring = ring
        self._timer: Timer | None = None  # touched in the lock's outbox only, and so by one thread at a time
        self.when: int | None = None

    def set(self, when: int | None) -> None:
        """Ring at a moment, or not at all."""
        if self.when != when or (when is not None and not self.waiting):
            self.when = when
            self._lock.after(self._follow)

    @property
    def waiting(self) -> bool:
        """Whether the clock will ring."""
        timer = self._timer
        return timer is not None and timer.callback is not None

    def _follow(self) -> None:
        when, timer = self.when, self._timer
        if timer is not None and timer.callback is not None:
            if timer.when == when:
                return
            timer.cancel()
        self._timer = None if when is None else self._clock.call_at(when, self._ring)

    def __repr__(self) -> str:
        return f"<Alarm {'off' if self.when is None else f'at {self.when} ns'}>"
