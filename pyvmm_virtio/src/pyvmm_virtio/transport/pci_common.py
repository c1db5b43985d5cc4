"""The registers of the PCI transport's common configuration, and the notification area.

Source: VIRTIO 1.3, 4.1.4.3 and 4.1.4.4.
"""

from __future__ import annotations

from pyvmm_virtio.constants import features as f
from pyvmm_virtio.constants import pci as p

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm_virtio.transport.pci import VirtioPci

NO_VECTOR = p.VIRTIO_MSI_NO_VECTOR
COMMON_SIZE = 64
NOTIFY_MULTIPLIER = 4
"""Each queue has an address of its own, so that a hypervisor needs no look at the value."""


class CommonConfig:
    """The common configuration structure. Fields are written whole; addresses of 64 bits in halves, or whole.

    Args:
        transport: of which this is the common configuration.
    """

    def __init__(self, transport: VirtioPci) -> None:
        self.transport = transport
        self.control = transport.control
        self._writers = self._make_writers()

    def __len__(self) -> int:
        return COMMON_SIZE

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read any part: nothing changes by reading."""
        buffer[:] = self._snapshot()[offset : offset + len(buffer)].ljust(len(buffer), b"\0")

    def _snapshot(self) -> bytes:
        c, t = self.control, self.transport
        queue = c.queue()
        fields = (
            (4, c.device_select),
            (4, c.read_device_features()),
            (4, c.driver_select),
            (4, c.read_driver_features()),
            (2, t.config_vector),
            (2, len(t.device.queues)),
            (1, c.read_status()),
            (1, t.device.config_generation & 0xFF),
            (2, c.queue_select & 0xFFFF),
            (2, c.queue_size()),
            (2, t.queue_vectors[c.queue_select] if queue is not None else NO_VECTOR),
            (2, c.queue_ready()),
            # the same for a queue that does not exist: nobody may use it
            (2, c.queue_select & 0xFFFF if queue is not None else 0),
            (8, queue.desc_table() if queue is not None else 0),
            (8, queue.avail_ring() if queue is not None else 0),
            (8, queue.used_ring() if queue is not None else 0),
            (2, c.queue_select & 0xFFFF if t.device.negotiated(f.VIRTIO_F_NOTIF_CONFIG_DATA) else 0),
            (2, c.queue_resetting()),
            # no administration queues
            (4, 0),
        )
        return b"".join(int(value).to_bytes(size, "little") for size, value in fields)

    def write(self, offset: int, data: memoryview) -> None:
        """Write one field."""
        if len(data) == 8 and offset % 8 == 0:
            self.write(offset, data[:4])
            self.write(offset + 4, data[4:])
            return
        size, writer = self._writers.get(offset, (0, None))
        if writer is None or len(data) != size:
            self.control.ignore("a write that is no field of the common configuration", f"{offset}, {len(data)} bytes")
            return
        self.control.write(writer, int.from_bytes(data, "little"))

    def _make_writers(self) -> dict[int, tuple[int, Callable[[int], object]]]:
        c = self.control
        select, address = c.select_writer, c.address_writer
        return {
            p.VIRTIO_PCI_COMMON_DFSELECT: (4, select("device_select")),
            p.VIRTIO_PCI_COMMON_GFSELECT: (4, select("driver_select")),
            p.VIRTIO_PCI_COMMON_GF: (4, c.write_driver_features),
            p.VIRTIO_PCI_COMMON_MSIX: (2, self._write_config_vector),
            p.VIRTIO_PCI_COMMON_STATUS: (1, self.transport.write_status),
            p.VIRTIO_PCI_COMMON_Q_SELECT: (2, select("queue_select")),
            p.VIRTIO_PCI_COMMON_Q_SIZE: (2, c.set_queue_size),
            p.VIRTIO_PCI_COMMON_Q_MSIX: (2, self._write_queue_vector),
            p.VIRTIO_PCI_COMMON_Q_ENABLE: (2, self._write_enable),
            p.VIRTIO_PCI_COMMON_Q_DESCLO: (4, address("desc_table", high=False)),
            p.VIRTIO_PCI_COMMON_Q_DESCHI: (4, address("desc_table", high=True)),
            p.VIRTIO_PCI_COMMON_Q_AVAILLO: (4, address("avail_ring", high=False)),
            p.VIRTIO_PCI_COMMON_Q_AVAILHI: (4, address("avail_ring", high=True)),
            p.VIRTIO_PCI_COMMON_Q_USEDLO: (4, address("used_ring", high=False)),
            p.VIRTIO_PCI_COMMON_Q_USEDHI: (4, address("used_ring", high=True)),
            p.VIRTIO_PCI_COMMON_Q_RESET: (2, self._write_reset),
        }

    def _vector(self, vector: int) -> int:
        # 4.1.5.1.2.1: "Devices MUST report mapping failures by returning the NO_VECTOR value"
        return vector if vector < self.transport.vector_count() else NO_VECTOR

    def _write_config_vector(self, vector: int) -> None:
        self.transport.config_vector = self._vector(vector)

    def _write_queue_vector(self, vector: int) -> None:
        if self.control.queue() is None:
            self.control.ignore("a vector for a queue that does not exist")
        else:
            self.transport.queue_vectors[self.control.queue_select] = self._vector(vector)

    def _write_enable(self, value: int) -> None:
        if value == 1:
            self.control.enable_queue()
        else:
            # 4.1.4.3.2: "The driver MUST NOT write a 0 to queue_enable"
            self.control.ignore("something else than 1 written to queue_enable")

    def _write_reset(self, value: int) -> None:
        if value == 1 and self.transport.device.negotiated(f.VIRTIO_F_RING_RESET):
            self.control.reset_queue()
        else:
            self.control.ignore("a queue reset that is none, or without RING_RESET")


class NotifyArea:
    """Where drivers write to notify queues; what they write is not looked at."""

    def __init__(self, transport: VirtioPci) -> None:
        self.device = transport.device

    def __len__(self) -> int:
        return NOTIFY_MULTIPLIER * max(len(self.device.queues), 1)

    def read(self, offset: int, buffer: memoryview) -> None:  # noqa: ARG002 - nothing is there
        """Read zeros: nothing is there."""
        buffer[:] = bytes(len(buffer))

    def write(self, offset: int, data: memoryview) -> None:  # noqa: ARG002 - the address says it all
        """Notify the queue of this address."""
        self.device.kick(offset // NOTIFY_MULTIPLIER)


class IsrStatus:
    """One byte: why the function interrupts; reading clears it, and the interrupt."""

    def __init__(self, transport: VirtioPci) -> None:
        self.transport = transport

    def __len__(self) -> int:
        return 1

    def read(self, offset: int, buffer: memoryview) -> None:  # noqa: ARG002 - there is one byte
        """Take what is pending."""
        buffer[:] = bytes([self.transport.take_isr()]).ljust(len(buffer), b"\0")

    def write(self, offset: int, data: memoryview) -> None:
        """Ignore it: nothing can be written."""


class DeviceConfig:
    """The device's configuration space."""

    def __init__(self, transport: VirtioPci) -> None:
        self.transport = transport
        self.size = len(transport.device.config)

    def __len__(self) -> int:
        return self.size

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read any part."""
        self.transport.device.driver_read_config(offset, buffer)

    def write(self, offset: int, data: memoryview) -> None:
        """Write, where the device lets it."""
        control = self.transport.control
        control.write(control.write_config, offset, data)
