"""One thread that waits for many things: epoll, with timers and a way in from other threads.

Whom an event is for: invariants. What epoll reports bears the number of a descriptor, and numbers are used again, so a
number alone says nothing about who is meant. Hence each registration is an object, a token: it is the only one that can
end itself, and it bears the turn in which it was made. A turn begins, is counted, and only then asks epoll; its events
go to registrations that were made before it began and have not ended since. An event that finds none, or a younger one,
is dropped. Nothing is lost by that: epoll is level-triggered here, so whatever is still ready is reported again by the
next turn. What remains for the user is to end a registration before the descriptor is closed.
"""

from __future__ import annotations

import os
import select
import time
from _thread import get_ident
from collections import deque

from pyvmm_device.clock import Timers
from pyvmm_device.locks import Lock
from pyvmm_device.tally import ERROR, Tally

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from pyvmm_device.clock import Timer

    Callback = Callable[[], object]

EVENTS_PER_TURN = 64


class Registration:
    """What an `EventLoop` waits for, until it is cancelled: what `EventLoop.add_reader` and the like return.

    Attributes:
        fd: the descriptor.
        callback: what is called.
    """

    __slots__ = ("_end", "callback", "fd", "turn")

    def __init__(self, fd: int, callback: Callback, turn: int, end: Callable[[Registration], bool]) -> None:
        self.fd = fd
        self.callback = callback
        self.turn = turn
        self._end: Callable[[Registration], bool] | None = end

    def cancel(self) -> bool:
        """Wait no longer, and return whether it did until now; idempotent, from any thread, before closing `fd`.

        Whoever registered the same number meanwhile is not touched. In the loop's own thread no call comes after this;
        cancelled by another thread, a call that has begun goes on.
        """
        end, self._end = self._end, None
        return end is not None and end(self)

    @property
    def active(self) -> bool:
        """Whether it was neither cancelled nor replaced."""
        return self._end is not None

    def expire(self) -> None:
        """Note that another one has taken its place."""
        self._end = None

    def __repr__(self) -> str:
        return f"<Registration of fd {self.fd}, {f'calls {self.callback!r}' if self.active else 'ended'}>"


class EventLoop:
    """Calls back when a file descriptor is ready, a time has come, or another thread asks.

    All callbacks run in the thread that is in `run`; everything else may be called from any thread. An exception in a
    callback is counted in `errors`, and the loop goes on: it serves many, and one's mistake is not the others'. Only
    what is no `Exception`, as `KeyboardInterrupt`, ends `run` and comes out of it; the loop can be run again.

    In a turn each descriptor that is ready, each timer that is due and each call that was asked for gets one call;
    what these ask for in turn comes in the next turn, after everybody else.

    It is also a `clock.Clock`, for devices with timers, and it can be part of another loop: `fileno` is readable
    whenever `run_once` has something to do, so ``asyncio``'s ``loop.add_reader(events.fileno(), events.run_once, 0)``
    drives it, timers included.

    Args:
        slow: the time in seconds from which a callback is reported to `on_slow`; None measures nothing.
        on_slow: called with the callback and the seconds it took. By default the first of each name is logged.

    Attributes:
        errors: how many exceptions came out of callbacks, by the callbacks' names; the first of each was logged.
        slow_calls: how many callbacks were reported as slow by default, by name.
    """

    def __init__(self, slow: float | None = None, on_slow: Callable[[object, float], object] | None = None) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._alarm = -1  # a timerfd, once somebody asks for `fileno`
        # re-entrant: a signal handler may call `stop` while its thread is in here
        self._lock = Lock()
        self._readers: dict[int, Registration] = {}
        self._writers: dict[int, Registration] = {}
        self._turn = 0
        self._timers = Timers()
        self._asked: deque[Callback] = deque()
        self._running = True
        self._thread = 0
        self.errors = Tally(__name__)
        self.slow_calls = Tally(__name__)
        self._slow = slow
        self._on_slow = on_slow or self._log_slow
        self.closed = False

    # what to wait for

    def add_reader(self, fd: int, callback: Callback) -> Registration:
        """Call back whenever a file descriptor is readable or at its end; an earlier callback for it is replaced.

        Returns:
            What ends it: `Registration.cancel`, before the descriptor is closed.

        Raises:
            PermissionError: it is a regular file, which is always readable and cannot be waited for.
        """
        return self._add(self._readers, fd, callback)

    def remove_reader(self, fd: int) -> bool:
        """Forget whoever waits for a number now; returns whether somebody did. Better cancel the registration."""
        token = self._readers.get(fd)
        return token is not None and token.cancel()

    def add_writer(self, fd: int, callback: Callback) -> Registration:
        """Call back whenever a file descriptor can take more; otherwise as `add_reader`."""
        return self._add(self._writers, fd, callback)

    def remove_writer(self, fd: int) -> bool:
        """Forget whoever waits for a number now; returns whether somebody did. Better cancel the registration."""
        token = self._writers.get(fd)
        return token is not None and token.cancel()

    def add_eventfd(self, fd: int, callback: Callable[[int], object]) -> Registration:
        """Call back with the count of a non-blocking eventfd whenever it was written to.

        Once the registration is cancelled, the loop does not read the number any more, whatever thread cancelled it.
        """

        def read() -> None:
            # under the lock that `cancel` takes: what is read is what was registered
            with self._lock:
                if not token.active:
                    return
                try:
                    count = os.eventfd_read(fd)
                except BlockingIOError:
                    return
            callback(count)

        read.__qualname__ = _name(callback)
        # nobody is called back before this function has returned: `read` looks at `token` under the lock
        with self._lock:
            token = self.add_reader(fd, read)
        return token

    def _add(self, table: dict[int, Registration], fd: int, callback: Callback) -> Registration:
        reading = table is self._readers
        other = self._writers if reading else self._readers
        with self._lock:
            turn = self._turn
            mask = select.EPOLLIN if reading else select.EPOLLOUT
            earlier = table.get(fd)
            if earlier is None and fd not in other:
                self._register(fd, mask)
            else:
                try:
                    self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT if fd in other else mask)
                except FileNotFoundError:
                    # closed without being cancelled, and another file by now: nobody waits for the old one any more
                    self._register(fd, mask)
                    if (stale := other.pop(fd, None)) is not None:
                        stale.expire()
            if earlier is not None:
                earlier.expire()
            token = Registration(fd, callback, turn, self._end_reader if reading else self._end_writer)
            table[fd] = token
            return token

    def _register(self, fd: int, mask: int) -> None:
        try:
            self._epoll.register(fd, mask)
        except FileExistsError:
            self._epoll.modify(fd, mask)  # closed while a copy of it was open, and put back under its number

    def _end_reader(self, token: Registration) -> bool:
        return self._end(self._readers, token)

    def _end_writer(self, token: Registration) -> bool:
        return self._end(self._writers, token)

    def _end(self, table: dict[int, Registration], token: Registration) -> bool:
        fd = token.fd
        with self._lock:
            if table.get(fd) is not token:
                return False
            del table[fd]
            if self.closed:
                return True
            try:
                if fd in self._readers or fd in self._writers:
                    self._epoll.modify(fd, select.EPOLLIN if fd in self._readers else select.EPOLLOUT)
                else:
                    self._epoll.unregister(fd)
            except OSError as error:
                # epoll forgets a descriptor by itself when it is closed: ENOENT where its number is another file by
                # now, EBADF where it is none
                if error.errno not in (2, 9):
                    raise
            return True

    # time

    def now(self) -> int:
        """Return `time.monotonic_ns`."""
        return time.monotonic_ns()

    def call_at(self, when: int, callback: Callback) -> Timer:
        """Call back once at a moment of `now`; the timer that is returned can be cancelled."""
        timer, first = self._timers.add(when, callback)
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
        elif (first := self._timers.next()) is not None:
            until = max(0, first - time.monotonic_ns()) / 1e9
            timeout = until if timeout is None else min(until, timeout)
        turn = self._turn = self._turn + 1
        for fd, events in self._epoll.poll(timeout, EVENTS_PER_TURN):
            if fd == self._wake or fd == self._alarm:
                self._drain(fd)
                continue
            # looked up now, and as old as the event: see the head of this file
            if events & ~select.EPOLLOUT and (token := self._readers.get(fd)) is not None and token.turn < turn:
                self._call(token.callback)
            if events & ~select.EPOLLIN and (token := self._writers.get(fd)) is not None and token.turn < turn:
                self._call(token.callback)
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
        asked = self._asked
        for _ in range(len(asked)):
            if not self._running:
                break
            try:
                callback = asked.popleft()
            except IndexError:
                break  # a callback ran a turn of its own
            self._call(callback)
        due = self._timers.take_due(time.monotonic_ns())
        try:
            while due and self._running:
                timer = due.pop(0)[2]
                if (called := timer.take()) is not None:
                    self._call(called)
        finally:
            if due:
                self._timers.put_back(due)
        if self._alarm >= 0:
            self._set_alarm()

    def _call(self, callback: Callback) -> None:
        try:
            if self._slow is None:
                callback()
                return
            start = time.monotonic()
            callback()
            taken = time.monotonic() - start
            if taken >= self._slow:
                self._on_slow(callback, taken)
        except Exception as error:  # noqa: BLE001 - the loop goes on for the others; see the class
            self._count_error(callback, error)

    def _count_error(self, callback: Callback, error: Exception) -> None:
        name = _name(callback)
        if name in self.errors:
            self.errors.count(name, "")
            return
        import traceback

        # as text: the frames of an error hold views of guest memory, and somebody may keep a record of the log
        text = "".join(traceback.format_exception(error))
        self.errors.count(name, "%s failed in the event loop (others are only counted):\n%s", name, text, level=ERROR)

    def _log_slow(self, callback: object, seconds: float) -> None:
        name = _name(callback)
        message = "%s held the event loop for %.1f ms (others are only counted)"
        self.slow_calls.count(name, message, name, seconds * 1000)

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

        timerfd.set_moment(self._alarm, 1 if self._asked else self._timers.next() or 0)

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
        if self.closed:
            return "<EventLoop closed>"
        return f"<EventLoop {len(self._readers)} readers, {len(self._writers)} writers, {len(self._timers)} timers>"


def _name(callback: object) -> str:
    """Return the name under which a callback is counted: one of the program's, of which there are only so many."""
    return getattr(callback, "__qualname__", None) or type(callback).__qualname__
