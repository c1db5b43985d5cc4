"""What is at the other end of a console's port: descriptors, a pseudo-terminal, a socket, a file, Python functions.

Nothing is lost: what the other end does not take now stays with the guest, and what the guest does not take now stays
here. None of this waits.
"""

from __future__ import annotations

import errno
import os
import select

from pyvmm_device.tally import ERROR, Tally

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Protocol, Self

    from typing_extensions import Buffer

    class PortBackend(Protocol):
        """The other end of a port.

        Attributes:
            read_fd: what becomes readable when `read` has something, or -1.
            write_fd: what becomes writable when `write` has room again, or -1.
            connected: whether somebody is at the other end, which the guest's port is told.
            on_change: set by the device: called when there is something to read that no descriptor tells of, and when
                one of the attributes has changed.
        """

        read_fd: int
        write_fd: int
        connected: bool
        on_change: Callable[[], object]

        def read(self, limit: int) -> bytes:
            """Return up to `limit` bytes that came in; none where there is nothing now."""
            ...

        def write(self, data: Buffer) -> int:
            """Take as many bytes as there is room for now, and return how many."""
            ...

        def close(self) -> None:
            """Release it; idempotent."""
            ...


PIPE_BUF = 4096
"""What a pipe that is writable takes without waiting."""


def nobody() -> None:
    """Stand for `on_change` until a device sets it."""


class BasePort:
    """What the ports here share: no descriptors, somebody there, and `with`."""

    def __init__(self) -> None:
        self.read_fd = -1
        self.write_fd = -1
        self.connected = True
        self.on_change: Callable[[], object] = nobody

    def read(self, limit: int) -> bytes:  # noqa: ARG002 - for ports that have something to say
        """Return nothing."""
        return b""

    def close(self) -> None:
        """Release nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'connected' if self.connected else 'nobody there'}>"


class FdPort(BasePort):
    """Two descriptors of the caller's, such as a terminal's 0 and 1; their flags stay as they are.

    Args:
        read_fd: where input comes from, or -1.
        write_fd: where output goes, or -1 to drop it.
    """

    def __init__(self, read_fd: int = -1, write_fd: int = -1) -> None:
        super().__init__()
        self.read_fd, self.write_fd = read_fd, write_fd
        self._output = write_fd

    def read(self, limit: int) -> bytes:
        """Read what is there; at the end of input the port stops listening."""
        if self.read_fd < 0 or not _ready(self.read_fd, select.POLLIN):
            return b""
        try:
            data = os.read(self.read_fd, limit)
        except BlockingIOError:
            return b""
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""  # a terminal that was hung up
        if not data:
            self.read_fd = -1
            self.on_change()
        return data

    def write(self, data: Buffer) -> int:
        """Write what is taken without waiting."""
        view = memoryview(data)
        if self._output < 0:
            return len(view)
        if not _ready(self._output, select.POLLOUT):
            return 0
        try:
            return os.write(self._output, view[:PIPE_BUF])
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            self._output = self.write_fd = -1  # nobody will ever read it
            self.connected = False
            self.on_change()
            return len(view)


def _ready(fd: int, what: int) -> bool:
    poll = select.poll()
    poll.register(fd, what)
    return bool(poll.poll(0))


class PtyPort(FdPort):
    """A pseudo-terminal: ``screen`` or ``picocom`` on `path` is the other end.

    Attributes:
        path: of the terminal, ``/dev/pts/N``.
    """

    def __init__(self) -> None:
        import tty

        master, self._slave = os.openpty()  # held open, or reading is an error while nobody else has it open
        self.path = os.ttyname(self._slave)
        tty.setraw(self._slave)
        os.set_blocking(master, False)
        super().__init__(master, master)
        self._master = master

    def close(self) -> None:
        """Hang up; idempotent."""
        if self._master >= 0:
            os.close(self._master)
            os.close(self._slave)
            self._master = self._output = self.read_fd = self.write_fd = -1

    def __repr__(self) -> str:
        return f"<PtyPort {self.path}>"


class FilePort(BasePort):
    """Output into a file. What a full disk does not take is lost, and the guest goes on.

    Args:
        path: of the file.
        append: add to what is there.
    """

    def __init__(self, path: str, *, append: bool = False) -> None:
        super().__init__()
        self.path = path
        self._lost = Tally(__name__)
        mode = os.O_APPEND if append else os.O_TRUNC
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | mode, 0o644)

    def write(self, data: Buffer) -> int:
        """Write it, or as much as there is room for."""
        try:
            return os.write(self._fd, data)
        except OSError as error:
            size = len(memoryview(data))
            self._lost.count("output", "%s: output is lost: %s", self.path, error.strerror, level=ERROR, amount=size)
            return size

    @property
    def lost(self) -> int:
        """How many bytes could not be written; the first time is logged."""
        return self._lost["output"]

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SocketPort(BasePort):
    """A unix socket on which one client at a time is the other end.

    Args:
        path: where to listen; a socket that nobody listens on is replaced, and it is removed at the end.
        keep: let the guest wait with its output while no client is there. Without it output is lost then, as on a
            serial line with nothing at its end; a kernel that writes its console this way would stop.
    """

    def __init__(self, path: str, *, keep: bool = False) -> None:
        import socket

        super().__init__()
        self.path = path
        self.keep = keep
        self._client: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            try:
                self._listener.bind(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not _is_abandoned(path):
                    raise OSError(error.errno, f"no socket can be made there ({error.strerror or error})", path) from (
                        error
                    )
                os.unlink(path)
                self._listener.bind(path)
            self._listener.listen(1)
            self._listener.setblocking(False)
        except BaseException:
            self._listener.close()
            raise
        self.connected = False
        self.read_fd = self._listener.fileno()

    def read(self, limit: int) -> bytes:
        """Welcome a client, or read what it says."""
        if self._client is None:
            try:
                self._client = self._listener.accept()[0]
            except BlockingIOError:
                return b""
            self._client.setblocking(False)
            self._set(self._client.fileno(), True)
        try:
            data = self._client.recv(limit)
        except BlockingIOError:
            return b""
        except ConnectionError:
            data = b""
        if not data:
            self._farewell()
        return data

    def write(self, data: Buffer) -> int:
        """Send what the client takes."""
        if self._client is None:
            return 0 if self.keep else len(memoryview(data))
        try:
            return self._client.send(data)
        except BlockingIOError:
            return 0
        except ConnectionError:
            self._farewell()
            return self.write(data)

    def _farewell(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            self._set(self._listener.fileno(), False)
            client.close()

    def _set(self, fd: int, connected: bool) -> None:
        self.read_fd = fd
        self.write_fd = fd if connected else -1
        self.connected = connected
        self.on_change()

    def close(self) -> None:
        """Close both and remove the socket; idempotent."""
        if self._listener.fileno() >= 0:
            if self._client is not None:
                self._client.close()
                self._client = None
            self._listener.close()
            self.read_fd = self.write_fd = -1
            if os.path.exists(self.path):
                os.unlink(self.path)

    def __repr__(self) -> str:
        return f"<SocketPort {self.path!r} {'connected' if self.connected else 'listening'}>"


def _is_abandoned(path: str) -> bool:
    """Say whether it is a socket, and nothing else that somebody may want to keep, on which nobody listens."""
    import socket
    import stat

    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED


class CallablePort(BasePort):
    """Python functions as the other end.

    Args:
        on_output: called with what the guest writes, in the thread that serves the device. It may return how many
            bytes it took; None is all of them. Call `on_change` when it would take more.

    >>> said = []
    >>> port = CallablePort(said.append)
    >>> port.write(b"hello")
    5
    >>> port.feed(b"world")
    >>> said, port.read(3), port.read(3)
    ([b'hello'], b'wor', b'ld')
    """

    def __init__(self, on_output: Callable[[bytes], int | None] | None = None) -> None:
        super().__init__()
        self._on_output = on_output
        self._input = bytearray()

    def feed(self, data: bytes) -> None:
        """Say something to the guest, from any thread: it takes it when it can."""
        self._input += data
        self.on_change()

    def waiting(self) -> int:
        """Return how many bytes wait for the guest."""
        return len(self._input)

    def read(self, limit: int) -> bytes:
        """Return what was fed."""
        data = bytes(self._input[:limit])
        del self._input[:limit]
        return data

    def write(self, data: Buffer) -> int:
        """Hand it to the function."""
        said = bytes(data)
        taken = self._on_output(said) if self._on_output is not None else None
        return len(said) if taken is None else taken

    def __repr__(self) -> str:
        return f"<CallablePort, {len(self._input)} bytes wait for the guest>"
