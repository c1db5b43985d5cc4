"""An NBD client with many requests under way at once."""

from __future__ import annotations

import errno
import os
import socket
import time

from pyvmm_virtio.backends.block import DISCARD, FLUSH, READ, WRITE, ZERO, ZERO_UNMAP, Topology, advance
from pyvmm_virtio.backends.errors import NbdError
from pyvmm_virtio.backends.nbd import protocol as nbd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from pyvmm_virtio.backends.block import Done

SECTOR = 512
MAX_VIEWS = 1024
"""IOV_MAX."""
COMMANDS = {
    READ: (nbd.CMD_READ, 0),
    WRITE: (nbd.CMD_WRITE, 0),
    FLUSH: (nbd.CMD_FLUSH, 0),
    DISCARD: (nbd.CMD_TRIM, 0),
    ZERO: (nbd.CMD_WRITE_ZEROES, nbd.CMD_FLAG_NO_HOLE),
    ZERO_UNMAP: (nbd.CMD_WRITE_ZEROES, 0),
}
# the protocol's own numbers, which are not always this host's
ERRNOS = {1: errno.EPERM, 12: errno.ENOMEM, 22: errno.EINVAL, 28: errno.ENOSPC, 75: errno.EOVERFLOW}


class _Request:
    """What the caller asked for: done when all its pieces are."""

    __slots__ = ("done", "error", "pieces")

    def __init__(self, done: Done) -> None:
        self.done = done
        self.error = 0
        self.pieces = 0


class NbdDisk:
    """An export of an NBD server.

    Requests are begun by `submit` and end in `on_ready`; `readv` and its like wait. None of it is for several threads
    at once.

    Args:
        address: a path of a unix socket, or `(host, port)`.
        export: the export's name.
        read_only: refuse writes even if the server would take them.
        owns: closed after this disk, such as the `QemuNbdServer` it talks to.

    Raises:
        NbdError: the server refuses, or is none.
        OSError: nobody answers there.
    """

    def __init__(
        self,
        address: str | tuple[str, int],
        export: str = "",
        *,
        read_only: bool = False,
        owns: Sequence[object] = (),
    ) -> None:
        self._owns = list(owns)
        self._address, self._export = address, export
        self._broken: NbdError | None = None
        self._cookie = 0
        self._pending: dict[int, tuple[_Request, list[memoryview]]] = {}
        self._sending: list[memoryview] = []
        self._head = bytearray(nbd.SIMPLE_REPLY.size)
        self._got = 0
        self._filling: int | None = None
        self._waiting = 0  # bytes of the payload that is arriving
        self._socket = self._connect()
        try:
            self._socket.settimeout(nbd.PATIENCE)
            said = nbd.open_export(self._socket, export)
            self._socket.setblocking(False)
            if said.size < SECTOR:
                raise NbdError(errno.EINVAL, f"export {export!r} is smaller than one sector")
        except BaseException:
            self.close()
            raise
        self.size = said.size // SECTOR * SECTOR
        self._flags = said.flags
        self.read_only = read_only or bool(said.flags & nbd.READ_ONLY)
        self.can_discard = bool(said.flags & nbd.SEND_TRIM) and not self.read_only
        self._can_zero = bool(said.flags & nbd.SEND_WRITE_ZEROES)
        self._max = said.max_payload // SECTOR * SECTOR or nbd.DEFAULT_MAX_PAYLOAD
        block = max(SECTOR, said.min_block)
        self.topology = Topology(block, max(block, said.preferred_block), 0, 0, max(block, said.preferred_block))

    def _connect(self) -> socket.socket:
        if isinstance(self._address, tuple):
            connection = socket.create_connection(self._address, nbd.PATIENCE)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(self._address)
        except BaseException:
            connection.close()
            raise
        return connection

    def refresh(self) -> int:
        """Open the export once more to see how large it is now; returns `size`."""
        with self._connect() as connection:
            connection.settimeout(nbd.PATIENCE)
            said = nbd.open_export(connection, self._export)
            connection.sendall(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_DISC, 0, 0, 0))
        self.size = said.size // SECTOR * SECTOR
        return self.size

    # beginning requests

    def submit(self, op: int, views: Sequence[memoryview], offset: int, length: int, done: Done) -> None:
        """Begin one request; `done` is called once, from `on_ready` or from here if it cannot be sent."""
        command, flags = COMMANDS[op]
        if self._broken is not None:
            done(errno.EIO)
            return
        if (op == FLUSH and not self._flags & nbd.SEND_FLUSH) or (op == DISCARD and not self.can_discard):
            done(0)  # a server without a cache, and a hint nobody needs
            return
        if command == nbd.CMD_WRITE_ZEROES and not self._can_zero:
            command, flags = nbd.CMD_WRITE, 0
            views = [memoryview(bytes(min(length, self._max)))]
            zeros = True
        else:
            zeros = False
        request = _Request(done)
        at = 0
        while at < length or op == FLUSH:
            count = min(length - at, self._max)
            piece = [views[0][:count]] if zeros else advance(views, at) if at else list(views)
            if at + count < length and not zeros:
                piece = _first(piece, count)
            self._begin(request, command, flags, offset + at, count, piece)
            at += count
            if op == FLUSH:
                break
        if not request.pieces:
            done(0)
            return
        self._send()

    def _begin(
        self, request: _Request, command: int, flags: int, offset: int, count: int, views: list[memoryview]
    ) -> None:
        self._cookie = self._cookie + 1 & (1 << 64) - 1
        header = nbd.REQUEST.pack(nbd.REQUEST_MAGIC, flags, command, self._cookie, offset, count)
        request.pieces += 1
        self._pending[self._cookie] = (request, views if command == nbd.CMD_READ else [])
        self._sending.append(memoryview(header))
        if command == nbd.CMD_WRITE:
            self._sending.extend(views)

    def _send(self) -> None:
        while self._sending and self._broken is None:
            try:
                count = self._socket.sendmsg(self._sending[:MAX_VIEWS])
            except BlockingIOError:
                return
            except OSError as error:
                self._break(f"the NBD server went away: {error.strerror}")
                return
            sent, total = 0, 0
            for view in self._sending:
                if total + len(view) > count:
                    break
                total += len(view)
                sent += 1
            del self._sending[:sent]
            if count > total:
                self._sending[0] = self._sending[0][count - total :]

    # taking replies

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    def wants_write(self) -> bool:
        """Say whether something is left to send."""
        return bool(self._sending)

    def on_ready(self) -> None:
        """Send what is left to send and take every reply that has arrived."""
        self._send()
        while self._broken is None and self._receive():
            pass

    def _receive(self) -> bool:
        """Take what has arrived of one part of a reply; returns whether there may be more."""
        try:
            if self._filling is None:
                with memoryview(self._head) as head:
                    count = self._socket.recv_into(head[self._got :])
            else:
                _, views = self._pending[self._filling]
                count = self._socket.recvmsg_into(views[:MAX_VIEWS])[0]
        except BlockingIOError:
            return False
        except OSError as error:
            self._break(f"the NBD server went away: {error.strerror}")
            return False
        if not count:
            self._break("the NBD server closed the connection")
            return False
        if self._filling is not None:
            request, views = self._pending[self._filling]
            self._waiting -= count
            if self._waiting:
                self._pending[self._filling] = (request, advance(views, count))
            else:
                self._end(self._filling, 0)
            return True
        self._got += count
        if self._got == len(self._head):
            self._got = 0
            self._take_head()
        return True

    def _take_head(self) -> None:
        magic, error, cookie = nbd.SIMPLE_REPLY.unpack(self._head)
        if magic != nbd.SIMPLE_REPLY_MAGIC or cookie not in self._pending:
            self._break("the NBD server sent something that is no reply")
            return
        _, views = self._pending[cookie]
        self._waiting = sum(map(len, views))
        if error or not self._waiting:
            self._end(cookie, ERRNOS.get(error, errno.EIO) if error else 0)
        else:
            self._filling = cookie

    def _end(self, cookie: int, error: int) -> None:
        request, _ = self._pending.pop(cookie)
        self._filling = None
        request.error = request.error or error
        request.pieces -= 1
        if not request.pieces:
            request.done(request.error)

    def _break(self, why: str) -> None:
        """Give up the connection: every request under way fails, and so does every later one."""
        self._broken = NbdError(errno.ECONNRESET, f"{why} ({self._address}): restart it, then the machine")
        self._sending.clear()
        self._socket.close()
        self._filling = None
        for cookie in list(self._pending):
            self._end(cookie, errno.EIO)

    def drain(self, seconds: float = 30.0) -> None:
        """Return once nothing is under way any more.

        After `seconds` the connection is given up, so that no late reply reaches memory that was taken back.
        """
        import select

        deadline = time.monotonic() + seconds
        while self._pending and self._broken is None:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN | select.POLLOUT * bool(self._sending))
            left = deadline - time.monotonic()
            # one that goes on answering byte by byte does not get more time by it
            if left <= 0 or not poll.poll(left * 1000):
                self._break(f"the NBD server did not answer for {seconds:g} s")
                return
            self.on_ready()

    # waiting for requests

    def _wait(self, op: int, views: Sequence[memoryview], offset: int, length: int) -> None:
        result: list[int] = []
        self.submit(op, views, offset, length, result.append)
        self.drain()
        if result[0]:
            if self._broken is not None and result[0] == errno.EIO:
                raise self._broken
            raise NbdError(result[0], f"the NBD server failed: {os.strerror(result[0])}")

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        """Read and wait."""
        self._wait(READ, views, offset, sum(map(len, views)))

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        """Write and wait."""
        self._wait(WRITE, views, offset, sum(map(len, views)))

    def flush(self) -> None:
        """Flush and wait."""
        self._wait(FLUSH, (), 0, 0)

    def discard(self, offset: int, length: int) -> None:
        """Trim and wait."""
        self._wait(DISCARD, (), offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Write zeros and wait."""
        self._wait(ZERO_UNMAP if unmap else ZERO, (), offset, length)

    def close(self) -> None:
        """Say goodbye and close, then what this disk owns; idempotent."""
        if self._socket.fileno() >= 0:
            try:
                if not self._sending:
                    self._socket.send(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_DISC, 0, 0, 0))
            except OSError:
                self._sending.clear()  # it is gone, which is what we want
            self._break("the disk was closed")
        while self._owns:
            self._owns.pop().close()  # type: ignore[attr-defined] # whatever has a close

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<NbdDisk {self._address!r} {self._export!r}, {len(self._pending)} requests under way>"


def _first(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """Return the first `count` bytes of `views`."""
    taken: list[memoryview] = []
    for view in views:
        if not count:
            break
        taken.append(view[:count])
        count -= len(taken[-1])
    return taken
