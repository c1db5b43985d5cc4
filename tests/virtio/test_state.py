"""Every device saved in the middle of its work, and restored into other objects, where the same driver goes on."""

from __future__ import annotations

import json
import os
import struct

import pytest
from tests.virtio.raw_disk import CONTENT, raw_file

from pyvmm_device import EventLoop
from pyvmm_device.errors import DeviceStateError
from pyvmm_virtio.backends.datagram import DatagramNet
from pyvmm_virtio.backends.memory import MemoryDisk
from pyvmm_virtio.backends.port import BasePort, CallablePort
from pyvmm_virtio.backends.raw import RawFile
from pyvmm_virtio.backends.workers import WorkerDisk
from pyvmm_virtio.constants import console as con
from pyvmm_virtio.constants import net
from pyvmm_virtio.devices import Block, Console, Net, Port, Rng
from pyvmm_virtio.driver import drive
from pyvmm_virtio.rate_limiter import RateLimiter, TokenBucket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import Buffer

    from pyvmm_virtio.device import VirtioDevice
    from pyvmm_virtio.driver import Driver

SIZE = 1 << 16
QUEUE = 8
"""Small, so that indices and wrap counters have gone round when the state is taken."""

pytestmark = [
    pytest.mark.parametrize("transport", ["mmio", "pci"]),
    pytest.mark.parametrize("ring", ["split", "packed"]),
]


def move(driver: Driver, device: VirtioDevice, restored: VirtioDevice, transport: str, ring: str) -> None:
    """Take the state of one device through JSON into another, and connect the driver to that."""
    device.pause()
    state = json.loads(json.dumps(driver.transport.state()))
    other = drive(restored, transport, ring, memory=driver.memory, start=False)  # type: ignore[arg-type] # it made it
    other.transport.restore(state)
    saved, again = device.state(), restored.state()
    assert [again[part] for part in ("own", "queues")] == [saved[part] for part in ("own", "queues")]
    other.note_interrupt = driver.note_interrupt
    driver.port.io = other.port.io
    driver.transport = other.transport


@pytest.mark.parametrize("threads", [False, True])
def test_block(transport: str, ring: str, threads: bool) -> None:
    content = bytearray(os.urandom(SIZE))
    before = bytes(content)
    now = 0

    def make(loop: EventLoop) -> Block:
        disk = MemoryDisk(content)
        # thirteen operations at once, then one in 20 ms, of a clock that only we move
        limiter = RateLimiter(ops=TokenBucket(1, 20, 12, clock=lambda: now))
        return Block(WorkerDisk(disk) if threads else disk, rate_limiter=limiter, loop=loop, queue_size=QUEUE)

    with EventLoop() as loop:
        device, restored = make(loop), make(loop)
        with drive(device, transport, ring, pump=lambda: loop.run_once(0.01)) as driver:
            driver.set_config(32, 0, 1)  # write-through
            for sector in range(11):
                assert driver.read(sector) == content[sector * 512 : sector * 512 + 512]
            large = driver.submit_read(0, SIZE // 512)
            more = [driver.submit_read(sector) for sector in range(3)]  # of which two wait for their rate
            late = driver.submit_write(9, b"w" * 512, kick=False)
            move(driver, device, restored, transport, ring)
            assert restored.config == device.config
            restored.resume()
            for request in (large, *more, late):
                now += 20_000_000
                driver.wait(request)
            assert driver.finish(large) == before
            assert b"".join(driver.finish(request) for request in more) == before[:1536]
            driver.finish(late)
            assert content[9 * 512 : 10 * 512] == b"w" * 512
            for sector in range(5):
                request = driver.submit_read(sector)
                loop.run_once(0)
                driver.poll()
                assert not request.done, "a restored device has a burst again"
                now += 20_000_000
                assert driver.finish(request) == content[sector * 512 : sector * 512 + 512]
        device.close()
        restored.close()


@pytest.mark.parametrize("data_plane", [False, True])
def test_raw_file(transport: str, ring: str, data_plane: bool) -> None:
    disk = raw_file()
    other = RawFile("the same", lock=False, fd=os.dup(disk.fileno()))
    device, restored = (Block(each, queue_size=QUEUE, data_plane=data_plane) for each in (disk, other))
    with drive(device, transport, ring) as driver:
        for sector in range(11):
            assert driver.read(sector) == CONTENT[sector * 512 : sector * 512 + 512]
        driver.queues[0].suppress_interrupts(True)
        quiet = [driver.submit_read(sector) for sector in range(3)]
        assert driver.interrupts == 11
        waiting = driver.submit_write(1, b"w" * 512, kick=False)
        move(driver, device, restored, transport, ring)
        restored.resume()
        assert driver.interrupts > 11, "what came while nobody listened is told of, or it would never be looked for"
        for request in quiet:
            driver.wait(request)
        driver.finish(waiting)
        driver.queues[0].suppress_interrupts(False)
        for sector in range(1, 12):
            expected = b"w" * 512 if sector == 1 else CONTENT[sector * 512 : sector * 512 + 512]
            assert driver.read(sector) == expected
    device.close()
    restored.close()


def test_net(transport: str, ring: str) -> None:
    (ours, theirs), (new, far) = DatagramNet.pair(), DatagramNet.pair()
    device = Net(ours, mac="52:54:00:00:00:01", queue_size=QUEUE)
    restored = Net(new, mac="52:54:00:00:00:02", queue_size=QUEUE)
    with drive(device, transport, ring, start=False) as driver:
        driver.buffer_size = 200
        driver.start()
        for number in range(11):
            data = bytes([number]) * 100
            theirs.send(0, [memoryview(data)])
            device.poll()
            assert driver.receive() == data
            driver.wait(driver.send(data))
        driver.command(net.VIRTIO_NET_CTRL_RX, net.VIRTIO_NET_CTRL_RX_PROMISC, b"\0")
        driver.command(net.VIRTIO_NET_CTRL_MAC, net.VIRTIO_NET_CTRL_MAC_ADDR_SET, b"\x52\0\0\0\0\x07")
        theirs.send(0, [memoryview(b"\xff" * 6 + bytes(1500))])  # it waits for more buffers than there are, and is lost
        device.poll()
        waiting = driver.send(bytes(60), kick=False)
        new.link_up = False
        changes = driver.config_changes
        move(driver, device, restored, transport, ring)
        restored.resume()
        driver.poll()
        assert driver.config_changes > changes
        assert not driver.link_up
        new.link_up = True
        restored.set_link(True)
        assert driver.link_up
        driver.wait(driver.send(bytes(61)))
        assert waiting.done
        assert driver.mac == b"\x52\0\0\0\0\x07"
        room = [memoryview(bytearray(2000))]
        # what was sent while the cable was out is lost
        assert far.receive(0, room) == 61
        for destination in (b"\x52\0\0\0\0\x07", b"\x52\0\0\0\0\x08", b"\xff" * 6):
            far.send(0, [memoryview(destination + bytes(90))])
        restored.poll()
        assert driver.receive() == b"\x52\0\0\0\0\x07" + bytes(90)
        assert driver.receive() == b"\xff" * 6 + bytes(90)
        for number in range(11):
            frame = b"\xff" * 6 + bytes([number]) * 300
            far.send(0, [memoryview(frame)])
            restored.poll()
            assert driver.receive() == frame
    device.close()
    restored.close()
    theirs.close()
    far.close()


class Slow(BasePort):
    """Takes so much and no more."""

    def __init__(self, room: int, got: bytearray) -> None:
        super().__init__()
        self.room = room
        self.got = got

    def write(self, data: Buffer) -> int:
        taken = memoryview(data)[: self.room]
        self.got += taken
        self.room -= len(taken)
        return len(taken)


def test_one_console(transport: str, ring: str) -> None:
    got = bytearray()
    backend = Slow(0, got)
    device, restored = Console(Slow(1005, got), queue_size=QUEUE), Console(backend, queue_size=QUEUE)
    with drive(device, transport, ring) as driver:
        for number in range(10):
            driver.write(bytes([number]) * 100)
        requests = [driver.submit(1, (b"abcdefghij", b"klm"), ()) for _ in range(3)]
        move(driver, device, restored, transport, ring)
        restored.resume()
        for room in (1, 2, 3, 100):
            backend.room += room
            backend.on_change()
        for request in requests:
            driver.wait(request)
        assert got[1000:] == b"abcdefghijklm" * 3
        driver.submit(1, (b"0123456789" * 10,))
        driver.reset_queue(1)
        backend.room = 1000
        driver.write(b"after its reset")
        assert got.endswith(b"after its reset")


def test_ports(transport: str, ring: str) -> None:
    def make() -> tuple[Console, CallablePort, CallablePort]:
        console, agent = CallablePort(), CallablePort()
        return Console(console, Port(agent, "agent"), size=(80, 25), queue_size=QUEUE, max_ports=3), console, agent

    (device, _, agent), (restored, console, new_agent) = make(), make()
    with drive(device, transport, ring, queue_size=QUEUE) as driver:
        driver.wait_until(lambda: device.ports[1].guest_open)
        driver.control(0, con.VIRTIO_CONSOLE_PORT_OPEN, 0)
        for number in range(11):
            agent.feed(bytes([number]) * 10)
            assert driver.read(10, port=1) == bytes([number]) * 10
        driver.poll()
        driver.events.clear()
        for columns in range(12):  # more than there are buffers for
            device.resize(columns, 25)
        new_agent.connected = False
        move(driver, device, restored, transport, ring)
        restored.resume()
        console.feed(b"typed")
        new_agent.feed(b"said")
        assert driver.read(5) == b"typed"
        assert driver.read(4, port=1) == b"said"
        sizes = [struct.pack("<HH", columns, 25) for columns in range(12)]
        driver.wait_until(lambda: len(driver.events) == 13)
        assert [more for _, event, _, more in driver.events if event == con.VIRTIO_CONSOLE_RESIZE] == sizes
        # the other end of the port has gone meanwhile
        assert driver.events[-1] == (1, con.VIRTIO_CONSOLE_PORT_OPEN, 0, b"")
        assert driver.size == (11, 25)
        # whatever the driver knows of ports, it knows of all
        restored.add_port(Port(CallablePort(), "late"))
        driver.wait_until(lambda: driver.events[-1][0] == 2)
        driver.wait_until(lambda: restored.ports[2].guest_open)
        restored.pause()
        state: dict[str, Any] = restored.device_state()
        wrong: list[dict[str, Any]] = [
            {"driver_ready": 1},
            {"waiting": ["00"]},
            {"waiting": 5},
            {"ports": state["ports"][:2]},
        ]
        wrong += [{"ports": [*state["ports"][:2], {**state["ports"][2], name: "x"}]} for name in state["ports"][2]]
        for own in wrong:
            with pytest.raises(DeviceStateError):
                restored.restore_device({**state, **own})
        restored.restore_device(state)
        assert restored.device_state() == state
        restored.resume()


def test_rng(transport: str, ring: str) -> None:
    answers = [b"%02d" % number for number in range(11)]
    device, restored = Rng(lambda _: answers.pop(0) if answers else b"", queue_size=QUEUE), Rng(queue_size=QUEUE)
    with drive(device, transport, ring) as driver:
        assert [driver.read(2) for _ in range(11)] == [b"%02d" % number for number in range(11)]
        requests = [driver.submit(0, (), (100,)) for _ in range(3)]
        move(driver, device, restored, transport, ring)
        assert not any(request.done for request in requests)
        restored.resume()
        assert len({driver.wait(request).written() for request in requests}) == 3
        assert len(driver.read_exact(1000)) == 1000
