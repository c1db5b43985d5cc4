"""One thread that waits for many things: epoll, with timers and a way in from other threads."""

from __future__ import annotations

import heapq
import os
import select
import time
from _thread import RLock, get_ident

from pyvmm_device.clock import Timer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    Callback = Callable[[], object]

EVENTS_PER_TURN = 64


class EventLoop:
    """Calls back when a file descriptor is ready, a time has come, or another thread asks.

    All callbacks run in the thread that is in `run`; everything else may be called from any thread. An exception in a
    callback ends `run` and comes out of it; the loop can be run again.

    It is also a `clock.Clock`, for devices with timers, and it can be part of another loop: `fileno` is readable
    whenever `run_once` has something to do, so ``asyncio``'s ``loop.add_reader(events.fileno(), events.run_once, 0)``
    drives it, timers included.

    Args:
        slow: the time in seconds from which a callback is reported to `on_slow`; None measures nothing.
        on_slow: called with the callback and the seconds it took. By default a warning is logged.
    """

    def __init__(self, slow: float | None = None, on_slow: Callable[[object, float], object] | None = None) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._alarm = -1  # a timerfd, once somebody asks for `fileno`
        # re-entrant: a signal handler may call `stop` while its thread is in here
        self._lock = RLock()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._timers: list[tuple[int, int, Timer]] = []
        self._number = 0
        self._asked: list[Callback] = []
        self._running = True
        self._thread = 0
        self._slow = slow
        self._on_slow = on_slow or _log_slow
        self.closed = False

    # what to wait for

    def add_reader(self, fd: int, callback: Callback) -> None:
        """Call back whenever a file descriptor is readable or at its end; an earlier callback for it is replaced.

        Raises:
            PermissionError: it is a regular file, which is always readable and cannot be waited for.
        """
        self._add(self._readers, fd, callback)

    def remove_reader(self, fd: int) -> bool:
        """Forget a file descriptor; returns whether it was known. Do it before closing the descriptor."""
        return self._remove(self._readers, fd)

    def add_writer(self, fd: int, callback: Callback) -> None:
        """Call back whenever a file descriptor can take more; otherwise as `add_reader`."""
        self._add(self._writers, fd, callback)

    def remove_writer(self, fd: int) -> bool:
        """Forget it; returns whether it was known."""
        return self._remove(self._writers, fd)

    def add_eventfd(self, fd: int, callback: Callable[[int], object]) -> None:
        """Call back with the count of a non-blocking eventfd whenever it was written to."""

        def read() -> None:
            try:
                count = os.eventfd_read(fd)
            except BlockingIOError:
                return
            callback(count)

        read.__qualname__ = getattr(callback, "__qualname__", repr(callback))
        self.add_reader(fd, read)

    def _add(self, table: dict[int, Callback], fd: int, callback: Callback) -> None:
        with self._lock:
            known = fd in self._readers or fd in self._writers
            mask = select.EPOLLIN * (fd in self._readers or table is self._readers)
            mask |= select.EPOLLOUT * (fd in self._writers or table is self._writers)
            try:
                (self._epoll.modify if known else self._epoll.register)(fd, mask)
            except FileNotFoundError:
                # the number was closed without being removed and is another file by now
                self._epoll.register(fd, mask)
            table[fd] = callback

    def _remove(self, table: dict[int, Callback], fd: int) -> bool:
        with self._lock:
            if table.pop(fd, None) is None:
                return False
            try:
                if fd in self._readers or fd in self._writers:
                    self._epoll.modify(fd, select.EPOLLIN if fd in self._readers else select.EPOLLOUT)
                else:
                    self._epoll.unregister(fd)
            except (FileNotFoundError, OSError) as error:
                # epoll forgets a descriptor by itself when it is closed
                if error.errno not in (2, 9):
                    raise
            return True

    # time

    def now(self) -> int:
        """Return `time.monotonic_ns`."""
        return time.monotonic_ns()

    def call_at(self, when: int, callback: Callback) -> Timer:
        """Call back once at a moment of `now`; the timer that is returned can be cancelled."""
        timer = Timer(when, callback)
        with self._lock:
            self._number += 1
            heapq.heappush(self._timers, (when, self._number, timer))
            first = self._timers[0][2] is timer
        # within a callback the loop looks at its timers before it waits; inside another loop it does not wait itself
        if first and (self._alarm >= 0 or get_ident() != self._thread):
            self.wake()
        return timer

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        """Call back once after a time."""
        return self.call_at(time.monotonic_ns() + int(seconds * 1e9), callback)

    def call_soon(self, callback: Callback) -> None:
        """Call back as soon as possible."""
        self._asked.append(callback)
        self.wake()

    # running

    def wake(self) -> None:
        """Let the loop look around; a closed loop does not mind."""
        with self._lock:
            if not self.closed:
                os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Let `run` return after the callback that runs now; if it does not run, at once when it does."""
        self._running = False
        self.wake()

    def run(self) -> None:
        """Wait and call back until `stop`."""
        try:
            while self._running:
                self.run_once()
        finally:
            self._running = True
            self._thread = 0

    def run_once(self, timeout: float | None = None) -> None:
        """Wait for at most a time in seconds (None: without end) and call back for everything that is due."""
        self._thread = get_ident()
        if self._asked:
            timeout = 0
        elif self._timers:
            until = max(0, self._timers[0][0] - time.monotonic_ns()) / 1e9
            timeout = until if timeout is None else min(until, timeout)
        for fd, events in self._epoll.poll(timeout, EVENTS_PER_TURN):
            if fd == self._wake or fd == self._alarm:
                self._drain(fd)
                continue
            # looked up now: an earlier callback of this turn may have removed it
            if events & ~select.EPOLLOUT and (reader := self._readers.get(fd)) is not None:
                self._call(reader)
            if events & ~select.EPOLLIN and (writer := self._writers.get(fd)) is not None:
                self._call(writer)
            if not self._running:
                return
        self._call_due()

    def _drain(self, fd: int) -> None:
        try:
            os.read(fd, 8)
        except BlockingIOError:
            return  # an earlier callback of this turn ran a turn of its own

    def _call_due(self) -> None:
        # only what is there now: a callback that asks again waits for the next turn
        asked, self._asked = self._asked, []
        for at, callback in enumerate(asked):
            if not self._running:
                self._asked[:0] = asked[at:]
                return
            self._call(callback)
        now = time.monotonic_ns()
        while self._running and self._timers and self._timers[0][0] <= now:
            with self._lock:
                timer = heapq.heappop(self._timers)[2]
            if timer.callback is not None:
                self._call(timer.fire if self._slow is None else _Named(timer))
        if self._alarm >= 0:
            self._set_alarm()

    def _call(self, callback: Callback) -> None:
        if self._slow is None:
            callback()
            return
        start = time.monotonic()
        callback()
        taken = time.monotonic() - start
        if taken >= self._slow:
            self._on_slow(callback.callback if isinstance(callback, _Named) else callback, taken)

    # being part of another loop

    def fileno(self) -> int:
        """Return a file descriptor that is readable whenever there is something to do: wait for it, then `run_once`."""
        if self._alarm < 0:
            from pyvmm_device import timerfd

            self._alarm = timerfd.create()
            self._epoll.register(self._alarm, select.EPOLLIN)
            self._set_alarm()
        return self._epoll.fileno()

    def _set_alarm(self) -> None:
        from pyvmm_device import timerfd

        timerfd.set_moment(self._alarm, self._timers[0][0] if self._timers else 0)

    def close(self) -> None:
        """Close the loop's own file descriptors; idempotent. Those that were added stay open."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
        self._epoll.close()
        os.close(self._wake)
        if self._alarm >= 0:
            os.close(self._alarm)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._readers)} readers, {len(self._timers)} timers"
        return f"<EventLoop {state}>"


class _Named:
    """A timer to be called, and to be named if it was slow."""

    __slots__ = ("callback", "timer")

    def __init__(self, timer: Timer) -> None:
        self.timer = timer
        self.callback = timer.callback

    def __call__(self) -> None:
        self.timer.fire()


def _log_slow(callback: object, seconds: float) -> None:
    import logging

    name = getattr(callback, "__qualname__", None) or repr(callback)
    logging.getLogger(__name__).warning("%s held the event loop for %.1f ms", name, seconds * 1000)
