"""Requests to an NBD server: what is under way, what waits, and what comes back.

What the caller asks for is a *request*. It is cut into *pieces* of what the server takes at once, which are issued as
there is room: `MAX_PIECES` and `MAX_BYTES` bound what is under way, whatever the server's limit makes of a guest's
gigabytes, and requests take turns at it. A piece is *sent* when the socket has taken all of it, and answered when its
reply, and what it reads, has arrived; a reply to one that was not sent is none. A request that is cancelled leaves:
pieces of which nothing was sent are dropped, what is left of one that the socket has begun to take is sent from a
copy, and what is still read goes nowhere. Those that change the disk are a *barrier*: the server may do them late, so
nothing new is issued before they are answered.

Flushes are made one after another, one for all that wait, and one that failed is remembered: a server may tell only
one of two who ask at once, and forget (as `fsync` does, see `RawFile`).
"""

from __future__ import annotations

import errno
import socket
import time
from collections import deque
from contextlib import suppress

from pyvmm_virtio.backends.block import DISCARD, FLUSH, PIECE, RANGE_PIECE, READ, WRITE, ZERO, ZERO_UNMAP
from pyvmm_virtio.backends.errors import NbdError
from pyvmm_virtio.backends.nbd import protocol as nbd
from pyvmm_virtio.backends.nbd.request import Piece, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm_virtio.backends.block import Done

MAX_VIEWS = 1024
"""IOV_MAX."""
MAX_PIECES, MAX_BYTES = 64, 8 << 20
"""What is under way at most; one piece always may be."""
TURN_PARTS, TURN_BYTES = 128, 2 << 20
"""What one call of `on_ready` receives at most, in parts of replies and in bytes."""
SINK = bytearray(65536)
"""Where what nobody wants is received; nobody looks at it."""
ZEROS = bytes(PIECE)
"""For a server that has no command for them, and for all requests together: no piece has more."""
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


class Transmission:
    """The phase after the handshake: requests are begun by `submit` and end in `on_ready`.

    Args:
        connection: a socket that does not block; it becomes this object's own.
        said: what the server said of the export.
        address: of the server, for errors.

    Attributes:
        broken: why the connection was given up, or None.
        connection: the socket.
        can_discard: whether the server discards.
        count: how many requests are not done.
    """

    def __init__(self, connection: socket.socket, said: nbd.Export, address: object) -> None:
        self.connection = connection
        self.broken: NbdError | None = None
        self.count = 0
        self.can_discard = bool(said.flags & nbd.SEND_TRIM) and not said.flags & nbd.READ_ONLY
        self._named = address
        self._can_flush = bool(said.flags & nbd.SEND_FLUSH)
        # proto.md: a server that has no flush can still be asked for each write to be stable before its answer
        self._through = not self._can_flush and bool(said.flags & nbd.SEND_FUA)
        self._can_zero = bool(said.flags & nbd.SEND_WRITE_ZEROES)
        self._most = min(PIECE, said.max_payload // said.min_block * said.min_block)
        self._cookie = 0
        self._queue: deque[Request] = deque()  # those with something left to issue, the next first
        self._flushes: list[Request] = []  # those that wait for the next flush
        self._flushed: list[Request] | None = None  # those that the one under way is for, or None without one
        self._lost = 0  # the error of the first flush that failed
        self._pieces: dict[int, Piece] = {}  # issued and not answered, by cookie
        self._bytes = 0  # of data in those
        self._barrier = 0  # how many of those were given up and change the disk
        self._sending: deque[Piece] = deque()
        self._head = bytearray(nbd.SIMPLE_REPLY.size)
        self._got = 0
        self._filling: Piece | None = None

    # beginning requests

    def submit(self, op: int, views: Sequence[memoryview], offset: int, length: int, done: Done) -> object:
        """Begin one request; `done` is called once, from `on_ready` or from here if it cannot be sent."""
        command, flags = COMMANDS[op]
        request = Request(command, flags, offset, 0 if op == FLUSH else length, done)
        answer = self._answer_now(op, length)
        if answer is not None:
            request.done = None
            done(answer)
        else:
            self.count += 1
            self._enqueue(request, op, views)
            self._issue()
            self._send()
        return request

    def _answer_now(self, op: int, length: int) -> int | None:
        """Return what a request ends with that the server is not asked for."""
        if self.broken is not None:
            return errno.EIO
        if op == FLUSH:
            return self._lost or (None if self._can_flush else 0)  # a server without a cache
        if op == DISCARD and not self.can_discard:
            return 0  # a hint that nobody needs
        return None if length else 0

    def _enqueue(self, request: Request, op: int, views: Sequence[memoryview]) -> None:
        if op == FLUSH:
            self._flushes.append(request)
            return
        request.most = self._most if op in (READ, WRITE) else RANGE_PIECE
        request.views = list(views)
        if self._through and op not in (READ, DISCARD):
            request.flags |= nbd.CMD_FLAG_FUA
        if request.command == nbd.CMD_WRITE_ZEROES and not self._can_zero:
            request.command, request.most = nbd.CMD_WRITE, self._most
            request.flags &= ~nbd.CMD_FLAG_NO_HOLE
            request.zeros = ZEROS
        self._queue.append(request)

    def _issue(self) -> None:
        """Make pieces of what waits, as there is room; requests take turns."""
        if self._barrier or self.broken is not None:
            return
        if self._flushes and self._flushed is None:
            self._flushed, self._flushes = self._flushes, []
            self._make_piece(Request(nbd.CMD_FLUSH, 0, 0, 0, self._end_flush))
        while self._queue:
            if self._pieces and (len(self._pieces) >= MAX_PIECES or self._bytes >= MAX_BYTES):
                return
            request = self._queue.popleft()
            self._make_piece(request)
            if request.left:
                self._queue.append(request)

    def _make_piece(self, request: Request) -> None:
        self._cookie = self._cookie + 1 & (1 << 64) - 1
        piece = self._pieces[self._cookie] = request.next_piece(self._cookie)
        self._bytes += piece.payload
        self._sending.append(piece)

    def _send(self) -> None:
        while self._sending and self.broken is None:
            views: list[memoryview] = []
            for piece in self._sending:
                views += piece.data
                if len(views) >= MAX_VIEWS:
                    break
            try:
                count = self.connection.sendmsg(views[:MAX_VIEWS])
            except BlockingIOError:
                return
            except OSError as error:
                self.give_up(f"the NBD server went away: {error.strerror}")
                return
            while count:
                piece = self._sending[0]
                count -= piece.note_sent(count)
                if not piece.unsent:
                    self._sending.popleft()

    # giving requests up

    def cancel(self, request: object) -> bool:
        """Give a request up; its memory is let go at once, and its `done` is not called."""
        given_up: Request = request  # type: ignore[assignment] # it is one of ours
        if given_up.done is None or self.broken is not None:
            return True
        for flushes in (self._flushes, self._flushed or []):
            if given_up in flushes:
                flushes.remove(given_up)
        if given_up in self._queue:
            self._queue.remove(given_up)
        elif not given_up.pieces and given_up.command != nbd.CMD_FLUSH:
            return True  # it never came so far
        given_up.done = None
        given_up.drop_rest()
        self.count -= 1
        for piece in list(given_up.pieces):
            if piece.begun:
                piece.let_go()
                self._barrier += given_up.changes
            else:
                self._sending.remove(piece)
                self._take_out(piece)
        self._issue()
        self._send()
        return True

    def _take_out(self, piece: Piece) -> None:
        del self._pieces[piece.cookie]
        piece.request.pieces.remove(piece)
        self._bytes -= piece.payload

    # taking replies

    def fileno(self) -> int:
        """Return the socket's descriptor, or -1 where nothing will come of it any more."""
        return self.connection.fileno() if self.broken is None else -1

    def under_way(self) -> int:
        """Return how many pieces were issued and not answered."""
        return len(self._pieces)

    def wants_write(self) -> bool:
        """Say whether something is left to send."""
        return bool(self._sending)

    def on_ready(self) -> None:
        """Send what is left to send and take replies that have arrived: as many as one turn may have."""
        self._send()
        parts, left = TURN_PARTS, TURN_BYTES
        while self.broken is None and parts > 0 and left > 0:
            count = self._receive()
            if not count:
                break
            parts -= 1
            left -= count
        self._issue()
        self._send()

    def _receive(self) -> int:
        """Take what has arrived of one part of a reply; returns the bytes, and 0 where there were none."""
        piece = self._filling
        try:
            if piece is None:
                with memoryview(self._head) as head:
                    count = self.connection.recv_into(head[self._got :])
            elif piece.views is None:
                count = self.connection.recv_into(SINK, min(len(SINK), piece.waiting))
            else:
                count = self.connection.recvmsg_into(piece.views[:MAX_VIEWS])[0]
        except BlockingIOError:
            return 0
        except OSError as error:
            self.give_up(f"the NBD server went away: {error.strerror}")
            return 0
        if not count:
            self.give_up("the NBD server closed the connection")
            return 0
        if piece is None:
            self._got += count
            if self._got == len(self._head):
                self._got = 0
                self._take_head()
            return count
        piece.note_received(count)
        if not piece.waiting:
            self._end(piece, 0)
        return count

    def _take_head(self) -> None:
        magic, error, cookie = nbd.SIMPLE_REPLY.unpack(self._head)
        piece = self._pieces.get(cookie)
        if magic != nbd.SIMPLE_REPLY_MAGIC or piece is None:
            self.give_up("the NBD server sent something that is no reply")
        elif piece.unsent:
            self.give_up("the NBD server answered a request before it had it")
        elif error or not piece.waiting:
            self._end(piece, ERRNOS.get(error, errno.EIO) if error else 0)
        else:
            self._filling = piece

    def _end(self, piece: Piece, error: int) -> None:
        """Note that a piece is answered."""
        self._filling = None
        self._take_out(piece)
        request = piece.request
        if request.done is None:
            self._barrier -= request.changes
            return
        request.error = request.error or error
        if error and request.left:
            # the rest is of no use to anybody
            request.drop_rest()
            self._queue.remove(request)
        if not request.pieces and not request.left:
            self._finish(request, request.error)

    def _end_flush(self, error: int) -> None:
        """End the flush that was issued, which is for all that waited then; if it failed, no other succeeds."""
        self.count += 1  # of requests, it was none
        self._lost = self._lost or error
        ended, self._flushed = self._flushed or [], None
        if self._lost:
            ended += self._flushes
            self._flushes = []
        for request in ended:
            self._finish(request, self._lost)

    def _finish(self, request: Request, error: int) -> None:
        done, request.done = request.done, None
        request.views.clear()
        if done is not None:
            self.count -= 1
            done(error)

    def give_up(self, why: str) -> None:
        """Give up the connection: every request under way fails, and so does every later one.

        The descriptor stays, for somebody may wait for it; it is closed with the disk.
        """
        if self.broken is not None:
            return
        self.broken = NbdError(errno.ECONNRESET, f"{why} ({self._named}): restart it, then the machine")
        self._sending.clear()
        self._filling = None
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        under_way = [*dict.fromkeys(piece.request for piece in self._pieces.values()), *self._queue, *self._flushes]
        self._pieces.clear()
        self._queue.clear()
        self._flushes.clear()
        for request in under_way:
            request.pieces.clear()
            self._finish(request, errno.EIO)

    # waiting

    def wait(self, seconds: float) -> bool:
        """Work until nothing is under way any more, but for so long at most; returns whether it is so."""
        import select

        deadline = time.monotonic() + seconds
        while self.count and self.broken is None:
            poll = select.poll()
            poll.register(self.connection, select.POLLIN | select.POLLOUT * bool(self._sending))
            left = deadline - time.monotonic()
            # one that goes on answering byte by byte does not get more time by it
            if left <= 0 or not poll.poll(left * 1000):
                return False
            self.on_ready()
        return True

    def drain(self, seconds: float = 30.0) -> None:
        """Return once nothing is under way any more.

        After `seconds` the connection is given up, so that no late reply reaches memory that was taken back.
        """
        if not self.wait(seconds):
            self.give_up(f"the NBD server did not answer for {seconds:g} s")
