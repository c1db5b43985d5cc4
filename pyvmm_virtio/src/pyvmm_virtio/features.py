"""What a device offers besides its work, and what it insists on: feature bits, and memory that its driver maps."""

from __future__ import annotations

from pyvmm_virtio.constants import features as f
from pyvmm_virtio.constants.ring import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_device.bus import Device
    from pyvmm_virtio.device import VirtioDevice


def mask(*bits: int) -> int:
    """Feature bits, given by number, as one number.

    >>> hex(mask(f.VIRTIO_F_VERSION_1, 0))
    '0x100000001'
    """
    value = 0
    for bit in bits:
        value |= 1 << bit
    return value


RING_FEATURES = mask(
    f.VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    f.VIRTIO_F_RING_PACKED,
    f.VIRTIO_F_RING_RESET,
)
"""What every device offers unless it is told otherwise.

IN_ORDER is not among them, because a device that is slow with one request would keep the others back, nor is
NOTIFICATION_DATA, because a kick that carries data leaves KVM for us where an ioeventfd would not.
"""


def refusal(device: VirtioDevice, features: int) -> str | None:
    """Return why a device cannot work with the features that its driver accepts, or None."""
    if unknown := features & ~device.device_features:
        # 2.2.1: "The driver MUST NOT accept a feature which the device did not offer"
        return f"it accepts {unknown:#x}, which was not offered"
    if not features >> f.VIRTIO_F_VERSION_1 & 1:
        # 6.1: "A driver MUST accept VIRTIO_F_VERSION_1 if it is offered"; legacy drivers have another layout
        return "it does not accept VERSION_1: legacy drivers are not served"
    if device.device_features & ~features & mask(f.VIRTIO_F_ACCESS_PLATFORM):
        # 6.2: "A device MAY fail to operate further if VIRTIO_F_ACCESS_PLATFORM is not accepted"
        return "it does not accept ACCESS_PLATFORM, and the device is behind an IOMMU"
    return device.check_features(features)


class SharedMemory:
    """A region of a device's memory that its driver maps (VIRTIO 1.3, 2.10).

    Args:
        id: what the device type calls it, 0 to 255.
        length: in bytes.
        base: its guest address, for MMIO, where the machine has put it. The PCI transport puts all regions into a BAR.
        device: what answers there to accesses that leave the guest; without one they read zeros, as before a
            hypervisor maps memory there.
    """

    __slots__ = ("base", "device", "id", "length")

    def __init__(self, id: int, length: int, base: int = 0, device: Device | None = None) -> None:  # noqa: A002
        self.id = id
        self.length = length
        self.base = base
        self.device = device

    def __len__(self) -> int:
        return self.length

    def read(self, offset: int, buffer: memoryview) -> None:
        """Take a driver's read."""
        if self.device is not None:
            self.device.read(offset, buffer)
        else:
            buffer[:] = bytes(len(buffer))

    def write(self, offset: int, data: memoryview) -> None:
        """Take a driver's write."""
        if self.device is not None:
            self.device.write(offset, data)

    def __repr__(self) -> str:
        return f"<SharedMemory {self.id}: {self.length:#x} bytes>"
