"""The two buses of a PC, and what the guest sees where no device is."""

from __future__ import annotations

from pyvmm_device.bus import Bus, BusRange
from pyvmm_device.errors import DeviceError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvmm_device.bus import Device


class IoManager:
    """Port and memory-mapped I/O of one machine.

    A read that no device answers gives all ones and a write is dropped, as on the real buses.
    """

    __slots__ = ("mmio", "pio")

    def __init__(self) -> None:
        self.pio = Bus(16)
        self.mmio = Bus(64)

    def register_pio(self, device: Device, resources: Iterable[BusRange]) -> None:
        """Let a device answer at ranges of ports: at all of them, or at none where one is refused.

        Raises:
            DeviceOverlap: another device has a port of it.
            InvalidRange: a range ends beyond port 0xffff.
        """
        _register(self.pio, device, resources)

    def register_mmio(self, device: Device, resources: Iterable[BusRange]) -> None:
        """Let a device answer at ranges of guest-physical addresses; raises as `register_pio` does."""
        _register(self.mmio, device, resources)

    def pio_read(self, port: int, buffer: memoryview) -> None:
        """Fill a buffer with what a port answers."""
        _read(self.pio, port, buffer)

    def pio_write(self, port: int, data: memoryview) -> None:
        """Hand what the guest wrote to a port to its device."""
        _write(self.pio, port, data)

    def mmio_read(self, addr: int, buffer: memoryview) -> None:
        """Fill a buffer with what an address answers."""
        _read(self.mmio, addr, buffer)

    def mmio_write(self, addr: int, data: memoryview) -> None:
        """Hand what the guest wrote to an address to its device."""
        _write(self.mmio, addr, data)


def _register(bus: Bus, device: Device, resources: Iterable[BusRange]) -> None:
    done: list[BusRange] = []
    try:
        for resource in resources:
            bus.register(resource, device)
            done.append(resource)
    except DeviceError:
        for resource in done:
            bus.deregister(resource.base)
        raise


def _read(bus: Bus, address: int, buffer: memoryview) -> None:
    try:
        offset, device = bus.check_access(address, len(buffer))
    except DeviceError:
        buffer[:] = b"\xff" * len(buffer)
        return
    device.read(offset, buffer)


def _write(bus: Bus, address: int, data: memoryview) -> None:
    try:
        offset, device = bus.check_access(address, len(data))
    except DeviceError:
        return
    device.write(offset, data)
