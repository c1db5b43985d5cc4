"""The NBD client against servers that QEMU would not be: hostile, old, slow, dying."""

import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm_virtio.backends.block import FLUSH, READ, WRITE
from pyvmm_virtio.backends.errors import NbdError
from pyvmm_virtio.backends.nbd import NbdDisk
from pyvmm_virtio.backends.nbd import protocol as nbd

SIZE = 1 << 20
EVERYTHING = nbd.HAS_FLAGS | nbd.SEND_FLUSH | nbd.SEND_TRIM | nbd.SEND_WRITE_ZEROES
Script = Callable[[socket.socket], None]


class Server:
    """Answers on a TCP port with scripts, one for each connection."""

    def __init__(self, *scripts: Script) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = ("127.0.0.1", self.listener.getsockname()[1])
        self.scripts = scripts
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        for script in self.scripts:
            connection, _ = self.listener.accept()
            with connection:
                connection.settimeout(10)
                try:
                    script(connection)
                except OSError:
                    continue  # the client hung up, as it should

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self.listener.close()
        self.thread.join()


def greet(connection: socket.socket, flags: int = 3) -> None:
    connection.sendall(struct.pack(">QQH", nbd.NBDMAGIC, nbd.IHAVEOPT, flags))
    nbd.receive(connection, 4)


def take_option(connection: socket.socket) -> int:
    _, option, length = struct.unpack(">QII", nbd.receive(connection, 16))
    nbd.receive(connection, length)
    return int(option)


def reply(connection: socket.socket, kind: int, data: bytes = b"", option: int = nbd.OPT_GO) -> None:
    connection.sendall(struct.pack(">QIII", nbd.OPTION_REPLY_MAGIC, option, kind, len(data)) + data)


def shake_hands(connection: socket.socket, flags: int = EVERYTHING, size: int = SIZE) -> None:
    greet(connection)
    take_option(connection)
    reply(connection, nbd.REP_INFO, struct.pack(">HQH", nbd.INFO_EXPORT, size, flags))
    reply(connection, nbd.REP_INFO, struct.pack(">HIII", nbd.INFO_BLOCK_SIZE, 1, 4096, 65536))
    reply(connection, nbd.REP_INFO, b"\0\1name")
    reply(connection, nbd.REP_ACK)


def serve(content: bytearray, flags: int = EVERYTHING, seen: list[int] | None = None, batch: int = 1) -> Script:
    """A server as it should be, which answers `batch` requests at a time, the last first."""

    def script(connection: socket.socket) -> None:
        shake_hands(connection, flags, len(content))
        answers: list[bytes] = []
        while True:
            _, _, command, cookie, offset, length = nbd.REQUEST.unpack(nbd.receive(connection, nbd.REQUEST.size))
            if seen is not None:
                seen.append(command)
            data = b""
            if command == nbd.CMD_DISC:
                return
            if command == nbd.CMD_WRITE:
                content[offset : offset + length] = nbd.receive(connection, length)
            elif command == nbd.CMD_READ:
                data = bytes(content[offset : offset + length])
            elif command == nbd.CMD_WRITE_ZEROES:
                content[offset : offset + length] = bytes(length)
            answers.append(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, cookie) + data)
            if len(answers) >= batch:
                connection.sendall(b"".join(reversed(answers)))
                answers.clear()

    return script


def test_many_requests_under_way_and_answered_out_of_order() -> None:
    content = bytearray(os.urandom(SIZE))
    with Server(serve(content, batch=8)) as server, NbdDisk(server.address) as disk:
        targets = [memoryview(bytearray(4096)) for _ in range(16)]
        ended: list[int] = []
        for number, target in enumerate(targets):
            offset = number * 8192
            disk.submit(READ, [target[:1000], target[1000:]], offset, 4096, lambda error, n=number: ended.append(n))  # type: ignore[misc]
        assert "16 requests under way" in repr(disk)
        disk.drain()
        assert sorted(ended) == list(range(16))
        assert ended != sorted(ended)
        for number, target in enumerate(targets):
            assert target == content[number * 8192 : number * 8192 + 4096]


def test_large_requests_are_cut() -> None:
    content = bytearray(SIZE)
    seen: list[int] = []
    data = os.urandom(300_000 // 512 * 512)
    with Server(serve(content, seen=seen)) as server, NbdDisk(server.address) as disk:
        view = memoryview(data)
        disk.writev([view[:70_000], view[70_000:]], 512)
        assert content[512 : 512 + len(data)] == data
        assert seen.count(nbd.CMD_WRITE) == 5
        target = memoryview(bytearray(len(data)))
        disk.readv([target[:100], target[100:200_000], target[200_000:]], 512)
        assert target == data
        disk.readv([], 0)


def test_servers_that_can_little() -> None:
    content = bytearray(b"\x55" * SIZE)
    seen: list[int] = []
    with Server(serve(content, nbd.HAS_FLAGS, seen)) as server, NbdDisk(server.address) as disk:
        assert not disk.can_discard
        disk.flush()
        disk.discard(0, 4096)
        disk.write_zeroes(0, 200_192, False)
        assert content == bytes(200_192) + b"\x55" * (SIZE - 200_192)
    assert set(seen) == {nbd.CMD_WRITE, nbd.CMD_DISC}


def test_flags_of_the_export() -> None:
    def read_only(connection: socket.socket) -> None:
        shake_hands(connection, EVERYTHING | nbd.READ_ONLY)

    with Server(read_only) as server, NbdDisk(server.address) as disk:
        assert disk.read_only
        assert not disk.can_discard


def test_a_size_that_changes() -> None:
    content, larger = bytearray(SIZE), bytearray(2 * SIZE + 100)
    with Server(serve(content)) as server, NbdDisk(server.address) as disk:
        assert disk.size == SIZE
        with Server(serve(larger)) as second:
            disk._address = second.address
            assert disk.refresh() == 2 * SIZE


@pytest.mark.parametrize(
    ("error", "expected"), [(1, errno.EPERM), (5, errno.EIO), (12, errno.ENOMEM), (28, errno.ENOSPC), (77, errno.EIO)]
)
def test_errors_of_the_server_are_this_hosts(error: int, expected: int) -> None:
    def script(connection: socket.socket) -> None:
        shake_hands(connection)
        for _ in range(2):
            request = nbd.REQUEST.unpack(nbd.receive(connection, nbd.REQUEST.size))
            connection.sendall(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, error, request[3]))
        nbd.receive(connection, nbd.REQUEST.size)  # the farewell

    with Server(script) as server, NbdDisk(server.address) as disk:
        for _ in range(2):
            with pytest.raises(NbdError) as raised:
                disk.readv([memoryview(bytearray(512))], 0)
            assert raised.value.errno == expected


def test_a_server_that_dies_fails_everything_under_way_and_after() -> None:
    def script(connection: socket.socket) -> None:
        shake_hands(connection)
        nbd.receive(connection, nbd.REQUEST.size)

    with Server(script) as server, NbdDisk(server.address) as disk:
        errors: list[int] = []
        for op in (READ, WRITE, FLUSH):
            disk.submit(op, [memoryview(bytearray(512))], 0, 512, errors.append)
        disk.drain()
        assert errors == [errno.EIO] * 3
        assert disk.fileno() == -1
        with pytest.raises(NbdError, match="restart it"):
            disk.flush()


def test_a_server_that_says_nothing_is_given_up() -> None:
    done = threading.Event()

    def script(connection: socket.socket) -> None:
        shake_hands(connection)
        done.wait(10)

    with Server(script) as server:
        with NbdDisk(server.address) as disk:
            target = bytearray(512)
            errors: list[int] = []
            disk.submit(READ, [memoryview(target)], 0, 512, errors.append)
            disk.drain(0.05)
            assert errors == [errno.EIO]
        done.set()


def test_a_server_that_answers_byte_by_byte_is_given_up_as_well() -> None:
    def script(connection: socket.socket) -> None:
        shake_hands(connection)
        _, _, _, cookie, _, _ = nbd.REQUEST.unpack(nbd.receive(connection, nbd.REQUEST.size))
        connection.sendall(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, cookie))
        while True:
            connection.sendall(b"x")
            time.sleep(0.002)

    with Server(script) as server, NbdDisk(server.address) as disk:
        errors: list[int] = []
        disk.submit(READ, [memoryview(bytearray(SIZE // 16))], 0, SIZE // 16, errors.append)
        disk.drain(0.1)
        assert errors == [errno.EIO]


def test_what_is_under_way_when_a_disk_is_closed_fails() -> None:
    def script(connection: socket.socket) -> None:
        shake_hands(connection)
        nbd.receive(connection, 2 * nbd.REQUEST.size)

    with Server(script) as server, NbdDisk(server.address) as disk:
        errors: list[int] = []
        disk.submit(READ, [memoryview(bytearray(512))], 0, 512, errors.append)
        disk.close()
        assert errors == [errno.EIO]
        disk.drain()
        disk.close()


def test_more_than_a_socket_takes_is_sent_later() -> None:
    content = bytearray(SIZE)
    start = threading.Event()

    def script(connection: socket.socket) -> None:
        original = nbd.receive

        def slow(connection: socket.socket, count: int) -> bytes:
            start.wait(10)
            return original(connection, count)

        shake_hands(connection)
        while True:
            request = nbd.REQUEST.unpack(slow(connection, nbd.REQUEST.size))
            if request[2] == nbd.CMD_DISC:
                return
            content[request[4] : request[4] + request[5]] = slow(connection, request[5])
            connection.sendall(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, request[3]))

    with Server(script) as server, NbdDisk(server.address) as disk:
        data = os.urandom(SIZE)
        ended: list[int] = []
        for _ in range(8):
            disk.submit(WRITE, [memoryview(data)], 0, SIZE, ended.append)
        assert disk.wants_write()
        start.set()
        disk.drain()
        assert ended == [0] * 8
        assert content == data


# requests that are given up


class Scripted:
    """A server that a test plays: `disk` is connected to it, `peer` is its end after the handshake."""

    def __init__(self, *, buffer: int = 0) -> None:
        self.peer = socket.socket()
        ready, done = threading.Event(), threading.Event()
        self.done = done

        def script(connection: socket.socket) -> None:
            if buffer:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            shake_hands(connection)
            self.peer.close()
            self.peer = connection
            ready.set()
            done.wait(20)

        self.server = Server(script)
        self.disk = NbdDisk(self.server.address)
        assert ready.wait(10)

    def take(self) -> tuple[int, int, int, int]:
        """Receive a request; returns its command, cookie, offset and length."""
        _, _, command, cookie, offset, length = nbd.REQUEST.unpack(nbd.receive(self.peer, nbd.REQUEST.size))
        return command, cookie, offset, length

    def answer(self, cookie: int, data: bytes = b"", error: int = 0) -> None:
        """Send a reply."""
        self.peer.sendall(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, error, cookie) + data)

    def until(self, condition: Callable[[], object]) -> None:
        """Have the disk take what arrives until something is so."""
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            self.disk.on_ready()
            time.sleep(0.001)

    def hears(self) -> bool:
        """Say whether something comes within a moment."""
        return bool(select.select([self.peer], [], [], 0.2)[0])

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *error: object) -> None:
        self.disk.close()
        self.done.set()
        self.server.__exit__()


def test_a_read_that_is_given_up_fills_nothing() -> None:
    with Scripted() as server:
        disk, target, answers = server.disk, bytearray(4096), []  # type: ignore[var-annotated] # of ints
        first = disk.submit(READ, [memoryview(target)], 0, 4096, answers.append)
        second = disk.submit(READ, [memoryview(target)], 0, 4096, answers.append)
        cookies = [server.take()[1] for _ in range(2)]
        assert disk.cancel(first)
        assert disk.cancel(first)
        server.answer(cookies[0], b"a" * 4096)
        server.until(lambda: disk.under_way() == 1)
        assert target == bytes(4096)
        # and in the middle of its payload
        server.answer(cookies[1], b"b" * 1000)
        server.until(lambda: target[:1000] == b"b" * 1000)
        assert disk.cancel(second)
        server.peer.sendall(b"c" * 3096)
        server.until(lambda: not disk.under_way())
        assert target == b"b" * 1000 + bytes(3096)
        assert not answers
        assert "0 requests under way" in repr(disk)
        disk.submit(READ, [memoryview(target)], 0, 4096, answers.append)
        server.answer(server.take()[1], b"d" * 4096)
        server.until(lambda: answers == [0])
        assert target == b"d" * 4096


def fill(server: Scripted, data: bytearray) -> list[object]:
    """Write until the socket takes no more."""
    requests: list[object] = []
    while not server.disk.wants_write():
        requests.append(server.disk.submit(WRITE, [memoryview(data)], 0, len(data), int))
    return requests


def test_a_write_that_is_given_up_is_sent_to_its_end_from_a_copy_and_before_all_others() -> None:
    with Scripted() as server:
        disk, data = server.disk, bytearray(b"a" * 65536)
        requests = fill(server, data)
        issued = disk.under_way()
        for request in requests:
            assert disk.cancel(request)
        data[:] = b"b" * len(data)
        read = disk.submit(READ, [memoryview(bytearray(512))], 0, 512, int)
        disk.submit(FLUSH, (), 0, 0, int)
        cookies = []
        while server.hears():
            command, cookie, _, length = server.take()
            assert command == nbd.CMD_WRITE, "nothing else is issued while a write that was given up may come late"
            disk.on_ready()
            assert nbd.receive(server.peer, length) == b"a" * length
            cookies.append(cookie)
        assert issued - 1 <= len(cookies) <= issued
        for cookie in cookies:
            server.answer(cookie)
        server.until(server.hears)
        assert {server.take()[0] for _ in range(2)} == {nbd.CMD_READ, nbd.CMD_FLUSH}
        assert disk.cancel(read)


def test_what_was_not_sent_is_dropped() -> None:
    with Scripted() as server:
        requests = fill(server, bytearray(65536))
        more = [server.disk.submit(WRITE, [memoryview(bytes(1 << 20))], 0, 1 << 20, int) for _ in range(32)]
        assert server.disk.under_way() == 64
        for request in more:
            assert server.disk.cancel(request)
        assert server.disk.under_way() == len(requests)


@pytest.mark.parametrize("cookie", [0, 64, 65, 1 << 63])
def test_answers_to_what_was_not_asked_end_the_connection_and_nothing_else(cookie: int) -> None:
    with Scripted() as server:
        disk, answers = server.disk, []  # type: ignore[var-annotated] # of ints
        number = disk.fileno()
        data = bytes(8 << 20)
        disk.submit(WRITE, [memoryview(data)], 0, len(data), answers.append)
        while not disk.wants_write():
            disk.submit(WRITE, [memoryview(data)], 0, len(data), int)
        assert disk.under_way() == 64  # of which the last was not sent
        server.answer(cookie)
        server.until(lambda: answers == [errno.EIO])
        assert disk.fileno() == -1
        os.fstat(number)  # open still, for somebody may be registered for it
        disk.submit(READ, [memoryview(bytearray(512))], 0, 512, answers.append)
        assert answers == [errno.EIO] * 2


def test_flushes_that_wait_share_the_next_one() -> None:
    with Scripted() as server:
        disk = server.disk
        answers: list[tuple[int, int]] = []

        def note(number: int) -> Callable[[int], None]:
            return lambda error: answers.append((number, error))

        flushes = [disk.submit(FLUSH, (), 0, 0, note(number)) for number in range(5)]
        command, cookie, _, _ = server.take()
        assert command == nbd.CMD_FLUSH
        assert disk.cancel(flushes[0])
        assert disk.cancel(flushes[3])
        server.answer(cookie)
        server.until(server.hears)
        assert not answers
        server.answer(server.take()[1])
        server.until(lambda: answers == [(1, 0), (2, 0), (4, 0)])


# handshakes


def one_option(*replies: tuple[int, bytes]) -> Script:
    def script(connection: socket.socket) -> None:
        greet(connection)
        take_option(connection)
        for kind, data in replies:
            reply(connection, kind, data)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1000)

    return script


def sends(data: bytes) -> Script:
    def script(connection: socket.socket) -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1000)

    return script


EXPORT = struct.pack(">HQH", nbd.INFO_EXPORT, SIZE, nbd.HAS_FLAGS)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (sends(b""), "closed the connection"),
        (sends(b"SSH-2.0-OpenSSH_9.2p1 and so on"), "no newstyle NBD server"),
        (sends(struct.pack(">QQH", nbd.NBDMAGIC, nbd.IHAVEOPT, 0)), "does not do the fixed newstyle"),
        (one_option((nbd.REP_ERROR | 6, b"no such disk")), r"has no export of this name \(no such disk\)"),
        (one_option((nbd.REP_ERROR | 5, b"")), "asks for TLS"),
        (one_option((nbd.REP_ERROR | 99, b"")), "error 99"),
        (one_option((nbd.REP_ACK, b"")), "without saying what it is"),
        (one_option((nbd.REP_INFO, EXPORT)), "closed the connection"),
        (one_option((nbd.REP_INFO, struct.pack(">HIII", 3, 3, 4096, 65536))), "impossible block sizes"),
        (one_option((nbd.REP_INFO, struct.pack(">HIII", 3, 512, 4096, 1))), "impossible block sizes"),
        (
            one_option((nbd.REP_INFO, struct.pack(">HQH", 0, 511, 1)), (nbd.REP_ACK, b"")),
            "smaller than one sector",
        ),
    ],
)
def test_handshakes_that_fail(script: Script, message: str) -> None:
    with Server(script) as server, pytest.raises(NbdError, match=message):
        NbdDisk(server.address, "disk")


@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_a_handshake_without_end_ends(monkeypatch: pytest.MonkeyPatch, pause: float) -> None:
    monkeypatch.setattr(nbd, "PATIENCE", 0.2)

    def script(connection: socket.socket) -> None:
        greet(connection)
        take_option(connection)
        while True:
            reply(connection, nbd.REP_INFO, EXPORT)
            time.sleep(pause)

    with Server(script) as server, pytest.raises(NbdError, match="in time") as raised:
        NbdDisk(server.address)
    assert raised.value.errno == errno.ETIMEDOUT


def test_answers_to_another_option_are_refused() -> None:
    def script(connection: socket.socket) -> None:
        greet(connection)
        take_option(connection)
        reply(connection, nbd.REP_ACK, option=99)

    with Server(script) as server, pytest.raises(NbdError, match="makes no sense"):
        NbdDisk(server.address)


@pytest.mark.parametrize("flags", [1, 3])
def test_servers_without_the_newer_option(flags: int) -> None:
    def script(connection: socket.socket) -> None:
        greet(connection, flags)
        take_option(connection)
        reply(connection, nbd.UNSUPPORTED)
        assert take_option(connection) == nbd.OPT_EXPORT_NAME
        connection.sendall(struct.pack(">QH", SIZE, nbd.HAS_FLAGS) + bytes(0 if flags & 2 else 124))
        nbd.receive(connection, nbd.REQUEST.size)

    with Server(script) as server, NbdDisk(server.address, "disk") as disk:
        assert disk.size == SIZE


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = ("127.0.0.1", listener.getsockname()[1])
    with pytest.raises(ConnectionRefusedError):
        NbdDisk(address)
    with pytest.raises(FileNotFoundError):
        NbdDisk("/nowhere/socket")


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=1, max_size=200))
def test_rubbish_instead_of_replies_ends_the_connection_and_nothing_else(rubbish: bytes) -> None:
    def script(connection: socket.socket) -> None:
        shake_hands(connection)
        nbd.receive(connection, nbd.REQUEST.size)
        connection.sendall(rubbish)

    with Server(script) as server, NbdDisk(server.address) as disk:
        errors: list[int] = []
        disk.submit(READ, [memoryview(bytearray(512))], 0, 512, errors.append)
        disk.drain()
        assert errors == [errno.EIO]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() <= before
