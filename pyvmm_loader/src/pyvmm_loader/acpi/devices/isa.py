"""What sits at fixed ports of a PC: serial ports, clock, keyboard controller.

Source: the plug-and-play ids of Microsoft's list ("Plug and Play ID Support"); for the clock ACPI 6.5, 4.8.2.4.
"""

from __future__ import annotations

from pyvmm_loader.acpi.aml import Device, EisaId, Io, IrqNoFlags, Name, ResourceTemplate

COM_PORTS = ((0x3F8, 4), (0x2F8, 3), (0x3E8, 4), (0x2E8, 3))


def serial_port(number: int = 1, base: int | None = None, irq: int | None = None) -> Device:
    """Return a 16550A: COM1 to COM4 at their usual places, or elsewhere."""
    if not 1 <= number <= 4:
        raise ValueError(f"COM{number}: a PC has COM1 to COM4")
    usual_base, usual_irq = COM_PORTS[number - 1]
    return Device(
        f"COM{number}",
        Name("_HID", EisaId("PNP0501")),
        Name("_UID", number),
        Name("_DDN", f"COM{number}"),
        Name(
            "_CRS",
            ResourceTemplate(
                Io(usual_base if base is None else base, 8), IrqNoFlags(usual_irq if irq is None else irq)
            ),
        ),
    )


def rtc(base: int = 0x70, irq: int = 8) -> Device:
    """Return the CMOS clock."""
    return Device(
        "RTC0",
        Name("_HID", EisaId("PNP0B00")),
        Name("_CRS", ResourceTemplate(Io(base, 2), IrqNoFlags(irq))),
    )


def keyboard(irq: int = 1) -> Device:
    """Return the keyboard port of an i8042."""
    return Device(
        "KBD0",
        Name("_HID", EisaId("PNP0303")),
        Name("_CRS", ResourceTemplate(Io(0x60, 1), Io(0x64, 1), IrqNoFlags(irq))),
    )


def mouse(irq: int = 12) -> Device:
    """Return the mouse port of an i8042; its registers belong to the keyboard."""
    return Device(
        "MOU0",
        Name("_HID", EisaId("PNP0F13")),
        Name("_CRS", ResourceTemplate(IrqNoFlags(irq))),
    )
