"""ACPI tables: what a guest's kernel reads to find processors, interrupts, devices and the way to switch off.

`AcpiTables` makes all tables of a machine from a description of it; `BootPlan(..., acpi=...)` places them::

    from pyvmm_loader import BootPlan
    from pyvmm_loader.acpi import AcpiTables, GenericAddress, SleepRegisters
    from pyvmm_loader.acpi.devices.isa import serial_port
    from pyvmm_loader.acpi.devices.virtio_mmio import virtio_mmio

    tables = AcpiTables(
        2,
        devices=[serial_port(), virtio_mmio(0, 0xD0000000, 5)],
        sleep=SleepRegisters(GenericAddress(0x600), GenericAddress(0x601)),
    )
    plan = BootPlan("vmlinux", 256 << 20, "console=ttyS0", vcpus=2, acpi=tables)

Devices that are not here are written in `aml`, which reads like ASL. Source: ACPI Specification 6.5.
"""

from pyvmm_loader.acpi.fadt import PmBlock, Reset, SleepRegisters
from pyvmm_loader.acpi.fixed import hpet, mcfg, spcr
from pyvmm_loader.acpi.madt import InterruptOverride
from pyvmm_loader.acpi.numa import NumaNode
from pyvmm_loader.acpi.reader import AcpiTable, read_tables
from pyvmm_loader.acpi.table import MEMORY, PORT, GenericAddress, definition_block
from pyvmm_loader.acpi.tables import AcpiTables, PlacedTable

__all__ = [
    "MEMORY",
    "PORT",
    "AcpiTable",
    "AcpiTables",
    "GenericAddress",
    "InterruptOverride",
    "NumaNode",
    "PlacedTable",
    "PmBlock",
    "Reset",
    "SleepRegisters",
    "definition_block",
    "hpet",
    "mcfg",
    "read_tables",
    "spcr",
]
