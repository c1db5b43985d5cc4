"""The MMIO transport: a page of registers and one interrupt.

Source: VIRTIO 1.3, 4.2. Version 2 of the registers; drivers of version 1, the legacy one, find that and go away, and
their registers read as zeros.
"""

from __future__ import annotations

from pyvmm_device.locks import DeferringLock, Lock
from pyvmm_device.state import uint
from pyvmm_virtio.constants import features as f
from pyvmm_virtio.constants import mmio as m
from pyvmm_virtio.mailbox import PATIENCE
from pyvmm_virtio.transport.base import Control, NotifyAddress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from pyvmm_device.interrupt import Interrupt
    from pyvmm_virtio.device import VirtioDevice
    from pyvmm_virtio.memory import MemorySource

MAGIC = 0x74726976
VERSION = 2
VENDOR = 0x554D4551
"""The letters QEMU: what most machines say here, and no driver looks at."""
VIRTIO_MMIO_QUEUE_RESET = 0xC0
"""Not in ``linux/virtio_mmio.h`` yet."""
SIZE = 0x1000
OWN = {"interrupt_status": uint(2), "shared": uint(32)}
"""What the state has beside that of any transport."""
ABSENT = 0xFFFF_FFFF_FFFF_FFFF


class VirtioMmio:
    """A device in a page of memory; register it on a bus (``io.register_mmio(transport, [BusRange(base, SIZE)])``).

    Args:
        device: what is driven.
        memory: guest memory, or a cell that holds the current one.
        interrupt: an edge, which is sent for each event, or a level, which is up until every event was acknowledged.
        iommu: whether addresses are translated on their way.
    """

    def __init__(
        self, device: VirtioDevice, memory: MemorySource, interrupt: Interrupt | None = None, *, iommu: bool = False
    ) -> None:
        self.device = device
        self.interrupt_status = 0
        self._raise, self._lower = _lines(interrupt)
        # a line goes where the last one of several threads wants it to, so its moves keep their order; edges have none
        is_level = self._lower is not _nothing
        self._status_lock = DeferringLock() if is_level else Lock()
        self._shared = 0
        self.control = Control(device, memory, self, iommu=iommu)
        # 4.2.2.1: "Upon reset, the device MUST clear all bits in InterruptStatus"
        self.control.on_forget = self._forget
        self._readers = self._make_readers()
        self._writers = self._make_writers()

    def __len__(self) -> int:
        return SIZE

    # the device's side

    def signal_queue(self, index: int) -> None:  # noqa: ARG002 - all queues share one bit
        """Tell the driver of used buffers."""
        self._signal(m.VIRTIO_MMIO_INT_VRING)

    def signal_config(self) -> None:
        """Tell the driver of a changed configuration or status."""
        self._signal(m.VIRTIO_MMIO_INT_CONFIG)

    def _signal(self, bit: int) -> None:
        with self._status_lock:
            # 4.2.2.1: "MUST present each event by setting the corresponding bit in InterruptStatus from the moment it
            # takes place": before the interrupt
            self.interrupt_status |= bit
            if isinstance(self._status_lock, DeferringLock):
                self._status_lock.after(self._raise)
                return
        self._raise()

    def _acknowledge(self, bits: int) -> None:
        with self._status_lock:
            self.interrupt_status &= ~bits
            if not self.interrupt_status and isinstance(self._status_lock, DeferringLock):
                self._status_lock.after(self._lower)

    def _forget(self) -> None:
        self._shared = 0
        self._acknowledge(0xFF)

    # the machine's side

    def notify_addresses(self) -> list[NotifyAddress]:
        """Say where a driver notifies each queue, for ioeventfds: nowhere with NOTIFICATION_DATA, whose values vary."""
        if self.device.device_features >> f.VIRTIO_F_NOTIFICATION_DATA & 1:
            return []
        queues = range(len(self.device.queues))
        return [NotifyAddress(index, m.VIRTIO_MMIO_QUEUE_NOTIFY, 4, index) for index in queues]

    def reset(self) -> None:
        """Reset everything, as at power-on."""
        self.control.make(PATIENCE, self.control.reset)

    # the driver's side

    def read(self, offset: int, buffer: memoryview) -> None:
        """Take a driver's read of a register (4 bytes, aligned) or of the configuration space (any)."""
        if offset >= m.VIRTIO_MMIO_CONFIG:
            self.device.driver_read_config(offset - m.VIRTIO_MMIO_CONFIG, buffer)
            return
        reader = self._readers.get(offset)
        if reader is None or len(buffer) != 4:
            self.control.ignore("a read where there is no such register", f"at {offset:#x}, {len(buffer)} bytes")
            buffer[:] = bytes(len(buffer))
            return
        buffer[:] = reader().to_bytes(4, "little")

    def write(self, offset: int, data: memoryview) -> None:
        """Take a driver's write to a register (4 bytes, aligned) or to the configuration space (any)."""
        if offset == m.VIRTIO_MMIO_QUEUE_NOTIFY and len(data) == 4:
            index = int.from_bytes(data, "little")
            if self.device.negotiated(f.VIRTIO_F_NOTIFICATION_DATA):
                index &= 0xFFFF  # the upper half says how far the driver is, which the ring does as well
            self.device.kick(index)
            return
        if offset == m.VIRTIO_MMIO_INTERRUPT_ACK and len(data) == 4:
            self._acknowledge(int.from_bytes(data, "little"))
            return
        if offset >= m.VIRTIO_MMIO_CONFIG:
            self.control.write(self.control.write_config, offset - m.VIRTIO_MMIO_CONFIG, data)
            return
        writer = self._writers.get(offset)
        if writer is None or len(data) != 4:
            self.control.ignore("a write where there is no such register", f"at {offset:#x}, {len(data)} bytes")
            return
        self.control.write(writer, int.from_bytes(data, "little"))

    def _make_readers(self) -> dict[int, Callable[[], int]]:
        c = self.control
        return {
            m.VIRTIO_MMIO_MAGIC_VALUE: lambda: MAGIC,
            m.VIRTIO_MMIO_VERSION: lambda: VERSION,
            m.VIRTIO_MMIO_DEVICE_ID: lambda: self.device.device_type,
            m.VIRTIO_MMIO_VENDOR_ID: lambda: VENDOR,
            m.VIRTIO_MMIO_DEVICE_FEATURES: c.read_device_features,
            m.VIRTIO_MMIO_QUEUE_NUM_MAX: self._queue_max,
            m.VIRTIO_MMIO_QUEUE_READY: lambda: int(c.queue_ready()),
            m.VIRTIO_MMIO_INTERRUPT_STATUS: lambda: self.interrupt_status,
            m.VIRTIO_MMIO_STATUS: c.read_status,
            m.VIRTIO_MMIO_SHM_LEN_LOW: lambda: self._shared_field("length") & 0xFFFFFFFF,
            m.VIRTIO_MMIO_SHM_LEN_HIGH: lambda: self._shared_field("length") >> 32,
            m.VIRTIO_MMIO_SHM_BASE_LOW: lambda: self._shared_field("base") & 0xFFFFFFFF,
            m.VIRTIO_MMIO_SHM_BASE_HIGH: lambda: self._shared_field("base") >> 32,
            VIRTIO_MMIO_QUEUE_RESET: lambda: int(c.queue_resetting()),
            m.VIRTIO_MMIO_CONFIG_GENERATION: lambda: self.device.config_generation,
        }

    def _make_writers(self) -> dict[int, Callable[[int], object]]:
        c = self.control
        select, address = c.select_writer, c.address_writer
        return {
            m.VIRTIO_MMIO_DEVICE_FEATURES_SEL: select("device_select"),
            m.VIRTIO_MMIO_DRIVER_FEATURES: c.write_driver_features,
            m.VIRTIO_MMIO_DRIVER_FEATURES_SEL: select("driver_select"),
            m.VIRTIO_MMIO_QUEUE_SEL: select("queue_select"),
            m.VIRTIO_MMIO_QUEUE_NUM: c.set_queue_size,
            m.VIRTIO_MMIO_QUEUE_READY: self._write_ready,
            m.VIRTIO_MMIO_STATUS: self._write_status,
            m.VIRTIO_MMIO_QUEUE_DESC_LOW: address("desc_table", high=False),
            m.VIRTIO_MMIO_QUEUE_DESC_HIGH: address("desc_table", high=True),
            m.VIRTIO_MMIO_QUEUE_AVAIL_LOW: address("avail_ring", high=False),
            m.VIRTIO_MMIO_QUEUE_AVAIL_HIGH: address("avail_ring", high=True),
            m.VIRTIO_MMIO_QUEUE_USED_LOW: address("used_ring", high=False),
            m.VIRTIO_MMIO_QUEUE_USED_HIGH: address("used_ring", high=True),
            m.VIRTIO_MMIO_SHM_SEL: lambda value: setattr(self, "_shared", value),
            VIRTIO_MMIO_QUEUE_RESET: self._write_queue_reset,
        }

    def _queue_max(self) -> int:
        queue = self.control.queue()
        return queue.max_size() if queue is not None else 0

    def _write_ready(self, value: int) -> None:
        if value == 1:
            self.control.enable_queue()
        elif self.control.queue_ready():
            # 4.2.2.2: "To stop using the queue the driver MUST write zero (0x0) to this QueueReady"
            self.control.reset_queue()

    def _write_queue_reset(self, value: int) -> None:
        if value == 1 and self.device.negotiated(f.VIRTIO_F_RING_RESET):
            self.control.reset_queue()
        else:
            self.control.ignore("a queue reset that is none, or without RING_RESET")

    def _write_status(self, value: int) -> None:
        self.control.write_status(value & 0xFF)

    def _shared_field(self, name: str) -> int:
        for region in self.device.shared_memory:
            if region.id == self._shared:
                return int(getattr(region, name))
        # 4.2.2: "Reading from a non-existent region ... results in a length of -1", and the same base
        return ABSENT

    # state

    def state(self) -> dict[str, Any]:
        """Return everything: registers, pending events, the device and its queues."""
        own = {"device": "VirtioMmio", "version": 1, "interrupt_status": self.interrupt_status, "shared": self._shared}
        return {**own, **self.control.state()}

    def check_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a state, the device's included, each checked; raises as `restore`."""
        return self.control.check_state("VirtioMmio", OWN, state, version=1)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what a state says; the device is paused until its `resume`.

        Raises:
            DeviceStateError: it is not a state of this transport and this kind of device.
        """
        fields = self.check_state(state)
        self.control.restore(fields)
        self._shared = fields["shared"]
        self._acknowledge(0xFF)
        if fields["interrupt_status"]:
            self._signal(fields["interrupt_status"])

    def __repr__(self) -> str:
        return f"<VirtioMmio of {self.device!r}>"


def _lines(interrupt: Any) -> tuple[Callable[[], object], Callable[[], object]]:  # noqa: ANN401 - edge, level or none
    """Return what to call for each event, and what when none is left."""
    if interrupt is None:
        return _nothing, _nothing
    if hasattr(interrupt, "trigger"):
        return interrupt.trigger, _nothing
    return interrupt.assert_, interrupt.clear


def _nothing() -> None:
    pass
