"""One thread that waits for many things: epoll, with timers and a way in from other threads."""

from __future__ import annotations

import heapq
import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self


class EventLoop:
    """Calls back when a file descriptor is readable, a time has come, or another thread asks.

    All callbacks run in the thread that is in `run`. An exception in one ends `run` and comes out of it.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._readers: dict[int, Callable[[], object]] = {}
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._number = 0
        self._asked: list[Callable[[], object]] = []
        self._running = True

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        """Call back whenever a file descriptor is readable or at its end.

        Raises:
            PermissionError: it is a regular file, which is always readable and cannot be waited for.
        """
        self._epoll.register(fd, select.EPOLLIN)
        self._readers[fd] = callback

    def remove_reader(self, fd: int) -> None:
        """Forget a file descriptor; one that is not known is no error."""
        if self._readers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call back once after a time; for the loop's own thread."""
        self._number += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._number, callback))

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call back as soon as possible; for any thread."""
        self._asked.append(callback)
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Let `run` return after the callback that runs now; for any thread."""
        self._running = False
        os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Wait and call back until `stop`."""
        while self._running:
            timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1
            for fd, _ in self._epoll.poll(timeout):
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                elif fd in self._readers:
                    self._readers[fd]()
            self._call_due()

    def _call_due(self) -> None:
        # only what is there now: a callback that asks again waits for the next turn
        asked, self._asked = self._asked, []
        for callback in asked:
            callback()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    def close(self) -> None:
        """Close the loop's own file descriptors; once is enough."""
        if self._wake >= 0:
            self._epoll.close()
            os.close(self._wake)
            self._wake = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
