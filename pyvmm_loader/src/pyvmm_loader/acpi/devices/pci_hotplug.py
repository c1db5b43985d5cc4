r"""PCI hotplug by ACPI: AML for the registers of `pyvmm_device.pci.PciHotplug`.

When a device comes or is to go, the machine raises an event whose handler calls `\_SB.PCI0.PCNT`. That reads which
slots came up (reading acknowledges) and which are asked to go down, and notifies each slot's device; the kernel then
enumerates the slot, or unbinds its driver and calls `_EJ0`, which writes the slot's bit to the eject register.

Source: QEMU's docs/specs/acpi_pci_hotplug for the registers; ACPI 6.5, 6.3.3 (_EJ0), 6.1.11 (_SUN), 5.6.6 (Notify).
"""

from __future__ import annotations

from pyvmm_loader.acpi.aml import (
    Acquire,
    And,
    Arg,
    Call,
    Device,
    EisaId,
    Field,
    If,
    Io,
    Local,
    Method,
    Mutex,
    Name,
    Notify,
    OperationRegion,
    Path,
    Release,
    ResourceTemplate,
    ShiftLeft,
    Store,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvmm_loader.acpi.aml import Term

PORT, SIZE = 0xAE00, 20
DEVICE_CHECK, EJECT_REQUEST = 1, 3


class PciHotplugSlots:
    """The slots of bus 0 that devices come to and go from, behind the registers at `port`."""

    __slots__ = ("port", "slots")

    def __init__(self, slots: Iterable[int] = range(1, 32), port: int = PORT) -> None:
        self.slots = sorted(set(slots))
        self.port = port
        if not self.slots or not all(1 <= slot <= 31 for slot in self.slots):
            raise ValueError(f"hotplug slots {self.slots}: give some of 1 to 31; slot 0 is the host bridge")

    def controller(self) -> Device:
        r"""Return the device that holds the registers: `\_SB.PHPR`."""
        return Device(
            "PHPR",
            Name("_HID", EisaId("PNP0A06")),
            Name("_UID", "PCI hotplug registers"),
            Name("_STA", 0xB),
            Name("_CRS", ResourceTemplate(Io(self.port, SIZE))),
        )

    def inside_host(self) -> list[Term]:
        r"""Return what belongs into `\_SB.PCI0`: registers, slots and the methods `PCNT`, `DVNT` and `PCEJ`."""
        lock, unlock = Acquire("BLCK"), Release("BLCK")
        return [
            OperationRegion("PCST", "SystemIO", self.port, 8),
            Field("PCST", "DWord", ("PCIU", 32), ("PCID", 32), update="WriteAsZeros"),
            OperationRegion("SEJ", "SystemIO", self.port + 8, 4),
            Field("SEJ", "DWord", ("B0EJ", 32), update="WriteAsZeros"),
            OperationRegion("BNMR", "SystemIO", self.port + 16, 4),
            Field("BNMR", "DWord", ("BNUM", 32), update="WriteAsZeros"),
            Mutex("BLCK"),
            *[self._slot(slot) for slot in self.slots],
            Method("PCEJ", 1, lock, Store(0, Path("BNUM")), ShiftLeft(1, Arg(0), Path("B0EJ")), unlock),
            Method("DVNT", 2, *[self._notify(slot) for slot in self.slots]),
            Method(
                "PCNT",
                0,
                lock,
                Store(0, Path("BNUM")),
                Store(Path("PCIU"), Local(0)),
                Store(Path("PCID"), Local(1)),
                unlock,
                Call("DVNT", Local(0), DEVICE_CHECK),
                Call("DVNT", Local(1), EJECT_REQUEST),
            ),
        ]

    @staticmethod
    def event() -> Call:
        """Return the statement that an event handler runs."""
        return Call("\\_SB.PCI0.PCNT")

    def _slot(self, slot: int) -> Device:
        return Device(
            f"S{slot << 3:02X}",
            Name("_SUN", slot),
            Name("_ADR", slot << 16),
            Method("_EJ0", 1, Call("PCEJ", Path("_SUN"))),
        )

    @staticmethod
    def _notify(slot: int) -> If:
        return If(And(Arg(0), 1 << slot), Notify(Path(f"S{slot << 3:02X}"), Arg(1)))

    def __repr__(self) -> str:
        return f"<PciHotplugSlots {len(self.slots)} at {self.port:#x}>"
