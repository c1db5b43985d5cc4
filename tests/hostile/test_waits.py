"""Waits end: a reset, a pause, a state and a close, within a second or so, whatever a disk's back end does.

The back ends are all that there is a class for, each of which never answers: what works here is held within its system
call, as the kernel may hold it, and what has a server has one that is silent.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import struct
import sys
import threading
import time

import pytest
from tests.hostile.disks import HELD, Bench, Hold, disk_classes

from pyvmm_device.io_thread import IoThread
from pyvmm_virtio.backends.block import READ
from pyvmm_virtio.backends.memory import MemoryDisk
from pyvmm_virtio.backends.nbd import NbdDisk, QemuNbdServer, server
from pyvmm_virtio.backends.nbd import protocol as nbd
from pyvmm_virtio.backends.workers import WorkerDisk
from pyvmm_virtio.constants import block as c
from pyvmm_virtio.devices import Block
from pyvmm_virtio.driver import drive
from pyvmm_virtio.errors import DeviceBusy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import Any

SECONDS = 4.0
"""What a test gives a second on a busy machine."""
KINDS = disk_classes()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def within_time(function: Callable[[], object]) -> object:
    """Call something in a thread; returns what it returns, or fails where that takes too long."""
    result: list[object] = []
    thread = threading.Thread(target=lambda: result.append(function()), daemon=True)
    begin = time.monotonic()
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive(), f"it waits after {time.monotonic() - begin:.1f} s"
    return result[0] if result else None


def state_of(device: Block) -> object:
    """Save a device; one that somebody is held within says so."""
    device.pause()
    try:
        return json.dumps(device.state())
    except DeviceBusy:
        return None


ENDINGS: dict[str, Callable[[Block], object]] = {
    "reset": lambda device: device.driver_reset(),
    "queue reset": lambda device: device.driver_queue_reset(0),
    "pause": lambda device: device.pause(),
    "state": state_of,
    "close": lambda device: device.close(),
}


def submit(driver: Any, count: int) -> None:  # noqa: ANN401 - a BlockDriver
    """Put requests of each kind on their way, large enough to be nobody's to answer at once."""
    for at in range(count):
        driver.submit_request(c.VIRTIO_BLK_T_IN, at << 9, (), (1 << 18,), kick=False)
        driver.submit_request(c.VIRTIO_BLK_T_OUT, at << 9, (bytes(1 << 18),), kick=False)
        driver.submit_request(c.VIRTIO_BLK_T_FLUSH, kick=False)


def end(device: Block, ending: Callable[[Block], object], io: IoThread | None) -> None:
    """Bring a device that is held to its end, and see that nobody else waits."""
    kick = threading.Thread(target=device.kick, args=(0,), daemon=True)
    kick.start()
    time.sleep(0.05)
    within_time(lambda: ending(device))
    if io is not None and type(device.disk) is not MemoryDisk:
        # held or not, the loop goes on; a disk in memory is held by nothing but this test
        assert io.call(int, SECONDS)
    within_time(device.close)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("looped", [True, False])
def test_an_end_comes_whatever_the_back_end_does(bench: Bench, kind: type[Any], looped: bool) -> None:
    hold, tried, failures = Hold(), threading.Barrier(len(ENDINGS), timeout=60), []

    def try_one(name: str) -> None:
        io = IoThread("disk") if looped else None
        device = Block(bench.make(kind, answers=False), loop=io.loop if io is not None else None, data_plane=False)
        submit(drive(device), 8)
        try:
            end(device, ENDINGS[name], io)
        except AssertionError as error:
            failures.append(f"{name}: {error}")
        tried.wait()
        hold.go.set()
        if io is not None and not io.close(SECONDS):
            failures.append(f"{name}: the loop does not end")

    with hold.on(*HELD):
        threads = [threading.Thread(target=try_one, args=(name,)) for name in ENDINGS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_reset_that_is_not_over_reads_so_and_ends_with_what_held_it(bench: Bench, kind: type[Any]) -> None:
    hold = Hold()
    with hold.on(*HELD), IoThread("disk") as io:
        device = Block(bench.make(kind, answers=False), loop=io.loop, data_plane=False)
        driver = drive(device)
        submit(driver, 2)
        io.call(lambda: device.kick(0), 0.05)
        within_time(device.driver_reset)
        assert not device.resetting or hold.within, "nothing but what is held keeps a reset"
        hold.go.set()
        deadline = time.monotonic() + SECONDS
        while device.resetting and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not device.resetting
        within_time(device.close)
        driver.close()  # nothing holds memory any more


def test_jobs_that_have_not_begun_are_dropped_and_large_ones_are_left_in_the_middle() -> None:
    done: list[int] = []

    class Counted(MemoryDisk):
        def readv(self, views: Sequence[memoryview], offset: int) -> None:
            done.append(sum(map(len, views)))
            time.sleep(0.01)
            super().readv(views, offset)

    with WorkerDisk(Counted(64 << 20), 1) as disk:
        target = memoryview(bytearray(64 << 20))
        answers: list[int] = []
        jobs = [disk.submit(READ, [target], 0, len(target), answers.append) for _ in range(100)]
        while not done:
            time.sleep(0.001)
        for job in jobs:
            disk.cancel(job)
        within_time(lambda: disk.drain(SECONDS))
    assert len(done) < 64
    assert max(done) <= 1 << 20
    assert not answers or len(answers) == 1


# requests are kept over a pause, and in a state


@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if hasattr(kind, "submit")], ids=lambda kind: kind.__name__)
def test_what_is_not_finished_when_paused_is_done_when_resumed(bench: Bench, kind: type[Any], ring: str) -> None:
    hold = Hold()
    with hold.on(*HELD), IoThread("disk") as io:
        device = Block(bench.make(kind, answers=False), loop=io.loop, data_plane=False)
        with drive(device, ring=ring) as driver:
            data = os.urandom(1 << 17)
            write = driver.submit_write(8, data)
            within_time(device.pause)
            state = json.loads(json.dumps(within_time(device.state)))
            assert [entry["head"] for entry in state["own"]["requests"]]
            assert not write.done
            # the same requests, in another device over the same memory and another disk that answers
            hold.go.set()
            held = bench.make(kind)
            other = Block(held, loop=io.loop, data_plane=False)
            other.attach(device.memory)
            other.restore(state, device.interrupt)
            io.call(other.resume)
            driver.pump = lambda: time.sleep(0.001)
            driver.wait(write)
            assert driver.status_of(write) == c.VIRTIO_BLK_S_OK
            target = bytearray(len(data))
            other.pause()
            held.readv([memoryview(target)], 8 << 9)
            assert target == data
            other.close()
            device.close()


def test_in_the_same_process_it_goes_on_where_nothing_was_lost(bench: Bench) -> None:
    hold = Hold()
    with hold.on(*HELD), IoThread("disk") as io:
        device = Block(bench.make(WorkerDisk), loop=io.loop, data_plane=False)
        with drive(device, pump=lambda: time.sleep(0.001)) as driver:
            writes = [driver.submit_write(at << 9, bytes([at]) * (1 << 18)) for at in range(8)]
            within_time(device.pause)
            io.call(device.resume)
            hold.go.set()
            for write in writes:
                driver.finish(write)
            for at in range(8):
                assert driver.read(at << 9) == bytes([at]) * 512
            device.close()


def test_a_server_that_does_not_say_its_size_keeps_nobody_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbd, "PATIENCE", 0.5)
    disk = bench.make(NbdDisk)
    with IoThread("disk") as io:
        device = Block(disk, loop=io.loop)
        with drive(device, pump=lambda: time.sleep(0.001)) as driver:
            bench.servers[0].listener.close()
            silent = socket.socket(socket.AF_UNIX)
            os.unlink(bench.servers[0].path)
            silent.bind(bench.servers[0].path)
            silent.listen(8)
            failures: list[OSError] = []

            def resize() -> None:
                try:
                    device.resize()
                except OSError as error:
                    failures.append(error)

            threads = [threading.Thread(target=resize) for _ in range(3)]
            for thread in threads:
                thread.start()
            # served, reset and paused meanwhile
            assert driver.read(0) == bytes(512)
            within_time(device.pause)
            device.resume()
            driver.start()
            assert driver.read(0) == bytes(512)
            for thread in threads:
                thread.join(SECONDS)
            assert len(failures) == 3
            silent.close()
        device.close()


def test_the_thread_that_lets_go_last_may_close_the_disk() -> None:
    hold = Hold()
    with hold.on(MemoryDisk):
        disk = WorkerDisk(MemoryDisk(1 << 20), 1)
        job = disk.submit(READ, [memoryview(bytearray(512))], 0, 512, lambda _: disk.close())
        while not hold.within:
            time.sleep(0.001)
        assert not disk.cancel(job)
        hold.go.set()
        deadline = time.monotonic() + SECONDS
        while disk.fileno() >= 0 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert disk.fileno() < 0


# reaching a server


def dribble(connection: socket.socket) -> None:
    connection.sendall(struct.pack(">QQH", nbd.NBDMAGIC, nbd.IHAVEOPT, 3))
    while True:
        time.sleep(0.1)
        connection.sendall(b"\0")


SERVERS: dict[str, Callable[[socket.socket], object] | None] = {
    "nobody accepts": None,
    "silent": lambda connection: connection.recv(1 << 20, socket.MSG_WAITALL),
    "byte by byte": dribble,
}


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("family", ["unix", "tcp"])
def test_connecting_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, family: str) -> None:
    monkeypatch.setattr(nbd, "PATIENCE", 0.3)
    listener = socket.socket(socket.AF_UNIX if family == "unix" else socket.AF_INET)
    listener.bind(str(tmp_path / "socket") if family == "unix" else ("127.0.0.1", 0))
    listener.listen(0)
    address = listener.getsockname()
    script, waiting = SERVERS[name], []
    if script is None:
        for _ in range(3):
            waiting.append(socket.socket(listener.family))
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(address)
    else:
        threading.Thread(target=lambda: serve(listener, script), daemon=True).start()
    try:
        with pytest.raises(OSError, match=r"in time|accepted nobody"):
            NbdDisk(address)
    finally:
        for each in [*waiting, listener]:
            each.close()


def serve(listener: socket.socket, script: Callable[[socket.socket], object]) -> None:
    connection, _ = listener.accept()
    with contextlib.suppress(OSError), connection:
        script(connection)


def test_a_qemu_that_does_not_end_is_left_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "END_SECONDS", 0.2)
    tool = tmp_path / "stubborn-qemu-nbd"
    tool.write_text(
        f"#!{sys.executable}\n"
        "import signal, socket, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "listener = socket.socket(socket.AF_UNIX)\n"
        "listener.bind(next(word for word in sys.argv if word.startswith('--socket='))[9:])\n"
        "listener.listen()\n"
        "time.sleep(60)\n"
    )
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    stubborn = QemuNbdServer("image", "qcow2", tool=str(tool))
    within_time(stubborn.close)
    deadline = time.monotonic() + SECONDS
    while os.path.exists(os.path.dirname(stubborn.socket)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not os.path.exists(os.path.dirname(stubborn.socket)), "it was killed, and its folder removed"
