"""MCFG, HPET and SPCR: where PCI configuration space, the event timer and the serial console are.

Sources: PCI Firmware Specification 3.3, 4.1.2; IA-PC HPET Specification 1.0a, 3.2.4; Microsoft's Serial Port Console
Redirection Table, revision 2.
"""

from __future__ import annotations

from pyvmm_loader.acpi.table import MEMORY, PORT, AcpiError, GenericAddress, table
from pyvmm_loader.fields import pack

HPET_ADDR = 0xFED00000
MAX_COMPARATORS = 32
UART_16550 = 0
BAUD_115200 = 7
DUAL_8259, IO_APIC = 1, 2
TERMINAL_VT_UTF8 = 2


def mcfg(base: int, segment: int = 0, first_bus: int = 0, last_bus: int = 255) -> bytes:
    """Return where the memory-mapped configuration space (ECAM) of a PCI segment is; 1 MiB for each bus."""
    body = bytes(8) + pack("<QHBBI", base, segment, first_bus, last_bus, 0)
    if first_bus > last_bus or base % (1 << 20) or base + (last_bus + 1 << 20) > 1 << 64:
        # PCI Firmware Specification 3.3, 4.1.2: the base is that of bus 0, whichever is the first
        raise AcpiError(
            f"ECAM at {base:#x} of buses {first_bus} to {last_bus}: 1 MiB for each in 64 bits, from a multiple of it"
        )
    return table("MCFG", 1, body)


def hpet(base: int = HPET_ADDR, *, comparators: int = 3, vendor: int = 0x8086) -> bytes:
    """Return where the high precision event timer is; its id is what its first register says."""
    if comparators > MAX_COMPARATORS:
        raise AcpiError(f"a timer with {comparators} comparators; it has 1 to {MAX_COMPARATORS}")
    identity = vendor << 16 | 1 << 15 | 1 << 13 | comparators - 1 << 8 | 1  # legacy routing, 64-bit counter
    body = pack("<I12sBHB", identity, bytes(GenericAddress(base, MEMORY, 64, 0)), 0, 100, 0)
    return table("HPET", 1, body)


def spcr(register: GenericAddress | None = None, irq: int = 4) -> bytes:
    """Return which 16550 is the console, COM1 unless another is given."""
    uart = register or GenericAddress(0x3F8, PORT, 8)
    legacy = irq < 16
    body = pack("<B3x12s", UART_16550, bytes(uart))
    body += pack(
        "<BBIBBBBBB",
        (DUAL_8259 if legacy else 0) | IO_APIC,
        irq if legacy else 0,
        irq,
        BAUD_115200,
        0,
        1,
        0,
        TERMINAL_VT_UTF8,
        0,
    )
    body += pack("<HHBBBIBI", 0xFFFF, 0xFFFF, 0, 0, 0, 0, 0, 0)
    return table("SPCR", 2, body)
