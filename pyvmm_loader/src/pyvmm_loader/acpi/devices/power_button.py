"""A power button that is a device, for machines without the fixed one.

Source: ACPI 6.5, 4.8.3.1.2.1.
"""

from __future__ import annotations

from pyvmm_loader.acpi.aml import Device, EisaId, Name, Notify, Path

PRESSED = 0x80
NAME = "PWRB"


def power_button() -> Device:
    """Return the button; `pressed` is what an event handler does for it."""
    return Device(NAME, Name("_HID", EisaId("PNP0C0C")))


def pressed() -> Notify:
    r"""Return the statement that reports a press: for `\_SB.GED._EVT` or a `\_GPE` method."""
    return Notify(Path(f"\\_SB.{NAME}"), PRESSED)
