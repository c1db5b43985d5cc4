"""Registers against the tables of their data sheets: the value after a reset, and which bits a guest can write."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from pyvmm_device import (
    AcpiGpe,
    AcpiPm,
    AcpiSleep,
    Cmos,
    FwCfg,
    Ioapic,
    IoManager,
    ManualClock,
    MessageGroup,
    PciBridge,
    PcieRootPort,
    PciFunction,
    PciRoot,
    Pic,
    Pl011,
    Pl031,
    Port92,
    PostPort,
    Pvpanic,
    Ram,
    ResetPort,
    Sci,
    Serial,
)
from pyvmm_device.pc import serial as uart


class Sink:
    def trigger(self) -> None:
        pass

    def write(self, data: bytes) -> None:
        pass


class NoMemory:
    def read_slice(self, buffer: bytearray, addr: int) -> None:
        raise LookupError(addr)

    def write_slice(self, buffer: bytes, addr: int) -> None:
        raise LookupError(addr)


class ConfigSpaceOf:
    """A function's configuration space as a device."""

    def __init__(self, function: PciFunction) -> None:
        PciRoot(IoManager()).add(function, 1)
        self.read, self.write = function.config_read, function.config_write


class Row(NamedTuple):
    """One register; `before` is written first, to reach it."""

    name: str
    offset: int
    length: int
    reset: int
    writable: int
    before: tuple[tuple[int, int], ...] = ()
    whole: bool = False
    """Whether it is written in one access, and not a byte at a time."""


def function() -> ConfigSpaceOf:
    made = PciFunction(0x1AF4, 0x1041, 0x020000, revision=1, subsystem_vendor=0x1AF4, subsystem_id=1, interrupt_pin=1)
    made.add_bar(0, 0x1000, Ram(0x1000))
    made.add_bar(1, 0x20, Ram(0x20), io=True)
    made.add_bar(2, 0x100000, Ram(16), wide=True, prefetchable=True)
    made.add_msi(MessageGroup(8, print))
    made.add_msix(MessageGroup(5, print), 4)
    return ConfigSpaceOf(made)


DLAB = ((uart.LCR, 0x83),)
PC16550D = [
    Row("RBR is empty", 0, 1, 0, 0),
    Row("IER", 1, 1, 0, 0x0F),
    Row("LCR", 3, 1, 0x03, 0xFF),
    Row("MCR", 4, 1, 0x08, 0x1F),
    Row("LSR", 5, 1, 0x60, 0),
    Row("MSR: connected", 6, 1, 0xB0, 0),
    Row("SCR", 7, 1, 0, 0xFF),
    Row("DLL: 9600 baud", 0, 1, 12, 0xFF, DLAB),
    Row("DLM", 1, 1, 0, 0xFF, DLAB),
]
PCI_TYPE_0 = [
    Row("vendor and device", 0x00, 4, 0x10411AF4, 0),
    Row("command", 0x04, 2, 0, 0x0547),
    Row("status: capabilities", 0x06, 2, 0x0010, 0),
    Row("revision and class", 0x08, 4, 0x02000001, 0),
    Row("cache line size", 0x0C, 1, 0, 0xFF),
    Row("header type", 0x0E, 1, 0, 0),
    Row("BIST", 0x0F, 1, 0, 0),
    Row("BAR 0: 4 KiB", 0x10, 4, 0, 0xFFFFF000),
    Row("BAR 1: 32 ports", 0x14, 4, 1, 0xFFFFFFE0),
    Row("BAR 2: 1 MiB, prefetchable, 64 bits", 0x18, 8, 0xC, 0xFFFFFFFFFFF00000),
    Row("BAR 4: MSI-X, a page for each part", 0x20, 4, 0, 0xFFFFE000),
    Row("BAR 5: none", 0x24, 4, 0, 0),
    Row("CardBus CIS", 0x28, 4, 0, 0),
    Row("subsystem", 0x2C, 4, 0x00011AF4, 0),
    Row("ROM: none", 0x30, 4, 0, 0),
    Row("capabilities", 0x34, 4, 0x40, 0),
    Row("interrupt line", 0x3C, 1, 0, 0xFF),
    Row("interrupt pin", 0x3D, 3, 1, 0),
    Row("MSI: id, next, 8 vectors, 64 bits, masks", 0x40, 4, 0x01865805, 0x00710000),
    Row("MSI: address", 0x44, 8, 0, 0xFFFFFFFFFFFFFFFC),
    Row("MSI: data", 0x4C, 4, 0, 0x0000FFFF),
    Row("MSI: masks", 0x50, 4, 0, 0xFF),
    Row("MSI: pending", 0x54, 4, 0, 0),
    Row("MSI-X: id, next, 5 vectors", 0x58, 4, 0x00040011, 0xC0000000),
    Row("MSI-X: table in BAR 4", 0x5C, 4, 4, 0),
    Row("MSI-X: pending bits in BAR 4", 0x60, 4, 0x1004, 0),
]
PCI_TYPE_1 = [
    Row("class", 0x08, 4, 0x06040000, 0),
    Row("header type", 0x0E, 1, 1, 0),
    Row("bus numbers", 0x18, 4, 0, 0x00FFFFFF),
    Row("I/O window", 0x1C, 2, 0, 0xF0F0),
    Row("memory window", 0x20, 4, 0, 0xFFF0FFF0),
    Row("prefetchable window of 64 bits", 0x24, 4, 0x00010001, 0xFFF0FFF0),
    Row("its upper halves", 0x28, 8, 0, 0xFFFFFFFFFFFFFFFF),
    Row("I/O window of 16 bits", 0x30, 4, 0, 0),
    Row("bridge control", 0x3E, 2, 0, 0x0FFF),
]
ROOT_PORT = [
    Row("capability: version 2, root port with a slot", 0x40, 4, 0x01420010, 0),
    Row("link: 2.5 GT/s, one lane, says when it is up", 0x4C, 4, 0x07100011, 0),
    Row("slot 7", 0x54, 4, 7 << 19 | 0x4007B, 0),
    Row("slot control", 0x58, 2, 0x03C0, 0x1FFF),
    Row("slot status: empty", 0x5A, 2, 0, 0),
]


def cmos(name: str, index: int, reset: int, writable: int, *before: tuple[int, int]) -> Row:
    """A byte behind the index and data ports."""
    through = [access for at, value in before for access in ((0, at), (1, value))]
    return Row(name, 1, 1, reset, writable, (*through, (0, index)))


SET = (0x0B, 0x82)
MC146818 = [
    cmos("Address map: seconds, stopped by SET", 0, 0x59, 0xFF, SET),
    cmos("Address map: seconds alarm", 1, 0, 0xFF),
    cmos("Address map: minutes, stopped by SET", 2, 0x59, 0xFF, SET),
    cmos("Address map: minutes alarm", 3, 0, 0xFF),
    cmos("Address map: hours, stopped by SET", 4, 0x23, 0xFF, SET),
    cmos("Address map: hours alarm", 5, 0, 0xFF),
    cmos("Address map: day of week (Thursday), stopped by SET", 6, 5, 0xFF, SET),
    cmos("Address map: date, stopped by SET", 7, 0x29, 0xFF, SET),
    cmos("Address map: month, stopped by SET", 8, 2, 0xFF, SET),
    cmos("Address map: year, stopped by SET", 9, 0x24, 0xFF, SET),
    cmos("Register A: 32.768 kHz, 1024 Hz, UIP is read only", 10, 0x26, 0x7F),
    cmos("Register B: 24 hours, BCD", 11, 0x02, 0xFF),
    cmos("Register C: read only", 12, 0, 0),
    cmos("Register D: valid RAM and time, read only", 13, 0x80, 0),
    cmos("Address map: first byte of user RAM", 14, 0, 0xFF),
    cmos("PC AT: century, stopped by SET", 0x32, 0x20, 0xFF, SET),
    cmos("PC AT: last byte", 127, 0, 0xFF),
]


def ioapic(name: str, index: int, reset: int, writable: int) -> Row:
    """32 bits behind the select register and the window."""
    return Row(name, 0x10, 4, reset, writable, ((0, index),), whole=True)


I82093AA = [
    Row("3.1.1 IOREGSEL", 0x00, 1, 0, 0xFF),
    ioapic("3.2.1 IOAPICID", 0x00, 0, 0x0F000000),
    ioapic("3.2.2 IOAPICVER: 24 entries", 0x01, 0x00170011, 0),
    ioapic("3.2.3 IOAPICARB: read only", 0x02, 0, 0),
    ioapic("3.2.4 IOREDTBL 0: masked; status and remote IRR are read only", 0x10, 0x00010000, 0x0001AFFF),
    ioapic("3.2.4 IOREDTBL 0: destination", 0x11, 0, 0xFF000000),
    ioapic("3.2.4 IOREDTBL 23", 0x3E, 0x00010000, 0x0001AFFF),
    ioapic("beyond the table", 0x40, 0, 0),
]
I8259A = [
    Row("OCW1: the first chip's mask", 1, 1, 0, 0xFF),
    Row("OCW1: the second chip's mask", 3, 1, 0, 0xFF),
    Row("the first chip's IRR", 0, 1, 0, 0),
    Row("the second chip's IRR", 2, 1, 0, 0),
    Row("ELCR1: not for IRQ 0 to 2", 4, 1, 0, 0xF8),
    Row("ELCR2: not for IRQ 8 and 13", 5, 1, 0, 0xDE),
]
PORT_92 = [Row("System control port A", 0, 1, 0x02, 0xFF)]
FW_CFG = [
    Row("Selector Register: write only", 0, 1, 0, 0),
    Row("DMA: signature without memory", 4, 8, 0, 0),
]
FW_CFG_DMA = [Row("DMA: signature", 4, 8, int.from_bytes(b"QEMU CFG", "little"), 0)]
DDI_0183 = [
    Row("3.3.3 UARTFR: empty, and connected", 0x18, 4, 0x97, 0),
    Row("3.3.4 UARTILPR", 0x20, 4, 0, 0xFF),
    Row("3.3.5 UARTIBRD", 0x24, 4, 0, 0xFFFF),
    Row("3.3.6 UARTFBRD", 0x28, 4, 0, 0x3F),
    Row("3.3.7 UARTLCR_H", 0x2C, 4, 0, 0xFF),
    Row("3.3.8 UARTCR: transmitter and receiver", 0x30, 4, 0x0300, 0xFF87),
    Row("3.3.9 UARTIFLS: half", 0x34, 4, 0x12, 0x3F),
    Row("3.3.10 UARTIMSC", 0x38, 4, 0, 0x7FF),
    Row("3.3.11 UARTRIS", 0x3C, 4, 0, 0),
    Row("3.3.12 UARTMIS", 0x40, 4, 0, 0),
    Row("3.3.13 UARTICR: write only", 0x44, 4, 0, 0),
    Row("3.3.14 UARTDMACR", 0x48, 4, 0, 0x7),
    Row("3.3.15 UARTPeriphID0 and 1", 0xFE0, 8, 0x00000010_00000011, 0),
    Row("3.3.15 UARTPeriphID2 (r1p5) and 3", 0xFE8, 8, 0x00000000_00000034, 0),
    Row("3.3.16 UARTPCellID0 and 1", 0xFF0, 8, 0x000000F0_0000000D, 0),
    Row("3.3.16 UARTPCellID2 and 3", 0xFF8, 8, 0x000000B1_00000005, 0),
]
DDI_0224 = [
    Row("3.3.1 RTCDR", 0x00, 4, 0x65E11B7F, 0),
    Row("3.3.2 RTCMR", 0x04, 4, 0, 0xFFFFFFFF),
    Row("3.3.3 RTCLR", 0x08, 4, 0x65E11B7F, 0xFFFFFFFF),
    Row("3.3.4 RTCCR: enabled, and stays so", 0x0C, 4, 1, 0),
    Row("3.3.5 RTCIMSC", 0x10, 4, 0, 1),
    Row("3.3.6 RTCRIS", 0x14, 4, 0, 0),
    Row("3.3.7 RTCMIS", 0x18, 4, 0, 0),
    Row("3.3.8 RTCICR: write only", 0x1C, 4, 0, 0),
    Row("3.3.9 RTCPeriphID0 and 1", 0xFE0, 8, 0x00000010_00000031, 0),
    Row("3.3.9 RTCPeriphID2 and 3", 0xFE8, 8, 0x00000000_00000004, 0),
    Row("3.3.10 RTCPCellID0 and 1", 0xFF0, 8, 0x000000F0_0000000D, 0),
    Row("3.3.10 RTCPCellID2 and 3", 0xFF8, 8, 0x000000B1_00000005, 0),
]
PVPANIC = [Row("the events it knows", 0, 1, 0x07, 0)]
POST = [Row("the last code", 0, 1, 0, 0xFF)]
ACPI_FIXED = [
    Row("4.8.3.1.1 PM1 status: cleared by ones", 0, 2, 0, 0),
    Row("4.8.3.1.2 PM1 enable", 2, 2, 0, 0x0721),
    Row("4.8.3.2.1 PM1 control: SCI_EN is the firmware's", 4, 2, 1, 0x1C02),
    Row("4.8.3.3 PM timer: read only", 8, 4, 0, 0),
]
ACPI_GPE = [
    Row("4.8.4.1.1 status: cleared by ones", 0, 2, 0, 0),
    Row("4.8.4.1.2 enable", 2, 2, 0, 0xFFFF),
]
ACPI_REDUCED = [
    Row("4.8.3.7 sleep control: SLP_TYP", 0, 1, 0, 0x1C),
    Row("4.8.3.7 sleep status: cleared by ones", 1, 1, 0, 0),
]
RST_CNT = [Row("RST_CNT: RST_CPU reads as zero", 0, 1, 0, 0x0A)]
ONE_BIT_AT_A_TIME = {
    "MCR": "in loopback the modem lines are the chip's own",
    "Register B: 24 hours, BCD": "SET clears UIE",
}
SHEETS: dict[str, tuple[Callable[[], Any], list[Row]]] = {
    "PC16550D": (lambda: Serial(Sink(), Sink()), PC16550D),
    "MC146818": (lambda: Cmos(clock=ManualClock(), time=1709251199), MC146818),
    "82093AA": (lambda: Ioapic(print, version=0x11), I82093AA),
    "8259A": (lambda: Pic(print), I8259A),
    "port 0x92": (lambda: Port92(lambda: None), PORT_92),
    "ACPI fixed hardware": (lambda: AcpiPm(Sci(Sink()), ManualClock()), ACPI_FIXED),
    "ACPI general purpose events": (lambda: AcpiGpe(Sci(Sink())), ACPI_GPE),
    "ACPI reduced hardware": (lambda: AcpiSleep(lambda kind: None), ACPI_REDUCED),
    "ICH9 13.7.5": (lambda: ResetPort(lambda: None), RST_CNT),
    "fw_cfg specification": (FwCfg, FW_CFG),
    "fw_cfg specification, DMA": (lambda: FwCfg(NoMemory()), FW_CFG_DMA),
    "PL011": (lambda: Pl011(Sink(), Sink()), DDI_0183),
    "PL031": (lambda: Pl031(Sink(), ManualClock(), time=1709251455), DDI_0224),
    "pvpanic": (lambda: Pvpanic(print), PVPANIC),
    "port 0x80": (PostPort, POST),
    "PCI type 0": (function, PCI_TYPE_0),
    "PCI type 1": (lambda: ConfigSpaceOf(PciBridge(IoManager())), PCI_TYPE_1),
    "PCI Express root port": (lambda: ConfigSpaceOf(PcieRootPort(IoManager(), 7)), ROOT_PORT),
}
ROWS = [(make, row) for make, rows in SHEETS.values() for row in rows]
NAMES = [f"{sheet}: {row.name}" for sheet, (_, rows) in SHEETS.items() for row in rows]


@pytest.mark.parametrize(("make", "row"), ROWS, ids=NAMES)
def test_register(make: Callable[[], Any], row: Row) -> None:
    device = make()

    def get() -> int:
        value = 0
        for at in range(row.length):
            byte = memoryview(bytearray(1))
            device.read(row.offset + at, byte)
            value |= byte[0] << 8 * at
        return value

    def put(value: int) -> None:
        if row.whole:
            device.write(row.offset, memoryview(value.to_bytes(row.length, "little")))
            return
        for at in range(row.length):
            device.write(row.offset + at, memoryview(bytes([value >> 8 * at & 0xFF])))

    for offset, value in row.before:
        device.write(offset, memoryview(bytes([value])))
    assert get() == row.reset
    every = (1 << 8 * row.length) - 1
    if row.name in ONE_BIT_AT_A_TIME:
        for bit in range(8):
            put(1 << bit)
            assert get() == 1 << bit & row.writable
        return
    for value in (0, every, 0x5555555555555555 & every, 0xAAAAAAAAAAAAAAAA & every):
        put(value)
        assert get() == row.reset & ~row.writable | value & row.writable
