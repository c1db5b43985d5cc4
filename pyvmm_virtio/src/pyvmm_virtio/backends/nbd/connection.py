"""Reaching an NBD server, with an end to the waiting however it behaves."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time

from pyvmm_virtio.backends.errors import NbdError
from pyvmm_virtio.backends.nbd import protocol as nbd

TYPE_CHECKING = False
if TYPE_CHECKING:
    Address = str | tuple[str, int]

TIMEVAL = struct.Struct("@ll")


def open_connection(address: Address, export: str) -> tuple[socket.socket, nbd.Export]:
    """Connect and shake hands, in `PATIENCE` seconds for all of it; returns a socket that does not block.

    Raises:
        NbdError: the server refuses, or is none, or takes too long.
        OSError: nobody answers there.
    """
    deadline = time.monotonic() + nbd.PATIENCE
    connection = _connect_unix(address, deadline) if isinstance(address, str) else _connect_tcp(address, deadline)
    try:
        said = nbd.open_export(connection, export, deadline)
        connection.setblocking(False)
    except BaseException:
        connection.close()
        raise
    return connection, said


def connect_unix(path: str, seconds: float) -> socket.socket:
    """Connect to a unix socket; raises OSError, TimeoutError among them."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # connect(2): where the backlog is full it waits, for so long; without blocking it fails at once, and there is
        # nothing to wait for
        limit = max(seconds, 0.001)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, TIMEVAL.pack(int(limit), int(limit % 1 * 1e6)))
        connection.connect(path)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, TIMEVAL.pack(0, 0))
    except BlockingIOError:
        connection.close()
        raise TimeoutError(errno.ETIMEDOUT, "nobody accepted the connection in time", path) from None
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_unix(path: str, deadline: float) -> socket.socket:
    try:
        return connect_unix(path, deadline - time.monotonic())
    except TimeoutError:
        raise _too_late(path) from None


def _connect_tcp(address: tuple[str, int], deadline: float) -> socket.socket:
    """Try all addresses of a host, in one time for all."""
    failure: OSError | None = None
    for family, kind, protocol, _, where in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        left = deadline - time.monotonic()
        if left <= 0:
            raise _too_late(address)
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(left)
            connection.connect(where)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    if isinstance(failure, TimeoutError):
        raise _too_late(address) from None
    raise failure or OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(address))


def _too_late(address: Address) -> NbdError:
    return NbdError(errno.ETIMEDOUT, f"the NBD server at {address!r} accepted nobody for {nbd.PATIENCE:g} s")
