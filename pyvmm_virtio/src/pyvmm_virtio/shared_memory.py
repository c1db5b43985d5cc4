"""Memory of a device that its driver maps (VIRTIO 1.3, 2.10)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_device.bus import Device


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

    def __init__(self, id: int, length: int, base: int = 0, device: Device | None = None) -> None:  # noqa: A002 - the specification's word
        self.id = id
        self.length = length
        self.base = base
        self.device = device

    def __len__(self) -> int:
        return self.length

    def read(self, offset: int, buffer: memoryview) -> None:
        """Take a driver's read."""
        if self.device is not None:
            # whatever it returns, which is nothing where the device is right: the bus sees to the others
            return self.device.read(offset, buffer)
        buffer[:] = bytes(len(buffer))
        return None

    def write(self, offset: int, data: memoryview) -> None:
        """Take a driver's write."""
        if self.device is not None:
            self.device.write(offset, data)

    def __repr__(self) -> str:
        return f"<SharedMemory {self.id}: {self.length:#x} bytes>"
