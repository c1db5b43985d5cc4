"""Tables, maps and plans: whoever reads them takes what was made, or the writer refuses; see `test_writers`."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.hostile.writers import EXAMPLES, REFUSALS, hostile, is_refused, tool
from tests.loader.images import XEN_NOTE, elf

from pyvmm_loader import BootPlan, Cmdline, LoaderError, MemoryTooSmall
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
    mcfg,
    read_tables,
)
from pyvmm_loader.acpi import aml as a
from pyvmm_loader.acpi.devices.isa import serial_port
from pyvmm_loader.acpi.devices.pci import PciHost
from pyvmm_loader.acpi.devices.virtio_mmio import virtio_mmio
from pyvmm_loader.acpi.table import table
from pyvmm_loader.plan.layout import Layout
from pyvmm_loader.smbios import Smbios, Structure, read_smbios
from pyvmm_loader.x86_64 import bootparam, e820, multiboot, multiboot2, pvh
from pyvmm_loader.x86_64.firmware_tables import FirmwareTables
from pyvmm_loader.x86_64.mptable import mptable
from pyvmm_memory import GuestMemoryMmap

if TYPE_CHECKING:
    from collections.abc import Callable

# ACPI and AML


def with_iasl(blob: bytes, name: str) -> None:
    """Have iasl take a table apart and, where it is AML, put it together again."""
    if shutil.which("iasl") is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"{name}.aml")
        Path(path).write_bytes(blob)
        said = tool("iasl", "-d", path)
        assert said is not None
        assert "Error" not in said.replace("0 Errors", ""), said
        if name in ("DSDT", "SSDT"):
            tool("iasl", "-oa", "-vw", "2000", os.path.join(folder, f"{name}.dsl"))


SEGMENTS = st.sampled_from(
    ["A", "AB", "ABCD", "A_", "_SB", "B000", "abcd", "ABCDE", "1A", "", "\\", "^A", "^^A", "\\_SB", "A.B"]
)
TERMS: Any = st.recursive(
    st.one_of(
        st.tuples(st.just("Name"), SEGMENTS, st.sampled_from([0, 1, 300, -1, 1 << 64, "text", "é", b"bytes"])),
        st.tuples(st.just("Mutex"), SEGMENTS, st.sampled_from([0, 15, 16])),
        st.tuples(st.just("Event"), SEGMENTS),
    ),
    lambda inner: st.tuples(st.sampled_from(["Device", "Scope", "ThermalZone"]), SEGMENTS, st.lists(inner, max_size=3)),
    max_leaves=5,
)


def build(shape: Any) -> a.Term | None:  # noqa: ANN401 - recursive
    kind, name, *rest = shape
    try:
        if rest and isinstance(rest[0], list):
            inside = [term for term in map(build, rest[0]) if term is not None]
            # a device needs an address or an id, says iasl
            more = [a.Name("_ADR", 0)] if kind == "Device" else []
            made: a.Term = getattr(a, kind)(name, *more, *inside)
        else:
            made = getattr(a, kind)(name, *rest)
    except LoaderError:
        return None
    return made


@settings(hostile, max_examples=min(EXAMPLES, 40))
@given(st.lists(TERMS, max_size=4))
def test_aml(shapes: list[Any]) -> None:
    terms = [term for term in map(build, shapes) if term is not None]
    try:
        blob = definition_block("SSDT", *terms)
    except LoaderError:
        return
    names = [term for term in terms if term.declares]
    assert len({term.declares for term in names}) == len(names)
    with_iasl_namespace(blob)


@functools.cache
def has_acpiexec() -> bool:
    return shutil.which("acpiexec") is not None


def with_iasl_namespace(blob: bytes) -> None:
    """Have ACPICA load a table, as Linux does, where its simulator is installed."""
    if not has_acpiexec():
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "ssdt.aml")
        Path(path).write_bytes(blob)
        said = tool("acpiexec", "-b", "quit", path)
        assert said is not None
        assert "ALREADY_EXISTS" not in said, said


def test_what_no_table_can_say() -> None:
    wrong: list[Callable[[], object]] = [
        lambda: definition_block("SSDT", a.Device("DEV0"), a.Device("DEV0")),
        lambda: definition_block("SSDT", a.Device("AB"), a.Name("AB__", 1)),
        lambda: definition_block("SSDT", a.Device("_SB")),
        lambda: definition_block("SSDT", a.Scope("\\_SB", a.Name("A", 1)), a.Name("\\_SB.A", 1)),
        lambda: definition_block("SSDT", a.Device("DEV0", a.Name("^^A", 1))),
        lambda: definition_block("SSDT", a.Scope("\\_SB", a.Field("REG0", "Byte", ("A", 8), ("A", 8)))),
        lambda: definition_block("ssdt", a.Device("DEV0")),
        lambda: a.Method("M", 0, a.Else()),
        lambda: a.Device("\\"),
        lambda: a.Field("REG0", "Byte", ("A", 0)),
        lambda: a.ResourceTemplate(a.Integer(5)),
        lambda: a.Interrupt(),
        lambda: a.Stall(256),
        lambda: a.External("A", 17),
        lambda: table("TOOLONG", 1, b""),
        lambda: GenericAddress(0x10000),
        lambda: GenericAddress(0, access=5),
        lambda: InterruptOverride(16, 0),
        lambda: PmBlock(pm1_event=0x10000),
        lambda: PmBlock(gpe0=0x620, gpe0_length=3),
        lambda: mcfg(1),
        lambda: mcfg(0, first_bus=2, last_bus=1),
        lambda: hpet(comparators=33),
        lambda: AcpiTables(apic_ids=[0, 0]).place(),
        lambda: AcpiTables(apic_ids=[0xFFFFFFFF]).place(),
        lambda: AcpiTables(overrides=[InterruptOverride(0, 2)] * 2).place(),
        lambda: AcpiTables(devices=[serial_port(), serial_port()]).place(),
        lambda: AcpiTables(devices=[virtio_mmio(0, 0xD0000000, 5)] * 2).place(),
        lambda: AcpiTables(pm=PmBlock(gpe0=0x620), gpe={16: []}),
        lambda: AcpiTables(numa=[NumaNode([0], [(0, 4096)]), NumaNode([0], [(4096, 4096)])]).place(),
        lambda: AcpiTables(numa=[NumaNode([0], [(0, 8192)]), NumaNode([1], [(4096, 4096)])]).place(),
        lambda: AcpiTables(numa=[NumaNode([0], [(0, 0)])]).place(),
        lambda: AcpiTables(tables=[b"SSDT"]).place(),
        lambda: AcpiTables(tables=[hpet()[:-1]]).place(),
        lambda: AcpiTables(tables=[table("DSDT", 2, b"")]).place(),
        lambda: AcpiTables(tables=[table("SSDT", 2, bytes(1 << 20))]).place(0xE0000, 1 << 20),
        lambda: AcpiTables(tables=[hpet()] * 300).place(0xE0000, 1 << 20),
        lambda: AcpiTables(s5=8),
        lambda: AcpiTables().place(0xE0010),
        lambda: definition_block("DSDT", a.Scope("\\_SB.NONE", a.Name("A", 1))),
        lambda: definition_block("DSDT", a.Scope("\\_SB.LATE", a.Name("A", 1)), a.Device("\\_SB.LATE")),
        lambda: definition_block("DSDT", a.If(1, a.Name("A", 1)), a.Name("A", 2)),
        lambda: definition_block("DSDT", a.Method("M", 0, a.Break())),
        lambda: definition_block("DSDT", a.Method("M", 0, a.While(1, a.Break()), a.If(1, a.Continue()))),
        lambda: a.Name("_CRS", 5),
        lambda: a.Name("\\_S5", 5),
        lambda: a.Name("_HID", "PNP"),
        lambda: a.Name("_HID", "*PNP0501"),
        lambda: a.Name("_ADR", "text"),
        lambda: a.Name("A", None),  # type: ignore[arg-type]
        lambda: a.Name("A", 1.5),  # type: ignore[arg-type]
        lambda: a.Store(1, a.Integer(5)),
        lambda: a.Add(1, 2, a.Buffer(b"")),
        lambda: a.Io(0x3F8, 8, 16),
        lambda: a.Io(0, 0, 0),
        lambda: a.Memory32Fixed(0x1000, 0),
        lambda: a.Interrupt(5, 5),
        lambda: a.Irq(),
        lambda: a.IrqNoFlags(4, 4),
        lambda: mcfg((1 << 64) - (1 << 20)),
        lambda: PmBlock(pm1_event=0),
        lambda: PmBlock(pm1_control=0x602),
        lambda: PmBlock(gpe0=0x606),
        lambda: Reset(GenericAddress(0xCF9, bits=16), 6),
        lambda: Reset(GenericAddress(0xCF9), 256),
        lambda: SleepRegisters(GenericAddress(0x600, bits=32), GenericAddress(0x604)),
        lambda: PciHost(io=(0, 0x20000)),
        lambda: PciHost(irqs=[0x1000]),
    ]
    for number, make in enumerate(wrong):
        assert is_refused(make), f"case {number} was taken"


@settings(hostile, max_examples=min(EXAMPLES, 25))
@given(
    st.lists(st.sampled_from([0, 1, 5, 255, 300, 0xFFFFFFFE, 0xFFFFFFFF]), min_size=1, max_size=4),
    st.lists(st.tuples(st.sampled_from([0, 2, 9, 15, 16]), st.sampled_from([0, 2, 20, 1 << 32])), max_size=2),
    st.lists(st.integers(1, 4), max_size=2),
    st.booleans(),
    st.sampled_from([0xE0000, 0xE0001, 0xE1000, 0xEF000]),
)
def test_acpi_tables(
    ids: list[int], overrides: list[tuple[int, int]], ports: list[int], fixed: bool, start: int
) -> None:
    try:
        machine = AcpiTables(
            apic_ids=ids,
            devices=[serial_port(port) for port in ports],
            overrides=[InterruptOverride(*pair) for pair in overrides],
            pm=PmBlock() if fixed else None,
        )
        placed = machine.place(start)
    except REFUSALS:
        return
    memory = bytearray(1 << 20)
    for each in placed:
        memory[each.start : each.end] = each.data
    found = read_tables(lambda at, size: bytes(memory[at : at + size]), placed[0].start)
    assert {one.signature for one in found} >= {"FACP", "DSDT", "APIC"}
    for one in found:
        if one.signature in ("DSDT", "APIC", "FACP"):
            with_iasl(one.data, one.signature)


RESOURCES = st.lists(
    st.one_of(
        st.tuples(st.just("Io"), st.sampled_from([0, 1, 0x3F8, 0xFFFF]), st.sampled_from([0, 1, 8, 255, 256]),
                  st.sampled_from([0, 1, 8, 16, 255])),
        st.tuples(st.sampled_from(["Irq", "IrqNoFlags"]), st.sampled_from([4, 15, 16]), st.sampled_from([4, 5])),
        st.tuples(st.just("Interrupt"), st.sampled_from([4, 33, 1 << 31, 1 << 32]), st.sampled_from([4, 5])),
        st.tuples(st.sampled_from(["Memory32Fixed", "DWordMemory", "QWordMemory", "WordIO", "DWordIO"]),
                  st.sampled_from([0, 1, 0x1000, 0xFFFF, (1 << 32) - 4096, (1 << 64) - 1]),
                  st.sampled_from([0, 1, 3, 0x100, 4096, 0xFFFF, 1 << 32])),
    ),
    max_size=3,
)  # fmt: skip


@settings(hostile, max_examples=min(EXAMPLES, 25))
@given(RESOURCES)
def test_resources(wanted: list[Any]) -> None:
    found = []
    for kind, *numbers in wanted:
        try:
            found.append(getattr(a, kind)(*numbers))
        except LoaderError:
            continue
    template = a.Name("_CRS", a.ResourceTemplate(*found))
    with_iasl(
        definition_block("DSDT", a.Scope("\\_SB", a.Device("DEV0", a.Name("_HID", "ACPI0007"), template))), "DSDT"
    )


# SMBIOS

DATES = ("", "01/02/2026", "01/02/26", "2026-01-02", "13/01/2026", "\u0660\u0661/02/2026")
SIZES = (0, 1, 512, 1024, 1 << 30, 1 << 64)
STRINGS = st.one_of(st.sampled_from(["", "pyvmm", "a\0b", "\ud800", "é", "x" * 300]), st.text(max_size=5))


@hostile
@given(
    STRINGS, STRINGS, st.sampled_from(DATES),
    st.lists(st.tuples(st.sampled_from([0, 1 << 20, 1 << 40, -1]), st.sampled_from(SIZES)), max_size=3),
    st.sampled_from([0, 1, 255, 256, 0xFFFF, 0x10000]), st.lists(STRINGS, max_size=3),
    st.sampled_from([0xF1000, 0xF1001, -16, 1 << 32]),
)  # fmt: skip
def test_smbios(
    vendor: str, product: str, date: str, memory: list[tuple[int, int]], vcpus: int, oem: list[str], start: int
) -> None:
    try:
        made = Smbios(vendor=vendor, product=product, date=date, memory=memory, vcpus=vcpus, oem=oem)
        block = made.place(start)
    except REFUSALS:
        return
    structures = list(read_smbios(block[64:]))
    assert [bytes(each) for each in structures] == [bytes(each) for each in made.structures]
    assert structures[0].string(1) == (vendor or (structures[0].strings or ("",))[0])
    if shutil.which("dmidecode"):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "dump")
            # as dmidecode's own dumps are: an entry point, and the table at 32
            entry = bytearray(block[:24])
            entry[16:24] = (32).to_bytes(8, "little")
            entry[5] = (entry[5] + sum(block[16:24]) - 32) & 0xFF
            Path(path).write_bytes(bytes(entry).ljust(32, b"\0") + block[64:])
            said = tool("dmidecode", "--from-dump", path)
            assert said is not None
            assert "BIOS Information" in said
            assert "TRUNCATED" not in said, said


def test_structures() -> None:
    wrong: list[Callable[[], object]] = [
        lambda: Structure(256, 0),
        lambda: Structure(0, 1 << 16),
        lambda: Structure(0, 0, bytes(252)),
        lambda: Structure(0, 0, b"", ("",)),
        lambda: Structure(0, 0, b"", ("\ud800",)),
        lambda: Structure(0, 0, b"", ("x",) * 256),
    ]
    assert all(map(is_refused, wrong))


def test_structures_that_were_added() -> None:
    def changed(change: Callable[[list[Structure]], object]) -> Callable[[], object]:
        made = Smbios()
        change(made.structures)
        return lambda: made.place(0xF1000)

    more = Structure(11, 0x999, b"\1", ("x",))
    changed(lambda all_of: all_of.insert(0, more))()
    assert is_refused(changed(lambda all_of: all_of.append(more)))
    assert is_refused(changed(lambda all_of: all_of.insert(0, Structure(127, 0x998))))
    assert is_refused(changed(lambda all_of: all_of.insert(0, Structure(11, 0x100, b"\1", ("x",)))))
    assert is_refused(changed(lambda all_of: all_of.pop()))
    assert is_refused(changed(lambda all_of: all_of.clear()))


# what an x86 kernel is told of memory

RAM = st.lists(
    st.tuples(
        st.sampled_from([0, 1 << 20, 1 << 30, 1 << 32, (1 << 64) - 4096]),
        st.sampled_from([0, 4096, 1 << 20, 1 << 30, 1 << 31, 1 << 63, 1 << 64, -1]),
    ),
    max_size=4,
)


@hostile
@given(RAM, RAM)
def test_memory_maps(ranges: list[tuple[int, int]], reserved: list[tuple[int, int]]) -> None:
    try:
        entries = e820.e820(ranges, reserved)
        packed = e820.pack(entries)
    except LoaderError:
        return
    read = [struct.unpack_from("<QQI", packed, at) for at in range(0, len(packed), 20)]
    assert len(read) <= 128
    told = sorted((start, start + size) for start, size, kind in read if kind == 1)
    for (_, end), (start, _) in itertools.pairwise(told):
        assert end <= start, "RAM is told of twice"
    for start, end in told:
        assert any(begin <= start and end <= begin + size for begin, size in ranges), "there is no such RAM"
        assert all(end <= begin or begin + size <= start for begin, size in reserved if size > 0)
    page = bootparam.zero_page(bootparam.SetupHeader.for_elf(), entries)
    assert page[0x2D0 : 0x2D0 + len(packed)] == packed
    assert page[0x1E8] == len(read)
    info = pvh.start_info(0x20000, entries)
    assert struct.unpack_from("<I", info, 48)[0] == len(entries)


def test_numbers_that_do_not_fit() -> None:
    good = [e820.E820Entry(0, 4096, 1)]
    header = bootparam.SetupHeader.for_elf()
    odd = [[e820.E820Entry(-1, 1, 1)], [e820.E820Entry(0, 0, 1)], [e820.E820Entry(0, 1, 1 << 32)], good * 129]
    wrong: list[Callable[[], object]] = [
        *[functools.partial(make, entries) for entries in odd for make in (
            e820.pack,
            functools.partial(bootparam.zero_page, header),
            functools.partial(pvh.start_info, 0),
        )],
        lambda: bootparam.zero_page(header, good, (1 << 64, 1)),
        lambda: bootparam.zero_page(header, good, rsdp=1 << 64),
        lambda: pvh.start_info(1 << 64, good),
        lambda: pvh.start_info(0, good, [(0, 1 << 64, 0)]),
        lambda: pvh.start_info(0, good, [((1 << 64) - 1, 5, 0)]),
        lambda: multiboot.info(1 << 32, b"\0", good, [], 0, 0),
        lambda: multiboot.info(0, b"\0", good, [], 1 << 32, 0),
        lambda: multiboot2.info(b"\0", good, [], 0, 1 << 32),
        lambda: multiboot2.info(b"\0", good, [], 0, 0, 1 << 32),
        lambda: mptable(1, 0xFFFFFFF0),
        lambda: mptable(1, pins=-1),
        lambda: mptable(0),
        lambda: mptable(256),
        lambda: Cmdline(100).add_virtio_mmio_device(4096, 0, 5, 1 << 31),
    ]  # fmt: skip
    for number, make in enumerate(wrong):
        assert is_refused(make), f"case {number} was taken"


# a layout, and a plan for other memory


def test_layouts() -> None:
    ranges = [(0, 1 << 20)]
    layout = Layout("kernel", "pvh", "x86_64", ranges, FirmwareTables(1, ranges))
    for start, data, size in ((-1, b"x", None), (0, b"xy", 1), ((1 << 64) - 1, b"xy", None), (0, None, -1)):
        with pytest.raises(LoaderError):
            layout.add(start, data, "it", "a test", size)
    assert layout.placements == []


PLANNED = 64 << 20


@settings(hostile, max_examples=min(EXAMPLES, 30))
@given(
    st.sampled_from([[(0, 16 << 20)], [(0, PLANNED - 4096)], [(4096, PLANNED)], [(0, 32 << 20), (48 << 20, 64 << 20)]])
)
def test_a_plan_is_for_its_memory(ranges: list[tuple[int, int]]) -> None:
    with BootPlan(elf(notes=(XEN_NOTE,)), PLANNED, entry="pvh") as plan, GuestMemoryMmap.from_ranges(ranges) as memory:
        before = bytes(memory.get_slice(ranges[0][0], 1 << 20))
        with pytest.raises(MemoryTooSmall):
            plan.apply(memory)
        assert bytes(memory.get_slice(ranges[0][0], 1 << 20)) == before
    with BootPlan(elf(notes=(XEN_NOTE,)), PLANNED, entry="pvh") as plan:
        for more in ([(0, PLANNED)], [(0, PLANNED), (1 << 32, 4096)], [(0, 1 << 20), (1 << 20, PLANNED)]):
            with GuestMemoryMmap.from_ranges(more) as memory:
                plan.apply(memory)
