"""All tables of one machine, from a description of it.

Source: ACPI 6.5, chapter 5, "ACPI Software Programming Model".
"""

from __future__ import annotations

from pyvmm_loader.acpi import fadt as fadt_module
from pyvmm_loader.acpi.aml import Method, Name, Package, Scope
from pyvmm_loader.acpi.madt import InterruptOverride, madt
from pyvmm_loader.acpi.reader import MAX_TABLE, MAX_TABLES, MAX_TOTAL
from pyvmm_loader.acpi.rsdp import rsdp, xsdt
from pyvmm_loader.acpi.table import HEADER_SIZE, LENGTH_AT, SIGNATURE_CHARACTERS, AcpiError, definition_block
from pyvmm_loader.checksum import checksum
from pyvmm_loader.errors import PlacementError
from pyvmm_loader.x86_64.e820 import ACPI, NVS
from pyvmm_loader.x86_64.layout import ACPI_START, MPTABLE_START

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyvmm_loader.acpi.aml import Term
    from pyvmm_loader.acpi.devices.pci import PciHost
    from pyvmm_loader.acpi.devices.pci_hotplug import PciHotplugSlots
    from pyvmm_loader.acpi.fadt import PmBlock, Reset, SleepRegisters
    from pyvmm_loader.acpi.numa import NumaNode

S5 = 5
MAX_PROCESSORS = 0x1000
PAGE = 4096
ALIGNMENT = 16
FACS_AT = 64
"""Behind the RSDP, in the page that the system must not reuse."""


def _check_table(data: bytes, own: set[str]) -> None:
    """Raise AcpiError for what is no whole table, or one that is made here already."""
    length = int.from_bytes(data[LENGTH_AT : LENGTH_AT + 4], "little")
    if len(data) < HEADER_SIZE or length != len(data) or checksum(data):
        raise AcpiError(f"a table of {len(data)} bytes that says {length}, or has a bad checksum: use table()")
    name = data[:4].decode("ascii", "replace")
    if name in own or not SIGNATURE_CHARACTERS.issuperset(name):
        raise AcpiError(
            f"{name!r} is made here already, or is no signature; change it by the arguments", signature=name
        )


class PlacedTable:
    """A table at its address: `name`, `start`, `data`, and the e820 `type` of the page it is in."""

    __slots__ = ("data", "name", "start", "type")

    def __init__(self, name: str, start: int, data: bytes, type: int) -> None:  # noqa: A002 - as in E820Entry
        self.name = name
        self.start = start
        self.data = data
        self.type = type

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.start + len(self.data)

    def __repr__(self) -> str:
        return f"<PlacedTable {self.name} {self.start:#x}..{self.end:#x}>"


class AcpiTables:
    r"""A machine in ACPI's words.

    `vcpus` processors have the APIC ids 0, 1, ... unless `apic_ids` says otherwise; the last `spare` of them are not
    there yet. `devices` are terms for `\_SB`, such as `serial_port()` or `virtio_mmio(0, 0xD0000000, 5)`. `pci` is a
    host bridge, `hotplug` its slots.

    With `pm` the machine has a PC's fixed hardware, without it the hardware is reduced; then `sleep` names the
    registers that power it off. `reset` names the register that resets it. `events` maps interrupts (GSIs) to
    statements, run by a generic event device; `gpe` maps general purpose events of the PM block to them. `s5` is the
    sleep type that means off.

    `numa` are NumaNodes; `tables` whole tables more, such as those of `hpet()`, `spcr()`, or SSDTs.

    >>> from pyvmm_loader.acpi.devices.isa import serial_port
    >>> [table.name for table in AcpiTables(2, devices=[serial_port()]).place()]
    ['RSDP', 'FACS', 'DSDT', 'FACP', 'APIC', 'XSDT']
    """

    def __init__(
        self,
        vcpus: int = 1,
        *,
        apic_ids: Sequence[int] | None = None,
        spare: int = 0,
        devices: Sequence[Term] = (),
        pci: PciHost | None = None,
        hotplug: PciHotplugSlots | None = None,
        pm: PmBlock | None = None,
        sleep: SleepRegisters | None = None,
        reset: Reset | None = None,
        events: Mapping[int, Sequence[Term]] | None = None,
        gpe: Mapping[int, Sequence[Term]] | None = None,
        overrides: Sequence[InterruptOverride] = (),
        numa: Sequence[NumaNode] = (),
        tables: Sequence[bytes] = (),
        boot_arch: int | None = None,
        pcat_compat: bool = True,
        s5: int = S5,
    ) -> None:
        if apic_ids is None and vcpus > MAX_PROCESSORS:
            raise ValueError(f"{vcpus} processors: names here count to {MAX_PROCESSORS - 1:#x}")
        self.apic_ids = list(range(vcpus)) if apic_ids is None else list(apic_ids)
        if not self.apic_ids or not 0 <= spare < len(self.apic_ids):
            raise ValueError(f"{len(self.apic_ids)} processors, {spare} of them spare: the first must be there")
        if hotplug is not None and pci is None:
            raise ValueError("PCI hotplug needs a host bridge; pass pci=")
        if gpe and (pm is None or not pm.gpe0):
            raise ValueError("general purpose events need a PM block with gpe0; use events= for a GED instead")
        if not 0 <= s5 <= 7:
            raise ValueError(f"sleep type {s5} for off: the register has three bits for it")
        if pm is not None and gpe and max(gpe) >= 4 * pm.gpe0_length:
            raise ValueError(f"general purpose event {max(gpe)}: the block at gpe0 has {4 * pm.gpe0_length}")
        self.spare = spare
        self.devices = list(devices)
        self.pci = pci
        self.hotplug = hotplug
        self.pm = pm
        self.sleep = sleep
        self.reset = reset
        self.events = dict(events or {})
        self.gpe = dict(gpe or {})
        self.overrides = list(overrides)
        if pm is not None and pm.sci not in [override.source for override in overrides]:
            # The SCI is level-triggered, and active low unless overridden; KVM's I/O APIC would invert it.
            self.overrides.append(InterruptOverride(pm.sci, pm.sci, level=True))
        self.numa = list(numa)
        self.tables = list(tables)
        self.boot_arch = boot_arch
        self.pcat_compat = pcat_compat
        self.s5 = s5

    def dsdt(self) -> bytes:
        """Return the differentiated system description table: the devices."""
        from pyvmm_loader.acpi.devices.ged import ged
        from pyvmm_loader.acpi.devices.processor import processor

        inside: list[Term] = [processor(uid) for uid in range(len(self.apic_ids))]
        inside += self.devices
        if self.pci is not None:
            inside += self.pci.links()
            if self.pci.ecam is not None:
                inside.append(self.pci.ecam_device())
            inside.append(self.pci.device(*([] if self.hotplug is None else self.hotplug.inside_host())))
        if self.hotplug is not None:
            inside.append(self.hotplug.controller())
        if self.events:
            inside.append(ged(self.events))
        terms: list[Term] = [Scope("\\_SB", *inside)]
        if self.gpe:
            terms.append(Scope("\\_GPE", *[Method(f"_E{event:02X}", 0, *does) for event, does in self.gpe.items()]))
        if self.pm is not None or self.sleep is not None:
            terms.append(Name("\\_S5", Package(self.s5, self.s5, 0, 0)))
        return definition_block("DSDT", *terms)

    def madt(self) -> bytes:
        """Return the multiple APIC description table: processors and interrupt controllers."""
        return madt(self.apic_ids, self.overrides, pcat_compat=self.pcat_compat, spare=self.spare)

    def fadt(self, dsdt: int, facs: int) -> bytes:
        """Return the fixed ACPI description table for the addresses of DSDT and FACS."""
        names = {getattr(device, "name", "") for device in self.devices}
        boot_arch = self.boot_arch
        if boot_arch is None:
            boot_arch = fadt_module.LEGACY_DEVICES | fadt_module.NO_VGA
            boot_arch |= fadt_module.HAS_8042 if "KBD0" in names else 0
            boot_arch |= 0 if "RTC0" in names else fadt_module.NO_CMOS_RTC
        return fadt_module.fadt(
            dsdt,
            facs,
            pm=self.pm,
            sleep=self.sleep,
            reset=self.reset,
            boot_arch=boot_arch,
            power_button_device="PWRB" in names,
        )

    def _others(self) -> list[bytes]:
        """Return what the XSDT lists behind the FADT."""
        found = [self.madt()]
        if self.pci is not None and self.pci.ecam is not None:
            from pyvmm_loader.acpi.fixed import mcfg

            found.append(mcfg(self.pci.ecam, last_bus=self.pci.buses - 1))
        if self.numa:
            from pyvmm_loader.acpi.numa import slit, srat

            found += [srat(self.numa), slit(self.numa)]
        own = {"DSDT", "FACP", "FACS", "XSDT", "RSDT", *[data[:4].decode("ascii") for data in found]}
        for data in self.tables:
            _check_table(data, own)
        return found + self.tables

    def place(self, start: int = ACPI_START, high: int | None = None) -> list[PlacedTable]:
        """Return all tables with their addresses: RSDP and FACS in a page at `start`, the others behind, or at `high`.

        Raises PlacementError where they do not end before 0xF0000, and `high` is not given.
        """
        # the RSDP is looked for on boundaries of 16, and the FACS is aligned to 64 (ACPI 6.5, 5.2.10)
        if start % FACS_AT or (high or 0) % ALIGNMENT or start < 0:
            raise PlacementError(f"ACPI tables at {start:#x}: align to {FACS_AT}, those placed high to {ALIGNMENT}")
        facs_start = start + FACS_AT
        at = start + PAGE if high is None else high
        placed: list[PlacedTable] = []

        def add(data: bytes) -> int:
            nonlocal at
            here = at
            if len(data) > MAX_TABLE:
                raise PlacementError(f"a table of {len(data)} bytes; readers take {MAX_TABLE} at most", size=len(data))
            placed.append(PlacedTable(data[:4].decode("ascii"), here, data, ACPI))
            at = here + len(data) + ALIGNMENT - 1 & -ALIGNMENT
            return here

        dsdt = add(self.dsdt())
        listed = [add(self.fadt(dsdt, facs_start))]
        listed += [add(data) for data in self._others()]
        if len(listed) > MAX_TABLES or at - (high or start) > MAX_TOTAL:
            raise PlacementError(f"{len(listed)} tables of {at - (high or start)} bytes together; use fewer", size=at)
        root = rsdp(add(xsdt(listed)))
        if high is None and start < MPTABLE_START < at:
            raise PlacementError(
                f"the ACPI tables need {at - start:#x} bytes, {MPTABLE_START - start:#x} are free at {start:#x}; "
                "place the larger ones high in RAM",
                size=at - start,
            )
        facs = fadt_module.facs()
        return [PlacedTable("RSDP", start, root, NVS), PlacedTable("FACS", facs_start, facs, NVS), *placed]

    def size(self) -> int:
        """Return how many bytes the tables need that may lie high: all but RSDP and FACS."""
        placed = self.place(0, 0)
        return max(table.end for table in placed[2:])

    def __repr__(self) -> str:
        kind = "reduced hardware" if self.pm is None else "PC hardware"
        return f"<AcpiTables {len(self.apic_ids)} processors, {len(self.devices)} devices, {kind}>"
