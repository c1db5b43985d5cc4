"""The other ends of a console's ports: what comes out is what went in, whoever is slow."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from pyvmm_virtio.backends.port import CallablePort, FdPort, FilePort, PtyPort, SocketPort

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

DATA = bytes(range(256)) * 1024


def test_descriptors_take_what_there_is_room_for() -> None:
    reading, writing = os.pipe()
    port = FdPort(-1, writing)
    taken = 0
    while count := port.write(memoryview(DATA)[taken:]):
        taken += count
    assert 4096 <= taken < len(DATA)
    got = b""
    while len(got) < len(DATA):
        got += os.read(reading, 65536)
        taken += port.write(memoryview(DATA)[taken:])
    assert got == DATA
    assert os.get_blocking(writing), "it is not ours to change"
    os.close(reading)
    changes: list[bool] = []
    port.on_change = lambda: changes.append(port.connected)
    assert port.write(b"nobody") == 6
    assert changes == [False]
    assert "nobody there" in repr(port)
    os.close(writing)


def test_descriptors_end() -> None:
    reading, writing = os.pipe()
    with FdPort(reading) as port:
        assert port.read(10) == b""
        os.write(writing, b"typed")
        assert port.read(3) == b"typ"
        assert port.read(3) == b"ed"
        os.close(writing)
        assert port.read(3) == b""
        assert port.read_fd == -1
        assert port.read(3) == b""
        assert port.write(b"dropped") == 7
    os.close(reading)


def test_a_terminal_that_is_hung_up_has_no_more_input() -> None:
    ours, theirs = os.openpty()
    with FdPort(ours, ours) as port:
        os.close(theirs)
        changes: list[int] = []
        port.on_change = lambda: changes.append(port.read_fd)
        assert port.read(10) == b""
        assert changes == [-1]
    os.close(ours)


def test_a_pseudo_terminal() -> None:
    with PtyPort() as port:
        other = os.open(port.path, os.O_RDWR | os.O_NOCTTY)
        assert port.write(b"hello\n") == 6
        assert os.read(other, 100) == b"hello\n"
        os.write(other, b"typed\r")
        assert port.read(100) == b"typed\r"
        assert port.read(100) == b""
        os.close(other)
        assert port.read(100) == b"", "others may come"
        assert port.path in repr(port)
    port.close()


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old ")
    with FilePort(str(path), append=True) as port:
        assert port.write(b"new") == 3
        assert port.read(10) == b""
    with FilePort(str(path)) as port:
        assert path.read_bytes() == b""
        port.write(b"once more")
    port.close()
    assert path.read_bytes() == b"once more"


def test_a_full_disk_loses_output_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with FilePort("/dev/full", append=True) as port:
        assert [port.write(b"abc") for _ in range(3)] == [3, 3, 3]
        assert port.lost == 9
    assert caplog.text.count("/dev/full: output is lost: No space left") == 1


@pytest.mark.parametrize("keep", [False, True])
def test_a_socket_with_one_client_after_the_other(tmp_path: Path, keep: bool) -> None:
    path = str(tmp_path / "console")
    with SocketPort(path, keep=keep) as port:
        changes: list[bool] = []
        port.on_change = lambda: changes.append(port.connected)
        assert port.read(100) == b""
        assert port.write(b"nobody") == (0 if keep else 6)
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                assert port.read(100) == b""
                assert port.connected
                assert port.write_fd == port.read_fd
                client.sendall(b"typed")
                assert port.read(100) == b"typed"
                assert port.write(b"hello") == 5
                assert client.recv(100) == b"hello"
            assert port.read(100) == b""
            assert not port.connected
        assert changes == [True, False] * 2
        assert "listening" in repr(port)
    assert not os.path.exists(path)
    port.close()


def test_a_client_that_does_not_read(tmp_path: Path) -> None:
    path = str(tmp_path / "console")
    with SocketPort(path, keep=True) as port, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        port.read(1)
        taken = 0
        while count := port.write(memoryview(DATA)[taken:]):
            taken += count
        assert taken
        client.close()
        assert port.write(b"more") == 0
        assert not port.connected


def test_sockets_of_the_dead_are_replaced_and_of_the_living_are_not(tmp_path: Path) -> None:
    path = str(tmp_path / "console")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with SocketPort(path), pytest.raises(OSError, match="in use") as refusal:
        SocketPort(path)
    assert refusal.value.errno == errno.EADDRINUSE
    assert refusal.value.filename == path


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"precious")
    with pytest.raises(OSError, match="no socket can be made there") as refusal:
        SocketPort(str(path))
    assert refusal.value.errno == errno.EADDRINUSE
    assert path.read_bytes() == b"precious"
    with pytest.raises(OSError, match="no socket can be made there"):
        SocketPort("/" + "a" * 200)


def test_functions_may_take_a_part() -> None:
    said = bytearray()

    def slowly(data: bytes) -> int:
        said.extend(data[:2])
        return min(2, len(data))

    port = CallablePort(slowly)
    assert port.write(b"hello") == 2
    assert CallablePort().write(b"dropped") == 7
    port.feed(b"x")
    assert "1 bytes wait" in repr(port)
