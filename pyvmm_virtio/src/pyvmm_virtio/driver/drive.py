"""`drive`: a bus, a transport and a driver around a device, in one call."""

from __future__ import annotations

from pyvmm_device.bus import BusRange
from pyvmm_device.io_manager import IoManager
from pyvmm_memory import GuestMemoryMmap
from pyvmm_virtio.constants import device_ids as ids
from pyvmm_virtio.constants import features as f
from pyvmm_virtio.constants.ring import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from pyvmm_virtio.device import VirtioDevice
from pyvmm_virtio.driver.arena import Arena
from pyvmm_virtio.driver.driver import RING_BITS, Driver
from pyvmm_virtio.errors import VirtioUsageError
from pyvmm_virtio.features import mask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyvmm_device.irq_config import MsiIrqConfig
    from pyvmm_virtio.driver.registers import Port
    from pyvmm_virtio.transport import VirtioMmio, VirtioPci

MMIO_BASE = 0xD0000000
MEMORY_SIZE = 64 << 20
FIRST_ADDRESS = 0x10000


class Wires:
    """The interrupt controller: what a device raises ends in the driver, once there is one."""

    def __init__(self) -> None:
        self.driver: Driver | None = None
        self.up = False

    def message(self, config: MsiIrqConfig) -> None:
        """Take a message; drivers give vector n the data n."""
        if self.driver is not None:
            self.driver.note_interrupt(config.data)

    def edge(self) -> None:
        """Take an edge."""
        if self.driver is not None:
            self.driver.note_interrupt()

    def assert_(self) -> None:
        """Take a level that goes up."""
        if not self.up:
            self.up = True
            self.edge()

    def clear(self) -> None:
        """Take a level that goes down."""
        self.up = False


class Edge:
    """An edge interrupt on these wires."""

    def __init__(self, wires: Wires) -> None:
        self.trigger = wires.edge


def find_driver(device_type: int) -> type[Driver]:
    """Return the driver that knows a device type, or the one that knows none."""
    if device_type == ids.VIRTIO_ID_BLOCK:
        from pyvmm_virtio.driver.block import BlockDriver

        return BlockDriver
    if device_type == ids.VIRTIO_ID_NET:
        from pyvmm_virtio.driver.net import NetDriver

        return NetDriver
    if device_type == ids.VIRTIO_ID_CONSOLE:
        from pyvmm_virtio.driver.console import ConsoleDriver

        return ConsoleDriver
    if device_type == ids.VIRTIO_ID_RNG:
        from pyvmm_virtio.driver.rng import RngDriver

        return RngDriver
    return Driver


def drive(
    device: VirtioDevice,
    transport: str = "mmio",
    ring: str = "split",
    *,
    memory: GuestMemoryMmap | None = None,
    queue_size: int | None = None,
    indirect: bool = True,
    event_idx: bool = True,
    in_order: bool = False,
    notification_data: bool = False,
    features: int | None = None,
    irq: str = "",
    vectors: int | None = None,
    pump: Callable[[], object] | None = None,
    start: bool = True,
) -> Any:  # noqa: ANN401 - the driver of whatever type the device has
    """Put a device on a bus, find it there as a guest does, and drive it.

    Args:
        device: the device.
        transport: "mmio" or "pci".
        ring: "split" or "packed".
        memory: the guest's memory; by default 64 MiB that are closed with the driver.
        queue_size: how many descriptors a queue has at most; None takes all that the device allows.
        indirect: whether to use indirect tables.
        event_idx: whether to use EVENT_IDX.
        in_order: whether to use IN_ORDER; the device is made to offer it.
        notification_data: whether to use NOTIFICATION_DATA; the device is made to offer it.
        features: of the device type's features, those that the driver knows, as a mask; None takes the driver's own.
        irq: "edge" or "level" for MMIO, "msix" or "intx" for PCI; the first of each is the default.
        vectors: how many MSI-X vectors the function has; one more than queues by default.
        pump: called while waiting for the device, for instance its event loop's ``run_once``.
        start: whether to negotiate and begin; else ``driver.start()`` does.

    Returns:
        A started `Driver`, or the one of the device's type. Close it, or use it in a ``with``.

    Raises:
        DriverError: the device refuses.
        VirtioUsageError: it is no device, or there is no such transport, ring, size of a queue or interrupt.
    """
    _check(device, transport, ring, queue_size)
    own = memory is None
    memory = memory or GuestMemoryMmap.from_ranges([(0, MEMORY_SIZE)])
    made_to_offer = {f.VIRTIO_F_IN_ORDER: in_order, f.VIRTIO_F_NOTIFICATION_DATA: notification_data}
    device.device_features |= mask(*(bit for bit, wanted in made_to_offer.items() if wanted))
    optional = {VIRTIO_RING_F_INDIRECT_DESC: indirect, VIRTIO_RING_F_EVENT_IDX: event_idx}
    wanted = {**made_to_offer, **optional, f.VIRTIO_F_RING_PACKED: ring == "packed"}
    known = mask(*(bit for bit in RING_BITS if wanted.get(bit, True)))
    wires, port, behind = _connect(device, transport, memory, irq, vectors)
    driver = find_driver(port.device_type)(port, _arena(memory), known, queue_size=queue_size, pump=pump)
    if features is not None:
        driver.know(known | features)
    driver.transport = behind
    wires.driver = driver
    if own:
        driver.on_close(memory.close)
    return _start(driver, device, ring) if start else driver


def _check(device: object, transport: str, ring: str, queue_size: int | None) -> None:
    if transport not in ("mmio", "pci") or ring not in ("split", "packed"):
        raise VirtioUsageError(f"transport {transport!r}, ring {ring!r}: there are mmio and pci, split and packed")
    if not isinstance(device, VirtioDevice):
        raise VirtioUsageError(f"{device!r} is no device: give an object of a VirtioDevice, such as Rng()")
    if queue_size is not None and queue_size < 1:
        raise VirtioUsageError(
            f"queues of {queue_size} descriptors: give 1 or more, or None for what the device allows"
        )


def _arena(memory: GuestMemoryMmap) -> Arena:
    region = next(iter(memory))
    return Arena(memory, max(region.start, FIRST_ADDRESS), region.end)


def _start(driver: Driver, device: VirtioDevice, ring: str) -> Driver:
    """Start the driver and return it, or close it."""
    try:
        driver.start()
        if ring == "packed" and not driver.has(f.VIRTIO_F_RING_PACKED):
            raise VirtioUsageError(f"{device!r} does not offer packed rings")
    except BaseException:
        driver.close()
        raise
    return driver


def _connect(
    device: VirtioDevice, transport: str, memory: GuestMemoryMmap, irq: str, vectors: int | None
) -> tuple[Wires, Port, VirtioMmio | VirtioPci]:
    """Put the device on a bus of its own; return its interrupts, the way to its registers, and its transport."""
    wires = Wires()
    if transport == "mmio":
        return wires, *_mmio(device, memory, wires, irq)
    return wires, *_pci(device, memory, wires, irq, vectors)


def _mmio(device: VirtioDevice, memory: GuestMemoryMmap, wires: Wires, irq: str) -> tuple[Port, VirtioMmio]:
    from pyvmm_virtio.driver.mmio import MmioPort
    from pyvmm_virtio.transport.mmio import SIZE, VirtioMmio

    if irq not in ("", "edge", "level"):
        raise VirtioUsageError(f"interrupt {irq!r}: MMIO has edge and level")
    io = IoManager()
    transport = VirtioMmio(device, memory, wires if irq == "level" else Edge(wires))
    io.register_mmio(transport, [BusRange(MMIO_BASE, SIZE)])
    return MmioPort(io, MMIO_BASE), transport


def _pci(
    device: VirtioDevice, memory: GuestMemoryMmap, wires: Wires, irq: str, vectors: int | None
) -> tuple[Port, VirtioPci]:
    from pyvmm_device.interrupt_group import MessageGroup
    from pyvmm_device.pci.root import PciRoot
    from pyvmm_virtio.driver.pci import PciPort
    from pyvmm_virtio.transport.pci import VirtioPci

    if irq not in ("", "msix", "intx"):
        raise VirtioUsageError(f"interrupt {irq!r}: PCI has msix and intx")
    io = IoManager()
    count = vectors or len(device.queues) + 1
    group = MessageGroup(count, wires.message) if irq != "intx" else None
    function = VirtioPci(device, memory, group)
    PciRoot(io, lines=[wires]).add(function)
    return PciPort(io), function
