"""A virtio device behind memory-mapped registers.

Source: VIRTIO 1.3, 4.2 for the registers; the id LNRO0005 is what Linux's virtio_mmio driver and QEMU agree on.
"""

from __future__ import annotations

from pyvmm_loader.acpi.aml import Device, Interrupt, Memory32Fixed, Name, QWordMemory, ResourceTemplate


def virtio_mmio(number: int, base: int, gsi: int, size: int = 0x1000, *, level: bool = False) -> Device:
    """Return the device: `number` 0 to 255 names it, `gsi` is its interrupt, edge-triggered unless `level`."""
    if not 0 <= number <= 255:
        raise ValueError(f"virtio-mmio device {number}: give 0 to 255")
    window = Memory32Fixed(base, size) if base + size <= 1 << 32 else QWordMemory(base, size)
    return Device(
        f"VR{number:02X}",
        Name("_HID", "LNRO0005"),
        Name("_UID", number),
        Name("_CCA", 1),
        Name("_CRS", ResourceTemplate(window, Interrupt(gsi, level=level))),
    )
