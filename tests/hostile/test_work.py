"""Work is bounded in work: rings full of requests as large as descriptors can say, of every kind, on every device.

An indirect table may name the same buffer as often as it likes (VIRTIO 1.3, 2.7.5.3), so a guest with 64 MiB asks for
a terabyte by one ring. What is right is that nobody else waits for it, that it costs no memory, and that what is
refused costs its status.
"""

from __future__ import annotations

import os
import struct
import time

import pytest
from tests.hostile.disks import SIZE, Bench, disk_classes
from tests.hostile.virtio_devices import device_classes, dispose, make_device

from pyvmm_device import EventLoop
from pyvmm_device.io_thread import IoThread
from pyvmm_memory import GuestMemoryMmap, Iommu, IommuMemory, Iotlb, Permissions
from pyvmm_virtio.backends.block import PIECE, RANGE_PIECE, READ, WRITE
from pyvmm_virtio.backends.memory import MemoryDisk
from pyvmm_virtio.backends.nbd import NbdDisk, transmission
from pyvmm_virtio.constants import block as c
from pyvmm_virtio.devices import Block
from pyvmm_virtio.driver import drive
from pyvmm_virtio.turn import SLICE_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import Any

    from pyvmm_virtio.backends.block import Done
    from pyvmm_virtio.device import VirtioDevice

MEMORY = 64 << 20
PAGE = 4096
LIMIT = 1.0
"""Seconds for which a loop may be silent on a busy machine; on an idle one it is a few milliseconds."""
GROWTH = 64 << 20
TYPES = [*(value for name, value in vars(c).items() if name.startswith("VIRTIO_BLK_T_")), 99]
BUFFERS = {"huge": (254, 16 << 20), "many": (254, 4096), "odd": (100, 4097)}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def memory() -> Iterator[GuestMemoryMmap]:
    with GuestMemoryMmap.from_ranges([(0, MEMORY)]) as memory:
        yield memory


class Pulse:
    """How long a loop is silent at most."""

    def __init__(self, loop: EventLoop) -> None:
        self.loop = loop
        self.last = time.monotonic()
        self.worst = 0.0
        self.going = True
        loop.call_soon(self.tick)

    def tick(self) -> None:
        now = time.monotonic()
        self.worst, self.last = max(self.worst, now - self.last), now
        if self.going:
            self.loop.call_later(0.01, self.tick)

    def watch(self, seconds: float) -> float:
        """Return the longest silence while so much time goes by."""
        time.sleep(seconds)
        self.going = False
        return max(self.worst, time.monotonic() - self.last)


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def offer_large(driver: Any, header: bytes) -> None:  # noqa: ANN401 - a driver
    """Fill every queue with requests over buffers that overlap, those that a device reads and those that it writes."""
    place = driver.arena.put(header.ljust(16, b"\0"))
    status = driver.arena.alloc(1)
    for queue, ring in enumerate(driver.queues):
        for count, each in BUFFERS.values():
            for flags in (0, 2):
                data = [(MEMORY // 2, each, flags)] * min(count, ring.size - 2)
                for _ in range(3):
                    driver.submit_buffers(queue, [(place, 16, 0), *data, (status, 1, 2)], kick=False)


def attack(
    device: VirtioDevice, memory: GuestMemoryMmap, header: bytes, io: IoThread, seen: IommuMemory | None = None
) -> tuple[float, int]:
    """Fill every queue of a device with requests over buffers that overlap; returns the longest silence, and growth.

    `seen` is how the device sees the memory.
    """
    pulse = Pulse(io.loop)
    driver = drive(device, memory=memory)
    if seen is not None:
        device.attach(seen)
    begin = resident()
    offer_large(driver, header)
    for queue in range(len(device.queues)):
        io.loop.call_soon(lambda queue=queue: device.kick(queue))  # type: ignore[misc] # a default of its own
    silence = pulse.watch(0.4)
    growth = resident() - begin
    device.driver_reset()
    dispose(device)
    driver.close()
    return silence, growth


@pytest.mark.parametrize("kind", disk_classes(), ids=lambda kind: kind.__name__)
def test_a_ring_of_requests_of_a_terabyte_keeps_nobody_waiting(
    bench: Bench, memory: GuestMemoryMmap, kind: type[Any]
) -> None:
    for request in sorted(set(TYPES)):
        with IoThread("disk") as io:
            device = Block(bench.make(kind), loop=io.loop)
            silence, growth = attack(device, memory, struct.pack("<IIQ", request, 0, 0), io)
        assert silence < LIMIT, f"requests of type {request}: silent for {silence:.1f} s"
        assert growth < GROWTH, f"requests of type {request}: {growth >> 20} MiB more"


@pytest.mark.parametrize("kind", device_classes(), ids=lambda kind: kind.__name__)
def test_a_ring_of_large_requests_keeps_nobody_waiting(memory: GuestMemoryMmap, kind: type[Any]) -> None:
    for header in (b"", b"\1", b"\xff" * 16):
        with IoThread("device") as io:
            device = make_device(kind, io.loop)
            silence, growth = attack(device, memory, header, io)
        assert silence < LIMIT, f"{header!r}: silent for {silence:.1f} s"
        assert growth < GROWTH, f"{header!r}: {growth >> 20} MiB more"


@pytest.mark.parametrize("kind", device_classes(), ids=lambda kind: kind.__name__)
def test_buffers_in_any_number_of_pieces_keep_nobody_waiting(memory: GuestMemoryMmap, kind: type[Any]) -> None:
    """Behind an IOMMU a guest maps its pages in any order, and each buffer is in as many pieces as it has pages."""
    tlb, half, pages = Iotlb(), MEMORY // 2, MEMORY // 2 // PAGE
    tlb.set_mapping(0, 0, half, Permissions.ReadWrite)
    for page in range(pages):
        tlb.set_mapping(half + page * PAGE, MEMORY - (page + 1) * PAGE, PAGE, Permissions.ReadWrite)
    for header in (b"", b"\1"):
        with IoThread("device") as io:
            device = make_device(kind, io.loop)
            silence, growth = attack(device, memory, header, io, IommuMemory(memory, Iommu(tlb)))
        assert silence < LIMIT, f"{header!r}: silent for {silence:.1f} s"
        assert growth < GROWTH, f"{header!r}: {growth >> 20} MiB more"


def test_mappings_one_by_one_cost_no_more_with_those_that_are_there() -> None:
    begin, tlb = time.monotonic(), Iotlb()
    for page in range(20_000):
        tlb.set_mapping(2 * page * PAGE, 0, PAGE, Permissions.Read)
    for page in range(20_000):
        tlb.invalidate_mapping(2 * page * PAGE, PAGE)
    assert not len(tlb)
    assert time.monotonic() - begin < 20, "a second at most on an idle machine"


class Counted(MemoryDisk):
    """Remembers how much it was asked for at once, by any way there is."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.moved: list[int] = []
        self.ranges: list[int] = []

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        self.moved.append(sum(map(len, views)))
        super().readv(views, offset)

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        self.moved.append(sum(map(len, views)))
        super().writev(views, offset)

    def discard(self, offset: int, length: int) -> None:
        self.ranges.append(length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self.ranges.append(length)


class Queued(Counted):
    """The same, with many requests under way."""

    def submit(self, op: int, views: Sequence[memoryview], offset: int, length: int, done: Done) -> None:
        (self.moved if op in (READ, WRITE) else self.ranges).append(length)
        done(0)

    def fileno(self) -> int:
        return -1

    def wants_write(self) -> bool:
        return False

    def on_ready(self) -> None: ...

    def drain(self, seconds: float) -> None: ...


@pytest.mark.parametrize("kind", [Counted, Queued])
def test_requests_are_cut_into_pieces(kind: type[Counted]) -> None:
    disk = kind()
    with drive(Block(disk)) as driver:
        driver.read(0, 12 << 11)
        driver.write(0, bytes(12 << 20))
        assert sum(disk.moved) == 24 << 20
        assert max(disk.moved) <= PIECE
        driver.write_zeroes(0, SIZE // 512)
        driver.discard(0, SIZE // 512)
        assert sum(disk.ranges) == 2 * SIZE
        assert max(disk.ranges) <= RANGE_PIECE


def test_a_disk_that_answers_at_once_leaves_others_their_turn(memory: GuestMemoryMmap) -> None:
    disk, most, total = Queued(), 0, 0
    with EventLoop() as loop:
        device = Block(disk, loop=loop)
        driver = drive(device, memory=memory)
        header = driver.arena.put(struct.pack("<IIQ", c.VIRTIO_BLK_T_IN, 0, 0))
        status = driver.arena.alloc(1)
        for _ in range(50):
            data = (MEMORY // 2, 8 * PIECE, 2)
            driver.submit_buffers(0, [(header, 16, 0), data, (status, 1, 2)], kick=False)
        device.kick(0)
        for _ in range(600):
            most, total = max(most, sum(disk.moved)), total + sum(disk.moved)
            disk.moved.clear()
            loop.run_once(0)
        device.driver_reset()
        dispose(device)
        driver.close()
    assert 0 < most <= SLICE_BYTES + PIECE
    assert total == 50 * 8 * PIECE


def test_requests_beyond_the_limits_are_refused() -> None:
    with drive(Block(MemoryDisk(SIZE), seg_max=4, size_max=1024)) as driver:
        assert driver.has(c.VIRTIO_BLK_F_SEG_MAX)
        assert driver.has(c.VIRTIO_BLK_F_SIZE_MAX)
        for into, refused in (((1024,) * 4, False), ((512,) * 5, True), ((1536,), True), ((512, 1024), False)):
            request = driver.submit_request(c.VIRTIO_BLK_T_IN, 0, (), into)
            driver.wait(request)
            assert driver.status_of(request) == (c.VIRTIO_BLK_S_IOERR if refused else c.VIRTIO_BLK_S_OK), into
            header = struct.pack("<IIQ", c.VIRTIO_BLK_T_OUT, 0, 0)
            data = [bytes(size) for size in into]
            # however a header is laid out, it is none of the data
            for parts in ([header, *data], [header[:5], header[5:], *data], [header + data[0], *data[1:]]):
                request = driver.submit(0, parts, (1,))
                driver.wait(request)
                assert driver.status_of(request) == (c.VIRTIO_BLK_S_IOERR if refused else c.VIRTIO_BLK_S_OK), parts


@pytest.mark.parametrize("request_type", [c.VIRTIO_BLK_T_IN, c.VIRTIO_BLK_T_DISCARD, c.VIRTIO_BLK_T_WRITE_ZEROES, 99])
def test_a_request_that_fails_costs_its_status(request_type: int) -> None:
    with drive(Block(MemoryDisk(SIZE))) as driver:
        place = driver.arena.alloc(1 << 20)
        driver.memory.write_slice(b"\x55" * (1 << 20), place)
        header = driver.arena.put(struct.pack("<IIQ", request_type, 0, 1 << 40))
        status = driver.arena.alloc(1)
        request = driver.submit_buffers(0, [(header, 16, 0), (place, 1 << 20, 2), (status, 1, 2)])
        driver.wait(request)
        assert driver.memory.read_u8(status) != c.VIRTIO_BLK_S_OK
        with driver.memory.get_slice(place, 1 << 20) as view:
            assert view == b"\x55" * (1 << 20), "nothing was filled"
        assert request.length == 0


# a server that takes little at once


@pytest.mark.parametrize("most", [1, 512, 4096])
def test_pieces_for_a_server_are_issued_as_there_is_room(bench: Bench, most: int) -> None:
    disk = bench.make(NbdDisk, answers=False, blocks=(1, most, most))
    target = memoryview(bytearray(SIZE))
    answers: list[int] = []
    for _ in range(8):
        disk.submit(READ, [target] * 4, 0, SIZE * 4, answers.append)
    assert disk.under_way() <= transmission.MAX_PIECES
    begin = time.monotonic()
    disk.drain(0.05)
    assert time.monotonic() - begin < LIMIT
    assert len(answers) == 8
    disk.close()


def test_a_server_that_takes_little_gets_all_of_it(bench: Bench) -> None:
    disk = bench.make(NbdDisk, blocks=(1, 512, 512))
    data = os.urandom(1 << 18)
    disk.writev([memoryview(data)[:1000], memoryview(data)[1000:]], 0)
    target = bytearray(len(data))
    disk.readv([memoryview(target)[:777], memoryview(target)[777:]], 0)
    assert target == data
    disk.close()
