"""One device cannot silence another: while it does the worst that its guest can ask for, the event loop goes on.

The loop of a machine has a console here, which echoes what is typed as soon as the loop comes to it. Beside it are, one
after another, every device and every disk that there is a class for, in the same loop, where they take slices, and in
a loop of their own. What is asserted leaves room for a busy machine; `benchmarks/` has the figures.
"""

from __future__ import annotations

import errno
import inspect
import os
import socket
import struct
import threading
import time

import pytest
from tests.hostile.disks import Bench, disk_classes
from tests.hostile.test_work import MEMORY, offer_large
from tests.hostile.virtio_devices import MADE_OF, device_classes, dispose, make_device

from pyvmm_device import EventLoop
from pyvmm_device.io_thread import IoThread
from pyvmm_memory import GuestMemoryMmap
from pyvmm_virtio.constants import block as c
from pyvmm_virtio.devices import Block
from pyvmm_virtio.driver import drive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from pyvmm_virtio.device import VirtioDevice

ECHOES = 40
MOSTLY, EVER = 0.5, 3.0
"""Seconds within which nine echoes of ten come, and all; on a machine with nothing else to do they take a hundredth."""
HEADERS = {"read": struct.pack("<IIQ", c.VIRTIO_BLK_T_IN, 0, 0), "zeros": struct.pack("<IIQ", 13, 0, 0)}


class Machine:
    """An event loop in a thread, and a console that echoes."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.person, self.console = socket.socketpair()
        self.person.settimeout(10)
        self.loop.add_reader(self.console.fileno(), lambda: self.console.send(self.console.recv(100)))
        self.thread = threading.Thread(target=self.loop.run, daemon=True)
        self.thread.start()

    def type(self) -> float:
        """Type a key; returns how long its echo took."""
        begin = time.monotonic()
        self.person.send(b"x")
        assert self.person.recv(1) == b"x"
        time.sleep(0.002)
        return time.monotonic() - begin

    def close(self) -> None:
        """Switch it off."""
        self.loop.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()
        assert not self.loop.errors
        self.loop.close()
        self.person.close()
        self.console.close()


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def echoes_beside(machine: Machine, make: Callable[[EventLoop], VirtioDevice], header: bytes, loop: EventLoop) -> None:
    """Attack a device in a loop, and type meanwhile."""
    with GuestMemoryMmap.from_ranges([(0, MEMORY)]) as memory:
        device = make(loop)
        driver = drive(device, memory=memory)
        offer_large(driver, header)
        for queue in range(len(device.queues)):
            loop.call_soon(lambda queue=queue: device.kick(queue))  # type: ignore[misc] # a default of its own
        times = [machine.type() for _ in range(ECHOES)]
        device.driver_reset()
        dispose(device)
        driver.close()
    times.sort()
    assert times[ECHOES * 9 // 10] < MOSTLY, f"echoes take {times}"
    assert times[-1] < EVER, f"an echo took {times[-1]:.2f} s"


def beside_and_within(machine: Machine, make: Callable[[EventLoop], VirtioDevice], header: bytes) -> None:
    """Attack a device in the machine's loop, and in one of its own."""
    echoes_beside(machine, make, header, machine.loop)
    with IoThread("device") as io:
        echoes_beside(machine, make, header, io.loop)


@pytest.mark.parametrize("kind", device_classes(), ids=lambda kind: kind.__name__)
def test_the_console_echoes_beside_any_device(machine: Machine, kind: type[Any]) -> None:
    for header in (b"", *HEADERS.values()):
        beside_and_within(machine, lambda loop: make_device(kind, loop), header)


@pytest.mark.parametrize("kind", disk_classes(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("answers", [True, False])
def test_the_console_echoes_beside_any_disk(machine: Machine, bench: Bench, kind: type[Any], answers: bool) -> None:
    for header in HEADERS.values():
        beside_and_within(machine, lambda loop: Block(bench.make(kind, answers=answers), loop=loop), header)


class Broken:
    """The other end of a device that was taken away: its descriptor is always ready, and whatever is tried fails."""

    def __init__(self, whole: Any) -> None:  # noqa: ANN401 - a back end of any kind
        self._whole = whole
        self._read, self._write = os.pipe()
        os.write(self._write, b"ready")
        self.read_fd = self._read
        self.tries = 0

    def fileno(self, *_: int) -> int:
        return self._read

    def refuse(self, *_: object) -> int:
        self.tries += 1
        raise OSError(errno.EBADFD, "the device is gone")

    read = receive = refuse

    def __getattr__(self, name: str) -> object:
        return getattr(self._whole, name)

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


LISTENING = [
    kind for kind in device_classes() if next(iter(inspect.signature(kind).parameters)) in ("backend", "ports")
]


@pytest.mark.parametrize("kind", LISTENING, ids=lambda kind: kind.__name__)
def test_what_is_ready_and_fails_does_not_keep_the_loop_awake(kind: type[Any]) -> None:
    name = next(iter(inspect.signature(kind).parameters))
    ends = MADE_OF[name]()
    end = Broken(ends[0])
    with EventLoop() as loop, GuestMemoryMmap.from_ranges([(0, MEMORY)]) as memory:
        device = kind(end, loop=loop)
        driver = drive(device, memory=memory)
        driver.submit_buffers(0, [(MEMORY // 2, 4096, 2)])
        until = time.monotonic() + 0.4
        rounds = 0
        while time.monotonic() < until:
            loop.run_once(0.05)
            rounds += 1
        assert 0 < end.tries < 10
        assert rounds < 50
        tried = end.tries
        until = time.monotonic() + 5
        while end.tries == tried and time.monotonic() < until:
            loop.run_once(0.05)
        assert end.tries > tried, "it does not look again"
        device.driver_reset()
        device.close()
        driver.close()
    for each in ends:
        getattr(each, "close", int)()
