"""Network devices: chapter 5.1."""

from __future__ import annotations

from pyvmm_virtio.conformance.bench import Bench, NotHere, ensure
from pyvmm_virtio.conformance.checks.registry import check
from pyvmm_virtio.constants import net as n
from pyvmm_virtio.driver.net import HEADER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TAGGED = b"\xff" * 6 + bytes(6) + b"\x81\x00\x00\x07\x08\x00" + bytes(50)
"""A frame of VLAN 7."""


@check()
def net_configuration(bench: Bench) -> None:
    """Look at what the configuration says."""
    with bench.driver(start=False) as driver:
        offered = driver.port.device_features()
        if offered >> n.VIRTIO_NET_F_MQ & 1:
            ensure(1 <= driver.config_value(8, 2) <= 0x8000, "max_virtqueue_pairs is out of range")
        if offered >> n.VIRTIO_NET_F_MTU & 1:
            ensure(driver.config_value(10, 2) >= 68, "mtu is below 68")


@check()
def net_odd_headers(bench: Bench) -> None:
    """Send frames with headers that make no sense: each has to be taken."""
    with bench.driver() as driver:
        for header in ((0xF8, 0, 0, 0, 0, 0, 0), (0, 0, 0xFFFF, 0, 0xFFFF, 0xFFFF, 0xFFFF)):
            driver.wait(driver.submit(1, (HEADER.pack(*header), bytes(60))), timeout=2)
        ensure(not driver.needs_reset, "it needs a reset after a header with flags it does not know")


def arrives(device: Any, driver: Any, frame: bytes) -> tuple[tuple[int, ...], bytes]:  # noqa: ANN401 - a Net, its driver
    """Let a frame come from the network; return its header and itself."""
    device.other_end.send(0, [memoryview(frame)])
    device.poll()
    driver.poll()
    ensure(driver.received[0], f"a frame of {len(frame)} bytes does not arrive")
    received: tuple[tuple[int, ...], bytes] = driver.received[0].pop(0)
    return received


@check()
def net_receives(bench: Bench) -> None:
    """Receive frames with and without mergeable buffers."""
    device: Any = bench.make()
    if not hasattr(device, "other_end"):
        raise NotHere("what it receives cannot be seen without the network's other end")
    for mergeable in (False, True):
        device = bench.make()
        with bench.driver(device, plain=False, start=False) as driver:
            known = driver.known
            if not mergeable:
                known &= ~sum(1 << bit for bit in (n.VIRTIO_NET_F_MRG_RXBUF, n.VIRTIO_NET_F_CTRL_VLAN))
            driver.know(known)
            driver.buffer_size = 512 if mergeable else 2048
            driver.start()
            for frame in (b"\xff" * 6 + bytes(54), b"\xff" * 6 + bytes(1400), TAGGED):
                if mergeable and frame is TAGGED:
                    continue
                header, data = arrives(device, driver, frame)
                ensure(data[: len(frame)] == frame, "a frame arrives changed")
                ensure(header[:2] == (0, 0), f"flags and gso_type are {header[:2]}")
                buffers = (
                    -(-(len(data) + HEADER.size) // driver.buffer_size) if driver.has(n.VIRTIO_NET_F_MRG_RXBUF) else 1
                )
                ensure(header[6] == buffers, f"num_buffers is {header[6]}, not {buffers}")


@check()
def net_commands(bench: Bench) -> None:
    """Send commands of every class that was negotiated."""
    device = bench.make()
    with bench.driver(device, plain=False) as driver:
        if not driver.has(n.VIRTIO_NET_F_CTRL_VQ):
            raise NotHere("CTRL_VQ is not offered")
        if driver.has(n.VIRTIO_NET_F_CTRL_RX):
            for command in (n.VIRTIO_NET_CTRL_RX_PROMISC, n.VIRTIO_NET_CTRL_RX_ALLMULTI):
                for value in (b"\0", b"\1"):
                    driver.command(n.VIRTIO_NET_CTRL_RX, command, value)
        if driver.has(n.VIRTIO_NET_F_CTRL_MAC_ADDR):
            driver.command(n.VIRTIO_NET_CTRL_MAC, n.VIRTIO_NET_CTRL_MAC_ADDR_SET, b"\x02\0\0\0\0\x07")
            ensure(driver.mac == b"\x02\0\0\0\0\x07", "mac in the configuration was not changed before the answer")
        if driver.has(n.VIRTIO_NET_F_CTRL_VLAN):
            driver.command(n.VIRTIO_NET_CTRL_VLAN, n.VIRTIO_NET_CTRL_VLAN_ADD, b"\7\0")
            if hasattr(device, "other_end"):
                arrives(device, driver, TAGGED)
        if driver.has(n.VIRTIO_NET_F_GUEST_ANNOUNCE):
            driver.command(n.VIRTIO_NET_CTRL_ANNOUNCE, n.VIRTIO_NET_CTRL_ANNOUNCE_ACK)
            ensure(not driver.config_value(6, 2) & n.VIRTIO_NET_S_ANNOUNCE, "ANNOUNCE is still set")
