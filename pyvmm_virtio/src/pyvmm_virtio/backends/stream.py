"""Frames on a stream, each behind its length in 32 big-endian bits: what passt and QEMU's stream netdev speak."""

from __future__ import annotations

import errno

from pyvmm_virtio.backends.net import MAX_FRAME, nobody

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

LENGTH = 4
BUFFER = 4 * (MAX_FRAME + LENGTH)


class StreamNet:
    """A connected stream socket with one frame behind the other, without headers.

    Args:
        connection: a connected stream socket; it becomes this object's own.
        mtu: what to tell the guest, or 0 for nothing.
    """

    header_size = 0
    features = 0
    queue_pairs = 1

    def __init__(self, connection: socket.socket, mtu: int = 0) -> None:
        self.mtu = mtu
        self.link_up = True
        self.on_link: Callable[[], object] = nobody
        self._socket = connection
        connection.setblocking(False)
        self._buffer = memoryview(bytearray(BUFFER))
        self._begin = self._end = 0
        self._unsent = b""

    def fileno(self, pair: int = 0) -> int:  # noqa: ARG002 - there is one queue pair
        """Return the socket's descriptor."""
        return self._socket.fileno()

    def receive(self, pair: int, views: Sequence[memoryview]) -> int:  # noqa: ARG002 - there is one queue pair
        """Take one frame; what does not fit into the views is lost."""
        length = self._next()
        if not length:
            if not self._fill():
                return 0
            length = self._next()
            if not length:
                return 0
        start = self._begin + LENGTH
        done = 0
        for view in views:
            count = min(len(view), length - done)
            view[:count] = self._buffer[start + done : start + done + count]
            done += count
        self._begin = start + length
        return done

    def has_frame(self) -> bool:
        """Say whether a whole frame is here already, of which the descriptor says nothing."""
        return self._next() > 0

    def _next(self) -> int:
        """Return the length of the frame that is here whole, or 0."""
        held = self._end - self._begin
        if held < LENGTH:
            return 0
        length = int.from_bytes(self._buffer[self._begin : self._begin + LENGTH], "big")
        if not 0 < length <= MAX_FRAME:
            self._unplug()  # there is no way to find the next one
            return 0
        return length if held >= LENGTH + length else 0

    def _fill(self) -> bool:
        if not self.link_up:
            return False
        held = self._end - self._begin
        if self._begin:
            self._buffer[:held] = bytes(self._buffer[self._begin : self._end])
            self._begin, self._end = 0, held
        try:
            count = self._socket.recv_into(self._buffer[held:])
        except BlockingIOError:
            return False
        except OSError:
            count = 0
        if not count:
            self._unplug()
        self._end += count
        return count > 0

    def send(self, pair: int, views: Sequence[memoryview]) -> bool:  # noqa: ARG002 - there is one queue pair
        """Send one frame, or the beginning of it: `send_rest` sends the rest, and so does the next `send` first."""
        if not self.link_up:
            return True
        if not self.send_rest():
            return False
        length = sum(map(len, views))
        try:
            count = self._socket.sendmsg([length.to_bytes(LENGTH, "big"), *views])
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise
            self._unplug()
            return True
        if count < LENGTH + length:
            self._unsent = (length.to_bytes(LENGTH, "big") + b"".join(views))[count:]
        return True

    def send_rest(self) -> bool:
        """Send what is left of a frame of which a part was taken; false where there is no room for it now."""
        try:
            if self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return False
        except OSError:
            self._unsent = b""
            self._unplug()
        return not self._unsent

    def _unplug(self) -> None:
        self._begin = self._end = 0
        if self.link_up:
            self.link_up = False
            self.on_link()

    def set_offloads(self, features: int) -> None:
        """Do nothing: there are none."""

    def set_queue_pairs(self, pairs: int) -> None:
        """Do nothing: there is one."""

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'up' if self.link_up else 'down'}>"
