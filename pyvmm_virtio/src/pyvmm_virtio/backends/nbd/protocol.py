"""The numbers of NBD, and the handshake by which an export is opened.

Source: the NBD project's doc/proto.md: fixed newstyle handshake, simple replies.
"""

from __future__ import annotations

import errno
import struct
import time

from pyvmm_virtio.backends.errors import NbdError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

NBDMAGIC, IHAVEOPT = 0x4E42444D41474943, 0x49484156454F5054
OPTION_REPLY_MAGIC, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC = 0x3E889045565A9, 0x25609513, 0x67446698
FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES = 1, 2
OPT_EXPORT_NAME, OPT_GO = 1, 7
REP_ACK, REP_INFO, REP_ERROR = 1, 3, 1 << 31
ERRORS = {
    REP_ERROR | 1: "it does not know this option",
    REP_ERROR | 2: "its policy forbids it",
    REP_ERROR | 3: "it calls the request invalid",
    REP_ERROR | 5: "it asks for TLS",
    REP_ERROR | 6: "it has no export of this name",
    REP_ERROR | 7: "it is shutting down",
    REP_ERROR | 8: "it insists on block sizes",
}
UNSUPPORTED = REP_ERROR | 1
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES = 1, 2, 4, 8, 32, 64
CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_WRITE_ZEROES = 0, 1, 2, 3, 4, 6
CMD_FLAG_FUA, CMD_FLAG_NO_HOLE = 1, 2
REQUEST = struct.Struct(">IHHQQI")
SIMPLE_REPLY = struct.Struct(">IIQ")
PATIENCE = 10.0
"""Seconds for connecting, and for shaking hands."""
MAX_OPTION_REPLY = 65536
"""Longer ones are no answer to what we ask."""
DEFAULT_MAX_PAYLOAD = 32 << 20
"""What the protocol lets a client send to a server that named no limit."""


class Export:
    """What the server said about an export: sizes in bytes, `flags` are the transmission flags."""

    __slots__ = ("flags", "max_payload", "min_block", "preferred_block", "size")

    def __init__(self) -> None:
        self.size = 0
        self.flags = 0
        self.min_block = 1
        self.preferred_block = 4096
        self.max_payload = DEFAULT_MAX_PAYLOAD


def receive(connection: socket.socket, count: int, deadline: float | None = None) -> bytes:
    """Receive exactly `count` bytes, all of them before `deadline` by the monotonic clock."""
    buffer = bytearray(count)
    with memoryview(buffer) as view:
        done = 0
        while done < count:
            try:
                if deadline is not None:
                    _wait_until(connection, deadline)
                got = connection.recv_into(view[done:])
            except TimeoutError:
                raise NbdError(errno.ETIMEDOUT, "the NBD server did not finish its handshake in time") from None
            if not got:
                raise NbdError(errno.ECONNRESET, "the NBD server closed the connection during the handshake")
            done += got
    return bytes(buffer)


def _wait_until(connection: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)


def open_export(connection: socket.socket, name: str, deadline: float) -> Export:
    """Shake hands on a blocking connection, which then is in the transmission phase.

    However a server dawdles, or goes on talking, that ends at `deadline` by the monotonic clock.

    Raises:
        NbdError: it is no NBD server, an old one, or it refuses the export.
    """
    magic, kind = struct.unpack(">QQ", receive(connection, 16, deadline))
    if magic != NBDMAGIC or kind != IHAVEOPT:
        raise NbdError(errno.EPROTO, "what answers there is no newstyle NBD server")
    (server,) = struct.unpack(">H", receive(connection, 2, deadline))
    if not server & FLAG_FIXED_NEWSTYLE:
        raise NbdError(errno.EPROTO, "the NBD server does not do the fixed newstyle handshake: use a newer one")
    no_zeroes = server & FLAG_NO_ZEROES
    _send(connection, struct.pack(">I", FLAG_FIXED_NEWSTYLE | no_zeroes), deadline)
    encoded = name.encode()
    wanted = struct.pack(">I", len(encoded)) + encoded + struct.pack(">HH", 1, INFO_BLOCK_SIZE)
    _send_option(connection, OPT_GO, wanted, deadline)
    export = Export()
    while True:
        reply, data = _receive_option_reply(connection, OPT_GO, deadline)
        if reply == REP_ACK:
            break
        if reply == REP_INFO:
            _take_info(export, data)
        elif reply == UNSUPPORTED:
            _send_option(connection, OPT_EXPORT_NAME, encoded, deadline)
            export.size, export.flags = struct.unpack(">QH", receive(connection, 10, deadline))
            receive(connection, 0 if no_zeroes else 124, deadline)
            break
        elif reply & REP_ERROR:
            said = data.decode(errors="replace")
            why = ERRORS.get(reply, f"error {reply & ~REP_ERROR}")
            raise NbdError(errno.ECONNREFUSED, f"the NBD server refuses export {name!r}: {why}{said and f' ({said})'}")
    if not export.flags & HAS_FLAGS:
        raise NbdError(errno.EPROTO, f"the NBD server opened export {name!r} without saying what it is")
    return export


def _send_option(connection: socket.socket, option: int, data: bytes, deadline: float) -> None:
    _send(connection, struct.pack(">QII", IHAVEOPT, option, len(data)) + data, deadline)


def _send(connection: socket.socket, data: bytes, deadline: float) -> None:
    try:
        _wait_until(connection, deadline)
        connection.sendall(data)
    except TimeoutError:
        raise NbdError(errno.ETIMEDOUT, "the NBD server did not finish its handshake in time") from None


def _receive_option_reply(connection: socket.socket, option: int, deadline: float) -> tuple[int, bytes]:
    magic, answered, reply, length = struct.unpack(">QIII", receive(connection, 20, deadline))
    if magic != OPTION_REPLY_MAGIC or answered != option or length > MAX_OPTION_REPLY:
        raise NbdError(errno.EPROTO, f"the NBD server's answer to option {option} makes no sense")
    return reply, receive(connection, length, deadline)


def _take_info(export: Export, data: bytes) -> None:
    kind = int.from_bytes(data[:2], "big")
    if kind == INFO_EXPORT and len(data) == 12:
        export.size, export.flags = struct.unpack_from(">QH", data, 2)
    elif kind == INFO_BLOCK_SIZE and len(data) == 14:
        sizes = struct.unpack_from(">III", data, 2)
        if not all(sizes) or sizes[0] & sizes[0] - 1 or sizes[0] > 65536 or sizes[2] < sizes[0]:
            raise NbdError(errno.EPROTO, f"the NBD server names impossible block sizes {sizes}")
        export.min_block, export.preferred_block, export.max_payload = sizes
