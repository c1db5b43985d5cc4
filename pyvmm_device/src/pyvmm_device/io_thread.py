"""An event loop with a thread of its own, for a device's data plane: what QEMU calls an iothread.

A machine has one event loop for what is short: its serial line, its clock, the person's keys. A disk or a network that
is given an `IoThread`'s loop instead has its kicks, its back end and its timers there, so whatever its guest makes it
do, those do not wait for it.

>>> done = []
>>> with IoThread("disk") as io:
...     thread = io.call(lambda: done.append("in the thread"))
>>> done
['in the thread']
"""

from __future__ import annotations

from _thread import get_ident

from pyvmm_device.event_loop import EventLoop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

PATIENCE = 1.0
"""How long in seconds `IoThread.close` waits for the callback that runs."""


class IoThread:
    """An `EventLoop` that runs in a thread of its own from the start until it is closed.

    Close what uses the loop first, then this. Time that one thread spends in Python the others wait for, so an
    application that cares sets `sys.setswitchinterval`.

    Args:
        name: of the thread, as a debugger shows it.
        loop: to be run; by default a new one.

    Attributes:
        loop: what to give to a device, and to whatever watches its descriptors. `EventLoop.stop` does not end the
            thread; `close` does.
    """

    def __init__(self, name: str = "io", loop: EventLoop | None = None) -> None:
        # imported here: a machine without such threads should not pay for it
        from threading import Thread

        self.loop = EventLoop() if loop is None else loop
        self._closing = False
        # a daemon: a callback that the kernel holds does not hold the end of the program
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        # the loop's descriptors are closed where they are waited for: nobody else can know that the wait is over
        with self.loop:
            while not self._closing:
                self.loop.run()

    @property
    def name(self) -> str:
        """The thread's name."""
        return self._thread.name

    @property
    def running(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    @property
    def within(self) -> bool:
        """Whether the caller is in this thread."""
        return self._thread.ident == get_ident()

    def call(self, function: Callable[[], object], timeout: float = PATIENCE) -> bool:
        """Call a function in the thread and wait until it has returned.

        Args:
            function: an exception in it is counted by the loop.
            timeout: in seconds.

        Returns:
            Whether it has returned within the time; otherwise it is called later, or not any more after `close`.
        """
        if self.within:
            function()
            return True
        from threading import Event

        done = Event()

        def run() -> None:
            try:
                function()
            finally:
                done.set()

        self.loop.call_soon(run)
        return done.wait(timeout)

    def close(self, timeout: float = PATIENCE) -> bool:
        """End the thread, and close the loop; idempotent.

        Returns:
            Whether the thread has ended within the time. If not, a callback is still within something that cannot be
            interrupted, as a read that the kernel does not finish, and the thread ends when that does.
        """
        self._closing = True
        self.loop.stop()
        if self.within:
            return False
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<IoThread {self.name!r} {'runs' if self.running else 'ended'}, {self.loop!r}>"
