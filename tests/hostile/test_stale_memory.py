"""Guest memory that has changed since it was looked up: rings, buffers that are held, and marks of what was written."""

from __future__ import annotations

import struct
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from tests.hostile.disks import Bench, disk_classes
from tests.hostile.subjects import COMBINATIONS, dispose, make

from pyvmm_device import EventLoop
from pyvmm_memory import GuestMemoryAtomic, GuestMemoryMmap, Permissions, snapshot
from pyvmm_memory.bitmap import AtomicBitmap
from pyvmm_memory.iommu import Iommu, IommuMemory
from pyvmm_memory.iotlb import Iotlb
from pyvmm_virtio.backends.datagram import DatagramNet
from pyvmm_virtio.backends.port import CallablePort
from pyvmm_virtio.constants import block as blk
from pyvmm_virtio.constants import net as c
from pyvmm_virtio.devices import Block, Console, Net
from pyvmm_virtio.driver import drive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MEMORY = 16 << 20
MOVED = 0x800000
WRITE = 2


class Moved:
    """A driver's memory behind an IOMMU, all of it at its own place until a page is put elsewhere."""

    def __init__(self) -> None:
        self.physical = GuestMemoryMmap.from_ranges([(0, MEMORY)])
        self.iotlb = Iotlb()
        self.iotlb.set_mapping(0, 0, MEMORY, Permissions.ReadWrite)
        self.memory = IommuMemory(self.physical, Iommu(self.iotlb))

    def drive(self, device: Any, **options: Any) -> Any:  # noqa: ANN401 - drive's
        driver = drive(device, memory=self.physical, start=False, **options)
        driver.after_start = int
        driver.completed = lambda _: None
        device.attach(self.memory)
        return driver.start()

    def move(self, page: int, to: int, length: int = 0x1000) -> None:
        """Have a page of the device's somewhere else, with what is in it, and put something there of our own."""
        self.physical.write_slice(self.physical.read_bytes(page, length), to)
        self.iotlb.set_mapping(page, to, length, Permissions.ReadWrite)
        self.physical.write_slice(b"K" * length, page)

    def is_left_alone(self, page: int, length: int = 0x1000) -> bool:
        return self.physical.read_bytes(page, length) == b"K" * length


@pytest.mark.parametrize(("name", "transport", "ring"), COMBINATIONS)
@pytest.mark.parametrize("area", ["desc", "driver_area", "device_area"])
def test_a_ring_that_moves(name: str, transport: str, ring: str, area: str) -> None:
    moved, device = Moved(), make(name)
    driver = moved.drive(device, transport=transport, ring=ring, indirect=False)
    for index, queue in enumerate(driver.queues):
        driver.kick(index, always=True)
        page = getattr(queue, area) & ~0xFFF
        moved.move(page, MOVED + 0x1000 * index)
        driver.kick(index, always=True)
        device.dispatch.call(device.queues[index].enable_notification, device.memory)
        device.dispatch.call(device.queues[index].disable_notification, device.memory)
        assert moved.is_left_alone(page), f"queue {index}"
        # its place again, so that the next one is alone
        moved.physical.write_slice(moved.physical.read_bytes(MOVED + 0x1000 * index, 0x1000), page)
        moved.iotlb.set_mapping(page, page, 0x1000, Permissions.ReadWrite)
    assert device.bugs == 0
    driver.close()
    dispose(device)


def test_buffers_that_a_network_card_holds() -> None:
    """Those of a frame that waits for more of them."""
    ours, theirs = DatagramNet.pair()
    moved, device = Moved(), Net(ours)
    driver = moved.drive(device, features=1 << c.VIRTIO_NET_F_MRG_RXBUF | 1 << c.VIRTIO_NET_F_MAC)
    with theirs:
        first, second = 0xC00000, 0xC01000
        one = driver.submit_buffers(0, [(first, 64, WRITE)])
        frame = bytes(6) + bytes(range(94))
        theirs.send(0, [memoryview(frame)])
        device.poll()
        assert not one.done
        moved.move(first, MOVED)
        two = driver.submit_buffers(0, [(second, 64, WRITE)])
        device.poll()
        driver.wait(two)
        assert moved.is_left_alone(first)
        got = moved.physical.read_bytes(MOVED, 64) + moved.physical.read_bytes(second, 48)
        assert got[12:] == frame
        # and gone, it costs the driver its device
        driver.submit_buffers(0, [(first, 64, WRITE)])
        theirs.send(0, [memoryview(frame)])
        device.poll()
        moved.iotlb.invalidate_mapping(first, 0x1000)
        driver.submit_buffers(0, [(second, 64, WRITE)])
        device.poll()
        assert device.needs_reset
        assert device.errors == {"InvalidBuffer": 1}
    driver.close()
    device.close()


def test_buffers_that_a_console_holds() -> None:
    """Those of which the other end took a part."""
    said, room = bytearray(), [4]

    def take(data: bytes) -> int:
        count = min(room[0], len(data))
        said.extend(data[:count])
        room[0] -= count
        return count

    port = CallablePort(take)
    moved, device = Moved(), Console(port)
    driver = moved.drive(device)
    page = 0xC00000
    moved.physical.write_slice(b"abcdefgh", page)
    request = driver.submit_buffers(1, [(page, 8, 0)])
    assert bytes(said) == b"abcd"
    moved.move(page, MOVED)
    room[0] = 100
    port.on_change()
    driver.wait(request)
    assert bytes(said) == b"abcdefgh"
    driver.close()
    device.close()


@pytest.mark.parametrize(("name", "transport", "ring"), COMBINATIONS)
def test_what_is_written_to_plugged_memory_is_marked(name: str, transport: str, ring: str) -> None:
    def tracked(start: int, size: int) -> GuestMemoryMmap:
        return GuestMemoryMmap.from_ranges([(start, size)], bitmap=AtomicBitmap)

    plugged = 2 << 32
    first = tracked(0, MEMORY)
    cell = GuestMemoryAtomic(first)
    device: Any = make(name)
    driver = drive(device, transport, ring, memory=first, start=False)
    driver.after_start = int
    driver.completed = lambda _: None
    device.attach(cell)
    driver.start()
    with cell.lock() as guard:
        guard.replace(first.insert_region(next(iter(tracked(plugged, 0x10000)))))
    list(snapshot.dirty_ranges(cell.memory(), reset=True))
    if name == "block":
        header, status = driver.arena.put(bytes(16)), driver.arena.alloc(1)
        request = driver.submit_buffers(0, [(header, 16, 0), (plugged, 4096, WRITE), (status, 1, WRITE)])
    else:
        request = driver.submit_buffers(0, [(plugged, 4096, WRITE)])
        if name == "net":
            device.other_end.send(0, [memoryview(bytes(64))])
            device.poll()
        elif name == "console":
            device.ports[0].backend.feed(b"hello")
    if name == "console" and not request.done:
        pytest.skip("a multiport console hears nothing until its driver says so")
    driver.wait(request)
    dirty = list(snapshot.dirty_ranges(cell.memory()))
    assert any(start <= plugged < start + length for start, length in dirty), dirty
    driver.close()
    dispose(device)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.mark.parametrize("kind", disk_classes(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("gone", [False, True])
def test_buffers_of_a_request_that_a_disk_is_at(bench: Bench, kind: type[Any], gone: bool) -> None:
    """A request of several pieces: the last one's page and the status' are elsewhere by then, or taken back."""
    header, data, last, status = 0x600000, 0xA00000, 0xDFF000, 0xE00000
    with EventLoop() as loop:
        moved, device = Moved(), Block(bench.make(kind), loop=loop)
        driver = moved.drive(device, indirect=False)
        moved.physical.write_slice(b"\xff" * 0x2000, MOVED)
        moved.physical.write_slice(struct.pack("<IIQ", blk.VIRTIO_BLK_T_IN, 0, 0), header)
        request = driver.submit_buffers(0, [(header, 16, 0), (data, 4 << 20, WRITE), (status, 1, WRITE)])
        assert not request.done
        for number, page in enumerate((last, status)):
            moved.move(page, MOVED + 0x1000 * number)
            if gone:
                moved.iotlb.invalidate_mapping(page, 0x1000)
        until = monotonic() + 10
        while not (request.done or device.needs_reset) and monotonic() < until:
            loop.run_once(0.1)
            driver.poll(0)
        assert moved.is_left_alone(last)
        assert moved.is_left_alone(status)
        if gone:
            assert device.needs_reset
            assert device.errors == {"InvalidBuffer": 1}
        else:
            assert request.done
            assert moved.physical.read_bytes(MOVED, 0x1000) == bytes(0x1000)
            assert moved.physical.read_bytes(MOVED + 0x1000, 1) == b"\0"
        assert device.bugs == 0
        driver.close()
        device.close()
