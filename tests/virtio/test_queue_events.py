"""Queues tied to eventfds, with a hypervisor that only takes note of what it shall watch."""

import os
from collections.abc import Iterator

import pytest

from pyvmm_device import EventLoop
from pyvmm_memory import GuestMemoryMmap
from pyvmm_virtio.driver import drive
from pyvmm_virtio.transport import QueueEvents, VirtioMmio

from .echo import Echo

Watch = tuple[int, int, int, int | None]
BASE = 0xD0000000


class Hypervisor:
    """Refuses what KVM refuses: the same twice, and to undo what was not done; `room` is for how many."""

    def __init__(self) -> None:
        self.watched: list[Watch] = []
        self.room = 100

    def assign(self, *watch: int | None) -> None:
        if len(self.watched) == self.room:
            raise OSError(28, "no space")
        assert watch not in self.watched
        self.watched.append(watch)  # type: ignore[arg-type]  # by position, as it is called

    def deassign(self, *watch: int | None) -> None:
        self.watched.remove(watch)  # type: ignore[arg-type]  # by position, as it is called

    def places(self) -> list[tuple[int, int, int | None]]:
        return [(address, length, datamatch) for address, length, _, datamatch in self.watched]


class Kicked(Echo):
    def __init__(self) -> None:
        super().__init__()
        self.kicks: list[int] = []

    def kick(self, index: int) -> None:
        self.kicks.append(index)
        super().kick(index)


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    with EventLoop() as loop:
        yield loop


def test_mmio(loop: EventLoop) -> None:
    device, hypervisor = Kicked(), Hypervisor()
    transport = VirtioMmio(device, GuestMemoryMmap.from_ranges([(0, 0x1000)]))
    events = QueueEvents(transport, loop, hypervisor.assign, hypervisor.deassign)
    assert not hypervisor.watched
    events.move(BASE)
    assert hypervisor.places() == [(BASE + 0x50, 4, 0), (BASE + 0x50, 4, 1)]
    fds = [fd for _, _, fd, _ in hypervisor.watched]
    for queue in (1, 0):
        os.eventfd_write(fds[queue], 1)
        loop.run_once()
    assert device.kicks == [1, 0]
    assert "2 queues, at 0xd0000000" in repr(events)
    events.close()
    events.close()
    assert not hypervisor.watched
    assert "nowhere" in repr(events)
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_pci_where_the_guest_moves_it(loop: EventLoop) -> None:
    hypervisor = Hypervisor()
    with drive(Echo(), "pci") as driver:
        transport = driver.transport
        events = QueueEvents(transport, loop, hypervisor.assign, hypervisor.deassign)
        events.move(transport.notify_base())
        transport.on_notify_moved = events.move
        base = transport.notify_base()
        there = [(base, 0, None), (base + 4, 0, None)]
        assert hypervisor.places() == there
        driver.port.config_set(4, 0, 2)
        assert not hypervisor.watched
        driver.port.config_set(4, 6, 2)
        assert hypervisor.places() == there
        fds = [fd for _, _, fd, _ in hypervisor.watched]
        driver.port.config_set(0x20, base - 0x3000 + 0x10000, 4)
        assert [address for address, _, _ in hypervisor.places()] == [base + 0x10000, base + 0x10004]
        assert [fd for _, _, fd, _ in hypervisor.watched] == fds
        driver.port.config_set(0x20, base - 0x3000, 4)
        assert hypervisor.places() == there
        # a driver's resets change nothing
        driver.reset()
        driver.reset_queue(0)
        assert len(hypervisor.watched) == 2
        transport.reset()
        assert not hypervisor.watched
        events.close()


def test_a_request(loop: EventLoop) -> None:
    device, hypervisor = Kicked(), Hypervisor()
    with drive(device, "pci", pump=loop.run_once) as driver:
        events = QueueEvents(driver.transport, loop, hypervisor.assign, hypervisor.deassign)
        events.move(driver.transport.notify_base())
        request = driver.submit(0, (b"live",), (4,), kick=False)
        os.eventfd_write(hypervisor.watched[0][2], 1)
        assert driver.wait(request).written() == b"evil"
        events.close()


def test_values_that_vary_are_not_watched(loop: EventLoop) -> None:
    hypervisor = Hypervisor()
    with drive(Echo(), "mmio", notification_data=True) as driver:
        events = QueueEvents(driver.transport, loop, hypervisor.assign, hypervisor.deassign)
        events.move(BASE)
        assert not hypervisor.watched
        events.close()


def test_a_hypervisor_without_room(loop: EventLoop) -> None:
    hypervisor = Hypervisor()
    hypervisor.room = 1
    transport = VirtioMmio(Echo(), GuestMemoryMmap.from_ranges([(0, 0x1000)]))
    events = QueueEvents(transport, loop, hypervisor.assign, hypervisor.deassign)
    with pytest.raises(OSError, match="no space"):
        events.move(BASE)
    events.close()
    assert not hypervisor.watched


def test_no_eventfd_is_left_when_one_cannot_be_made(loop: EventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    eventfd = os.eventfd

    def make(count: int, flags: int) -> int:
        if made:
            raise OSError(24, "too many open files")
        made.append(eventfd(count, flags))
        return made[0]

    transport = VirtioMmio(Echo(), GuestMemoryMmap.from_ranges([(0, 0x1000)]))
    monkeypatch.setattr(os, "eventfd", make)
    with pytest.raises(OSError, match="too many open files"):
        QueueEvents(transport, loop, print, print)
    assert not loop.remove_reader(made[0])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made[0])
