"""One bus for ports and for memory-mapped I/O: which device answers at an address."""

from __future__ import annotations

from _thread import RLock
from bisect import bisect_right

from pyvmm_device.errors import DeviceNotFound, DeviceOverlap, InvalidAccessLength, InvalidRange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pyvmm_device.protocols import Device as Device
    from pyvmm_device.trace import Sink


_NOWHERE = -(1 << 65)  # before every address, and before what a caller might take for one


class BusRange:
    """A range of addresses.

    Args:
        base: the first address.
        size: in bytes.

    Raises:
        InvalidRange: no size, or an end beyond 64 bits.

    >>> BusRange(0x3f8, 8).overlaps(BusRange(0x3ff, 1))
    True
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
        """Say whether the two share an address."""
        return self.base <= other.last and other.base <= self.last

    def __contains__(self, address: int) -> bool:
        return self.base <= address <= self.last

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BusRange) and (self.base, self.size) == (other.base, other.size)

    def __hash__(self) -> int:
        return hash((self.base, self.size))

    def __repr__(self) -> str:
        return f"BusRange({self.base:#x}, {self.size:#x})"


class BusEntry:
    """One registration: a range, its device, and how often the guest came by.

    ``reads`` and ``writes`` count accesses, and stay exact when several vCPUs count at once: CPython does not switch
    threads within an increment.
    """

    __slots__ = ("base", "device", "end", "read", "reads", "write", "writes")

    def __init__(self, base: int, end: int, device: Device) -> None:
        self.base = base
        self.end = end
        self.device = device
        self.read: Callable[[int, memoryview], object] = device.read
        self.write: Callable[[int, memoryview], object] = device.write
        self.reads = 0
        self.writes = 0

    @property
    def range(self) -> BusRange:
        """The addresses it answers at."""
        return BusRange(self.base, self.end - self.base)

    def __repr__(self) -> str:
        return f"<{self.base:#x}..{self.end - 1:#x} {self.device!r}: {self.reads} reads, {self.writes} writes>"


class _Nobody:
    """Stands before the first device, so that a lookup always finds an entry."""

    def read(self, offset: int, buffer: memoryview) -> None:
        raise DeviceNotFound(offset, len(buffer))

    write = read


class Bus:
    """Devices by address. A lookup takes O(log n) and no lock.

    Registering replaces the table as a whole, so vCPUs may look up while another thread adds and removes devices. An
    access that is under way when its device is removed still ends in that device.

    Args:
        width: the bits of an address: 16 for ports, 64 for memory.
        name: what traces call it.
    """

    __slots__ = ("_limit", "_lock", "_nobody", "_trace", "name", "table", "unclaimed_reads", "unclaimed_writes")

    def __init__(self, width: int = 64, name: str = "bus") -> None:
        self.name = name
        self.unclaimed_reads = 0
        self.unclaimed_writes = 0
        self._limit = 1 << width
        self._lock = RLock()
        self._trace: Sink | None = None
        self._nobody = BusEntry(_NOWHERE, _NOWHERE, _Nobody())
        # First addresses and entries, replaced as one; `IoManager` looks up in it without a call.
        self.table: tuple[list[int], list[BusEntry]] = ([_NOWHERE], [self._nobody])

    def register(self, range: BusRange, device: Device) -> None:  # noqa: A002 - vm-device's name
        """Let a device answer at a range.

        Raises:
            InvalidRange: the range does not fit into this bus.
            DeviceOverlap: another device has an address of it; names who.
        """
        self.update(add=((range, device),))

    def deregister(self, addr: int) -> Device:
        """Take out the device whose range an address lies in, and return it.

        Raises:
            DeviceNotFound: there is none.
        """
        return self.update(remove=(addr,))[0]

    def update(self, remove: Iterable[int] = (), add: Iterable[tuple[BusRange, Device]] = ()) -> list[Device]:
        """Remove and add devices in one step: the guest sees the bus before or after, and an error changes nothing.

        Args:
            remove: for each device to remove, any address of its range.
            add: ranges and their devices.

        Returns:
            The devices that were removed.

        Raises:
            DeviceNotFound: there is no device at an address to remove.
            InvalidRange: a range does not fit into this bus.
            DeviceOverlap: another device has an address of a range; names who.
        """
        with self._lock:
            entries = self.table[1][1:]
            removed: list[Device] = []
            for addr in remove:
                entry = self._find(addr)
                if entry is None or entry not in entries:
                    raise DeviceNotFound(addr)
                entries.remove(entry)
                removed.append(entry.device)
            for wanted, device in add:
                base, end = wanted.base, wanted.base + wanted.size
                if end > self._limit:
                    raise InvalidRange(base, wanted.size)
                for other in entries:
                    if base < other.end and other.base < end:
                        raise DeviceOverlap((base, wanted.size), (other.base, other.end - other.base), other.device)
                entries.append(self._connect(BusEntry(base, end, device)))
            entries.sort(key=_base)
            self.table = ([_NOWHERE, *(entry.base for entry in entries)], [self._nobody, *entries])
        return removed

    def _connect(self, entry: BusEntry) -> BusEntry:
        if self._trace is None:
            entry.read, entry.write = entry.device.read, entry.device.write
        else:
            from pyvmm_device.trace import traced

            entry.read, entry.write = traced(self.name, entry, self._trace)
        return entry

    def trace(self, sink: Sink | None) -> None:
        """Report every access that a device takes to a function, or stop doing so; costs nothing while off."""
        with self._lock:
            self._trace = sink
            for entry in self.table[1][1:]:
                self._connect(entry)

    def _find(self, addr: int) -> BusEntry | None:
        bases, entries = self.table
        entry = entries[bisect_right(bases, addr) - 1]
        return entry if addr < entry.end else None

    def device(self, addr: int) -> tuple[BusRange, Device] | None:
        """Return the range and the device that an address belongs to, or None."""
        entry = self._find(addr)
        return None if entry is None else (entry.range, entry.device)

    def check_access(self, addr: int, length: int) -> tuple[int, Device]:
        """Return the offset and the device for an access.

        An access lies in one range: neighbouring ranges of the same device do not join, as in vm-device.

        Raises:
            InvalidAccessLength: it has no length or runs past the last address of the bus.
            DeviceNotFound: it does not lie in one range.
        """
        if length <= 0 or addr + length > self._limit:
            raise InvalidAccessLength(length)
        entry = self._find(addr)
        if entry is None or addr + length > entry.end:
            raise DeviceNotFound(addr, length)
        return addr - entry.base, entry.device

    def entries(self) -> list[BusEntry]:
        """Return the registrations by address, with their counts."""
        return self.table[1][1:]

    def __iter__(self) -> Iterator[tuple[BusRange, Device]]:
        return iter([(entry.range, entry.device) for entry in self.entries()])

    def __len__(self) -> int:
        return len(self.table[1]) - 1

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        shown = ", ".join(f"{entry.base:#x}..{entry.end - 1:#x} {entry.device!r}" for entry in self.entries())
        return f"<Bus {shown or 'without devices'}>"


def _base(entry: BusEntry) -> int:
    return entry.base
