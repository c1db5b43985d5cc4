"""One bus for ports and for memory-mapped I/O: which device answers at an address."""

from __future__ import annotations

from bisect import bisect_right

from pyvmm_device.errors import DeviceNotFound, DeviceOverlap, InvalidAccessLength, InvalidRange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Device(Protocol):
        """Anything that answers on a bus. Offsets count from the base of the range it is registered at."""

        def read(self, offset: int, buffer: memoryview) -> None:
            """Fill the buffer with what the device answers to a read of its length."""
            ...

        def write(self, offset: int, data: memoryview) -> None:
            """Take what the guest wrote; the data is valid during the call."""
            ...


class BusRange:
    """A range of addresses.

    Args:
        base: the first address.
        size: in bytes.

    Raises:
        InvalidRange: no size, or an end beyond 64 bits.
    """

    __slots__ = ("base", "size")

    def __init__(self, base: int, size: int) -> None:
        if base < 0 or size <= 0 or base + size > 1 << 64:
            raise InvalidRange(base, size)
        self.base = base
        self.size = size

    @property
    def last(self) -> int:
        """The last address that belongs to it."""
        return self.base + self.size - 1

    def overlaps(self, other: BusRange) -> bool:
        """Whether the two share an address."""
        return self.base <= other.last and other.base <= self.last

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BusRange) and (self.base, self.size) == (other.base, other.size)

    def __hash__(self) -> int:
        return hash((self.base, self.size))

    def __repr__(self) -> str:
        return f"BusRange({self.base:#x}, {self.size:#x})"


class Bus:
    """Devices by address. A lookup takes O(log n).

    Registering replaces the tables as a whole, so vCPUs may look up while another thread registers.

    Args:
        width: the bits of an address: 16 for ports, 64 for memory.
    """

    __slots__ = ("_limit", "_table")

    def __init__(self, width: int = 64) -> None:
        self._limit = 1 << width
        # the first addresses, and for each the first address, the first beyond and the device; replaced as one
        self._table: tuple[list[int], list[tuple[int, int, Device]]] = ([], [])

    def register(self, range: BusRange, device: Device) -> None:  # noqa: A002 (vm-device's name)
        """Let a device answer at a range.

        Raises:
            InvalidRange: the range does not fit into this bus.
            DeviceOverlap: another device has an address of it; names who.
        """
        base, end = range.base, range.base + range.size
        if end > self._limit:
            raise InvalidRange(range.base, range.size)
        for first, beyond, holder in self._table[1]:
            if base < beyond and first < end:
                raise DeviceOverlap((base, range.size), (first, beyond - first), holder)
        self._publish(sorted([*self._table[1], (base, end, device)], key=lambda entry: entry[0]))

    def deregister(self, addr: int) -> Device:
        """Take out the device whose range an address lies in, and return it.

        Raises:
            DeviceNotFound: there is none.
        """
        entry = self._find(addr)
        if entry is None:
            raise DeviceNotFound(addr)
        self._publish([other for other in self._table[1] if other is not entry])
        return entry[2]

    def _publish(self, entries: list[tuple[int, int, Device]]) -> None:
        self._table = ([entry[0] for entry in entries], entries)

    def _find(self, addr: int) -> tuple[int, int, Device] | None:
        bases, entries = self._table
        at = bisect_right(bases, addr) - 1
        return entries[at] if at >= 0 and addr < entries[at][1] else None

    def device(self, addr: int) -> tuple[BusRange, Device] | None:
        """Return the range and the device that an address belongs to, or None."""
        entry = self._find(addr)
        return None if entry is None else (BusRange(entry[0], entry[1] - entry[0]), entry[2])

    def check_access(self, addr: int, length: int) -> tuple[int, Device]:
        """Return the offset and the device for an access.

        Raises:
            InvalidAccessLength: it has no length or runs past the last address of the bus.
            DeviceNotFound: it does not lie in one range.
        """
        if length <= 0 or addr + length > self._limit:
            raise InvalidAccessLength(length)
        entry = self._find(addr)
        if entry is None or addr + length > entry[1]:
            raise DeviceNotFound(addr, length)
        return addr - entry[0], entry[2]

    def __repr__(self) -> str:
        shown = ", ".join(f"{first:#x}..{beyond - 1:#x} {device!r}" for first, beyond, device in self._table[1])
        return f"<Bus {shown or 'without devices'}>"
