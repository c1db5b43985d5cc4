"""A PCI Express root port with a hot-plug slot: the way devices come and go without ACPI.

Linux's driver is pciehp. Source: PCI Express Base Specification 5.0, sections 6.7 and 7.5.3.
"""

from __future__ import annotations

from pyvmm_device.errors import PciError
from pyvmm_device.pci.bridge import PciBridge
from pyvmm_device.pci.config_space import CAP_EXPRESS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm_device.interrupt_group import InterruptSourceGroup
    from pyvmm_device.io_manager import IoManager
    from pyvmm_device.pci.function import PciFunction

VERSION_2, ROOT_PORT, SLOT_IMPLEMENTED = 0x0002, 0x0040, 0x0100
LINK_2_5_GT_X1 = 0x0011
LINK_ACTIVE_REPORTING, LINK_ACTIVE = 1 << 20, 0x2000
LINK_STATUS, SLOT_CAPABILITIES, SLOT_CONTROL, SLOT_STATUS = 0x12, 0x14, 0x18, 0x1A
CAPABILITY_SIZE = 0x3C

ATTENTION_BUTTON, POWER_CONTROLLER, ATTENTION_INDICATOR, POWER_INDICATOR = 0x01, 0x02, 0x08, 0x10
HOT_PLUG_SURPRISE, HOT_PLUG_CAPABLE, NO_COMMAND_COMPLETED = 0x20, 0x40, 1 << 18

BUTTON_PRESSED, PRESENCE_CHANGED, PRESENT, LINK_CHANGED = 0x0001, 0x0008, 0x0040, 0x0100
STATUS_CLEARS = 0x011F
# enable bits of Slot Control and the events of Slot Status that they let interrupt
ENABLES = ((0x0001, BUTTON_PRESSED), (0x0008, PRESENCE_CHANGED), (0x1000, LINK_CHANGED))
INTERRUPT_ENABLE, POWER_OFF = 0x0020, 0x0400
CONTROL_WRITABLE = 0x1FFF
INDICATORS_OFF = 0x03C0


class PcieRootPort(PciBridge):
    """A root port whose slot takes one device, also while the guest runs.

    The guest powers the slot. It is told of what happens by the attention button, which Linux obeys after five seconds.
    Asked so to let go of a device (`request_eject`), it removes its driver and powers the slot off; then the device is
    taken out.

    Args:
        io: where the BARs of the device are registered: the machine's.
        number: of the slot, 1 to 8191, as the guest shows it (``/sys/bus/pci/slots``); also of the port.
        interrupt: for hot-plug events by MSI: a group of one. Without it the port uses INTA.
        on_eject: called with the device's functions when the guest has powered the slot off.
    """

    def __init__(
        self,
        io: IoManager,
        number: int,
        interrupt: InterruptSourceGroup | None = None,
        on_eject: Callable[[list[PciFunction]], object] | None = None,
    ) -> None:
        if not 1 <= number <= 8191:
            raise PciError(f"slot {number}: the slot of a root port has number 1 to 8191")
        super().__init__(io, 0x1B36, 0x000C, interrupt_pin=1, express=True)
        self.number = number
        self._on_eject = on_eject
        self._ejecting = False
        self._raised = False
        body = bytearray(CAPABILITY_SIZE - 2)
        body[0:2] = (VERSION_2 | ROOT_PORT | SLOT_IMPLEMENTED).to_bytes(2, "little")
        body[10:14] = (LINK_2_5_GT_X1 | LINK_ACTIVE_REPORTING | (number & 0xFF) << 24).to_bytes(4, "little")
        body[16:18] = LINK_2_5_GT_X1.to_bytes(2, "little")
        slot = ATTENTION_BUTTON | POWER_CONTROLLER | ATTENTION_INDICATOR | POWER_INDICATOR | HOT_PLUG_CAPABLE
        slot |= HOT_PLUG_SURPRISE | NO_COMMAND_COMPLETED | number << 19
        body[18:22] = slot.to_bytes(4, "little")
        at = self._capability = self.config.add_capability(CAP_EXPRESS, bytes(body))
        self.config.set(at + 8, 2, 0, 0x000F)  # error reporting enables, for drivers that read back
        self.config.set(at + 0x10, 2, 0, 0x00FF)
        self.config.set(at + SLOT_CONTROL, 2, INDICATORS_OFF, CONTROL_WRITABLE)
        self.config.set(at + SLOT_STATUS, 2, 0, 0, STATUS_CLEARS)
        self.config.set(at + 0x1C, 2, 0, 0x001F)
        self.config.vary(at + LINK_STATUS, 2, LINK_ACTIVE)
        self.config.vary(at + SLOT_STATUS, 2, PRESENT)
        self.config.watch(at + SLOT_CONTROL, 4, on_write=self._on_slot)
        if interrupt is not None:
            self.add_msi(interrupt, per_vector_masking=False)

    # the machine's side

    @property
    def device(self) -> PciFunction | None:
        """Function 0 of the device in the slot, or None."""
        return None if self.secondary is None else self.secondary.get(0)

    def insert(self, function: PciFunction) -> None:
        """Plug a device in and tell the guest.

        Raises:
            PciError: there is one in the slot.
        """
        assert self.secondary is not None
        self.secondary.add(function, 0)
        with self.lock:
            self._ejecting = False
            # who plugs it in presses the button too: a driver that has one waits for it, and not for the presence
            self._changed(PRESENCE_CHANGED | BUTTON_PRESSED)

    def request_eject(self) -> None:
        """Ask the guest to let go of the device; `on_eject` is called when it did, which may be never.

        Raises:
            PciError: the slot is empty.
        """
        with self.lock:
            if self.device is None:
                raise PciError(f"slot {self.number} is empty")
            self._ejecting = True
            self._changed(BUTTON_PRESSED)

    def slot_state(self) -> str:
        """Return "empty", "inserted" (not powered by the guest), "present" or "ejecting" (it was asked to let go)."""
        if self.device is None:
            return "empty"
        if self._ejecting:
            return "ejecting"
        return "present" if self.powered else "inserted"

    @property
    def powered(self) -> bool:
        """Whether the guest powers the slot."""
        return not self.config.get(self._capability + SLOT_CONTROL, 2) & POWER_OFF

    # the guest's side

    def _on_slot(self, offset: int, length: int) -> None:  # noqa: ARG002 - control and status belong together
        with self.lock:
            taken_out = not self.powered and self._ejecting and self.device is not None
            if taken_out:
                self._ejecting = False  # so that nobody else takes it out
            else:
                self._changed(0)
        if taken_out and self.secondary is not None:
            removed = self.secondary.remove(0)
            with self.lock:
                self._changed(PRESENCE_CHANGED)
                if self._on_eject is not None:
                    self.lock.after(self._on_eject, removed)

    def _changed(self, events: int) -> None:
        """Note events, bring the link up or down, and interrupt if the guest wants to know; under the lock."""
        config, at = self.config, self._capability
        present = self.device is not None
        link = config.get(at + LINK_STATUS, 2)
        active = LINK_ACTIVE * (present and self.powered)
        if link & LINK_ACTIVE != active:
            config.put(at + LINK_STATUS, 2, link & ~LINK_ACTIVE | active)
            events |= LINK_CHANGED
        if self.bus is None:
            events = 0  # a machine that is put together has nobody to tell
        status = config.get(at + SLOT_STATUS, 2) & ~PRESENT | PRESENT * present | events
        config.put(at + SLOT_STATUS, 2, status)
        control = config.get(at + SLOT_CONTROL, 2)
        enabled = sum(event for enable, event in ENABLES if control & enable)
        raised = bool(control & INTERRUPT_ENABLE and status & enabled)
        # "the port must send an MSI whenever [the conjunction] transitions from FALSE to TRUE", and a new event while
        # it is true is one more transition
        if self.msi is not None and self.msi.enabled:
            if raised and (events & enabled or not self._raised):
                self.lock.after(self.msi.group.trigger, 0)
        else:
            self.set_intx(raised)
        self._raised = raised

    def device_reset(self) -> None:
        """Reset what is in the slot, and show whether there is something."""
        super().device_reset()
        with self.lock:
            self._ejecting = self._raised = False
            self._changed(0)
            # no event is left of what that changed
            self.config.put(self._capability + SLOT_STATUS, 2, PRESENT * (self.device is not None))

    def device_restored(self) -> None:
        """Show what is in the slot; whoever took over the interrupt does not know that it was pending."""
        with self.lock:
            self._raised = False
            self._changed(0)

    def __repr__(self) -> str:
        return f"<PcieRootPort {self.address}, slot {self.number} {self.slot_state()}>"
