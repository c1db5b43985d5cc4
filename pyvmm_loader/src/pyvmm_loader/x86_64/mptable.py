"""The MP table: processors, I/O APIC and interrupt wiring for a guest without ACPI.

Source: Intel MultiProcessor Specification 1.4, chapter 4.
"""

from __future__ import annotations

from struct import Struct

from pyvmm_loader.checksum import checksum
from pyvmm_loader.x86_64.layout import APIC_ADDR, IOAPIC_ADDR, MPTABLE_START

FLOATING = Struct("<4sIBBB5B")
HEADER = Struct("<4sHBB8s12sIHHIHBB")
PROCESSOR = Struct("<BBBBII8x")
BUS = Struct("<BB6s")
IOAPIC = Struct("<BBBBI")
INTERRUPT = Struct("<BBHBBBB")

PINS, MAX_PINS = 24, 240
INT, NMI, EXTINT = 0, 1, 3
CONFORMS = 0


def mptable(vcpus: int, start: int = MPTABLE_START, pins: int = PINS) -> bytes:
    """Return floating pointer and table for `vcpus` processors, to lie at `start` (16-byte aligned).

    >>> mptable(2)[:4]
    b'_MP_'
    """
    # The I/O APIC takes the first free id. With 255 processors 0..254 are gone and it shares 0, which only the
    # long dead serial APIC bus would mind: since the P4, I/O APIC and local APIC ids live in separate spaces.
    if not 1 <= vcpus <= 255:
        raise ValueError(f"{vcpus} processors: an MP table describes 1 to 255; describe more by ACPI's x2APIC entries")
    if start % 16 or not 0 <= start < 1 << 32:
        raise ValueError(f"an MP table at {start:#x}: a multiple of 16 below 4 GiB")
    if not 0 <= pins <= MAX_PINS:
        raise ValueError(f"an I/O APIC with {pins} inputs: 0 to {MAX_PINS}")
    ioapic_id = vcpus if vcpus < 255 else 0
    entries = []
    for number in range(vcpus):
        flags = 0x3 if number == 0 else 0x1  # enabled; the first is the bootstrap processor
        entries.append(PROCESSOR.pack(0, number, 0x14, flags, 0x600, 0x201))  # features: FPU and APIC
    entries.append(BUS.pack(1, 0, b"ISA   "))
    entries.append(IOAPIC.pack(2, ioapic_id, 0x11, 1, IOAPIC_ADDR))
    for irq in range(min(pins, 24)):
        # Pin 0 takes the timer as IRQ 0 of a kernel-side PIT and I/O APIC: KVM wires them one to one.
        entries.append(INTERRUPT.pack(3, INT, CONFORMS, 0, irq, ioapic_id, irq))
    entries.append(INTERRUPT.pack(4, EXTINT, CONFORMS, 0, 0, 0xFF, 0))
    entries.append(INTERRUPT.pack(4, NMI, CONFORMS, 0, 0, 0xFF, 1))
    body = b"".join(entries)
    size = HEADER.size + len(body)

    def header(total: int) -> bytes:
        return HEADER.pack(
            b"PCMP", size, 4, total, b"PYVMM   ", b"PC          ", 0, 0, len(entries), APIC_ADDR, 0, 0, 0
        )

    table = header(checksum(header(0) + body)) + body

    def floating(total: int) -> bytes:
        return FLOATING.pack(b"_MP_", start + FLOATING.size, 1, 4, total, 0, 0, 0, 0, 0)

    if start + FLOATING.size + size > 1 << 32:
        raise ValueError(f"an MP table of {size} bytes at {start:#x} ends above 4 GiB")
    return floating(checksum(floating(0))) + table
