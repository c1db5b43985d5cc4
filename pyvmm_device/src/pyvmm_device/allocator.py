"""Pools of addresses and of numbers that know who holds what, and the pools of a whole machine."""

from __future__ import annotations

from bisect import bisect_left, insort

from pyvmm_device.bus import BusRange
from pyvmm_device.errors import InvalidRange, InvalidResource, ResourceExhausted, ResourceTaken
from pyvmm_device.locks import Lock
from pyvmm_device.resources import (
    DeviceResources,
    GivenLegacyIrq,
    GivenMemSlot,
    GivenMsiIrqs,
    GivenPciSlot,
    KvmMemSlot,
    LegacyIrq,
    MacAddress,
    MmioAddress,
    MmioAddressRange,
    MsiIrqs,
    PciSlot,
    PioAddress,
    PioAddressRange,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvmm_device.resources import Constraint, RangeConstraint, Resource


class RangePool:
    """Hands out ranges of addresses, the lowest that fit first, and takes them back.

    >>> pool = RangePool("ports", BusRange(0x1000, 0x100))
    >>> pool.allocate(0x20, 0x20, holder="disk"), pool.allocate_at(0x1040, 8, holder="net")
    (BusRange(0x1000, 0x20), BusRange(0x1040, 0x8))
    >>> pool.holder(0x1044)
    'net'
    """

    def __init__(self, name: str, *windows: BusRange) -> None:
        self.name = name
        self.windows = windows
        self._lock = Lock()
        self._taken: list[tuple[int, int, object]] = []  # first, beyond, holder; sorted, without overlap

    def allocate(
        self,
        size: int,
        align: int = 1,
        within: tuple[int, int] | None = None,
        holder: object = "somebody",
    ) -> BusRange:
        """Take any free range.

        Args:
            size: in bytes.
            align: what its first address is a multiple of.
            within: the first and the last address to choose from.
            holder: who takes it, for errors and `holder`.

        Raises:
            InvalidResource: no size, or an alignment that is no power of two.
            ResourceExhausted: nothing that fits is free.
        """
        if size <= 0 or align <= 0 or align & (align - 1):
            raise InvalidResource(f"{self.name}: {size} bytes aligned to {align} cannot be allocated")
        with self._lock:
            for window in self.windows:
                first, last = window.base, window.last
                if within is not None:
                    first, last = max(first, within[0]), min(last, within[1])
                base = self._first_free(first, last, size, align)
                if base is not None:
                    insort(self._taken, (base, base + size, holder), key=_first)
                    return BusRange(base, size)
            holders = [taken[2] for taken in self._taken]
        # without the lock: the error asks the holders who they are
        place = "" if within is None else f" within {within[0]:#x}..{within[1]:#x}"
        raise ResourceExhausted(self.name, f"{size:#x} bytes aligned to {align:#x}{place}", holders)

    def _first_free(self, first: int, last: int, size: int, align: int) -> int | None:
        candidate = -(-first // align) * align
        for begin, beyond, _ in self._taken:
            if candidate + size <= begin:
                break
            if beyond > candidate:
                candidate = -(-beyond // align) * align
        return candidate if candidate + size - 1 <= last else None

    def allocate_at(self, base: int, size: int, holder: object = "somebody") -> BusRange:
        """Take a certain range.

        Raises:
            ResourceTaken: an address of it is held, or lies outside of the pool.
        """
        wanted = BusRange(base, size)
        if not any(window.base <= base and wanted.last <= window.last for window in self.windows):
            shown = " and ".join(f"{window.base:#x}..{window.last:#x}" for window in self.windows)
            raise ResourceTaken(self.name, repr(wanted), f"nobody, for the pool is {shown}")
        with self._lock:
            others = [other for begin, beyond, other in self._taken if base < beyond and begin < base + size]
            if not others:
                insort(self._taken, (base, base + size, holder), key=_first)
        if others:
            raise ResourceTaken(self.name, repr(wanted), others[0])
        return wanted

    def free(self, given: BusRange) -> None:
        """Take a range back.

        Raises:
            InvalidRange: it was not handed out like this, or was given back before.
        """
        with self._lock:
            at = bisect_left(self._taken, given.base, key=_first)
            if at == len(self._taken) or self._taken[at][:2] != (given.base, given.base + given.size):
                raise InvalidRange(given.base, given.size)
            del self._taken[at]

    def holder(self, address: int) -> object | None:
        """Return who has an address, or None."""
        return next((holder for begin, beyond, holder in self._taken if begin <= address < beyond), None)

    def free_bytes(self) -> int:
        """Return how many addresses are free."""
        return sum(window.size for window in self.windows) - sum(beyond - begin for begin, beyond, _ in self._taken)

    def __repr__(self) -> str:
        return f"<RangePool {self.name}: {len(self._taken)} ranges taken, {self.free_bytes():#x} free>"


class IdPool:
    """Hands out numbers (interrupts, slots), the lowest free first, and takes them back."""

    def __init__(self, name: str, numbers: Iterable[int]) -> None:
        self.name = name
        self._range = RangePool(name, *(BusRange(*span) for span in _spans(numbers)))

    def allocate(self, count: int = 1, holder: object = "somebody", align: int = 1) -> int:
        """Take ``count`` consecutive free numbers and return the first; raises `ResourceExhausted`."""
        return self._range.allocate(count, align, holder=holder).base

    def allocate_at(self, number: int, holder: object = "somebody") -> int:
        """Take a certain number; raises `ResourceTaken`."""
        if number < 0:
            raise InvalidResource(f"{self.name}: {number} is no number to allocate")
        return self._range.allocate_at(number, 1, holder).base

    def free(self, number: int, count: int = 1) -> None:
        """Take numbers back, as they were handed out; raises `InvalidRange`."""
        self._range.free(BusRange(number, count))

    def holder(self, number: int) -> object | None:
        """Return who has a number, or None."""
        return self._range.holder(number)

    def __repr__(self) -> str:
        return f"<IdPool {self.name}: {self._range.free_bytes()} free>"


class SystemAllocator:
    """The pools of a machine. The defaults are a PC's: what is left out there belongs to devices with fixed places.

    Args:
        pio: ports; by default everything above the ISA and PCI configuration ports.
        mmio_low: addresses below 4 GiB, which 32-bit BARs need.
        mmio_high: addresses above all memory.
        irqs: interrupt lines; by default those that no old device of a PC has.
        msis: interrupts by message, numbered as the hypervisor routes them (KVM: GSIs above the IOAPIC's 24).
        mem_slots: slots of guest memory.
        pci_slots: device numbers; 0 is the host bridge.
    """

    def __init__(
        self,
        *,
        pio: BusRange | None = None,
        mmio_low: BusRange | None = None,
        mmio_high: BusRange | None = None,
        irqs: Iterable[int] = (5, 6, 7, 9, 10, 11, *range(16, 24)),
        msis: Iterable[int] = range(24, 1024),
        mem_slots: Iterable[int] = range(509),
        pci_slots: Iterable[int] = range(1, 32),
    ) -> None:
        self.pio = RangePool("ports", pio or BusRange(0x1000, 0xF000))
        self.mmio_low = RangePool("MMIO below 4 GiB", mmio_low or BusRange(0xD0000000, 0x10000000))
        self.mmio_high = RangePool("MMIO above 4 GiB", mmio_high or BusRange(1 << 39, 1 << 39))
        self.irqs = IdPool("interrupt lines", irqs)
        self.msis = IdPool("message interrupts", msis)
        self.mem_slots = IdPool("memory slots", mem_slots)
        self.pci_slots = IdPool("PCI slots", pci_slots)

    def allocate(self, constraints: Iterable[Constraint | MacAddress], holder: object = "somebody") -> DeviceResources:
        """Give a device all it needs, or nothing.

        Raises:
            ResourceTaken: something certain is held; says by whom.
            ResourceExhausted: a pool has nothing left.
        """
        given = DeviceResources()
        try:
            for constraint in constraints:
                given.append(self._one(constraint, holder))
        except BaseException:
            self.free(given)
            raise
        return given

    def _one(self, wanted: Constraint | MacAddress, holder: object) -> Resource:
        if isinstance(wanted, MacAddress):
            return wanted
        if isinstance(wanted, PioAddress):
            found = _range(self.pio, wanted, holder)
            return PioAddressRange(found.base, found.size)
        if isinstance(wanted, MmioAddress):
            found = _range(self._mmio(wanted), wanted, holder)
            return MmioAddressRange(found.base, found.size)
        if isinstance(wanted, LegacyIrq):
            return GivenLegacyIrq(_number(self.irqs, wanted.irq, holder))
        if isinstance(wanted, KvmMemSlot):
            return GivenMemSlot(_number(self.mem_slots, wanted.slot, holder))
        if isinstance(wanted, PciSlot):
            return GivenPciSlot(_number(self.pci_slots, wanted.slot, holder))
        if isinstance(wanted, MsiIrqs):
            return GivenMsiIrqs(wanted.kind, self.msis.allocate(wanted.size, holder), wanted.size)
        raise InvalidResource(f"{wanted!r} is no constraint this machine knows")

    def _mmio(self, wanted: MmioAddress) -> RangePool:
        return self.mmio_low if wanted.range is None else self._mmio_at(wanted.range[0])

    def _mmio_at(self, address: int) -> RangePool:
        in_high = any(window.base <= address <= window.last for window in self.mmio_high.windows)
        return self.mmio_high if in_high or address >= 1 << 32 else self.mmio_low

    def free(self, resources: DeviceResources) -> None:
        """Take back what a device was given."""
        for given in resources:
            if isinstance(given, PioAddressRange):
                self.pio.free(given)
            elif isinstance(given, MmioAddressRange):
                self._mmio_at(given.base).free(given)
            elif isinstance(given, GivenLegacyIrq):
                self.irqs.free(given.irq)
            elif isinstance(given, GivenMemSlot):
                self.mem_slots.free(given.slot)
            elif isinstance(given, GivenPciSlot):
                self.pci_slots.free(given.slot)
            elif isinstance(given, GivenMsiIrqs):
                self.msis.free(given.base, given.size)

    def __repr__(self) -> str:
        return f"<SystemAllocator {self.pio!r} {self.mmio_low!r} {self.mmio_high!r} {self.irqs!r}>"


def _range(pool: RangePool, wanted: RangeConstraint, holder: object) -> BusRange:
    if wanted.range is not None and wanted.range[1] - wanted.range[0] + 1 == wanted.size:
        if wanted.range[0] % wanted.align:
            raise InvalidResource(f"{pool.name}: {wanted.range[0]:#x} is not aligned to {wanted.align:#x}")
        return pool.allocate_at(wanted.range[0], wanted.size, holder)
    return pool.allocate(wanted.size, wanted.align, wanted.range, holder)


def _number(pool: IdPool, wanted: int | None, holder: object) -> int:
    return pool.allocate(holder=holder) if wanted is None else pool.allocate_at(wanted, holder)


def _first(entry: tuple[int, int, object]) -> int:
    return entry[0]


def _spans(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Join consecutive numbers to (first, count)."""
    spans: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if spans and sum(spans[-1]) == number:
            spans[-1] = (spans[-1][0], spans[-1][1] + 1)
        else:
            spans.append((number, 1))
    return spans
