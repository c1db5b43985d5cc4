"""Devices that come and go while the guest runs, by the registers ACPI firmware uses for it.

The layout is the one that QEMU documents (docs/specs/acpi_pci_hotplug): the guest's ACPI code, told by a general
purpose event, reads which slots are up or down, notifies the kernel, and writes which to eject.
"""

from __future__ import annotations

from pyvmm_device.errors import PciError
from pyvmm_device.pci.bus import SLOTS
from pyvmm_device.register_device import Register, RegisterDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm_device.pci.bus import PciBus
    from pyvmm_device.pci.function import PciFunction

PORT, SIZE = 0xAE00, 20
EMPTY, INSERTED, PRESENT, EJECTING = "empty", "inserted", "present", "ejecting"


class PciHotplug(RegisterDevice):
    """The hotplug controller of one bus.

    Args:
        bus: whose devices come and go.
        notify: called when the guest should look: raises the general purpose event its ACPI code waits for.
        on_eject: called with a device's functions when the guest let go of it.
    """

    up = Register(0x00, writable=0)
    down = Register(0x04, writable=0)
    eject = Register(0x08, writable=0)
    removable = Register(0x0C, writable=0)
    select = Register(0x10, writable=0)

    def __init__(
        self,
        bus: PciBus,
        notify: Callable[[], object],
        on_eject: Callable[[list[PciFunction]], object] | None = None,
    ) -> None:
        super().__init__()
        self._bus = bus
        self._notify = notify
        self._on_eject = on_eject
        for slot in {slot for slot, _, _ in bus} - {0}:
            self.removable |= 1 << slot

    def insert(self, function: PciFunction, slot: int | None = None) -> int:
        """Plug a device in and tell the guest; returns its slot. Raises as `PciBus.add`."""
        slot = self._bus.add(function, slot)
        with self.lock:
            self.up |= 1 << slot
            self.down &= ~(1 << slot)
            self.removable |= 1 << slot
        self._notify()
        return slot

    def request_eject(self, slot: int) -> None:
        """Ask the guest to let go of a device; `on_eject` is called when it does, which may be never.

        Raises:
            PciError: there is no device that can be removed in this slot.
        """
        with self.lock:
            if self._bus.get(slot) is None or not self.removable >> slot & 1:
                raise PciError(f"there is no removable device in slot {slot:#x}")
            self.down |= 1 << slot
        self._notify()

    def slot_state(self, slot: int) -> str:
        """Return "empty", "inserted" (the guest has not looked), "present" or "ejecting" (it was asked to let go)."""
        if self._bus.get(slot) is None:
            return EMPTY
        if self.down >> slot & 1:
            return EJECTING
        return INSERTED if self.up >> slot & 1 else PRESENT

    @up.on_read
    def _read_up(self) -> int:
        """Return the slots that are up, and forget them: the guest knows now."""
        slots, self.up = self.up, 0
        return slots

    @eject.on_read
    def _read_features(self) -> int:
        return 0

    @eject.on_write
    def _write_eject(self, slots: int) -> None:
        for slot in range(1, SLOTS):
            if slots >> slot & 1 and self._bus.get(slot) is not None and self.removable >> slot & 1:
                self.up &= ~(1 << slot)
                self.down &= ~(1 << slot)
                self.removable &= ~(1 << slot)
                self.lock.after(self._take_out, slot)

    def _take_out(self, slot: int) -> None:
        removed = self._bus.remove(slot)
        if self._on_eject is not None:
            self._on_eject(removed)
