"""The two buses of a PC, and what the guest sees where no device is."""

from __future__ import annotations

from bisect import bisect_right

from pyvmm_device.bus import Bus, BusRange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvmm_device.bus import BusEntry, Device
    from pyvmm_device.resources import DeviceResources
    from pyvmm_device.trace import Sink


class IoManager:
    """Port and memory-mapped I/O of one machine.

    Accesses of any length and alignment are handed to the device as they are, as long as they lie within one range. A
    read that no device answers gives all ones and a write is dropped, as on the real buses; both are counted.
    """

    __slots__ = ("mmio", "pio")

    def __init__(self) -> None:
        self.pio = Bus(16, "pio")
        self.mmio = Bus(64, "mmio")

    def register_pio(self, device: Device, resources: Iterable[BusRange] | BusRange) -> None:
        """Let a device answer at ranges of ports (or at one): at all of them, or at none where one is refused.

        Raises:
            DeviceOverlap: another device has a port of it.
            InvalidRange: a range ends beyond port 0xffff.
        """
        self.pio.update(add=[(resource, device) for resource in _ranges(resources)])

    def register_mmio(self, device: Device, resources: Iterable[BusRange] | BusRange) -> None:
        """Let a device answer at ranges of guest-physical addresses; raises as `register_pio` does."""
        self.mmio.update(add=[(resource, device) for resource in _ranges(resources)])

    def register_resources(self, device: Device, resources: DeviceResources) -> None:
        """Let a device answer at all ports and addresses it was given, or at none; raises as `register_pio` does."""
        pio, mmio = resources.get_pio_address_ranges(), resources.get_mmio_address_ranges()
        self.register_pio(device, pio)
        try:
            self.register_mmio(device, mmio)
        except BaseException:
            self.pio.update(remove=[resource.base for resource in pio])
            raise

    def deregister_pio(self, port: int) -> Device:
        """Remove the device at a port from that range of ports and return it.

        Raises:
            DeviceNotFound: there is none.
        """
        return self.pio.deregister(port)

    def deregister_mmio(self, addr: int) -> Device:
        """Remove the device at an address from that range and return it; raises as `deregister_pio` does."""
        return self.mmio.deregister(addr)

    def deregister_resources(self, resources: DeviceResources) -> int:
        """Remove whatever is registered at these resources; returns how many ranges had a device."""
        count = 0
        both = ((self.pio, resources.get_pio_address_ranges()), (self.mmio, resources.get_mmio_address_ranges()))
        for bus, ranges in both:
            found = [resource.base for resource in ranges if bus.device(resource.base) is not None]
            bus.update(remove=found)
            count += len(found)
        return count

    def pio_read(self, port: int, buffer: memoryview, item: int = 0) -> None:
        """Fill a buffer with what a port answers.

        Args:
            port: its number.
            buffer: filled completely.
            item: bytes of one access, where a string instruction (``rep insb``) makes several in one exit.
        """
        if item and item < len(buffer):
            items = memoryview(buffer)
            for at in range(0, len(buffer), item):
                self.pio_read(port, items[at : at + item])
            return
        bases, entries = self.pio.table
        entry = entries[bisect_right(bases, port) - 1]
        if port < port + len(buffer) <= entry.end:
            entry.reads += 1
            if (returned := entry.read(port - entry.base, buffer)) is not None:
                self.pio.returned(entry.device, returned)
        else:
            self.pio.unclaimed_reads += 1
            buffer[:] = b"\xff" * len(buffer)

    def pio_write(self, port: int, data: memoryview, item: int = 0) -> None:
        """Hand what the guest wrote to a port to its device; ``item`` as for `pio_read`."""
        if item and item < len(data):
            for at in range(0, len(data), item):
                self.pio_write(port, data[at : at + item])
            return
        bases, entries = self.pio.table
        entry = entries[bisect_right(bases, port) - 1]
        if port < port + len(data) <= entry.end:
            entry.writes += 1
            entry.write(port - entry.base, data)
        else:
            self.pio.unclaimed_writes += 1

    def mmio_read(self, addr: int, buffer: memoryview) -> None:
        """Fill a buffer with what an address answers."""
        bases, entries = self.mmio.table
        entry = entries[bisect_right(bases, addr) - 1]
        if addr < addr + len(buffer) <= entry.end:
            entry.reads += 1
            if (returned := entry.read(addr - entry.base, buffer)) is not None:
                self.mmio.returned(entry.device, returned)
        else:
            self.mmio.unclaimed_reads += 1
            buffer[:] = b"\xff" * len(buffer)

    def mmio_write(self, addr: int, data: memoryview) -> None:
        """Hand what the guest wrote to an address to its device."""
        bases, entries = self.mmio.table
        entry = entries[bisect_right(bases, addr) - 1]
        if addr < addr + len(data) <= entry.end:
            entry.writes += 1
            entry.write(addr - entry.base, data)
        else:
            self.mmio.unclaimed_writes += 1

    def trace(self, sink: Sink | None) -> None:
        """Report every access that a device takes to a function as a `trace.Access`; None ends it."""
        self.pio.trace(sink)
        self.mmio.trace(sink)

    def statistics(self) -> list[BusEntry]:
        """Return every registration with its counts, the busiest first."""
        return sorted([*self.pio.entries(), *self.mmio.entries()], key=lambda entry: -(entry.reads + entry.writes))

    def __repr__(self) -> str:
        return f"<IoManager, {len(self.pio)} ranges of ports, {len(self.mmio)} of addresses>"


def _ranges(resources: Iterable[BusRange] | BusRange) -> Iterable[BusRange]:
    return (resources,) if isinstance(resources, BusRange) else resources
