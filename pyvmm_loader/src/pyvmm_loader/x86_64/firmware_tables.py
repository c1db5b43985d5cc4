"""What firmware would leave in memory for any kernel, whatever its boot protocol: ACPI or an MP table, and SMBIOS."""

from __future__ import annotations

from pyvmm_loader.errors import MemoryTooSmall
from pyvmm_loader.plan.placement import Placement
from pyvmm_loader.x86_64.e820 import E820Entry
from pyvmm_loader.x86_64.layout import ACPI_START, HIMEM_START, MMIO_GAP_END, MPTABLE_START, SMBIOS_START

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm_loader.acpi.tables import AcpiTables
    from pyvmm_loader.smbios.tables import Smbios

PAGE = 4096
MEANING = {
    "RSDP": "where the XSDT is; the zero page or start_info points here",
    "XSDT": "where the other tables are",
    "FACP": "power management, reset, legacy devices",
    "FACS": "shared with firmware; empty",
    "DSDT": "devices, in AML",
    "SSDT": "more devices, in AML",
    "APIC": "processors and interrupt controllers",
    "MCFG": "where PCI's configuration space is",
    "SRAT": "which processors and memory are near each other",
    "SLIT": "how far NUMA nodes are from each other",
    "HPET": "where the event timer is",
    "SPCR": "which serial port is the console",
}


class FirmwareTables:
    """The tables' `placements`, the `reserved` ranges they need in the e820 map, and where `rsdp` is (0: nowhere)."""

    __slots__ = ("placements", "reserved", "rsdp")

    def __init__(
        self,
        vcpus: int,
        ranges: Sequence[tuple[int, int]],
        acpi: AcpiTables | None = None,
        smbios: Smbios | None = None,
        rsdp: int = 0,
    ) -> None:
        self.placements: list[Placement] = []
        self.reserved: list[E820Entry] = []
        self.rsdp = rsdp
        if acpi is not None:
            self._acpi(acpi, ranges)
        elif not rsdp:
            self._mptable(vcpus)
        if smbios is not None:
            why = f"{smbios}; kernel scans 0xf0000..0xfffff for its anchors"
            data = smbios.place(SMBIOS_START)
            self.placements.append(Placement(SMBIOS_START, len(data), "SMBIOS", why, data))

    def _acpi(self, acpi: AcpiTables, ranges: Sequence[tuple[int, int]]) -> None:
        size = acpi.size()
        # In the low area a guest finds them by search as well; larger ones go where firmware has them, high in RAM.
        high = None if size <= MPTABLE_START - ACPI_START - PAGE else self._top(ranges, size)
        placed = acpi.place(ACPI_START, high)
        self.rsdp = placed[0].start
        for table in placed:
            what = f"ACPI: {MEANING.get(table.name, 'more')}"
            self.placements.append(Placement(table.start, len(table.data), table.name, what, table.data))
            page = table.start & -PAGE
            end = table.end + PAGE - 1 & -PAGE
            last = self.reserved[-1] if self.reserved else None
            if last is not None and last.type == table.type and page <= last.addr + last.size:
                last.size = max(last.size, end - last.addr)
            else:
                self.reserved.append(E820Entry(page, end - page, table.type))

    @staticmethod
    def _top(ranges: Sequence[tuple[int, int]], size: int) -> int:
        for start, length in sorted(ranges, reverse=True):
            at = start + length - size & -PAGE
            if start + length <= MMIO_GAP_END and at >= max(start, HIMEM_START):
                return at
        raise MemoryTooSmall(f"no RAM below 4 GiB has room for {size:#x} bytes of ACPI tables", what="ACPI tables")

    def _mptable(self, vcpus: int) -> None:
        from pyvmm_loader.x86_64.mptable import mptable

        why = f"{vcpus} CPU(s), I/O APIC; kernel scans 0xf0000..0xfffff"
        table = mptable(vcpus)
        self.placements.append(Placement(MPTABLE_START, len(table), "MP table", why, table))
