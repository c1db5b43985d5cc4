"""The console device, driven as a guest does, by both transports and both rings."""

from __future__ import annotations

import os
import select
import socket
import struct

import pytest

from pyvmm_device import EventLoop
from pyvmm_virtio.backends.port import BasePort, CallablePort, FdPort, PtyPort, SocketPort
from pyvmm_virtio.constants import console as c
from pyvmm_virtio.devices import Console, Port
from pyvmm_virtio.driver import drive
from pyvmm_virtio.errors import VirtioUsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Buffer

BOTH = [(transport, ring) for transport in ("mmio", "pci") for ring in ("split", "packed")]
TEXT = bytes(range(256)) * 20


class Slow(BasePort):
    """Takes little at a time."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step
        self.got = bytearray()

    def write(self, data: Buffer) -> int:
        taken = memoryview(data)[: self.step]
        self.got += taken
        self.step -= len(taken)
        return len(taken)


@pytest.mark.parametrize(("transport", "ring"), BOTH)
def test_one_console(transport: str, ring: str) -> None:
    said: list[bytes] = []
    port = CallablePort(said.append)
    device = Console(port, size=(132, 43))
    port.feed(b"typed before anybody listened")
    with drive(device, transport, ring) as driver:
        assert len(driver.queues) == 2
        assert driver.size == (132, 43)
        assert driver.read(29) == b"typed before anybody listened"
        driver.write(TEXT)
        assert b"".join(said) == TEXT
        port.feed(TEXT)
        assert driver.read(len(TEXT)) == TEXT
        device.resize(80, 25)
        driver.poll()
        assert driver.config_changes == 1
        assert driver.size == (80, 25)
    device.close()


def test_what_is_not_taken_now_is_taken_later() -> None:
    slow = Slow(100)
    device = Console(slow)
    with drive(device) as driver:
        requests = [driver.submit(1, (TEXT[:300],)) for _ in range(3)]
        driver.poll()
        assert [request.done for request in requests] == [False] * 3
        assert slow.got == TEXT[:100]
        for room in (100, 100, 0, 350, 1000):
            slow.step += room
            slow.on_change()
        for request in requests:
            driver.wait(request)
        assert slow.got == TEXT[:300] * 3


def test_a_reset_forgets_what_was_not_taken() -> None:
    slow = Slow(10)
    device = Console(slow)
    with drive(device) as driver:
        driver.submit(1, (b"x" * 20,))
        driver.reset()
        slow.step = 1000
        driver.write(b"y" * 20)
        assert slow.got == b"x" * 10 + b"y" * 20
        slow.step = 10
        driver.submit(1, (b"z" * 20,))
        driver.reset_queue(1)
        slow.step = 1000
        driver.write(b"end")
        assert slow.got[30:] == b"z" * 10 + b"end"


def test_nothing_typed_is_lost_while_there_are_no_buffers() -> None:
    port = CallablePort()
    device = Console(port)
    with drive(device, start=False) as driver:
        driver.buffer_count = 1
        driver.start()
        for at in range(0, len(TEXT), 100):
            port.feed(TEXT[at : at + 100])
        assert driver.read(len(TEXT)) == TEXT
        request = driver.submit_buffers(0, [(driver.arena.put(b"no room"), 7, 0)])
        port.feed(b"x")
        assert driver.read(1) == b"x"
        assert request.done


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_a_client_that_comes_and_speaks_at_once(ring: str, tmp_path: Path) -> None:
    port = SocketPort(str(tmp_path / "socket"))
    device = Console(port)
    with drive(device, ring=ring) as driver, socket.socket(socket.AF_UNIX) as client:
        client.connect(port.path)
        client.sendall(b"hello")
        # that it came is news in the middle of reading what it says, when a buffer for that is taken already
        device.poll()
        assert driver.read(5) == b"hello"
        for number in range(40):
            client.sendall(b"%03d" % number)
            device.poll()
            assert driver.read(3) == b"%03d" % number
    device.close()


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_functions_that_answer_at_once(ring: str) -> None:
    answers: list[bytes] = []

    def answer(said: bytes) -> None:
        answers.append(said)
        port.feed(said)

    port = CallablePort(answer)
    parts = [(b"a%02d" % number, b"b%02d" % number) for number in range(100)]
    with drive(Console(port), ring=ring) as driver:
        for both in parts:
            driver.submit(1, both, kick=False)
        driver.kick(1)
        everything = b"".join(b"".join(both) for both in parts)
        assert driver.read(len(everything)) == everything
        assert b"".join(answers) == everything


@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize(("transport", "ring"), BOTH)
def test_more_is_typed_than_fits_into_a_whole_ring(transport: str, ring: str, looped: bool) -> None:
    port = CallablePort()
    with EventLoop() as loop:
        device = Console(port, queue_size=4, loop=loop if looped else None)
        pump = (lambda: loop.run_once(0.01)) if looped else None
        with drive(device, transport, ring, indirect=False, pump=pump) as driver:
            port.feed(TEXT)
            assert driver.read(len(TEXT)) == TEXT
        device.close()


@pytest.mark.parametrize("looped", [False, True])
def test_a_guest_that_writes_without_end_lets_others_in(looped: bool) -> None:
    sizes: list[int] = []
    with EventLoop() as loop:
        device = Console(CallablePort(lambda data: sizes.append(len(data))), loop=loop if looped else None)
        with drive(device) as driver:
            addr = driver.arena.alloc(1 << 20)
            request = driver.submit_buffers(1, [(addr, 1 << 20, 0)] * 3)
            turns = 0
            driver.poll()
            while not request.done:
                assert sum(sizes) == (turns + 1) << 20
                loop.run_once(0)
                driver.poll()
                turns += 1
            assert looped == bool(turns)
            assert max(sizes) <= 65536
            assert sum(sizes) == 3 << 20
        device.close()


def test_the_emergency_register_needs_no_queues() -> None:
    said: list[bytes] = []
    with drive(Console(CallablePort(said.append)), start=False) as driver:
        driver.port.set_status(3)
        for character in b"help":
            driver.set_config(8, character, 4)
        driver.set_config(4, 1, 4)
        assert b"".join(said) == b"help"


# several ports


@pytest.mark.parametrize(("transport", "ring"), BOTH)
def test_ports_are_introduced(transport: str, ring: str) -> None:
    ports = [CallablePort() for _ in range(3)]
    device = Console(ports[0], Port(ports[1], "org.lesson.0"), Port(ports[2], console=True), size=(80, 25))
    with drive(device, transport, ring) as driver:
        assert driver.config_value(4, 4) == 3
        driver.wait_until(lambda: len(driver.events) >= 9)
        events = {number: [event[1:] for event in driver.events if event[0] == number] for number in range(3)}
        console = [(c.VIRTIO_CONSOLE_PORT_ADD, 0, b""), (c.VIRTIO_CONSOLE_CONSOLE_PORT, 1, b"")]
        opened = (c.VIRTIO_CONSOLE_PORT_OPEN, 1, b"")
        size = (c.VIRTIO_CONSOLE_RESIZE, 0, struct.pack("<HH", 80, 25))
        assert events[0] == [*console, size, opened]
        assert events[1] == [console[0], (c.VIRTIO_CONSOLE_PORT_NAME, 1, b"org.lesson.0"), opened]
        assert events[2] == [*console, opened]
        for number, port in enumerate(ports):
            port.feed(b"to port %d" % number)
            assert driver.read(9, number) == b"to port %d" % number
        device.resize(100, 30, 2)
        device.resize(101, 31)
        driver.poll()
        sizes = [event for event in driver.events if event[1] == c.VIRTIO_CONSOLE_RESIZE][1:]
        assert sizes == [
            (2, c.VIRTIO_CONSOLE_RESIZE, 0, struct.pack("<HH", 100, 30)),
            (0, c.VIRTIO_CONSOLE_RESIZE, 0, struct.pack("<HH", 101, 31)),
        ]


def test_output_of_each_port_goes_to_its_other_end() -> None:
    said: list[list[bytes]] = [[], [], []]
    device = Console(*(CallablePort(each.append) for each in said))
    with drive(device, "pci") as driver:
        for number in (2, 0, 1):
            driver.write(b"port %d" % number, number)
        assert said == [[b"port 0"], [b"port 1"], [b"port 2"]]


def test_ports_come_and_go() -> None:
    device = Console(CallablePort(), max_ports=3)
    with drive(device) as driver:
        driver.wait_until(lambda: bool(driver.events))
        driver.events.clear()
        port = CallablePort()
        assert device.add_port(Port(port, "late")) == 1
        driver.wait_until(lambda: (1, c.VIRTIO_CONSOLE_PORT_NAME, 1, b"late") in driver.events)
        port.feed(b"hello")
        assert driver.read(5, 1) == b"hello"
        driver.events.clear()
        device.remove_port(1)
        driver.wait_until(lambda: bool(driver.events))
        assert driver.events == [(1, c.VIRTIO_CONSOLE_PORT_REMOVE, 0, b"")]
        port.feed(b"nobody")
        driver.control(1, c.VIRTIO_CONSOLE_PORT_OPEN, 1)
        driver.submit(5, (b"to a port that has gone",))
        assert device.add_port(Port(CallablePort()), 2) == 2
        for number in (0, 2, 3):
            with pytest.raises(VirtioUsageError, match="no free port"):
                device.add_port(Port(CallablePort()), number)
        with pytest.raises(VirtioUsageError, match="there is no port 1"):
            device.remove_port(1)
        assert not driver.needs_reset


@pytest.mark.parametrize(("transport", "ring"), BOTH)
def test_a_port_that_is_pulled_out_in_the_middle_of_a_write(transport: str, ring: str) -> None:
    device = Console(CallablePort(), Port(Slow(5), "slow"))
    with drive(device, transport, ring) as driver:
        driver.wait_until(lambda: device.ports[1].guest_open)
        waiting = [driver.submit(5, (TEXT[:100],)) for _ in range(3)]
        driver.poll()
        assert not any(request.done for request in waiting)
        device.remove_port(1)
        for request in waiting:
            driver.wait(request)
        driver.write(b"to nobody", port=1)
        said: list[bytes] = []
        device.add_port(Port(CallablePort(said.append), "other"), 1)
        driver.wait_until(lambda: device.ports[1].guest_open)
        for _ in range(200):
            driver.write(b"x", port=1)
        assert b"".join(said) == b"x" * 200


@pytest.mark.parametrize("needs_reset", [True, False])
def test_what_is_typed_for_nobody_lets_the_loop_sleep(needs_reset: bool) -> None:
    reading, writing = os.pipe()
    with EventLoop() as loop:
        device = Console(FdPort(reading), loop=loop)
        with drive(device, pump=lambda: loop.run_once(0.01)) as driver:
            os.write(writing, b"one")
            assert driver.read(3) == b"one"
            if needs_reset:
                driver.submit_buffers(1, [(1 << 40, 1, 0)])
                assert driver.needs_reset
            else:
                device.pause()
            os.write(writing, b"two")
            for _ in range(3):
                loop.run_once(0)
            assert not select.select([loop.fileno()], [], [], 0)[0]
            if needs_reset:
                driver.reset()
            else:
                device.resume()
            assert driver.read(3) == b"two"
            os.write(writing, b"three")
            assert driver.read(5) == b"three"
        device.close()
    os.close(reading)
    os.close(writing)


def test_what_is_said_to_a_closed_port_lets_the_loop_sleep() -> None:
    reading, writing = os.pipe()
    with EventLoop() as loop:
        device = Console(CallablePort(), Port(FdPort(reading), "data"), loop=loop)
        with drive(device, pump=lambda: loop.run_once(0.01)) as driver:
            driver.wait_until(lambda: device.ports[1].guest_open)
            os.write(writing, b"one")
            assert driver.read(3, port=1) == b"one"
            driver.control(1, c.VIRTIO_CONSOLE_PORT_OPEN, 0)
            os.write(writing, b"two")
            for _ in range(3):
                loop.run_once(0)
            assert not select.select([loop.fileno()], [], [], 0)[0]
            driver.control(1, c.VIRTIO_CONSOLE_PORT_OPEN, 1)
            assert driver.read(3, port=1) == b"two"
        device.close()
    os.close(reading)
    os.close(writing)


def test_what_is_said_to_a_closed_port_waits() -> None:
    port = CallablePort()
    device = Console(CallablePort(), port)
    with drive(device) as driver:
        driver.wait_until(lambda: len(driver.events) >= 2)
        driver.control(1, c.VIRTIO_CONSOLE_PORT_OPEN, 0)
        port.feed(b"later")
        driver.poll()
        assert 1 not in driver.input
        driver.control(1, c.VIRTIO_CONSOLE_PORT_OPEN, 1)
        assert driver.read(5, 1) == b"later"


def test_drivers_that_know_of_one_port_only() -> None:
    said: list[bytes] = []
    device = Console(CallablePort(said.append), CallablePort())
    with drive(device, features=0) as driver:
        driver.write(b"hello")
        assert said == [b"hello"]
        device.kick(3)
        device.kick(4)
        assert not driver.needs_reset


def test_drivers_that_cannot_use_a_port(caplog: pytest.LogCaptureFixture) -> None:
    with drive(Console(CallablePort(), CallablePort())) as driver:
        for _ in range(3):
            driver.control(1, c.VIRTIO_CONSOLE_PORT_READY, 0)
        assert caplog.text.count("cannot use") == 1, "a guest does not fill the log"
        driver.control(99, c.VIRTIO_CONSOLE_PORT_READY, 1)
        driver.control(0, 77, 1)
        assert not driver.needs_reset
        driver.submit(3, (b"short",))
        assert driver.needs_reset


def test_drivers_that_do_not_listen_are_not_remembered_for_ever() -> None:
    device = Console(CallablePort(), CallablePort())
    with drive(device, start=False) as driver:
        driver.buffer_count = 0
        driver.start()
        for _ in range(3000):
            driver.control(0, c.VIRTIO_CONSOLE_PORT_READY, 1)
            driver.poll()
            if driver.needs_reset:
                break
        assert driver.needs_reset
        assert "control messages wait" in str(device.last_error)


@pytest.mark.parametrize(("ports", "most"), [(0, 0), (1, 512)])
def test_impossible_consoles(ports: int, most: int) -> None:
    with pytest.raises(VirtioUsageError, match="a console has 1 to 511"):
        Console(*(CallablePort() for _ in range(ports)), max_ports=most)
    with pytest.raises(VirtioUsageError, match="no back end"):
        Console(print)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(65536, 25), (80, -1)])
def test_impossible_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(VirtioUsageError, match="up to 65535"):
        Console(CallablePort(), size=size)
    with pytest.raises(VirtioUsageError, match="up to 65535"):
        Console(CallablePort()).resize(*size)


# with a loop


def test_terminals_and_pipes(tmp_path: Path) -> None:
    reading, theirs = os.pipe()
    with EventLoop() as loop:
        pty, path = PtyPort(), str(tmp_path / "socket")
        listening = SocketPort(path)
        device = Console(pty, Port(FdPort(reading)), Port(listening), loop=loop)
        with drive(device, pump=lambda: loop.run_once(0.01)) as driver:
            driver.wait_until(lambda: len(driver.events) >= 6)
            person = os.open(pty.path, os.O_RDWR | os.O_NOCTTY)
            os.write(person, b"typed")
            assert driver.read(5) == b"typed"
            request = driver.submit(1, (TEXT,))
            got = b""
            os.set_blocking(person, False)
            while len(got) < len(TEXT):
                try:
                    got += os.read(person, 4096)
                except BlockingIOError:
                    loop.run_once(0.01)
                    driver.poll()
            assert got == TEXT
            driver.wait(request)
            os.write(theirs, TEXT)
            assert driver.read(len(TEXT), 1) == TEXT
            os.close(theirs)
            driver.events.clear()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                client.sendall(b"by socket")
                assert driver.read(9, 2) == b"by socket"
                assert (2, c.VIRTIO_CONSOLE_PORT_OPEN, 1, b"") in driver.events
                driver.write(b"back", 2)
                assert client.recv(100) == b"back"
            driver.wait_until(lambda: (2, c.VIRTIO_CONSOLE_PORT_OPEN, 0, b"") in driver.events)
            os.close(person)
        device.close()
    os.close(reading)


def test_a_file_as_input(tmp_path: Path) -> None:
    path = tmp_path / "typed"
    path.write_bytes(TEXT)
    with EventLoop() as loop, path.open("rb", buffering=0) as file:
        port = FdPort(file.fileno())
        with drive(Console(port, loop=loop), pump=lambda: loop.run_once(0.01)) as driver:
            assert driver.read(len(TEXT)) == TEXT
            driver.poll()
            assert port.read_fd == -1
