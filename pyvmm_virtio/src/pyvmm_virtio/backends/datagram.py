"""Frames in datagrams: a socketpair between two machines, or between a machine and a test."""

from __future__ import annotations

import errno
import socket

from pyvmm_virtio.backends.net import nobody

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

BUFFER = 4 << 20
"""What a socket may hold; the kernel caps it at net.core.wmem_max."""


class DatagramNet:
    """A socket that keeps messages apart: one frame in each, without a header.

    Args:
        connection: of type SOCK_SEQPACKET or SOCK_DGRAM and connected; it becomes this object's own.
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

    @classmethod
    def pair(cls, mtu: int = 0) -> tuple[Self, Self]:
        """Return two ends of one cable."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (one, other):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        return cls(one, mtu), cls(other, mtu)

    def fileno(self, pair: int = 0) -> int:  # noqa: ARG002 - there is one queue pair
        """Return the socket's descriptor."""
        return self._socket.fileno()

    def receive(self, pair: int, views: Sequence[memoryview]) -> int:  # noqa: ARG002 - there is one queue pair
        """Take one frame; what does not fit into the views is lost."""
        try:
            count = self._socket.recvmsg_into(views)[0]
        except BlockingIOError:
            return 0
        except ConnectionError:
            count = 0
        if not count:
            self._unplug()
        return count

    def send(self, pair: int, views: Sequence[memoryview]) -> bool:  # noqa: ARG002 - there is one queue pair
        """Send one frame; without another end it is lost."""
        try:
            self._socket.sendmsg(views)
        except BlockingIOError:
            return False
        except OSError as error:
            if isinstance(error, ConnectionError) or error.errno == errno.ENOTCONN:
                self._unplug()
            elif error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
        return True

    def _unplug(self) -> None:
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
        return f"<DatagramNet {'up' if self.link_up else 'down'}>"
