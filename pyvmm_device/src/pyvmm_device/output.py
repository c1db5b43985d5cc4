"""Where what a guest prints goes, so that nothing that goes wrong there reaches the guest's processor.

A full disk, a pipe without a reader, a file that somebody closed: the bytes are lost, the loss is counted, and the
guest goes on. `Outlet` is a device's own end of that. What is slow or stands still is another matter: a vCPU would wait
for it within its write. `OutputBuffer` takes bytes at once and puts out what there is room for; the rest follows from
an event loop when there is room again:

>>> import os
>>> from pyvmm_device import EventLoop
>>> read, write = os.pipe()
>>> with EventLoop() as loop, OutputBuffer(write, loop, limit=8) as output:
...     for text in (b"the first, ", b"the second, "):
...         taken = output.write(text)
>>> os.read(read, 100)
b'the first, the second, '
>>> os.close(read), os.close(write)
(None, None)
"""

from __future__ import annotations

import os
import select
import stat
import time

from pyvmm_device.locks import Lock
from pyvmm_device.tally import Tally

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from pyvmm_device.event_loop import EventLoop, Registration

LIMIT = 1 << 16
"""Bytes that an `OutputBuffer` holds by default."""


class Outlet:
    """Calls a function with what a device puts out, and counts what the function refuses.

    Args:
        owner: the device, for the log.
        function: called with what is put out. An `Exception` is a loss; so is what a raw file says that it did not
            take.
    """

    __slots__ = ("_losses", "_owner", "function", "send")

    def __init__(self, owner: object, function: Callable[[bytes], object]) -> None:
        self._owner = type(owner).__name__
        self._losses = Tally(f"{__name__}.{self._owner}")
        self.function = function
        self.send: Callable[[bytes], object] = _whole(function)
        """The function itself where that tells all: for who catches its exceptions and gives them to `lose`."""

    def put(self, data: bytes) -> None:
        """Put bytes out."""
        try:
            self.send(data)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the output's and not the guest's
            self.lose(error, len(data))

    def lose(self, error: Exception, size: int) -> None:
        """Count bytes that were refused, and log the first."""
        lost = size if not isinstance(error, BlockingIOError) else size - min(size, error.characters_written)
        message = "the output of %s refused %d bytes (others are only counted): %r"
        self._losses.count("bytes", message, self._owner, lost, error, amount=lost)

    @property
    def lost(self) -> int:
        """How many bytes were refused."""
        return self._losses["bytes"]


def _whole(function: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """Return a function that raises where one of a raw file would only return that it took less."""
    import io

    if not isinstance(getattr(function, "__self__", None), io.RawIOBase):
        return function

    def write(data: bytes) -> None:
        taken = function(data) or 0
        assert isinstance(taken, int)
        if taken < len(data):
            raise BlockingIOError(11, "it took a part only", taken)

    return write


class OutputBuffer:
    """A file descriptor that takes bytes without waiting, up to a limit; what finds no room is dropped and counted.

    Where something was dropped, the output says so in its place: ``[123 bytes were dropped]``. What the descriptor
    refuses for good, as a full disk or a pipe without a reader does, is counted as well.

    A pipe or a terminal is opened once more for that, without waiting, for the descriptor's other users may want to
    wait. What cannot be opened again (a socket), and what waits nevertheless (a file), is written to from the loop.

    Args:
        fd: a pipe, a terminal, a socket or a file; it stays its owner's.
        loop: waits for room, and writes.
        limit: how many bytes wait for room at most.
    """

    def __init__(self, fd: int, loop: EventLoop, limit: int = LIMIT) -> None:
        self._fd = fd
        self._own = _without_waiting(fd)
        self._out = fd if self._own < 0 else self._own
        self._loop = loop
        self._limit = limit
        self._lock = Lock()
        self._waiting = bytearray()
        self._dropped = 0  # since the output last said so
        self._asked = False  # the loop will come; what follows is its own
        self._writer: Registration | None = None
        self._losses = Tally(__name__)
        self.closed = False

    @property
    def lost(self) -> int:
        """How many bytes were dropped for want of room, or refused by the descriptor."""
        return self._losses["dropped"] + self._losses["refused"]

    def __len__(self) -> int:
        """Return how many bytes wait."""
        return len(self._waiting)

    def write(self, data: bytes) -> int:
        """Take bytes and return how many; from any thread, and never waiting."""
        size, refused = len(data), None
        with self._lock:
            if self._own >= 0 and not (self._waiting or self._dropped or self.closed):
                try:
                    data = data[os.write(self._own, data) :]
                except BlockingIOError:
                    pass
                except OSError as error:
                    data, refused = b"", error
            # a note of what was dropped needs a place, too, and comes before what follows it
            note = b"[%d bytes were dropped]" % self._dropped if self._dropped else b""
            room = self._limit - len(self._waiting) - len(note)
            fits = room >= len(data) and (not note or room >= self._limit // 2) and not self.closed
            taken = data if fits else b""
            if taken:
                self._waiting += note + taken
                self._dropped = 0
            self._dropped += len(data) - len(taken)
            ask = bool(taken) and not self._asked
            self._asked = self._asked or ask
        if refused is not None:
            self._count_refused(size, refused)
            return 0
        if not taken and data:
            message = "%r takes no more: it dropped %d bytes (others are only counted)"
            self._losses.count("dropped", message, self, len(data), amount=len(data))
        if ask:
            self._loop.call_soon(self._begin)
        return size - len(data) + len(taken)

    def _begin(self) -> None:
        if self.closed:
            return
        try:
            self._writer = self._loop.add_writer(self._out, self._on_room)
        except PermissionError:
            self._put(self._limit)  # a regular file has always room
        except OSError as error:
            self._refuse(error)

    def _on_room(self) -> None:
        # so much at once does not wait where there is any room: POSIX says so of pipes
        self._put(select.PIPE_BUF)

    def _put(self, most: int) -> None:
        with self._lock:
            data = bytes(self._waiting[:most])
        try:
            written = os.write(self._out, data) if data else 0
        except BlockingIOError:
            return
        except OSError as error:
            self._refuse(error)
            return
        with self._lock:
            del self._waiting[:written]
            more = bool(self._waiting) or (self._dropped and self._note())
            self._asked = bool(more)
        if not more:
            self._end()
        elif self._writer is None and not self.closed:
            self._loop.call_soon(self._begin)

    def _note(self) -> bool:
        self._waiting += b"[%d bytes were dropped]" % self._dropped
        self._dropped = 0
        return True

    def _refuse(self, error: OSError) -> None:
        with self._lock:
            size = len(self._waiting) + self._dropped
            self._waiting.clear()
            self._dropped = 0
            self._asked = False
        self._count_refused(size, error)
        self._end()

    def _count_refused(self, size: int, error: OSError) -> None:
        message = "the output to descriptor %d refused %d bytes (others are only counted): %r"
        self._losses.count("refused", message, self._fd, size, error, amount=size)

    def _end(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.cancel()

    def close(self, timeout: float = 1.0) -> None:
        """Put out what waits, for so many seconds at most; idempotent. The loop does not write after this.

        Call it in the loop's own thread, or when the loop does not run any more; the descriptor stays open.
        """
        with self._lock:  # or who writes just now would write to what has its number next
            if self.closed:
                return
            self.closed = True
        self._end()
        end = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._out, select.POLLOUT)
        while self._waiting and (left := end - time.monotonic()) > 0 and poll.poll(left * 1000):
            self._put(select.PIPE_BUF)
        if self._waiting:
            self._refuse(TimeoutError("it was closed before it took them"))
        own, self._own, self._out = self._own, -1, self._fd
        if own >= 0:
            os.close(own)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<OutputBuffer to fd {self._fd}, {len(self._waiting)} of {self._limit} bytes wait, {self.lost} were lost>"
        )


def _without_waiting(fd: int) -> int:
    """Open a pipe or a terminal once more, so that writing to it does not wait; -1 for what else it is."""
    try:
        if stat.S_ISFIFO(os.fstat(fd).st_mode) or os.isatty(fd):
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        pass  # a terminal of another user, or no /proc: it is written to when there is room
    return -1
