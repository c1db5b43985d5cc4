"""What a client of NBD has in hand: requests of its caller, and the pieces of them that the server is asked for."""

from __future__ import annotations

from pyvmm_virtio.backends.block import advance, cut
from pyvmm_virtio.backends.nbd import protocol as nbd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_virtio.backends.block import Done


class Request:
    """What the caller asked for: done when nothing is left of it to issue, and all its pieces are answered.

    Attributes:
        command, flags: what the server is asked for.
        offset: where the next piece begins.
        left: how many bytes there are from there on.
        most: how many bytes one piece has at most.
        views: what is left to read into, or to write.
        zeros: what is written instead of views, where the server has no command for it.
        pieces: those that were issued and not answered.
        error: of the first piece that failed.
        done: what to call in the end, or None where nobody wants to know any more.
    """

    __slots__ = ("command", "done", "error", "flags", "left", "most", "offset", "pieces", "views", "zeros")

    def __init__(self, command: int, flags: int, offset: int, left: int, done: Done) -> None:
        self.command = command
        self.flags = flags
        self.offset = offset
        self.left = left
        self.most = left
        self.views: list[memoryview] = []
        self.zeros = b""
        self.pieces: list[Piece] = []
        self.error = 0
        self.done: Done | None = done

    @property
    def changes(self) -> bool:
        """Whether it leaves another disk behind."""
        return self.command not in (nbd.CMD_READ, nbd.CMD_FLUSH)

    def drop_rest(self) -> None:
        """Issue nothing more of it."""
        self.left = 0
        self.views.clear()

    def next_piece(self, cookie: int) -> Piece:
        """Return the next piece, to be sent."""
        count = min(self.left, self.most)
        piece = Piece(self, cookie)
        piece.data = [
            memoryview(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, self.flags, self.command, cookie, self.offset, count))
        ]
        if self.command == nbd.CMD_READ:
            piece.views, piece.waiting = cut(self.views, count), count
            piece.payload = count
        elif self.command == nbd.CMD_WRITE:
            piece.data += [memoryview(self.zeros)[:count]] if self.zeros else cut(self.views, count)
            piece.payload = count
        piece.unsent = nbd.REQUEST.size + (count if self.command == nbd.CMD_WRITE else 0)
        self.offset += count
        self.left -= count
        self.pieces.append(piece)
        return piece


class Piece:
    """What the server is asked for at once.

    Attributes:
        request: what it is a piece of.
        cookie: by which the reply names it.
        payload: how many bytes of data it moves.
        data, unsent: what is left to send, and how many bytes that is.
        begun: whether any of it was sent.
        views: what the reply fills; None where nobody wants it any more.
        waiting: how many bytes of that have not arrived.
    """

    __slots__ = ("begun", "cookie", "data", "payload", "request", "unsent", "views", "waiting")

    def __init__(self, request: Request, cookie: int) -> None:
        self.request = request
        self.cookie = cookie
        self.payload = 0
        self.data: list[memoryview] = []
        self.unsent = 0
        self.begun = False
        self.views: list[memoryview] | None = []
        self.waiting = 0

    def note_sent(self, count: int) -> int:
        """Note that the socket took so many bytes, or fewer where that is all; returns how many of them it was."""
        count = min(count, self.unsent)
        self.begun = True
        self.unsent -= count
        self.data = advance(self.data, count) if self.unsent else []
        return count

    def note_received(self, count: int) -> None:
        """Note that so many bytes of the payload have arrived."""
        self.waiting -= count
        if self.views is not None:
            self.views = advance(self.views, count) if self.waiting else []

    def let_go(self) -> None:
        """Let go of the caller's memory: what arrives goes nowhere, what is left to send is sent from a copy."""
        self.views = None
        self.data = [memoryview(b"".join(self.data))]
