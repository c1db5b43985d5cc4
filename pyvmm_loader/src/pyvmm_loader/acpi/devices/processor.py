"""A processor as a device, matched to its MADT entry by its unique id.

Source: ACPI 6.5, 8.4.
"""

from __future__ import annotations

from pyvmm_loader.acpi.aml import Device, Name


def processor(uid: int) -> Device:
    """Return the device of one processor."""
    if not 0 <= uid <= 0xFFF:
        raise ValueError(f"processor {uid}: names here count to 0xFFF")
    return Device(f"C{uid:03X}", Name("_HID", "ACPI0007"), Name("_UID", uid))
