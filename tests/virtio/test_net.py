"""The network device, driven as a guest does, by both transports and both rings."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm_device import DeviceStateError, EventLoop
from pyvmm_virtio.backends.datagram import DatagramNet
from pyvmm_virtio.backends.net import HEADER_SIZE, nobody
from pyvmm_virtio.backends.pcap import PcapWriter
from pyvmm_virtio.backends.stream import StreamNet
from pyvmm_virtio.constants import net as c
from pyvmm_virtio.devices import Net
from pyvmm_virtio.devices.net.device import parse_mac, split
from pyvmm_virtio.devices.net.filter import BROADCAST, ReceiveFilter
from pyvmm_virtio.driver import DriverError, drive
from pyvmm_virtio.driver.net import HEADER, NetDriver
from pyvmm_virtio.driver.rings import RingFull
from pyvmm_virtio.errors import VirtioUsageError
from pyvmm_virtio.interrupt import NoInterrupt
from pyvmm_virtio.rate_limiter import RateLimiter, TokenBucket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any


BOTH = [(transport, ring) for transport in ("mmio", "pci") for ring in ("split", "packed")]
MAC = "52:54:00:12:34:56"
OWN = bytes.fromhex(MAC.replace(":", ""))
MERGE = 1 << c.VIRTIO_NET_F_MRG_RXBUF


def frame(size: int = 64, destination: bytes = OWN, kind: bytes = b"\x88\xb5", fill: int = 7) -> bytes:
    return (destination + b"\x52\x54\x00\0\0\1" + kind).ljust(size, bytes([fill]))


class Offloading:
    """A back end with headers and queues, whose frames are lists."""

    header_size = HEADER_SIZE
    queue_pairs = 4
    mtu = 9000
    features = sum(
        1 << bit
        for bit in (
            c.VIRTIO_NET_F_CSUM,
            c.VIRTIO_NET_F_HOST_TSO4,
            c.VIRTIO_NET_F_GUEST_CSUM,
            c.VIRTIO_NET_F_GUEST_TSO4,
            c.VIRTIO_NET_F_GUEST_ECN,
            c.VIRTIO_NET_F_HOST_ECN,
        )
    )

    def __init__(self) -> None:
        self.link_up = True
        self.on_link: Callable[[], object] = nobody
        self.incoming: list[list[bytes]] = [[] for _ in range(self.queue_pairs)]
        self.sent: list[tuple[int, bytes]] = []
        self.offloads = -1
        self.pairs = 0
        self.full = False

    def fileno(self, pair: int) -> int:
        return -1

    def receive(self, pair: int, views: Sequence[memoryview]) -> int:
        if not self.incoming[pair]:
            return 0
        data = self.incoming[pair].pop(0)
        views[0][: len(data)] = data
        return len(data)

    def send(self, pair: int, views: Sequence[memoryview]) -> bool:
        if not self.full:
            self.sent.append((pair, b"".join(views)))
        return not self.full

    def set_offloads(self, features: int) -> None:
        self.offloads = features

    def set_queue_pairs(self, pairs: int) -> None:
        self.pairs = pairs

    def close(self) -> None:
        self.full = True


@pytest.fixture
def cable() -> Iterator[tuple[DatagramNet, DatagramNet]]:
    ends = DatagramNet.pair()
    yield ends
    for end in ends:
        end.close()


def take(end: DatagramNet) -> bytes:
    buffer = bytearray(70000)
    return bytes(buffer[: end.receive(0, [memoryview(buffer)])])


def give(end: DatagramNet, *frames: bytes) -> None:
    for each in frames:
        assert end.send(0, [memoryview(each)])


def drive_with(device: Net, known: int | None = None, *, size: int = 2048, **options: object) -> NetDriver:
    driver: NetDriver = drive(device, start=False, **options)  # type: ignore[arg-type]
    driver.buffer_size = size
    if known is not None:
        driver.know(1 << 32 | known)
    return driver.start()


@pytest.mark.parametrize(("transport", "ring"), BOTH)
def test_frames_both_ways(transport: str, ring: str, cable: tuple[DatagramNet, DatagramNet]) -> None:
    ours, theirs = cable
    device = Net(ours, mac=MAC)
    with drive(device, transport, ring) as driver:
        assert driver.mac == OWN
        assert driver.link_up
        for size in (14, 60, 1514, 1518):
            driver.send(frame(size))
            assert take(theirs) == frame(size)
        frames = [frame(60 + number) for number in range(100)]
        give(theirs, *frames)
        device.poll()
        assert [driver.receive() for _ in frames] == frames
        assert device.dropped == 0


def test_a_loop_serves_both_ways(cable: tuple[DatagramNet, DatagramNet]) -> None:
    ours, theirs = cable
    with EventLoop() as loop:
        device = Net(ours, mac=MAC, loop=loop)
        with drive(device, pump=lambda: loop.run_once(0.01)) as driver:
            frames = [frame(60 + number % 1000) for number in range(500)]
            for at in range(0, 500, 50):
                give(theirs, *frames[at : at + 50])
                assert [driver.receive() for _ in range(50)] == frames[at : at + 50]
        device.close()
        loop.run_once(0)


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_merged_buffers(ring: str, cable: tuple[DatagramNet, DatagramNet]) -> None:
    ours, theirs = cable
    device = Net(ours, mac=MAC)
    with drive_with(device, MERGE, size=1000, ring=ring) as driver:
        frames = [frame(988), frame(989), frame(5000), frame(60)]
        give(theirs, *frames)
        device.poll()
        driver.poll()
        assert [each for _, each in driver.received[0]] == frames
        assert [header[6] for header, _ in driver.received[0]] == [1, 2, 6, 1]


def test_a_frame_waits_for_more_buffers(cable: tuple[DatagramNet, DatagramNet]) -> None:
    ours, theirs = cable
    device = Net(ours, mac=MAC)
    driver = drive_with(device, MERGE, size=100, queue_size=8)
    with driver:
        give(theirs, frame(600), frame(60))
        device.poll()
        driver.poll()
        assert not driver.received[0], "seven buffers are needed, and there are four"
        more = [driver.submit(0, (), (100,)) for _ in range(3)]
        assert all(more)
        assert driver.receive() == frame(600)
        assert driver.receive() == frame(60)
        # one that needs more buffers than the queue could ever have
        driver.submit(0, (), (100,))
        give(theirs, frame(2000), frame(61))
        device.poll()
        assert driver.receive() == frame(61)
        assert device.dropped == 1


def test_no_frame_takes_buffers_while_the_device_comes_to_rest(cable: tuple[DatagramNet, DatagramNet]) -> None:
    ours, theirs = cable

    class Busy(Net):
        def quiesce(self) -> None:
            super().quiesce()
            give(theirs, frame(600))
            self.poll()

    device = Busy(ours, mac=MAC)
    with drive_with(device, MERGE, size=100, queue_size=8) as driver:
        device.pause()
        assert device.queues[0].next_avail() == 0
        device.resume()
        for _ in range(3):
            driver.submit(0, (), (100,))
        device.poll()
        assert driver.receive() == frame(600)


@pytest.mark.parametrize("needs_reset", [True, False])
def test_frames_for_nobody_let_the_loop_sleep(cable: tuple[DatagramNet, DatagramNet], needs_reset: bool) -> None:
    ours, theirs = cable
    with EventLoop() as loop:
        device = Net(ours, mac=MAC, loop=loop)
        with drive(device, pump=lambda: loop.run_once(0.01)) as driver:
            loop.run_once(0)
            if needs_reset:
                driver.submit(1, (b"short",))
                assert driver.needs_reset
            else:
                device.pause()
            give(theirs, frame(61))
            for _ in range(3):
                loop.run_once(0)
            assert not select.select([loop.fileno()], [], [], 0)[0]
            if needs_reset:
                driver.reset()
            else:
                device.resume()
            assert driver.receive() == frame(61)
            give(theirs, frame(62))
            assert driver.receive() == frame(62)
        device.close()


def test_without_merging_a_long_frame_is_lost(cable: tuple[DatagramNet, DatagramNet]) -> None:
    ours, theirs = cable
    device = Net(ours, mac=MAC)
    with drive_with(device, 0, size=112) as driver:
        give(theirs, frame(100), frame(101), frame(99), b"short")
        device.poll()
        assert [driver.receive(), driver.receive()] == [frame(100), frame(99)]
        assert device.dropped == 1


@pytest.mark.parametrize("merge", [True, False])
def test_frames_beyond_the_mtu(cable: tuple[DatagramNet, DatagramNet], merge: bool) -> None:
    ours, theirs = cable
    device = Net(ours, mac=MAC, mtu=1500)
    known = (
        None if merge else NetDriver.known_features & ~(1 << c.VIRTIO_NET_F_MRG_RXBUF | 1 << c.VIRTIO_NET_F_CTRL_VLAN)
    )
    with drive_with(device, known, size=4096) as driver:
        largest, longer = (b"\xff" * 6 + bytes(size - 6) for size in (1514, 1515))
        tagged = b"\xff" * 6 + bytes(6) + b"\x81\x00" + bytes(1504)
        give(theirs, largest, longer, largest)
        if not merge:
            give(theirs, tagged, tagged + b"x")
        device.poll()
        driver.poll()
        wanted = [largest, largest] if merge else [largest, largest, tagged]
        assert [data for _, data in driver.received[0]] == wanted
        assert device.dropped == (1 if merge else 2)
        driver.send(largest)
        assert take(theirs) == largest


def test_segments_are_longer_than_the_mtu() -> None:
    backend = Offloading()
    device = Net(backend, mac=MAC)
    with drive_with(
        device, NetDriver.known_features | 1 << c.VIRTIO_NET_F_GUEST_CSUM | 1 << c.VIRTIO_NET_F_GUEST_TSO4
    ) as driver:
        assert device.negotiated_mtu == 9000
        header = HEADER.pack(1, c.VIRTIO_NET_HDR_GSO_TCPV4, 54, 1460, 34, 16, 0)
        frame_ = bytes.fromhex(MAC.replace(":", "")) + bytes(20000)
        backend.incoming[0] += [header + frame_, bytes(HEADER_SIZE) + frame_]
        device.poll()
        driver.poll()
        assert [data for _, data in driver.received[0]] == [frame_]
        assert device.dropped == 1


def test_without_buffers_frames_stay_in_the_network(cable: tuple[DatagramNet, DatagramNet]) -> None:
    ours, theirs = cable
    device = Net(ours, mac=MAC)
    driver = drive_with(device, 0)
    with driver:
        frames = [frame(60 + number) for number in range(200)]
        give(theirs, *frames)
        for each in frames:
            device.poll()
            assert driver.receive() == each


def test_what_is_no_frame_is_dropped(cable: tuple[DatagramNet, DatagramNet]) -> None:
    ours, theirs = cable
    device = Net(ours)
    with drive(device) as driver:
        driver.wait(driver.submit(1, (bytes(HEADER_SIZE) + frame()[:13],)))
        driver.wait(driver.submit(1, (bytes(HEADER_SIZE), bytes(65554))))
        driver.wait(driver.submit(1, (bytes(5), bytes(7), frame()[:20], frame()[20:])))
        assert device.dropped == 2
        assert take(theirs) == frame()
        driver.submit(1, (bytes(HEADER_SIZE - 1),))
        assert driver.needs_reset


def test_a_frame_in_very_many_pieces(cable: tuple[DatagramNet, DatagramNet]) -> None:
    ours, theirs = cable
    device = Net(ours, queue_size=2048)
    with drive(device, indirect=False) as driver:
        data = frame(1500)
        driver.submit(1, (bytes(HEADER_SIZE), *(data[at : at + 1] for at in range(1500))))
        assert take(theirs) == data
        assert device.dropped == 0


def test_frames_behind_many_that_nobody_wants() -> None:
    ours, theirs = socket.socketpair()
    with EventLoop() as loop, theirs:
        device = Net(StreamNet(ours), mac=MAC, loop=loop)
        with drive(device, pump=lambda: loop.run_once(0.01)) as driver:
            driver.command(c.VIRTIO_NET_CTRL_RX, c.VIRTIO_NET_CTRL_RX_PROMISC, b"\0")
            unwanted = frame(destination=b"\x52\0\0\0\0\x99")
            wanted = frame(destination=BROADCAST)
            theirs.sendall(b"".join(len(each).to_bytes(4, "big") + each for each in (*[unwanted] * 600, wanted)))
            assert driver.receive() == wanted
        device.close()


def test_the_rest_of_a_frame_needs_no_other_to_push_it() -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with EventLoop() as loop, theirs:
        device = Net(StreamNet(ours), mac=MAC, loop=loop)
        with drive(device, pump=lambda: loop.run_once(0.01)) as driver:
            data = frame(60000)
            driver.wait(driver.send(data))
            theirs.setblocking(False)
            got = b""
            for _ in range(100):
                with contextlib.suppress(BlockingIOError):
                    got += theirs.recv(65536)
                loop.run_once(0)
            assert got == len(data).to_bytes(4, "big") + data
            assert not select.select([loop.fileno()], [], [], 0)[0]
        device.close()


def test_a_full_network_is_waited_for(cable: tuple[DatagramNet, DatagramNet]) -> None:
    ours, theirs = cable
    with EventLoop() as loop:
        device = Net(ours, loop=loop)
        with drive(device, queue_size=256, pump=lambda: loop.run_once(0.01)) as driver:
            count = 0
            got = []
            while count < 600:
                try:
                    driver.send(frame(60000, fill=count % 251))
                    count += 1
                except RingFull:
                    driver.poll()
                    while data := take(theirs):
                        got.append(data[100])
                    loop.run_once(0.01)
            for _ in range(100):
                loop.run_once(0)
                while data := take(theirs):
                    got.append(data[100])
            assert got == [number % 251 for number in range(600)]
        device.close()


# offloads


def test_headers_pass_through_where_offloads_were_negotiated() -> None:
    backend = Offloading()
    device = Net(backend, mac=MAC)
    with drive(device) as driver:
        header = (1, 1, 54, 1448, 34, 16, 99)
        driver.send(frame(), header=header)
        assert backend.sent == [(0, struct.pack("<BBHHHHH", *header[:6], 0) + frame())]
        backend.incoming[0].append(struct.pack("<BBHHHHH", 2, 1, 54, 1448, 0, 0, 0) + frame(3000))
        device.poll()
        driver.poll()
        got, data = driver.received[0][0]
        assert got == (2, 1, 54, 1448, 0, 0, 2)
        assert data == frame(3000)


def test_headers_are_empty_where_they_were_not() -> None:
    backend = Offloading()
    with drive_with(Net(backend), 0) as driver:
        driver.send(frame(), header=(1, 1, 54, 1448, 34, 16, 0))
        assert backend.sent == [(0, bytes(HEADER_SIZE) + frame())]
        assert backend.offloads == 0


def test_the_driver_turns_its_offloads_on_and_off() -> None:
    backend = Offloading()
    csum, tso = 1 << c.VIRTIO_NET_F_GUEST_CSUM, 1 << c.VIRTIO_NET_F_GUEST_TSO4
    known = csum | tso | 1 << c.VIRTIO_NET_F_CTRL_VQ | 1 << c.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
    with drive_with(Net(backend), known | 1 << c.VIRTIO_NET_F_MQ) as driver:
        assert backend.offloads == csum | tso
        driver.command(c.VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, struct.pack("<Q", csum))
        assert backend.offloads == csum
        for data in (struct.pack("<Q", 1 << c.VIRTIO_NET_F_GUEST_TSO6), b"", struct.pack("<QB", 0, 0)):
            with pytest.raises(DriverError, match="refuses"):
                driver.command(c.VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0, data)
        with pytest.raises(DriverError, match="refuses"):
            driver.command(c.VIRTIO_NET_CTRL_GUEST_OFFLOADS, 1, struct.pack("<Q", 0))


@pytest.mark.parametrize(
    "bits",
    [
        (c.VIRTIO_NET_F_GUEST_TSO4,),
        (c.VIRTIO_NET_F_HOST_TSO4,),
        (c.VIRTIO_NET_F_GUEST_CSUM, c.VIRTIO_NET_F_GUEST_ECN),
        (c.VIRTIO_NET_F_CSUM, c.VIRTIO_NET_F_HOST_ECN),
        (c.VIRTIO_NET_F_CTRL_RX,),
        (c.VIRTIO_NET_F_MQ,),
    ],
)
def test_features_without_those_they_need_are_refused(bits: tuple[int, ...]) -> None:
    with pytest.raises(DriverError, match="refuses the features"):
        drive_with(Net(Offloading()), sum(1 << bit for bit in bits))


# queues


def test_queue_pairs() -> None:
    backend = Offloading()
    device = Net(backend, mac=MAC)
    with drive(device, "pci", "packed") as driver:
        assert driver.pairs == 4
        assert driver.config_value(8, 2) == 4
        assert backend.pairs == 1
        backend.incoming[3].append(bytes(HEADER_SIZE) + frame())
        device.poll()
        driver.poll()
        assert not driver.received[3]
        driver.command(c.VIRTIO_NET_CTRL_MQ, c.VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, struct.pack("<H", 4))
        assert backend.pairs == 4
        device.poll()
        assert driver.receive(pair=3) == frame()
        driver.send(frame(), pair=2)
        assert backend.sent[-1][0] == 2
        for data in (struct.pack("<H", 0), struct.pack("<H", 5), b"\1"):
            with pytest.raises(DriverError):
                driver.command(c.VIRTIO_NET_CTRL_MQ, c.VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, data)
        driver.reset()
        assert backend.pairs == 1


def test_without_multiqueue_the_control_queue_is_the_third() -> None:
    device = Net(Offloading())
    with drive(device, start=False) as driver:
        driver.know(1 << 32 | 1 << c.VIRTIO_NET_F_CTRL_VQ | 1 << c.VIRTIO_NET_F_CTRL_RX)
        driver.start()
        assert device.control_queue == 2
        assert driver.request(2, b"\0\0\1", into=1) == b"\0"
        assert device.filter.promisc
        device.kick(8)


# commands


@pytest.fixture
def card(cable: tuple[DatagramNet, DatagramNet]) -> Iterator[tuple[Net, NetDriver, DatagramNet]]:
    device = Net(cable[0], mac=MAC)
    with drive(device, start=False) as driver:
        driver.know(device.device_features & ~(1 << 34))
        driver.start()
        yield device, driver, cable[1]


def arrives(card: tuple[Net, NetDriver, DatagramNet], *frames: bytes) -> list[bool]:
    device, driver, end = card
    give(end, *frames)
    device.poll()
    driver.poll()
    got = [each for _, each in driver.received[0]]
    driver.received[0].clear()
    return [each in got for each in frames]


def test_receive_modes(card: tuple[Net, NetDriver, DatagramNet]) -> None:
    device, driver, _ = card
    stranger, group = frame(destination=b"\x52\0\0\0\0\x09"), frame(destination=b"\x33\x33\0\0\0\1")
    broadcast = frame(destination=BROADCAST)
    everything = (frame(), stranger, group, broadcast)

    def mode(number: int, on: int) -> None:
        driver.command(c.VIRTIO_NET_CTRL_RX, number, bytes([on]))

    assert arrives(card, *everything) == [True] * 4
    mode(c.VIRTIO_NET_CTRL_RX_PROMISC, 0)
    assert arrives(card, *everything) == [True, False, False, True]
    mode(c.VIRTIO_NET_CTRL_RX_ALLMULTI, 1)
    mode(c.VIRTIO_NET_CTRL_RX_ALLUNI, 1)
    assert arrives(card, *everything) == [True] * 4
    mode(c.VIRTIO_NET_CTRL_RX_NOMULTI, 1)
    mode(c.VIRTIO_NET_CTRL_RX_NOUNI, 1)
    mode(c.VIRTIO_NET_CTRL_RX_NOBCAST, 1)
    assert arrives(card, *everything) == [False] * 4
    for number, data in ((6, b"\1"), (0, b"\2"), (0, b""), (0, b"\0\0")):
        with pytest.raises(DriverError):
            driver.command(c.VIRTIO_NET_CTRL_RX, number, data)
    driver.reset()
    assert device.filter.promisc


def tables(unicast: list[bytes], multicast: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(table)) + b"".join(table) for table in (unicast, multicast))


def test_tables_of_addresses(card: tuple[Net, NetDriver, DatagramNet]) -> None:
    device, driver, _ = card
    one, group = b"\x52\0\0\0\0\x09", b"\x33\x33\0\0\0\1"
    driver.command(c.VIRTIO_NET_CTRL_RX, c.VIRTIO_NET_CTRL_RX_PROMISC, b"\0")
    driver.command(c.VIRTIO_NET_CTRL_MAC, c.VIRTIO_NET_CTRL_MAC_TABLE_SET, tables([one], [group]))
    asked = [frame(destination=to) for to in (one, group, b"\x52\0\0\0\0\x08", b"\x33\x33\0\0\0\2")]
    assert arrives(card, *asked) == [True, True, False, False]
    many = [bytes([0x52, 0, 0, 0, 1, number]) for number in range(65)]
    driver.command(c.VIRTIO_NET_CTRL_MAC, c.VIRTIO_NET_CTRL_MAC_TABLE_SET, tables(many, many))
    assert arrives(card, *asked) == [True] * 4
    for data in (b"", tables([one], [])[:-1], tables([], []) + b"x", struct.pack("<I", 1 << 31) + bytes(20)):
        before = device.filter.state()
        with pytest.raises(DriverError):
            driver.command(c.VIRTIO_NET_CTRL_MAC, c.VIRTIO_NET_CTRL_MAC_TABLE_SET, data)
        assert device.filter.state() == before
    driver.command(c.VIRTIO_NET_CTRL_MAC, c.VIRTIO_NET_CTRL_MAC_TABLE_SET, tables([], []))
    driver.command(c.VIRTIO_NET_CTRL_MAC, c.VIRTIO_NET_CTRL_MAC_ADDR_SET, one)
    assert device.mac == one.hex(":")
    assert arrives(card, asked[0], frame()) == [True, False]
    with pytest.raises(DriverError):
        driver.command(c.VIRTIO_NET_CTRL_MAC, c.VIRTIO_NET_CTRL_MAC_ADDR_SET, b"short")
    driver.reset()
    assert device.mac == MAC


def test_vlans(card: tuple[Net, NetDriver, DatagramNet]) -> None:
    _, driver, _ = card
    tagged = [frame(kind=b"\x81\x00" + struct.pack("!H", 0x2000 | tag)) for tag in (1, 2)]
    assert arrives(card, *tagged, frame()) == [False, False, True]
    driver.command(c.VIRTIO_NET_CTRL_VLAN, c.VIRTIO_NET_CTRL_VLAN_ADD, struct.pack("<H", 2))
    assert arrives(card, *tagged) == [False, True]
    driver.command(c.VIRTIO_NET_CTRL_VLAN, c.VIRTIO_NET_CTRL_VLAN_DEL, struct.pack("<H", 2))
    assert arrives(card, *tagged) == [False, False]
    for command, data in ((0, b"\0"), (0, struct.pack("<H", 4096)), (2, struct.pack("<H", 1))):
        with pytest.raises(DriverError):
            driver.command(c.VIRTIO_NET_CTRL_VLAN, command, data)


def test_announcements(card: tuple[Net, NetDriver, DatagramNet]) -> None:
    device, driver, _ = card
    device.announce()
    driver.poll()
    assert driver.config_changes == 1
    assert driver.config_value(6, 2) == c.VIRTIO_NET_S_LINK_UP | c.VIRTIO_NET_S_ANNOUNCE
    driver.command(c.VIRTIO_NET_CTRL_ANNOUNCE, c.VIRTIO_NET_CTRL_ANNOUNCE_ACK)
    assert driver.config_value(6, 2) == c.VIRTIO_NET_S_LINK_UP
    with pytest.raises(DriverError):
        driver.command(c.VIRTIO_NET_CTRL_ANNOUNCE, 1)


def test_commands_that_are_none(card: tuple[Net, NetDriver, DatagramNet]) -> None:
    device, driver, _ = card
    for command in (b"", b"\0", b"\xff\0", b"\4\0\1\0", bytes(70000)):
        assert driver.request(driver.control_queue, *([command] if command else []), into=1) == bytes(
            [c.VIRTIO_NET_ERR]
        )
    driver.submit(driver.control_queue, (b"\0\0\1",))
    assert driver.needs_reset
    device.announce()


# the rest


def test_the_cable(cable: tuple[DatagramNet, DatagramNet]) -> None:
    ours, theirs = cable
    device = Net(ours, mac=MAC)
    with drive(device) as driver:
        device.set_link(False)
        assert not driver.link_up
        driver.send(frame())
        give(theirs, frame())
        device.poll()
        assert take(theirs) == b""
        assert device.dropped == 1
        device.set_link(True)
        assert driver.link_up
        give(theirs, frame(61))
        device.poll()
        assert driver.receive() == frame(61)
        theirs.close()
        device.poll()
        assert not driver.link_up


def test_a_card_that_is_closed_serves_nobody(cable: tuple[DatagramNet, DatagramNet]) -> None:
    ours, theirs = cable
    with EventLoop() as loop:
        device = Net(ours, mac=MAC, loop=loop)
        with drive(device, pump=lambda: loop.run_once(0.01)) as driver:
            give(theirs, frame())
            assert driver.receive() == frame()
            fd = ours.fileno()
            device.close()
            assert not loop.remove_reader(fd)
            request = driver.send(frame())
            assert not request.done
            assert device.bugs == 0
        device.close()


def test_captures_have_both_directions(cable: tuple[DatagramNet, DatagramNet]) -> None:
    ours, theirs = cable
    file = io.BytesIO()
    capture = PcapWriter(file)
    device = Net(ours, mac=MAC, capture=capture)
    with drive(device) as driver:
        driver.send(frame(70, fill=1))
        give(theirs, frame(80, fill=2))
        device.poll()
        assert driver.receive()
    assert capture.frames == 2
    data = file.getvalue()
    assert data[40:110] == frame(70, fill=1)
    assert data[126:] == frame(80, fill=2)
    device.close()


@pytest.mark.parametrize("direction", ["receive", "send"])
def test_rate_limits(cable: tuple[DatagramNet, DatagramNet], direction: str) -> None:
    ours, theirs = cable
    now = 0
    limiter = RateLimiter(ops=TokenBucket(1, 10, clock=lambda: now))
    with EventLoop() as loop:
        device = Net(ours, mac=MAC, loop=loop, **{f"{direction}_limiter": limiter})  # type: ignore[arg-type]
        with drive(device, pump=lambda: loop.run_once(0.005)) as driver:
            frames = [frame(60 + number) for number in range(3)]
            got: list[bytes] = []
            for each in frames:
                if direction == "send":
                    driver.send(each)
                else:
                    give(theirs, each)
            for turn in range(3):
                for _ in range(6):
                    loop.run_once(0.005)
                    driver.poll()
                if direction == "send":
                    got += iter(lambda: take(theirs), b"")
                else:
                    got = [each for _, each in driver.received[0]]
                assert got == frames[: turn + 1]
                now += 10_000_000
        device.close()


def test_a_frame_that_finds_no_room_pays_once() -> None:
    now = 0
    limiter = RateLimiter(ops=TokenBucket(2, 1000, clock=lambda: now))
    backend = Offloading()
    with EventLoop() as loop:
        device = Net(backend, mac=MAC, loop=loop, send_limiter=limiter)
        with drive(device) as driver:
            backend.full = True
            room = os.eventfd(0)
            backend.fileno = lambda pair: room  # type: ignore[method-assign] # something to wait for
            driver.send(frame())
            for _ in range(3):
                device.kick(1)
            backend.full = False
            device.kick(1)
            driver.wait(driver.send(frame()))
            assert len(backend.sent) == 2
        device.close()
    os.close(room)


def test_state_is_carried_over(cable: tuple[DatagramNet, DatagramNet]) -> None:
    backend = Offloading()
    device = Net(backend, mac=MAC)
    with drive(device) as driver:
        driver.command(c.VIRTIO_NET_CTRL_MQ, c.VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, struct.pack("<H", 3))
        driver.command(c.VIRTIO_NET_CTRL_RX, c.VIRTIO_NET_CTRL_RX_PROMISC, b"\0")
        driver.command(c.VIRTIO_NET_CTRL_MAC, c.VIRTIO_NET_CTRL_MAC_TABLE_SET, tables([b"\x52\0\0\0\0\x09"], []))
        driver.command(c.VIRTIO_NET_CTRL_VLAN, c.VIRTIO_NET_CTRL_VLAN_ADD, struct.pack("<H", 2))
        # a frame that waits for more buffers is lost, and its buffers are not
        backend.incoming[0].append(bytes(HEADER_SIZE) + frame(65000) + bytes(500))
        device.pause()
        state = json.loads(json.dumps(device.state()))
        second = Offloading()
        restored = Net(second, mac="52:54:00:00:00:99")
        restored.attach(driver.memory)
        restored.restore(state, NoInterrupt())
        assert second.pairs == 3
        assert restored.filter.state() == device.filter.state()
        assert restored.mac == MAC
        restored.resume()
        assert second.offloads == backend.offloads
        vlans = {**device.filter.state(), "vlans": [9999]}
        wrong: list[dict[str, Any]] = [{"pairs": 9}, {"filter": {}}, {"offloads": 1 << 60}, {"filter": vlans}]
        for own in wrong:
            with pytest.raises(DeviceStateError):
                Net(Offloading()).restore_device({**state["own"], **own})
        restored.driver_reset()


@given(st.lists(st.binary(min_size=1, max_size=20), min_size=1, max_size=20))
def test_headers_are_cut_off_wherever_they_lie(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    if len(whole) >= HEADER_SIZE:
        header, rest = split([memoryview(part) for part in parts])
        assert header == whole[:HEADER_SIZE]
        assert b"".join(rest) == whole[HEADER_SIZE:]


@pytest.mark.parametrize(
    "text", ["", "52:54:00:12:34", "52-54-00-12-34-56", "53:54:00:12:34:56", "00:00:00:00:00:00", "g" * 17]
)
def test_addresses_of_no_card(text: str) -> None:
    with pytest.raises(VirtioUsageError, match="no address of a network card"):
        parse_mac(text)


@pytest.mark.parametrize("mtu", [-1, 67, 65536])
def test_impossible_cards(cable: tuple[DatagramNet, DatagramNet], mtu: int) -> None:
    with pytest.raises(VirtioUsageError, match="give 68 to 65535"):
        Net(cable[0], mtu=mtu)
    with pytest.raises(VirtioUsageError, match="'tap0' is no network"):
        Net("tap0")  # type: ignore[arg-type]


def test_a_card_without_an_address_gets_one(cable: tuple[DatagramNet, DatagramNet]) -> None:
    assert Net(cable[0]).mac.startswith("52:54:00:")
    assert Net(cable[0]).mac != Net(cable[0]).mac
    assert ReceiveFilter(OWN).wants(memoryview(frame()))
