"""ACPI tables against iasl, against their specification, and against a guest's way to find them."""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from struct import unpack_from
from typing import TYPE_CHECKING

import pytest
from tests.loader.images import XEN_NOTE, FlatMemory, bzimage, elf
from tests.loader.tools import need, run

from pyvmm_loader import BootPlan, FieldRange, LoaderError, PlacementError
from pyvmm_loader.acpi import (
    AcpiTables,
    GenericAddress,
    InterruptOverride,
    NumaNode,
    PmBlock,
    Reset,
    SleepRegisters,
    definition_block,
    hpet,
    read_tables,
    spcr,
)
from pyvmm_loader.acpi.aml import Name, Package
from pyvmm_loader.acpi.devices.ged import ged
from pyvmm_loader.acpi.devices.isa import keyboard, mouse, rtc, serial_port
from pyvmm_loader.acpi.devices.pci import PciHost
from pyvmm_loader.acpi.devices.pci_hotplug import PORT, SIZE, PciHotplugSlots
from pyvmm_loader.acpi.devices.power_button import power_button, pressed
from pyvmm_loader.acpi.devices.processor import processor
from pyvmm_loader.acpi.devices.qemu import fw_cfg, pvpanic
from pyvmm_loader.acpi.devices.virtio_mmio import virtio_mmio
from pyvmm_loader.acpi.fixed import mcfg
from pyvmm_loader.acpi.reader import AcpiError
from pyvmm_loader.acpi.rsdp import rsdp, xsdt
from pyvmm_loader.acpi.table import HEADER_SIZE
from pyvmm_loader.checksum import checksum
from pyvmm_loader.fields import pack
from pyvmm_loader.x86_64 import layout
from pyvmm_loader.x86_64.e820 import ACPI, NVS, RAM

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

RAM_SIZE = 4 << 20
ISA = [serial_port(1), serial_port(2), rtc(), keyboard(), mouse()]
SLEEP = SleepRegisters(GenericAddress(0x600), GenericAddress(0x601))


def pc() -> AcpiTables:
    """A PC with everything in it."""
    slots = PciHotplugSlots()
    host = PciHost(
        ecam=0xE0000000, buses=16, mmio32=(0xC0000000, 0x10000000), mmio64=(1 << 36, 1 << 34), io=(0, 0x10000),
        irqs=range(16, 20),
    )  # fmt: skip
    return AcpiTables(
        3,
        spare=1,
        devices=[*ISA, virtio_mmio(0, 0xD0000000, 5), virtio_mmio(255, 1 << 33, 40, level=True), pvpanic(), fw_cfg()],
        pci=host,
        hotplug=slots,
        pm=PmBlock(gpe0=0x620),
        reset=Reset(GenericAddress(0xCF9), 6),
        gpe={1: [slots.event()]},
        overrides=[InterruptOverride(0, 2)],
        numa=[NumaNode([0, 1], [(0, 1 << 30)]), NumaNode([2], [(1 << 32, 1 << 30)], [21, 10])],
        tables=[hpet(), spcr(), definition_block("SSDT", Name("SSDN", Package(1, 2)))],
    )


def reduced() -> AcpiTables:
    """A machine with reduced hardware, a generic event device and an x2APIC id."""
    return AcpiTables(
        apic_ids=[0, 300],
        devices=[*ISA[:1], power_button(), fw_cfg(0xFE000000, 24, mmio=True)],
        sleep=SLEEP,
        reset=Reset(GenericAddress(0x64), 0xFE),
        events={11: [pressed()], 40: [pressed()]},
        pci=PciHost(mmio32=(0xC0000000, 1 << 20), io=(0x1000, 0x1000)),
        numa=[NumaNode([0, 300], [(0, 1 << 30)])],
    )


def tables_of(machine: AcpiTables) -> dict[str, bytes]:
    return {table.name: table.data for table in machine.place()}


def read_from(machine: AcpiTables, start: int = layout.ACPI_START) -> bytearray:
    memory = bytearray(1 << 20)
    for table in machine.place(start):
        memory[table.start : table.end] = table.data
    return memory


@pytest.mark.parametrize("make", [pc, reduced])
def test_iasl_disassembles_and_recompiles_to_the_same_bytes(
    make: Callable[[], AcpiTables], tmp_path: pathlib.Path
) -> None:
    iasl = need("iasl")
    for name, data in tables_of(make()).items():
        if name == "RSDP":
            continue  # no table: read by test_guest_finds_everything
        path = tmp_path / f"{name}.aml"
        path.write_bytes(data)
        said = run(iasl, "-d", path)
        assert "arning" not in said, said
        assert "nvalid" not in said, said
        said = run(iasl, "-oa", "-p", tmp_path / f"{name}-again", tmp_path / f"{name}.dsl")
        assert "0 Errors, 0 Warnings, 0 Remarks" in said, said
        again = (tmp_path / f"{name}-again.aml").read_bytes()
        # the compiler writes its own name and version into the header
        body = 0 if name == "FACS" else HEADER_SIZE
        assert again[body:].hex() == data[body:].hex(), name


@pytest.mark.parametrize("make", [pc, reduced])
def test_guest_finds_everything(make: Callable[[], AcpiTables]) -> None:
    machine = make()
    memory = read_from(machine)
    found = {table.signature: table for table in read_tables(lambda at, size: bytes(memory[at : at + size]), 0xE0000)}
    expected = set(tables_of(machine)) - {"RSDP", "FACS", "XSDT"}
    assert set(found) == expected
    for table in machine.place():
        assert table.start % 16 == 0
        assert table.name == "FACS" or not checksum(table.data)
    assert "DSDT at" in repr(found["DSDT"])


def test_fadt_of_a_pc() -> None:
    placed = {table.name: table for table in pc().place()}
    fadt = placed["FACP"].data
    facs, dsdt = unpack_from("<II", fadt, 36)
    assert (facs, dsdt) == (placed["FACS"].start, placed["DSDT"].start)
    assert facs % 64 == 0
    assert unpack_from("<Q", fadt, 140) == (dsdt,)
    assert unpack_from("<Q", fadt, 132) == (0,), "X_FIRMWARE_CTRL is zero where FIRMWARE_CTRL is not"
    assert unpack_from("<H", fadt, 46) == (9,)
    assert unpack_from("<I", fadt, 56) == (0x600,)
    assert unpack_from("<I", fadt, 64) == (0x604,)
    assert unpack_from("<I", fadt, 76) == (0x608,)
    assert unpack_from("<I", fadt, 80) == (0x620,)
    assert list(fadt[88:93]) == [4, 2, 0, 4, 4]
    (flags,) = unpack_from("<I", fadt, 112)
    assert not flags & 1 << 20, "hardware is not reduced"
    assert flags & 1 << 10, "there is a reset register"
    assert flags & 1 << 8, "the timer has 32 bits"
    assert not flags & 1 << 4, "the power button is the fixed one"
    assert fadt[116:129] == bytes(GenericAddress(0xCF9)) + b"\6"
    assert unpack_from("<H", fadt, 109) == (1 | 2 | 4,), "legacy devices, i8042, no VGA, and a CMOS clock"


def test_fadt_of_reduced_hardware() -> None:
    fadt = tables_of(reduced())["FACP"]
    (flags,) = unpack_from("<I", fadt, 112)
    assert flags & 1 << 20
    assert flags & 1 << 4
    assert not any(fadt[46:109]), "no fixed hardware"
    assert fadt[244:256] == bytes(SLEEP.control)
    assert fadt[256:268] == bytes(SLEEP.status)
    assert unpack_from("<H", fadt, 109) == (1 | 4 | 32,)
    assert repr(SLEEP.control) == "<GenericAddress port 0x600, 8 bits>"


def test_madt() -> None:
    madt = tables_of(pc())["APIC"]
    assert unpack_from("<II", madt, 36) == (layout.APIC_ADDR, 1)
    entries, at = [], 44
    while at < len(madt):
        entries.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]
    processors = [entry for entry in entries if entry[0] == 0]
    assert [(entry[2], entry[3], entry[4]) for entry in processors] == [(0, 0, 1), (1, 1, 1), (2, 2, 2)]
    overrides = [unpack_from("<BIH", entry, 3) for entry in entries if entry[0] == 2]
    assert overrides == [(0, 2, 0), (9, 9, 0xD)], "the SCI is level-triggered and active high"
    assert [entry[0] for entry in entries if entry[0] not in (0, 2)] == [1, 4]
    x2apic = tables_of(reduced())["APIC"]
    assert bytes([9, 16, 0, 0]) + (300).to_bytes(4, "little") in x2apic
    assert bytes([10, 12, 0, 0]) + b"\xff" * 4 in x2apic


def test_numa() -> None:
    tables = tables_of(pc())
    assert tables["SLIT"][44:] == bytes([10, 20, 21, 10])
    assert len(tables["SRAT"]) == 48 + 3 * 16 + 2 * 40
    assert len(tables_of(reduced())["SRAT"]) == 48 + 16 + 24 + 40
    for distances in ([10], [9, 10], [10, 10], [20, 11], [300, 10]):
        machine = AcpiTables(1, numa=[NumaNode(), NumaNode(distances=distances)])
        with pytest.raises(ValueError, match="node 1"):
            machine.place()
    assert "processors" in repr(NumaNode([1], [(0, 5)]))


def test_too_large_for_the_low_area_goes_high() -> None:
    big = AcpiTables(2, devices=[virtio_mmio(n, 0xD0000000 + 0x1000 * n, 5) for n in range(256)], tables=[
        definition_block("SSDT", *[Name(f"N{n:03X}", b"x" * 200) for n in range(256)])
    ])  # fmt: skip
    with pytest.raises(PlacementError, match="high"):
        big.place()
    with BootPlan(elf(notes=(XEN_NOTE,)), RAM_SIZE, initrd=b"i" * 5000, acpi=big) as plan:
        memory = FlatMemory(RAM_SIZE)
        plan.apply(memory)
        text = str(plan)
    assert "DSDT" in text
    reserved = [entry for entry in plan.e820 if entry.type == ACPI]
    assert len(reserved) == 1
    assert reserved[0].addr + reserved[0].size == RAM_SIZE
    initrd = next(p for p in plan.placements if p.name == "initrd")
    assert initrd.end <= reserved[0].addr
    names = [t.signature for t in read_tables(lambda at, size: bytes(memory.data[at : at + size]), plan.rsdp)]
    assert names == ["FACP", "DSDT", "APIC", "SSDT"]
    with pytest.raises(LoaderError, match="room"):
        BootPlan(elf(notes=(XEN_NOTE,)), [(0, 1 << 20)], acpi=big)


@pytest.mark.parametrize("entry", ["pvh", "linux64", "linux32"])
def test_every_protocol_leads_to_the_tables(entry: str) -> None:
    kernel = bzimage() if entry == "linux32" else elf(notes=(XEN_NOTE,))
    with BootPlan(kernel, RAM_SIZE, entry=entry, acpi=pc()) as plan:
        memory = FlatMemory(RAM_SIZE)
        plan.apply(memory)
        assert "MP table" not in str(plan)
    at = 0x6020 if entry == "pvh" else layout.ZERO_PAGE_START + 0x70
    (rsdp,) = unpack_from("<Q", memory.data, at)
    assert rsdp == layout.ACPI_START
    assert len(read_tables(lambda at, size: bytes(memory.data[at : at + size]), rsdp)) == 9
    kinds = {entry.type: entry.addr for entry in plan.e820}
    assert (kinds[NVS], kinds[ACPI]) == (layout.ACPI_START, layout.ACPI_START + 0x1000)
    ram = [(e.addr, e.addr + e.size) for e in plan.e820 if e.type == RAM]
    assert not any(start < 0xF0000 and end > 0xE0000 for start, end in ram)


def test_pci_interrupts_are_swizzled_as_the_bus_swizzles_them() -> None:
    from pyvmm_device import FanOut, IoManager
    from pyvmm_device.pci.bus import PciBus

    host = PciHost(irqs=[16, 17, 18, 19])
    bus = PciBus(IoManager(), [FanOut()] * 4)  # lines that go nowhere, to be counted
    for slot in range(32):
        for pin in range(4):
            assert host.gsi(slot, pin) == host.irqs[bus.line_of(slot, pin + 1)]
    assert (PORT, SIZE) == (0xAE00, 20)


def test_pci_hotplug_registers_are_the_device_s() -> None:
    from pyvmm_device.pci import hotplug

    assert (PORT, SIZE) == (hotplug.PORT, hotplug.SIZE)
    registers = {register.name: register.offset for register in hotplug.PciHotplug.REGISTERS}
    aml = b"".join([bytes(term) for term in PciHotplugSlots([1], 0xAE00).inside_host()])
    for region, name in ((b"PCST", "up"), (b"SEJ_", "eject"), (b"BNMR", "select")):
        at = aml.index(b"\x5b\x80" + region) + 7
        assert unpack_from("<BH", aml, at) == (0x0B, 0xAE00 + registers[name])
    assert registers["down"] == registers["up"] + 4, "PCIU and PCID are one region"


def test_what_makes_no_machine() -> None:
    cases: list[Callable[[], object]] = [
        lambda: AcpiTables(0),
        lambda: AcpiTables(1, spare=1),
        lambda: AcpiTables(1, hotplug=PciHotplugSlots()),
        lambda: AcpiTables(1, gpe={1: []}),
        lambda: AcpiTables(1, pm=PmBlock(), gpe={1: []}),
        lambda: PciHotplugSlots([0]),
        lambda: PciHotplugSlots([]),
        lambda: PciHost(buses=0),
        lambda: PciHost().ecam_device(),
        lambda: serial_port(5),
        lambda: virtio_mmio(256, 0, 5),
        lambda: processor(0x1000),
    ]
    for case in cases:
        with pytest.raises(ValueError, match=r"\w"):
            case()


def test_reprs() -> None:
    assert repr(pc()) == "<AcpiTables 3 processors, 9 devices, PC hardware>"
    assert repr(reduced()) == "<AcpiTables 2 processors, 3 devices, reduced hardware>"
    assert "16 buses" in repr(PciHost(ecam=1, buses=16))
    assert "31 at" in repr(PciHotplugSlots())
    assert "IRQ 0 at GSI 2" in repr(InterruptOverride(0, 2))
    assert "SCI 9" in repr(PmBlock())
    assert ged({5: [pressed()]}).name == "GED"
    assert "RSDP" in repr(pc().place()[0])
    assert "memory" in repr(GenericAddress(1, 0))
    assert "space 2" in repr(GenericAddress(1, 2))


def test_rsdt_of_old_firmware() -> None:
    from struct import pack

    from pyvmm_loader.acpi.table import table

    memory = bytearray(0x1000)
    dsdt, fadt, rsdt = table("DSDT", 1, b""), table("FACP", 1, bytes(4) + pack("<I", 0x100) + bytes(80)), b""
    memory[0x100 : 0x100 + len(dsdt)] = dsdt
    memory[0x200 : 0x200 + len(fadt)] = fadt
    rsdt = table("RSDT", 1, pack("<I", 0x200))
    memory[0x300 : 0x300 + len(rsdt)] = rsdt
    root = bytearray(b"RSD PTR \0PYVMM \0" + pack("<I", 0x300))
    root[8] = checksum(root)
    memory[0x400 : 0x400 + len(root)] = root
    found = read_tables(lambda at, size: bytes(memory[at : at + size]), 0x400)
    assert [t.signature for t in found] == ["FACP", "DSDT"]


def test_mutated_tables_are_typed_errors() -> None:
    chance = random.Random(6)
    good = read_from(pc())
    touched = [(t.start, t.end) for t in pc().place()]
    refused = 0
    for _ in range(600):
        memory = bytearray(good)
        start, end = chance.choice(touched)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(start, min(end, start + chance.choice((12, 40, 4000))))
            memory[at] = chance.randrange(256)
        if chance.random() < 0.7 and start != 0xE0000:  # make the checksum good, so that the contents are read
            memory[start + 9] = 0
            memory[start + 9] = checksum(memory[start:end])
        reads: list[int] = []

        def read(at: int, size: int, memory: bytearray = memory, reads: list[int] = reads) -> bytes:
            reads.append(size)
            return bytes(memory[at : at + size])

        try:
            read_tables(read, 0xE0000)
        except AcpiError:
            refused += 1
        assert len(reads) < 600
        assert max(reads) <= 1 << 20
    assert refused > 300
    with suppress(AcpiError):
        read_tables(lambda at, size: b"", 0)


def test_numbers_that_no_field_holds() -> None:
    cases: list[Callable[[], object]] = [
        lambda: GenericAddress(1 << 64),
        lambda: GenericAddress(0, bits=256),
        lambda: InterruptOverride(256, 0),
        lambda: InterruptOverride(0, -1),
        lambda: AcpiTables(apic_ids=[-1]).place(),
        lambda: AcpiTables(apic_ids=[1 << 32]).place(),
        lambda: AcpiTables(boot_arch=0x10000).place(),
        lambda: AcpiTables(numa=[NumaNode([0], [(0, 1 << 64)])]).place(),
        lambda: hpet(-1),
        lambda: hpet(comparators=-1),
        lambda: mcfg(0, last_bus=256),
        lambda: spcr(irq=1 << 32),
        lambda: xsdt([-1]),
        lambda: rsdp(1 << 64),
    ]
    for case in cases:
        with pytest.raises(FieldRange, match="give 0 to"):
            case()
    with pytest.raises(ValueError, match="0xfff"):
        AcpiTables(1 << 40)
    # what is no number is a mistake of another kind
    with pytest.raises(struct.error):
        pack("<I", b"abcd")
