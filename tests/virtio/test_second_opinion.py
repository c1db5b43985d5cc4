"""What others make of our rings: QEMU's and DPDK's devices with our driver, and DPDK's drivers with our devices.

All of it by vhost-user, without a guest. DPDK's packed rings, in-order use and mergeable buffers are its own.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from benchmarks.vhost_user import drive_behind
from guest.host import install
from tests.virtio.vhost_user import VhostUserBackend

from pyvmm_device import EventLoop
from pyvmm_virtio.backends.datagram import DatagramNet
from pyvmm_virtio.constants import block as b
from pyvmm_virtio.constants import features as f
from pyvmm_virtio.constants import net as n
from pyvmm_virtio.constants.device_ids import VIRTIO_ID_NET
from pyvmm_virtio.constants.ring import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from pyvmm_virtio.devices import Net
from pyvmm_virtio.features import mask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import Any

MIB = 1 << 20


@contextmanager
def running(command: Sequence[str | Path], path: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process, once it has made a socket; its output is shown where something goes wrong."""
    # testpmd ends when there is nothing more to read from its input
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(["nice", *command], text=True, **pipes)  # type: ignore[call-overload] # spelled above
    assert process.stdout is not None
    try:
        while path is not None and not path.exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        sys.stdout.write(process.communicate(timeout=60)[0])


# QEMU


@pytest.mark.parametrize(
    "rings",
    [0, mask(VIRTIO_RING_F_EVENT_IDX), mask(VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC)],
    ids=["plain", "event-idx", "indirect"],
)
def test_our_driver_on_a_disk_of_qemu_s(tmp_path: Path, rings: int) -> None:
    install(["qemu-system-common"], "for qemu-storage-daemon")
    image, path = tmp_path / "disk", tmp_path / "vhost"
    content = bytearray(random.Random(1).randbytes(4 * MIB))
    image.write_bytes(content)
    export = f"type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={path},writable=on,num-queues=4"
    command = ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=disk,filename={image}", "--export", export]
    known = mask(b.VIRTIO_BLK_F_MQ, b.VIRTIO_BLK_F_SEG_MAX, b.VIRTIO_BLK_F_DISCARD, b.VIRTIO_BLK_F_WRITE_ZEROES)
    with running(command, path), drive_behind(str(path), queues=4, features=known | rings) as driver:
        assert driver.features & rings == rings
        assert driver.has(b.VIRTIO_BLK_F_MQ)
        assert driver.capacity * 512 == len(content)
        chance = random.Random(2)
        for _ in range(40):
            work: list[tuple[Any, int, bytes | None]] = []
            taken: set[int] = set()
            for _ in range(15):
                place, queue = chance.randrange(512), chance.randrange(4)
                if place in taken:
                    continue  # requests under way at the same time have no order
                taken.add(place)
                data = chance.randbytes(8192) if chance.randrange(2) else None
                if data is None:
                    request = driver.submit_read(place * 16, 16, queue=queue)
                else:
                    parts = [data[:512], data[512:4096], data[4096:]]
                    request = driver.submit_request(b.VIRTIO_BLK_T_OUT, place * 16, parts, queue=queue)
                    content[place * 8192 : place * 8192 + 8192] = data
                work.append((request, place, data))
            for request, place, data in work:
                read = driver.finish(request)
                assert data is not None or read == content[place * 8192 : place * 8192 + 8192]
        driver.flush()
    assert image.read_bytes() == content


# DPDK, whose testpmd sends back what it receives

PACKED = mask(f.VIRTIO_F_RING_PACKED)
RINGS = {
    "split": mask(VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC),
    "packed": PACKED | mask(VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC),
    "split-in-order": mask(f.VIRTIO_F_IN_ORDER),
    "packed-in-order": PACKED | mask(f.VIRTIO_F_IN_ORDER),
}
# frames in several buffers: merged on one way, and linked or in indirect tables on the other
LONG = ("--max-pkt-len=9018", "--enable-scatter", "--tx-offloads=0x8000")
MARK = b"\xff" * 6 + b"is anybody there" + bytes(42)


def loopback(vdev: str, *options: str) -> list[str]:
    install(["dpdk-dev", "librte-net-virtio23", "librte-net-vhost23"], "for testpmd, a driver and a device not ours")
    own = f"dpdk-testpmd --no-huge -m 256 --no-pci --no-telemetry --file-prefix=pyvmm{os.getpid()} --lcores=0@0,1@0"
    loop = "--forward-mode=io --port-topology=loop --total-num-mbufs=4096 --disable-link-check"
    return [*own.split(), f"--vdev={vdev}", "--", *loop.split(), *options]


def frames(chance: random.Random, count: int, largest: int) -> list[bytes]:
    sizes = (chance.choice((60, 61, 1514, 2050, chance.randrange(60, largest))) for _ in range(count))
    return [b"\xff" * 6 + chance.randbytes(min(size, largest) - 6) for size in sizes]


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_our_driver_on_a_network_card_of_dpdk_s(tmp_path: Path, ring: str) -> None:
    path = tmp_path / "vhost"
    known = RINGS[ring] | mask(n.VIRTIO_NET_F_MRG_RXBUF)
    chance = random.Random(3)
    with (
        running(loopback(f"net_vhost0,iface={path}"), path),
        drive_behind(str(path), VIRTIO_ID_NET, queues=2, features=known) as driver,
    ):
        assert driver.features & RINGS[ring] == RINGS[ring]
        for _ in range(15):
            sent = frames(chance, 30, 9000)
            for frame in sent:
                driver.send(frame)
            assert [driver.receive() for _ in sent] == sent


@pytest.mark.parametrize("ring", RINGS)
def test_dpdk_s_driver_on_our_network_card(tmp_path: Path, ring: str) -> None:
    path = tmp_path / "vhost"
    loop = EventLoop()
    ours, theirs = DatagramNet.pair()
    offered = RINGS[ring]
    if ring == "packed":
        # in packed tables DPDK 22.11 marks as writable what is to be read, which no device could send
        offered &= ~mask(VIRTIO_RING_F_INDIRECT_DESC)
    device = Net(ours, loop=loop, ring_features=offered | mask(f.VIRTIO_F_VERSION_1))
    options = f"packed_vq={int('packed' in ring)},in_order={int('order' in ring)},mrg_rxbuf=1"
    chance = random.Random(4)
    with VhostUserBackend(device, loop, str(path)) as backend, theirs:
        with running(loopback(f"net_virtio_user0,path={path},queue_size=256,{options}", *LONG)):
            wait_until(lambda: comes_back(theirs, MARK))
            # DPDK knows no EVENT_IDX
            assert device.driver_features & offered == offered & ~mask(VIRTIO_RING_F_EVENT_IDX)
            for _ in range(15):
                sent = frames(chance, 30, 9000)
                assert all(theirs.send(0, [memoryview(frame)]) for frame in sent)
                assert [receive(theirs) for _ in sent] == sent
        wait_until(lambda: backend.front is None)
    assert not device.errors
    assert not device.bugs
    assert not backend.unknown


def comes_back(end: DatagramNet, frame: bytes) -> bool:
    assert end.send(0, [memoryview(frame)])
    time.sleep(0.1)
    return end.receive(0, [memoryview(bytearray(len(frame)))]) > 0


def receive(end: DatagramNet) -> bytes:
    """The next frame that is not one of those that asked whether anybody is there."""
    buffer = bytearray(9018)
    with memoryview(buffer) as view:
        while True:
            count = wait_until(lambda: end.receive(0, [view]))
            if buffer[: len(MARK)] != MARK:
                return bytes(view[:count])


def wait_until(condition: Callable[[], int], seconds: float = 30) -> int:
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end
        time.sleep(0.001)
    return result
