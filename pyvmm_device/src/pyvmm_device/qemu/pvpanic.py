"""The device by which a guest says that it panicked (QEMU, docs/specs/pvpanic): one register of events."""

from __future__ import annotations

from pyvmm_device.pc.port_device import PortDevice
from pyvmm_device.state import uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm_device.pci.function import PciFunction

PANICKED, CRASH_LOADED, SHUTDOWN = 0x01, 0x02, 0x04


class Pvpanic(PortDevice):
    """A pvpanic device: at port 0x505, or as one byte of memory, which is the BAR of its PCI form as well.

    Args:
        on_event: called with the bits that the guest wrote, of those it may: `PANICKED`, `CRASH_LOADED` (it panicked
            and a crash kernel takes over), `SHUTDOWN`; with no lock held.
        events: the bits that a driver is offered.
    """

    PORTS = ((0x505, 1, 0),)
    STATE = {"seen": uint(8)}

    def __init__(self, on_event: Callable[[int], object], events: int = PANICKED | CRASH_LOADED | SHUTDOWN) -> None:
        super().__init__()
        self._on_event = on_event
        self.events = events & 0xFF
        self._seen = 0

    @property
    def seen(self) -> int:
        """Every event since the last reset."""
        return self._seen

    def reset(self) -> None:
        """Forget the events."""
        with self.lock:
            self._seen = 0

    def pci_function(self) -> PciFunction:
        """Return the same device for a PCI bus: a function of QEMU's ids, whose BAR 0 is the register."""
        from pyvmm_device.pci.function import PciFunction

        function = PciFunction(0x1B36, 0x0011, 0x088000, revision=1, subsystem_vendor=0x1AF4, subsystem_id=0x1100)
        function.add_bar(0, 16, self)
        return function

    def _read(self, offset: int) -> int:
        # "On read, the bits recognized by the device are set"
        return 0xFF if offset else self.events

    def _write(self, offset: int, value: int) -> None:
        happened = 0 if offset else value & self.events
        if happened:
            self._seen |= happened
            self.lock.after(self._on_event, happened)

    def __repr__(self) -> str:
        return f"<Pvpanic events={self.events:#x} seen={self._seen:#x}>"
