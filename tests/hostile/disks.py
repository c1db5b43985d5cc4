"""Every disk that there is a class for, made by what its first argument is called, and back ends that never answer."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
import socket
import struct
import threading

from pyvmm_virtio import backends
from pyvmm_virtio.backends.memory import MemoryDisk
from pyvmm_virtio.backends.nbd import protocol as nbd
from pyvmm_virtio.backends.raw import RawFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

SIZE = 64 << 20
METHODS = ("readv", "writev", "flush", "discard", "write_zeroes", "refresh", "close")
FLAGS = nbd.HAS_FLAGS | nbd.SEND_FLUSH | nbd.SEND_TRIM | nbd.SEND_WRITE_ZEROES


def disk_classes() -> list[type[Any]]:
    """All classes of `pyvmm_virtio.backends` that can do what a disk has to."""
    found: set[type[Any]] = set()
    for module in pkgutil.walk_packages(backends.__path__, "pyvmm_virtio.backends."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if kind.__module__ == module.name and all(hasattr(kind, name) for name in METHODS):
                found.add(kind)
    return sorted(found, key=lambda kind: kind.__name__)


class Bench:
    """Makes disks in a folder, with what serves them, and ends it all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.servers: list[Server] = []

    def make(self, kind: type[Any], **options: Any) -> Any:  # noqa: ANN401 - a disk
        """Make a disk of a class; `options` go to the NBD server behind it, if it has one."""
        first = next(iter(inspect.signature(kind).parameters))
        if first == "path":
            return kind(str(self.image()))
        if first == "content":
            return kind(SIZE)
        if first == "disk":
            return kind(RawFile(str(self.image())))
        if first == "address":
            server = Server(str(self.image().with_suffix(".sock")), **options)
            self.servers.append(server)
            return kind(server.path)
        raise AssertionError(f"{kind.__name__}({first}, ...): say here how one is made, and it will be attacked")

    def image(self) -> Path:
        """Make a file of zeros."""
        self.count += 1
        path = self.folder / f"disk-{self.count}"
        with path.open("wb") as file:
            file.truncate(SIZE)
        return path

    def close(self) -> None:
        """End the servers."""
        for server in self.servers:
            server.close()


class Server:
    """An NBD server on a unix socket, each connection in a thread.

    Args:
        path: of the socket.
        answers: whether it answers anything.
        errors: what the next flushes fail with, one after another; those after them succeed.
        blocks: the sizes it names: least, preferred, most.
    """

    def __init__(
        self,
        path: str,
        *,
        answers: bool = True,
        errors: list[int] | None = None,
        blocks: tuple[int, int, int] = (1, 4096, 32 << 20),
    ) -> None:
        self.path = path
        self.answers = answers
        self.errors = errors or []
        self.blocks = blocks
        self.most_under_way = 0
        self.content = bytearray(SIZE)
        self.stopped = threading.Event()
        self.connections: list[socket.socket] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(8)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections.append(connection)
                threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.sendall(struct.pack(">QQH", nbd.NBDMAGIC, nbd.IHAVEOPT, 3))
            nbd.receive(connection, 4)
            _, _, length = struct.unpack(">QII", nbd.receive(connection, 16))
            nbd.receive(connection, length)
            for kind, data in (
                (nbd.REP_INFO, struct.pack(">HQH", nbd.INFO_EXPORT, SIZE, FLAGS)),
                (nbd.REP_INFO, struct.pack(">HIII", nbd.INFO_BLOCK_SIZE, *self.blocks)),
                (nbd.REP_ACK, b""),
            ):
                head = struct.pack(">QIII", nbd.OPTION_REPLY_MAGIC, nbd.OPT_GO, kind, len(data))
                connection.sendall(head + data)
            while not self.answers:
                if self.stopped.wait(60):
                    return
            while True:
                self.answer(connection)

    def answer(self, connection: socket.socket) -> None:
        _, _, command, cookie, offset, length = nbd.REQUEST.unpack(nbd.receive(connection, nbd.REQUEST.size))
        error, data = 0, b""
        if command == nbd.CMD_WRITE:
            self.content[offset : offset + length] = nbd.receive(connection, length)
        elif command == nbd.CMD_READ:
            data = bytes(self.content[offset : offset + length])
        elif command == nbd.CMD_FLUSH and self.errors:
            error = self.errors.pop(0)
        elif command == nbd.CMD_DISC:
            raise OSError
        connection.sendall(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, error, cookie) + data)

    def close(self) -> None:
        """Hang up."""
        self.stopped.set()
        with contextlib.suppress(OSError):  # it may be closed
            self.listener.shutdown(socket.SHUT_RDWR)  # to close it would not end who waits in accept
        self.listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Hold:
    """Makes every disk of a class wait within each of its operations, as the kernel may, until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.within = 0

    def wait(self, function: Callable[..., object]) -> Callable[..., object]:
        def held(*arguments: object) -> object:
            self.within += 1
            self.go.wait(60)
            return function(*arguments)

        return held

    @contextlib.contextmanager
    def on(self, *kinds: type[Any]) -> Iterator[None]:
        """Hold what disks of these classes do."""
        before = [(kind, name, getattr(kind, name)) for kind in kinds for name in METHODS[:5]]
        for kind, name, function in before:
            setattr(kind, name, self.wait(function))
        try:
            yield
        finally:
            self.go.set()
            for kind, name, function in before:
                setattr(kind, name, function)


HELD = (RawFile, MemoryDisk)
"""What does the work in the end, of those that have no server."""
