"""A driver's way to a device behind the MMIO transport."""

from __future__ import annotations

from pyvmm_virtio.constants import mmio as m
from pyvmm_virtio.driver.registers import Port, wait_while
from pyvmm_virtio.transport.mmio import MAGIC, VERSION, VIRTIO_MMIO_QUEUE_RESET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_device.io_manager import IoManager


class MmioPort(Port):
    """Registers in memory.

    Args:
        io: the bus.
        base: where the registers are.

    Raises:
        LookupError: there is no device of version 2.
    """

    def __init__(self, io: IoManager, base: int) -> None:
        super().__init__(io)
        self.base = base
        if self.get(m.VIRTIO_MMIO_MAGIC_VALUE) != MAGIC or self.get(m.VIRTIO_MMIO_VERSION) != VERSION:
            raise LookupError(f"no virtio device of version 2 at {base:#x}")
        self.device_type = self.get(m.VIRTIO_MMIO_DEVICE_ID)

    def get(self, offset: int) -> int:
        """Read a register."""
        return self.load(self.base + offset, 4)

    def set(self, offset: int, value: int) -> None:
        """Write a register."""
        self.store(self.base + offset, value, 4)

    def status(self) -> int:
        """Read the status."""
        return self.get(m.VIRTIO_MMIO_STATUS)

    def set_status(self, status: int) -> None:
        """Write the status."""
        self.set(m.VIRTIO_MMIO_STATUS, status)

    def device_features(self) -> int:
        """Return what the device offers."""
        value = 0
        for half in (0, 1):
            self.set(m.VIRTIO_MMIO_DEVICE_FEATURES_SEL, half)
            value |= self.get(m.VIRTIO_MMIO_DEVICE_FEATURES) << 32 * half
        return value

    def set_driver_features(self, features: int) -> None:
        """Accept some of it."""
        for half in (0, 1):
            self.set(m.VIRTIO_MMIO_DRIVER_FEATURES_SEL, half)
            self.set(m.VIRTIO_MMIO_DRIVER_FEATURES, features >> 32 * half & 0xFFFFFFFF)

    def queue_max(self, index: int) -> int:
        """Return the largest size of a queue; 0 where there is none."""
        self.set(m.VIRTIO_MMIO_QUEUE_SEL, index)
        return self.get(m.VIRTIO_MMIO_QUEUE_NUM_MAX)

    def queue_enabled(self, index: int) -> bool:
        """Say whether a queue is enabled."""
        self.set(m.VIRTIO_MMIO_QUEUE_SEL, index)
        return bool(self.get(m.VIRTIO_MMIO_QUEUE_READY))

    def setup_queue(self, index: int, size: int, desc: int, driver_area: int, device_area: int) -> None:
        """Say how large a queue is and where, and enable it."""
        self.set(m.VIRTIO_MMIO_QUEUE_SEL, index)
        self.set(m.VIRTIO_MMIO_QUEUE_NUM, size)
        places = (
            (m.VIRTIO_MMIO_QUEUE_DESC_LOW, desc),
            (m.VIRTIO_MMIO_QUEUE_AVAIL_LOW, driver_area),
            (m.VIRTIO_MMIO_QUEUE_USED_LOW, device_area),
        )
        for low, addr in places:
            self.set(low, addr & 0xFFFFFFFF)
            self.set(low + 4, addr >> 32)
        self.set(m.VIRTIO_MMIO_QUEUE_READY, 1)

    def reset_queue(self, index: int) -> None:
        """Reset a queue."""
        self.set(m.VIRTIO_MMIO_QUEUE_SEL, index)
        self.set(VIRTIO_MMIO_QUEUE_RESET, 1)
        wait_while(lambda: self.get(VIRTIO_MMIO_QUEUE_RESET))

    def notify(self, index: int, value: int, size: int) -> None:  # noqa: ARG002 - this register has one size
        """Kick a queue."""
        self.set(m.VIRTIO_MMIO_QUEUE_NOTIFY, value)

    def take_events(self) -> int:
        """Return why the device interrupts: 1 for queues, 2 for the configuration; and acknowledge it."""
        events = self.get(m.VIRTIO_MMIO_INTERRUPT_STATUS)
        if events:
            self.set(m.VIRTIO_MMIO_INTERRUPT_ACK, events)
        return events

    def generation(self) -> int:
        """Return the generation of the configuration."""
        return self.get(m.VIRTIO_MMIO_CONFIG_GENERATION)

    def config_address(self) -> int:
        """Return where the configuration space is."""
        return self.base + m.VIRTIO_MMIO_CONFIG

    def shared_memory(self, id_: int) -> tuple[int, int] | None:
        """Return guest address and length of a shared memory region, or None."""
        self.set(m.VIRTIO_MMIO_SHM_SEL, id_)
        length = self.get(m.VIRTIO_MMIO_SHM_LEN_LOW) | self.get(m.VIRTIO_MMIO_SHM_LEN_HIGH) << 32
        base = self.get(m.VIRTIO_MMIO_SHM_BASE_LOW) | self.get(m.VIRTIO_MMIO_SHM_BASE_HIGH) << 32
        return None if length == 0xFFFFFFFFFFFFFFFF else (base, length)
