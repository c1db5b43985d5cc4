"""An error that leaves its room: whatever a guest, a back end or a machine does, the device answers for itself.

Interrupts that raise, memory that may only be read, mappings that are taken back, networks and ports that refuse: for
each device, each transport and each ring, and for each method of each back end. Nothing comes out, no bug of the device
is counted, and the log says each kind once.
"""

from __future__ import annotations

import builtins
import errno
import logging
import mmap
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from tests.hostile.subjects import (
    COMBINATIONS,
    DEVICES,
    device_classes,
    dispose,
    kinds_of_queues,
    make,
    net_backends,
    port_backends,
)

from pyvmm_memory import GuestMemoryMmap, GuestRegionMmap, MmapRegion, Permissions
from pyvmm_memory.iommu import Iommu, IommuMemory
from pyvmm_memory.iotlb import Iotlb
from pyvmm_virtio.backends.datagram import DatagramNet
from pyvmm_virtio.backends.port import BasePort
from pyvmm_virtio.constants import device_ids as ids
from pyvmm_virtio.constants import net as c
from pyvmm_virtio.devices import Console, Net
from pyvmm_virtio.driver import drive
from pyvmm_virtio.fuzz.recipes import recipe_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvmm_virtio.device import VirtioDevice
    from pyvmm_virtio.queue.base import BaseQueue

WRITE = 2
MEMORY = 16 << 20
ROUNDS = 5
BUFFERS = 0xC00000
"""Beyond the arena of the driver's first few requests."""


class Attacked:
    """A device, driven through an IOMMU that maps all of memory to itself, until a test says something else."""

    def __init__(self, name: str, transport: str, ring: str) -> None:
        self.memory = GuestMemoryMmap.from_ranges([(0, MEMORY)])
        self.iotlb = Iotlb()
        self.map_all()
        self.device = make(name)
        self.driver: Any = drive(self.device, transport, ring, memory=self.memory, indirect=False, start=False)
        self.driver.after_start = int
        self.driver.completed = lambda _: None
        self.device.attach(IommuMemory(self.memory, Iommu(self.iotlb)))
        self.driver.start()
        self.queue = 1 if self.device.device_type in (ids.VIRTIO_ID_NET, ids.VIRTIO_ID_CONSOLE) else 0

    def map_all(self) -> None:
        self.iotlb.set_mapping(0, 0, MEMORY, Permissions.ReadWrite)

    def parts(self) -> list[tuple[bytes | None, int]]:
        return list(recipe_for(self.device)(Random(1), self.queue, len(self.driver.queues)))

    def submit(self, queue: int | None = None, *, permissions: Permissions = Permissions.ReadWrite) -> Any:  # noqa: ANN401 - a Request
        """Send a right request, whose writable buffers are in pages of their own that allow this."""
        buffers, at = [], BUFFERS
        for data, size in self.parts():
            self.memory.write_slice(data if data is not None else bytes(size), at)
            buffers.append((at, size, 0 if data is not None else WRITE))
            if data is None:
                self.iotlb.set_mapping(at, at, (size + 0xFFF) & ~0xFFF, permissions)
            at += (size + 0xFFF) & ~0xFFF or 0x1000
        return self.driver.submit_buffers(self.queue if queue is None else queue, buffers)

    def works(self) -> None:
        self.map_all()
        self.driver.wait(self.submit())

    def reset(self) -> None:
        self.map_all()
        self.driver.reset()

    def close(self) -> None:
        self.driver.close()
        dispose(self.device)
        self.memory.close()


@pytest.fixture(params=COMBINATIONS, ids=["-".join(each) for each in COMBINATIONS])
def attacked(request: pytest.FixtureRequest) -> Iterator[Attacked]:
    attacked = Attacked(*request.param)
    yield attacked
    attacked.close()


def is_quiet(device: VirtioDevice, caplog: pytest.LogCaptureFixture, most: int = 3) -> None:
    """See that what happened was the driver's or the back end's fault, and the log said so once."""
    assert device.bugs == 0, device.dispatch.faults
    assert not any(hasattr(builtins, kind) for kind in device.errors), device.errors
    own = [record for record in caplog.records if record.name.startswith("pyvmm") and record.levelno >= logging.WARNING]
    assert len(own) <= most, [record.getMessage() for record in own]


def test_every_device_is_attacked() -> None:
    made = [make(name) for name in DEVICES]
    assert {type(device) for device in made} == device_classes()
    for device in made:
        dispose(device)


def test_interrupts_that_raise(attacked: Attacked, caplog: pytest.LogCaptureFixture) -> None:
    device = attacked.device

    class Broken:
        def signal_queue(self, index: int) -> None:
            raise OSError(errno.EINVAL, f"queue {index} has no way")

        def signal_config(self) -> None:
            raise ZeroDivisionError

    device.dispatch.interrupt = Broken()
    for _ in range(ROUNDS):
        attacked.driver.wait(attacked.submit())
        device.config_changed()
    device.pause()
    device.resume()
    assert device.dispatch.faults["interrupt"] >= ROUNDS
    assert not device.needs_reset
    is_quiet(device, caplog)
    device.fail(ValueError("as asked for"))
    assert device.needs_reset


def test_buffers_that_may_only_be_read(attacked: Attacked, caplog: pytest.LogCaptureFixture) -> None:
    if not any(data is None for data, _ in attacked.parts()):
        attacked.works()  # of this request nothing is written
        return
    for _ in range(ROUNDS):
        attacked.submit(permissions=Permissions.Read)
        assert attacked.device.needs_reset
        attacked.reset()
        attacked.works()
    is_quiet(attacked.device, caplog)


def test_buffers_that_may_only_be_written(attacked: Attacked, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(ROUNDS):
        attacked.iotlb.set_mapping(BUFFERS, BUFFERS, 0x10000, Permissions.Write)
        readable = [(BUFFERS, 64, 0), (BUFFERS + 0x1000, 64, WRITE)]
        attacked.driver.submit_buffers(attacked.queue, readable)
        if attacked.device.device_type != ids.VIRTIO_ID_RNG:  # which reads nothing
            assert attacked.device.needs_reset
        attacked.reset()
        attacked.works()
    is_quiet(attacked.device, caplog)


@pytest.mark.parametrize("permissions", [Permissions.No, Permissions.Read, Permissions.Write])
@pytest.mark.parametrize("area", ["desc", "driver_area", "device_area"])
def test_rings_whose_rights_are_taken_back(
    attacked: Attacked, area: str, permissions: Permissions, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        attacked.works()
        ring = attacked.driver.queues[attacked.queue]
        page = getattr(ring, area) & ~0xFFF
        if permissions is Permissions.No:
            attacked.iotlb.invalidate_mapping(page, 0x1000)
        else:
            attacked.iotlb.set_mapping(page, page, 0x1000, permissions)
        before = attacked.memory.read_bytes(page, 0x1000)
        attacked.driver.kick(attacked.queue, always=True)
        if not permissions & Permissions.Write:
            assert attacked.memory.read_bytes(page, 0x1000) == before
        attacked.reset()
        attacked.works()
    is_quiet(attacked.device, caplog)


@pytest.mark.parametrize("kind", kinds_of_queues(), ids=lambda kind: kind.__name__)
def test_rings_in_memory_that_is_mapped_read_only(kind: type[BaseQueue]) -> None:
    from pyvmm_virtio.errors import InvalidRing

    writable = GuestRegionMmap(0, 0x10000)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    readable = GuestRegionMmap(0x10000, 0x10000, MmapRegion.build(None, 0x10000, mmap.PROT_READ, flags))
    memory = GuestMemoryMmap.from_regions([writable, readable])
    queue = kind(16)
    queue.try_set_desc_table_address(0x1000 if kind.ring == "split" else 0x11000)
    queue.try_set_avail_ring_address(0x3000)
    queue.try_set_used_ring_address(0x13000 if kind.ring == "split" else 0x4000)
    queue.set_ready(True)
    with pytest.raises(InvalidRing, match="read-only"):
        queue.pop_descriptor_chain(memory)


# back ends that refuse


def refuse(*_: object) -> object:
    raise OSError(errno.ENOSPC, "No space left on device")


NET_METHODS = sorted(
    name
    for name, value in vars(DatagramNet).items()
    if callable(value) and not name.startswith("_") and name not in ("close", "fileno")
)


@pytest.mark.parametrize("method", NET_METHODS)
def test_networks_that_refuse(method: str, caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = DatagramNet.pair()
    device = Net(ours)
    device.device_features |= 1 << c.VIRTIO_NET_F_GUEST_CSUM | 1 << c.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
    with drive(device, features=device.device_features) as driver, theirs:
        setattr(ours, method, refuse)
        for _ in range(ROUNDS):
            driver.wait(driver.send(bytes(64)))
            theirs.send(0, [memoryview(bytes(64))])
            device.poll()
            command = bytes([c.VIRTIO_NET_CTRL_GUEST_OFFLOADS, 0]) + (1 << c.VIRTIO_NET_F_GUEST_CSUM).to_bytes(
                8, "little"
            )
            answer = driver.request(device.control_queue, command, into=1)
            assert answer == bytes([c.VIRTIO_NET_ERR if method == "set_offloads" else c.VIRTIO_NET_OK])
            driver.reset()
        assert not device.needs_reset
        is_quiet(device, caplog)
    device.close()


def test_every_network_has_the_methods_that_are_made_to_refuse() -> None:
    assert {"receive", "send", "set_offloads", "set_queue_pairs"} <= set(NET_METHODS)
    for backend in net_backends():
        assert all(hasattr(backend, name) for name in ("receive", "send", "set_offloads", "set_queue_pairs"))


@pytest.mark.parametrize("kind", port_backends(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("method", ["read", "write"])
def test_ports_that_refuse(
    kind: type, method: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, method, refuse)
    monkeypatch.setattr(kind, "close", int)
    monkeypatch.setattr(kind, "__repr__", object.__repr__)
    port: Any = object.__new__(kind)
    BasePort.__init__(port)  # what every port has, without what this kind opens
    monkeypatch.setattr(kind, "write" if method == "read" else "read", lambda _, data: 1 if method == "read" else b"")
    device = Console(port)
    with drive(device) as driver:
        for _ in range(ROUNDS):
            driver.wait(driver.submit(1, [b"lost"]))
            device.poll()
            driver.set_config(8, 0x21, 1)
        assert not device.needs_reset
        assert device.errors[f"port {'output' if method == 'write' else 'input'}"] >= ROUNDS
        is_quiet(device, caplog)
    device.close()
