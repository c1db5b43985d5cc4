"""A PCI host bridge: its buses, windows, interrupt wiring, and who may drive what.

Sources: PCI Firmware Specification 3.3, 4.5 (_OSC); ACPI 6.5, 6.2.13 (_PRT) and 6.2.11.3 (_OSC).
"""

from __future__ import annotations

from pyvmm_loader.acpi.aml import (
    And,
    Arg,
    CreateDWordField,
    Device,
    DWordMemory,
    EisaId,
    Else,
    Equal,
    If,
    Interrupt,
    Io,
    Local,
    Memory32Fixed,
    Method,
    Name,
    NotEqual,
    Or,
    Package,
    Path,
    QWordMemory,
    ResourceTemplate,
    Return,
    Store,
    Term,
    ToUuid,
    WordBusNumber,
    WordIO,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

OSC_UUID = "33DB4D5B-1FF7-401C-9657-7441C03DD766"
UNKNOWN_UUID, UNKNOWN_REVISION, MASKED = 1 << 2, 1 << 3, 1 << 4
NATIVE_HOTPLUG, PME, AER, CAPABILITY_STRUCTURE = 1 << 0, 1 << 2, 1 << 3, 1 << 4
CONFIG_PORTS = 0xCF8
PINS = 4


class PciHost:
    """The host bridge of one segment.

    `ecam` is the base of its memory-mapped configuration space, None for the ports 0xCF8 only; `buses` how many buses
    it covers. `mmio32`, `mmio64` and `io` are (base, size) pairs that devices behind it get addresses from. `irqs` are
    the GSIs that the INTx pins are spread over, level-triggered and active high as KVM's I/O APIC takes them.
    `native_hotplug` lets the guest drive PCI Express hotplug ports itself; otherwise ACPI does it.
    """

    __slots__ = ("buses", "ecam", "io", "irqs", "mmio32", "mmio64", "native_hotplug", "slots")

    def __init__(
        self,
        *,
        ecam: int | None = None,
        buses: int = 1,
        mmio32: tuple[int, int] | None = None,
        mmio64: tuple[int, int] | None = None,
        io: tuple[int, int] | None = None,
        irqs: Sequence[int] = (),
        native_hotplug: bool = True,
        slots: int = 32,
    ) -> None:
        if not 1 <= buses <= 256 or not 1 <= slots <= 32:
            raise ValueError(f"{buses} buses, {slots} slots: a segment has 1 to 256 buses of 1 to 32 slots")
        for name, window, most in (("mmio32", mmio32, 1 << 32), ("mmio64", mmio64, 1 << 64), ("io", io, 1 << 16)):
            if window is not None and (window[0] < 0 or window[1] < 1 or sum(window) > most):
                raise ValueError(f"{name} {window}: a base and a size that end at {most:#x}")
        if any(not 0 <= irq <= 0xFFF for irq in irqs):
            raise ValueError(f"interrupts {list(irqs)}: the names of link devices count to 0xfff")
        self.ecam = ecam
        self.buses = buses
        self.mmio32 = mmio32
        self.mmio64 = mmio64
        self.io = io
        self.irqs = tuple(irqs)
        self.native_hotplug = native_hotplug
        self.slots = slots

    def gsi(self, slot: int, pin: int) -> int:
        """Return the GSI of INTA (pin 0) to INTD (pin 3) of a slot, as `pyvmm_device.pci.PciBus` swizzles them."""
        return self.irqs[(slot + pin) % len(self.irqs)]

    def links(self) -> list[Device]:
        """Return an interrupt link device for each line; they belong beside the bridge.

        A GSI named in `_PRT` itself would be active low by definition (PCI's INTx is), and KVM's I/O APIC then
        inverts the line. A link device says active high.
        """
        return [
            Device(
                _link(gsi),
                Name("_HID", EisaId("PNP0C0F")),
                Name("_UID", gsi),
                Name("_PRS", ResourceTemplate(Interrupt(gsi, level=True, shared=True))),
                Name("_CRS", ResourceTemplate(Interrupt(gsi, level=True, shared=True))),
                Method("_SRS", 1),
            )
            for gsi in sorted(set(self.irqs))
        ]

    def device(self, *inside: Term) -> Device:
        r"""Return `\_SB.PCI0`, with more terms inside, such as the devices that hotplug needs."""
        # Without _HID PNP0A08 Linux does not look for _OSC and leaves PCI Express features alone.
        express = self.ecam is not None
        terms: list[Term] = [Name("_HID", EisaId("PNP0A08" if express else "PNP0A03"))]
        if express:
            terms.append(Name("_CID", EisaId("PNP0A03")))
        terms += [Name("_UID", 0), Name("_SEG", 0), Name("_BBN", 0), Name("_CCA", 1), Name("_CRS", self.windows())]
        if self.irqs:
            terms.append(Name("_PRT", self.routing()))
        if express:
            terms += [Name("SUPP", 0), Name("CTRL", 0), self.osc()]
        return Device("PCI0", *terms, *inside)

    def windows(self) -> ResourceTemplate:
        """Return what the bridge hands down, and the configuration ports it keeps."""
        windows: list[Term] = [WordBusNumber(0, self.buses), Io(CONFIG_PORTS, 8)]
        if self.io is not None:
            windows += [WordIO(*part) for part in _around(self.io, CONFIG_PORTS, 8)]
        if self.mmio32 is not None:
            windows.append(DWordMemory(*self.mmio32))
        if self.mmio64 is not None:
            windows.append(QWordMemory(*self.mmio64))
        return ResourceTemplate(*windows)

    def routing(self) -> Package:
        """Return `_PRT`: for each slot and pin the link device of its GSI."""
        rows = [
            Package(slot << 16 | 0xFFFF, pin, Path(f"\\_SB.{_link(self.gsi(slot, pin))}"), 0)
            for slot in range(self.slots)
            for pin in range(PINS)
        ]
        return Package(*rows)

    def osc(self) -> Method:
        """Return `_OSC`: the guest asks which features it may control, and is told."""
        allowed = PME | AER | CAPABILITY_STRUCTURE | (NATIVE_HOTPLUG if self.native_hotplug else 0)
        status, control = Path("CDW1"), Path("CDW3")
        return Method(
            "_OSC",
            4,
            CreateDWordField(Arg(3), 0, "CDW1"),
            If(
                Equal(Arg(0), ToUuid(OSC_UUID)),
                CreateDWordField(Arg(3), 4, "CDW2"),
                CreateDWordField(Arg(3), 8, "CDW3"),
                Store(Path("CDW2"), Path("SUPP")),
                And(control, allowed, Local(0)),
                If(NotEqual(Arg(1), 1), Or(status, UNKNOWN_REVISION, status)),
                If(NotEqual(control, Local(0)), Or(status, MASKED, status)),
                Store(Local(0), Path("CTRL")),
                Store(Local(0), control),
            ),
            Else(Or(status, UNKNOWN_UUID, status)),
            Return(Arg(3)),
            serialized=True,
        )

    def ecam_device(self) -> Device:
        """Return the motherboard device that reserves the ECAM; Linux does not use one that nothing reserves."""
        if self.ecam is None:
            raise ValueError("this host bridge has no ECAM; pass ecam=")
        window = _memory(self.ecam, self.buses << 20)
        return Device("ECAM", Name("_HID", EisaId("PNP0C02")), Name("_UID", 0), Name("_CRS", ResourceTemplate(window)))

    def __repr__(self) -> str:
        return f"<PciHost {self.buses} buses, ECAM {'none' if self.ecam is None else hex(self.ecam)}>"


def _link(gsi: int) -> str:
    return f"L{gsi:03X}"


def _memory(base: int, size: int) -> Term:
    return Memory32Fixed(base, size) if base + size <= 1 << 32 else QWordMemory(base, size)


def _around(window: tuple[int, int], hole: int, length: int) -> list[tuple[int, int]]:
    """Return the parts of a window outside a hole."""
    start, size = window
    end, behind = start + size, hole + length
    if behind <= start or end <= hole:
        return [window]
    return [(at, to - at) for at, to in ((start, hole), (behind, end)) if to > at]
