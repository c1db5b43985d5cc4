"""Devices that QEMU invented and Linux knows by their ids: pvpanic and fw_cfg.

Sources: QEMU's docs/specs/pvpanic and docs/specs/fw_cfg.
"""

from __future__ import annotations

from pyvmm_loader.acpi.aml import (
    Arg,
    Device,
    Field,
    Io,
    Memory32Fixed,
    Method,
    Name,
    OperationRegion,
    Path,
    ResourceTemplate,
    Return,
    Store,
)

PVPANIC_PORT = 0x505
FW_CFG_PORT, FW_CFG_SIZE = 0x510, 12


def pvpanic(port: int = PVPANIC_PORT) -> Device:
    """Return the port that a panicking kernel writes to; `RDPT` and `WRPT` let AML do it as well."""
    return Device(
        "PEVT",
        Name("_HID", "QEMU0001"),
        Name("_CRS", ResourceTemplate(Io(port, 1))),
        OperationRegion("PEOR", "SystemIO", port, 1),
        Field("PEOR", "Byte", ("PEPT", 8)),
        Name("_STA", 0xF),
        Method("RDPT", 0, Return(Path("PEPT"))),
        Method("WRPT", 1, Store(Arg(0), Path("PEPT"))),
    )


def fw_cfg(base: int = FW_CFG_PORT, size: int = FW_CFG_SIZE, *, mmio: bool = False) -> Device:
    """Return the firmware configuration interface, at ports or in memory."""
    window = Memory32Fixed(base, size) if mmio else Io(base, size)
    return Device("FWCF", Name("_HID", "QEMU0002"), Name("_STA", 0xB), Name("_CRS", ResourceTemplate(window)))
