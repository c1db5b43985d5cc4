"""The NBD client against servers that QEMU would not be: hostile, old, slow, dying."""

import errno
import os
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
    yield
    assert threading.active_count() == 1
