"""MADT: processors and interrupt controllers.

Source: ACPI 6.5, 5.2.12.
"""

from __future__ import annotations

from pyvmm_loader.acpi.table import AcpiError, table
from pyvmm_loader.fields import pack
from pyvmm_loader.x86_64.layout import APIC_ADDR, IOAPIC_ADDR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PCAT_COMPAT = 1
ENABLED, ONLINE_CAPABLE = 1, 2
ALL_PROCESSORS, ALL_X2APIC = 0xFF, 0xFFFFFFFF
MAX_XAPIC_ID = 254
ISA_INTERRUPTS = 16


class InterruptOverride:
    """An ISA interrupt that arrives at another input, or with another trigger or polarity, than ISA's.

    Without `level` and `low` it conforms to the bus: edge-triggered, active high.
    """

    __slots__ = ("gsi", "level", "low", "source")

    def __init__(self, source: int, gsi: int, *, level: bool = False, low: bool = False) -> None:
        self.source = source
        self.gsi = gsi
        self.level = level
        self.low = low
        if source >= ISA_INTERRUPTS:
            bytes(self)
            raise AcpiError(f"ISA interrupt {source}: there are 0 to {ISA_INTERRUPTS - 1}", source=source)
        bytes(self)  # what does not fit is refused here, where the caller is known

    def __bytes__(self) -> bytes:
        polarity = 3 if self.low else 1
        trigger = 3 if self.level else 1
        return pack(
            "<BBBBIH", 2, 10, 0, self.source, self.gsi, (polarity | trigger << 2) if self.level or self.low else 0
        )

    def __repr__(self) -> str:
        return f"<InterruptOverride IRQ {self.source} at GSI {self.gsi}>"


def processor(uid: int, apic_id: int, flags: int = ENABLED) -> bytes:
    """Return the entry of one processor: a local APIC, or beyond 8 bits of id an x2APIC."""
    if apic_id <= MAX_XAPIC_ID and uid <= 255:
        return pack("<BBBBI", 0, 8, uid, apic_id, flags)
    return pack("<BBHIII", 9, 16, 0, apic_id, flags, uid)


def madt(
    apic_ids: Iterable[int],
    overrides: Iterable[InterruptOverride] = (),
    *,
    ioapic_id: int = 0,
    ioapic: int = IOAPIC_ADDR,
    pcat_compat: bool = True,
    spare: int = 0,
) -> bytes:
    """Return the table of a PC: processors (the last `spare` can be brought online later), one I/O APIC, NMI on LINT1.

    `pcat_compat` says that there are two 8259 as well, which the system must mask.
    """
    ids, listed = list(apic_ids), list(overrides)
    if len(set(ids)) < len(ids) or ALL_X2APIC in ids:
        raise AcpiError("APIC ids are unique, and none is that of all processors (0xffffffff)", ids=ids)
    if len({override.source for override in listed}) < len(listed):
        raise AcpiError("an ISA interrupt is overridden twice; Linux takes the last", overrides=listed)
    entries = [
        processor(uid, apic_id, ENABLED if uid < len(ids) - spare else ONLINE_CAPABLE)
        for uid, apic_id in enumerate(ids)
    ]
    entries.append(pack("<BBBBII", 1, 12, ioapic_id, 0, ioapic, 0))
    entries.extend([bytes(override) for override in listed])
    entries.append(pack("<BBBHB", 4, 6, ALL_PROCESSORS, 0, 1))
    if any(apic_id > MAX_XAPIC_ID for apic_id in ids):
        entries.append(pack("<BBHIBxxx", 10, 12, 0, ALL_X2APIC, 1))
    head = pack("<II", APIC_ADDR, PCAT_COMPAT if pcat_compat else 0)
    return table("APIC", 5, head + b"".join(entries))
