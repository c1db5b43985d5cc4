"""A PCI-to-PCI bridge: one more bus, whose devices answer only where the guest opened the bridge's windows.

Source: PCI-to-PCI Bridge Architecture Specification 1.2, chapters 3 and 9.
"""

from __future__ import annotations

from pyvmm_device.pci import config_space as cs
from pyvmm_device.pci.bus import PciBus
from pyvmm_device.pci.function import PciFunction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from pyvmm_device.bus import BusRange, Claim
    from pyvmm_device.interrupt import SetLevel
    from pyvmm_device.io_manager import IoManager

BRIDGE_CLASS = 0x060400
HEADER_TYPE_1 = 1
PRIMARY_BUS, SECONDARY_BUS, SUBORDINATE_BUS = 0x18, 0x19, 0x1A
IO_BASE, IO_LIMIT, SECONDARY_STATUS = 0x1C, 0x1D, 0x1E
MEMORY_BASE, MEMORY_LIMIT, PREFETCH_BASE, PREFETCH_LIMIT = 0x20, 0x22, 0x24, 0x26
PREFETCH_BASE_HIGH, PREFETCH_LIMIT_HIGH = 0x28, 0x2C
BRIDGE_CONTROL, SECONDARY_BUS_RESET = 0x3E, 0x40
BRIDGE_CONTROL_WRITABLE = 0x0FFF
PREFETCH_64BIT = 1


class PciBridge(PciFunction):
    """A bridge and the bus behind it; add devices to `secondary`.

    Args:
        io: where the BARs of the devices behind it are registered: the machine's.
        vendor_id: who made it.
        device_id: what it is.
        interrupt_pin: of the bridge itself; devices behind it have their own, swizzled over the bridge's four.
        express: whether it has a configuration space of 4096 bytes.
    """

    def __init__(
        self,
        io: IoManager,
        vendor_id: int = 0x1B36,
        device_id: int = 0x0001,
        *,
        interrupt_pin: int = 0,
        express: bool = False,
    ) -> None:
        super().__init__(vendor_id, device_id, BRIDGE_CLASS, interrupt_pin=interrupt_pin, express=express)
        config = self.config
        config.set(cs.HEADER_TYPE, 1, HEADER_TYPE_1)
        for register in (PRIMARY_BUS, SECONDARY_BUS, SUBORDINATE_BUS):
            config.set(register, 1, 0, 0xFF)
        config.set(IO_BASE, 1, 0, 0xF0)
        config.set(IO_LIMIT, 1, 0, 0xF0)
        config.set(SECONDARY_STATUS, 2, 0, 0, cs.STATUS_CLEARS)
        config.set(MEMORY_BASE, 4, 0, 0xFFF0FFF0)
        config.set(PREFETCH_BASE, 4, PREFETCH_64BIT << 16 | PREFETCH_64BIT, 0xFFF0FFF0)
        config.set(PREFETCH_BASE_HIGH, 8, 0, (1 << 64) - 1)
        config.set(BRIDGE_CONTROL, 2, 0, BRIDGE_CONTROL_WRITABLE)
        config.watch(SECONDARY_BUS, 1, on_write=self._on_number)
        config.watch(PREFETCH_BASE_HIGH, 8, on_write=self._on_window)
        config.watch(BRIDGE_CONTROL, 2, on_write=self._on_bridge_control)
        self._pins: list[SetLevel | None] = [None] * 4
        self._levels = [False] * 4
        self.secondary = SecondaryBus(io, self)

    # what passes

    def windows(self, io: bool) -> list[tuple[int, int]]:
        """Return the ranges that pass to the bus behind it, each as first and last address."""
        get = self.config.get
        command = get(cs.COMMAND, 2)
        if not command & (cs.COMMAND_IO if io else cs.COMMAND_MEMORY):
            return []
        if io:
            # "the upper 4 bits ... correspond to AD[15::12]", and the lower 12 are zeros and ones
            spans = [((get(IO_BASE, 1) & 0xF0) << 8, (get(IO_LIMIT, 1) & 0xF0) << 8 | 0xFFF)]
        else:
            base, limit = (get(at, 2) >> 4 for at in (PREFETCH_BASE, PREFETCH_LIMIT))
            high = get(PREFETCH_BASE_HIGH, 4) << 32, get(PREFETCH_LIMIT_HIGH, 4) << 32
            spans = [
                (get(MEMORY_BASE, 2) >> 4 << 20, get(MEMORY_LIMIT, 2) >> 4 << 20 | 0xFFFFF),
                (high[0] | base << 20, high[1] | limit << 20 | 0xFFFFF),
            ]
        return [(first, last) for first, last in spans if first <= last]

    def places(self) -> Iterator[tuple[Claim, BusRange | None]]:
        """Say where the ranges of the bridge, and of what is behind it, should answer now."""
        yield from super().places()
        if self.secondary is not None:
            yield from self.secondary.places()

    def _on_window(self, offset: int, length: int) -> None:  # noqa: ARG002 - the other windows lie where BARs do
        self.remap()

    def _on_number(self, offset: int, length: int) -> None:  # noqa: ARG002 - it is one byte
        # the messages of what is behind it say which bus they come from
        for _, _, function in self.secondary or ():
            for messages in (function.msi, function.msix):
                if messages is not None:
                    messages.refresh()

    def _on_bridge_control(self, offset: int, length: int) -> None:  # noqa: ARG002 - both bytes belong together
        if self.config.get(BRIDGE_CONTROL, 2) & SECONDARY_BUS_RESET and self.secondary is not None:
            self.secondary.reset()

    # interrupts of the devices behind it

    def set_pin(self, index: int, active: bool) -> None:
        """Pass on what devices do to line 0 to 3 of the bus behind, which is the bridge's own INTA to INTD."""
        with self.lock:
            self._levels[index] = active
            self._drive(index)

    def _drive(self, index: int) -> None:
        pin = self._pins[index]
        if pin is not None:
            self.lock.after(pin, self._levels[index])

    def attach(self, bus: PciBus, slot: int, number: int) -> None:
        """Be on a bus, with all that is behind."""
        super().attach(bus, slot, number)
        pins = [bus.input(slot, index + 1) for index in range(4)]
        with self.lock:
            self._pins = pins
            for index in range(4):
                self._drive(index)
        self.remap()

    def detach(self) -> None:
        """Leave the bus, with all that is behind: nothing there answers, and no line of it is high."""
        with self.lock:
            for pin in self._pins:
                if pin is not None:
                    self.lock.after(pin, False)
            self._pins = [None] * 4
        super().detach()
        self.remap()

    # reset and state

    def device_reset(self) -> None:
        """Reset what is behind it."""
        if self.secondary is not None:
            self.secondary.reset()

    def state_parts(self) -> dict[str, Any]:
        """Return what has a state of its own; the bus behind is one."""
        return {**super().state_parts(), "secondary": self.secondary}


class SecondaryBus(PciBus):
    """The bus behind a bridge; the guest gives it its number."""

    def __init__(self, io: IoManager, bridge: PciBridge) -> None:
        self._bridge = bridge
        super().__init__(io, [BridgeLine(bridge, index) for index in range(4)])

    @property
    def number(self) -> int:
        """What the guest numbered it, or 0 while it has not: then it cannot be reached."""
        return self._bridge.config.data[SECONDARY_BUS]

    def forwards(self, where: BusRange, io: bool) -> bool:
        """Say whether an access to this range passes the bridge, and those before it."""
        parent = self._bridge.bus
        if parent is None or not parent.forwards(where, io):
            return False
        return any(first <= where.base and where.last <= last for first, last in self._bridge.windows(io))

    def find(self, number: int) -> PciBus | None:
        """Return the bus with a number behind this bridge: itself, or one of those it is told to pass on to."""
        if not 0 < self.number <= number <= self._bridge.config.data[SUBORDINATE_BUS]:
            return None
        return super().find(number)


class BridgeLine:
    """A line of the bus behind a bridge: a level interrupt that moves one of the bridge's pins."""

    __slots__ = ("_bridge", "_index")

    def __init__(self, bridge: PciBridge, index: int) -> None:
        self._bridge = bridge
        self._index = index

    def assert_(self) -> None:
        """Raise it."""
        self._bridge.set_pin(self._index, True)

    def clear(self) -> None:
        """Lower it."""
        self._bridge.set_pin(self._index, False)
