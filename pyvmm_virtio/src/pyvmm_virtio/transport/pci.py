"""The PCI transport: a function whose BAR has the registers, with MSI-X for each queue or INTx for all.

Source: VIRTIO 1.3, 4.1. Modern devices only: no I/O BAR of the legacy layout, no transitional ids.
"""

from __future__ import annotations

from pyvmm_device.composite import Composite
from pyvmm_device.errors import DeviceStateError
from pyvmm_device.locks import DeferringLock
from pyvmm_device.pci.config_space import CAP_VENDOR
from pyvmm_device.pci.function import PciFunction
from pyvmm_device.state import array, uint
from pyvmm_virtio.constants import device_ids as ids
from pyvmm_virtio.constants import pci as p
from pyvmm_virtio.errors import VirtioUsageError
from pyvmm_virtio.mailbox import PATIENCE
from pyvmm_virtio.transport.base import Control, NotifyAddress
from pyvmm_virtio.transport.pci_common import (
    COMMON_SIZE,
    NO_VECTOR,
    NOTIFY_MULTIPLIER,
    CommonConfig,
    DeviceConfig,
    IsrStatus,
    NotifyArea,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from pyvmm_device.composite import Part
    from pyvmm_device.interrupt_group import InterruptSourceGroup
    from pyvmm_device.pci.bar import Bar
    from pyvmm_virtio.device import VirtioDevice
    from pyvmm_virtio.memory import MemorySource

VENDOR_ID, FIRST_DEVICE_ID = 0x1AF4, 0x1040
CLASSES = {
    ids.VIRTIO_ID_NET: 0x020000,
    ids.VIRTIO_ID_BLOCK: 0x010000,
    ids.VIRTIO_ID_CONSOLE: 0x078000,
    ids.VIRTIO_ID_SCSI: 0x010000,
    ids.VIRTIO_ID_GPU: 0x038000,
    ids.VIRTIO_ID_INPUT: 0x098000,
    ids.VIRTIO_ID_SOUND: 0x040100,
}
"""What firmware looks at; everything else is "other"."""
OTHER_CLASS = 0x00FF00
BAR, MSIX_BAR, SHARED_BAR = 4, 1, 2
ISR_AT, CONFIG_AT, NOTIFY_AT = 0x1000, 0x2000, 0x3000
CFG_DATA = 16
QUEUE, CONFIG = 1, p.VIRTIO_PCI_ISR_CONFIG


class VirtioPci(PciFunction):
    """A virtio device as a PCI function; put it on a bus with ``root.add(transport)``.

    Args:
        device: what is driven. Its type has to be known at 0x1040 plus a number, as all virtio's are.
        memory: guest memory, or a cell that holds the current one.
        msix: the vectors of MSI-X, one more than there are queues at best; None is for INTx alone.
        interrupt_pin: 1 to 4 for INTA to INTD.
        iommu: whether addresses are translated on their way.
        class_code: what to say instead of what suits the device type.

    Attributes:
        shared_at: where each shared memory region lies in BAR 2, by its id.
        on_notify_moved: called with the guest address of the notification area, or None, when a guest moved the BAR;
            whoever has eventfds at `notify_addresses` moves them too.
    """

    def __init__(
        self,
        device: VirtioDevice,
        memory: MemorySource,
        msix: InterruptSourceGroup | None = None,
        *,
        interrupt_pin: int = 1,
        iommu: bool = False,
        class_code: int | None = None,
    ) -> None:
        if not 0 < device.device_type < 0x40:
            raise VirtioUsageError(f"{device!r}: device type {device.device_type} has no PCI device id")
        super().__init__(
            VENDOR_ID,
            FIRST_DEVICE_ID + device.device_type,
            CLASSES.get(device.device_type, OTHER_CLASS) if class_code is None else class_code,
            # 4.1.2.1: "SHOULD have a PCI Revision ID of 1 or higher ... Subsystem Device ID of 0x40 or higher"
            revision=1,
            subsystem_vendor=VENDOR_ID,
            subsystem_id=0x40 + device.device_type,
            interrupt_pin=interrupt_pin,
        )
        self.device = device
        self.control = Control(device, memory, self, iommu=iommu)
        self.control.on_forget = self._forget_interrupts
        self.isr = 0
        self.config_vector = NO_VECTOR
        self.queue_vectors = [NO_VECTOR] * len(device.queues)
        self.on_notify_moved: Callable[[int | None], object] | None = None
        self._isr_lock = DeferringLock()
        self._add_registers()
        if msix is not None:
            self.add_msix(msix, MSIX_BAR)

    def _add_registers(self) -> None:
        notify = NotifyArea(self)
        parts: dict[int, Part] = {0: CommonConfig(self), ISR_AT: IsrStatus(self), NOTIFY_AT: notify}
        if self.device.config:
            parts[CONFIG_AT] = DeviceConfig(self)
        size = 1 << (NOTIFY_AT + len(notify) - 1).bit_length()
        self._registers = Composite(size, parts)
        self.add_bar(BAR, size, self._registers)
        self._add_capability(p.VIRTIO_PCI_CAP_COMMON_CFG, 0, COMMON_SIZE)
        multiplier = NOTIFY_MULTIPLIER.to_bytes(4, "little")
        self._add_capability(p.VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY_AT, len(notify), extra=multiplier)
        self._add_capability(p.VIRTIO_PCI_CAP_ISR_CFG, ISR_AT, 1)
        if self.device.config:
            self._add_capability(p.VIRTIO_PCI_CAP_DEVICE_CFG, CONFIG_AT, len(self.device.config))
        self._add_shared_memory()
        writable = b"\0\0\xff\0\0\0" + b"\xff" * 12
        self._window = self._add_capability(p.VIRTIO_PCI_CAP_PCI_CFG, 0, 0, bar=0, extra=bytes(4), writable=writable)

    def _add_shared_memory(self) -> None:
        """Put all regions into a BAR of their own, each on a page: "MUST be contained within the BAR" (4.1.4.7.1)."""
        self.shared_at: dict[int, int] = {}
        end = 0
        for region in self.device.shared_memory:
            self.shared_at[region.id] = end
            end = (end + region.length + 0xFFF) & ~0xFFF
            at, length = self.shared_at[region.id], region.length
            high = (at >> 32).to_bytes(4, "little") + (length >> 32).to_bytes(4, "little")
            kind = p.VIRTIO_PCI_CAP_SHARED_MEMORY_CFG
            at, length = at & 0xFFFFFFFF, length & 0xFFFFFFFF
            self._add_capability(kind, at, length, bar=SHARED_BAR, id_=region.id, extra=high)
        if end:
            parts: dict[int, Part] = {self.shared_at[region.id]: region for region in self.device.shared_memory}
            size = 1 << (end - 1).bit_length()
            self.add_bar(SHARED_BAR, size, Composite(size, parts), wide=True, prefetchable=True)

    def _add_capability(
        self,
        kind: int,
        offset: int,
        length: int,
        *,
        bar: int = BAR,
        id_: int = 0,
        extra: bytes = b"",
        writable: bytes = b"",
    ) -> int:
        body = bytes([16 + len(extra), kind, bar, id_, 0, 0])
        body += offset.to_bytes(4, "little") + length.to_bytes(4, "little") + extra
        return self.config.add_capability(CAP_VENDOR, body, writable)

    # the device's side

    def vector_count(self) -> int:
        """Return how many vectors of MSI-X there are."""
        return len(self.msix.group) if self.msix is not None else 0

    def signal_queue(self, index: int) -> None:
        """Tell the driver of used buffers: by the queue's vector, or by INTx."""
        if self.msix is not None and self.msix.enabled:
            self._send(self.queue_vectors[index])
        else:
            self._set_isr(QUEUE)

    def signal_config(self) -> None:
        """Tell the driver of a changed configuration or status: by its vector, or by INTx."""
        if self.msix is not None and self.msix.enabled:
            with self._isr_lock:
                # 4.1.4.5.1: "MUST set the Device Configuration Interrupt bit in ISR status before sending a device
                # configuration change notification", of whichever kind
                self.isr |= CONFIG
            self._send(self.config_vector)
        else:
            self._set_isr(CONFIG)

    def _send(self, vector: int) -> None:
        # 4.1.5.3.1: with NO_VECTOR "the device MUST NOT deliver an interrupt"
        if vector != NO_VECTOR and self.msix is not None:
            self.msix.group.trigger(vector)

    def _set_isr(self, bit: int) -> None:
        with self._isr_lock:
            self.isr |= bit
            self._isr_lock.after(self.set_intx, True)

    def take_isr(self) -> int:
        """Return why the function interrupts, and let it be."""
        with self._isr_lock:
            taken, self.isr = self.isr, 0
            self._isr_lock.after(self.set_intx, False)
        return taken

    # the machine's side

    def notify_addresses(self) -> list[NotifyAddress]:
        """Say where in the notification area a driver notifies each queue, for ioeventfds; any value of any width."""
        queues = range(len(self.device.queues))
        return [NotifyAddress(index, NOTIFY_MULTIPLIER * index, 0, None) for index in queues]

    def notify_base(self) -> int | None:
        """Return the guest address of the notification area, or None while the guest has it nowhere."""
        mapped = self.bars[BAR].mapped
        return mapped.base + NOTIFY_AT if mapped is not None else None

    def bar_moved(self, bar: Bar) -> None:
        """Tell whoever watches the notification area."""
        if bar.index == BAR and self.on_notify_moved is not None:
            self.on_notify_moved(self.notify_base())

    def write_status(self, value: int) -> None:
        """Take the driver's step, or its reset."""
        self.control.write_status(value)

    def _forget_interrupts(self) -> None:
        # 4.1.5.1.2.1: "MUST have all queue and configuration change events ... unmapped upon reset"
        self.config_vector = NO_VECTOR
        self.queue_vectors = [NO_VECTOR] * len(self.device.queues)
        self.take_isr()

    def reset(self) -> None:
        """Reset everything, as at power-on."""
        self.control.make(PATIENCE, self.control.reset)
        super().reset()

    # access through configuration space

    def config_read(self, offset: int, buffer: memoryview) -> None:
        """Take a read; of the window's data, it is one of the registers (4.1.4.9)."""
        if self._touches_window(offset, len(buffer)):
            data = bytearray(self._window_length())
            if data:
                self._window_access(self._registers.read, memoryview(data))
                self.config.put(self._window + CFG_DATA, 4, int.from_bytes(data, "little"))
        super().config_read(offset, buffer)

    def config_write(self, offset: int, data: memoryview) -> None:
        """Take a write; to the window's data, it is one to the registers (4.1.4.9)."""
        super().config_write(offset, data)
        if self._touches_window(offset, len(data)):
            length = self._window_length()
            if length:
                value = self.config.get(self._window + CFG_DATA, 4) & (1 << 8 * length) - 1
                self._window_access(self._registers.write, memoryview(value.to_bytes(length, "little")))

    def _touches_window(self, offset: int, length: int) -> bool:
        return offset < self._window + CFG_DATA + 4 and offset + length > self._window + CFG_DATA

    def _window_length(self) -> int:
        length = self.config.get(self._window + p.VIRTIO_PCI_CAP_LENGTH, 4)
        bar = self.config.data[self._window + p.VIRTIO_PCI_CAP_BAR]
        return length if length in (1, 2, 4) and bar == BAR else 0

    def _window_access(self, access: Callable[[int, memoryview], None], data: memoryview) -> None:
        at = self.config.get(self._window + p.VIRTIO_PCI_CAP_OFFSET, 4)
        if at + len(data) <= len(self._registers):
            access(at, data)

    # state

    def state(self) -> dict[str, Any]:
        """Return everything: the function, registers, vectors, pending events, the device and its queues."""
        return self.control.ask(super().state)

    def state_parts(self) -> dict[str, Any]:
        """Return what has a state of its own: besides a function's, the transport with its device and queues."""
        return {**super().state_parts(), "virtio": _State(self)}


class _State:
    """The transport's part of the function's state; the device is paused after a restore until its `resume`."""

    def __init__(self, transport: VirtioPci) -> None:
        self.transport = transport

    def state(self) -> dict[str, Any]:
        """Return registers, vectors, pending events, the device and its queues."""
        transport = self.transport
        own = {"isr": transport.isr, "config_vector": transport.config_vector}
        return {**own, "queue_vectors": list(transport.queue_vectors), **transport.control.state()}

    def check_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a state, the device's included, each checked; raises as `restore`."""
        transport = self.transport
        name, count = type(transport).__name__, len(transport.queue_vectors)
        kinds = {"isr": uint(2), "config_vector": uint(16), "queue_vectors": array(uint(16), count, count)}
        fields = transport.control.check_state(name, kinds, state)
        vectors = (fields["config_vector"], *fields["queue_vectors"])
        if any(NO_VECTOR > vector >= transport.vector_count() for vector in vectors):
            raise DeviceStateError(name, "it has vectors that are not there")
        return fields

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what a state says. Raises DeviceStateError."""
        transport, fields = self.transport, self.check_state(state)
        transport.control.restore(fields)
        transport.isr, transport.config_vector = fields["isr"], fields["config_vector"]
        transport.queue_vectors = fields["queue_vectors"]
