"""AML against iasl: each term is written in ASL as well, and both must come out the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.loader.tools import need, run

from pyvmm_loader.acpi import aml as a
from pyvmm_loader.acpi.aml import Arg, Local, Path, Term
from pyvmm_loader.acpi.aml.path import name_string
from pyvmm_loader.acpi.aml.term import MAX_PACKAGE, bare_length, package_length
from pyvmm_loader.acpi.table import HEADER_SIZE, definition_block
from pyvmm_loader.guid import GuidError

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

L0, L1 = Local(0), Local(1)
UUID = "33DB4D5B-1FF7-401C-9657-7441C03DD766"


def method(*terms: Term) -> a.Method:
    return a.Method("TEST", 2, *terms)


CASES: list[tuple[str, list[Term]]] = [
    (
        ("Name (I000, 0) Name (I001, 1) Name (I002, 0x7F) Name (I003, 0x1234) Name (I004, 0x12345678) "
        "Name (I005, 0x123456789ABCDEF0) Name (I006, 0xFFFFFFFFFFFFFFFF)"),
        [
            a.Name(f"I00{n}", value)
            for n, value in enumerate([0, 1, 0x7F, 0x1234, 0x12345678, 0x123456789ABCDEF0, 2**64 - 1])
        ],
    ),
    (
        f'Name (EISA, EisaId ("PNP0A08")) Name (TEXT, "words") Name (UUID, ToUUID ("{UUID}"))',
        [a.Name("EISA", a.EisaId("PNP0A08")), a.Name("TEXT", "words"), a.Name("UUID", a.ToUuid(UUID))],
    ),
    (
        'Name (BUF0, Buffer (8) {1, 2, 3}) Name (PAC0, Package () {1, "two", Package () {3}, PAC1}) Name (PAC1, 7)',
        [
            a.Name("BUF0", a.Buffer(b"\1\2\3", 8)),
            a.Name("PAC0", a.Package(1, "two", a.Package(3), Path("PAC1"))),
            a.Name("PAC1", 7),
        ],
    ),
    (
        ("Scope (\\_SB) { Device (DEV0) { Name (_ADR, 0) Mutex (MUT0, 3) Event (EVT0) } } "
        "Alias (\\_SB.DEV0, ALI0) ThermalZone (TZ00) {Name (_TZP, 0)} "
        "PowerResource (PR00, 1, 2) {Name (_STA, 1) Method (_ON) {} Method (_OFF) {}}"),
        [
            a.Scope("\\_SB", a.Device("DEV0", a.Name("_ADR", 0), a.Mutex("MUT0", 3), a.Event("EVT0"))),
            a.Alias("\\_SB.DEV0", "ALI0"),
            a.ThermalZone("TZ00", a.Name("_TZP", 0)),
            a.PowerResource("PR00", 1, 2, a.Name("_STA", 1), a.Method("_ON", 0), a.Method("_OFF", 0)),
        ],
    ),
    (
        ("OperationRegion (REG0, SystemIO, 0xAE00, 0x14) "
        "Field (REG0, DWordAcc, NoLock, WriteAsZeros) { AAAA, 32, , 64, BBBB, 4, Offset (16), CCCC, 8 } "
        "OperationRegion (REG1, SystemMemory, 0xFED00000, 0x1000) "
        "Field (REG1, AnyAcc, Lock, Preserve) { DDDD, 256, EEEE, 1 } "
        "OperationRegion (REG2, SystemIO, 0x70, 2) Field (REG2, ByteAcc, NoLock, Preserve) { IDX0, 8, DAT0, 8 } "
        "IndexField (IDX0, DAT0, ByteAcc, NoLock, WriteAsOnes) { FFFF, 8 }"),
        [
            a.OperationRegion("REG0", "SystemIO", 0xAE00, 0x14),
            a.Field(
                "REG0", "DWord", ("AAAA", 32), (None, 64), ("BBBB", 4), (None, 28), ("CCCC", 8), update="WriteAsZeros"
            ),
            a.OperationRegion("REG1", "SystemMemory", 0xFED00000, 0x1000),
            a.Field("REG1", "Any", ("DDDD", 256), ("EEEE", 1), lock=True),
            a.OperationRegion("REG2", "SystemIO", 0x70, 2),
            a.Field("REG2", "Byte", ("IDX0", 8), ("DAT0", 8)),
            a.IndexField("IDX0", "DAT0", "Byte", ("FFFF", 8), update="WriteAsOnes"),
        ],
    ),
    (
        ("Method (TEST, 2) { Store (Zero, Local0) Add (Local0, 1, Local1) Subtract (Local0, Local1, Local0) "
            "Multiply (Local0, 3, Local1) "
        "Divide (Local0, 7, Local1, Local0) Mod (Local0, 7, Local1) And (Arg0, 0xF0, Local0) Or (Arg0, 1, Local0) "
        "Xor (Arg0, Arg1, Local0) ShiftLeft (1, Arg0, Local0) ShiftRight (Local0, 4, Local1) "
        "Concatenate (Arg0, Arg1, Local0) Store (Index (Arg0, 3), Local0) Increment (Local0) Decrement (Local1) "
        "ToInteger (Arg0, Local0) ToBuffer (Arg0, Local0) ToHexString (Arg0, Local0) }"),
        [
            method(
                a.Store(0, L0), a.Add(L0, 1, L1), a.Subtract(L0, L1, L0), a.Multiply(L0, 3, L1),
                a.Divide(L0, 7, L1, L0),
                a.Mod(L0, 7, L1), a.And(Arg(0), 0xF0, L0), a.Or(Arg(0), 1, L0), a.Xor(Arg(0), Arg(1), L0),
                a.ShiftLeft(1, Arg(0), L0), a.ShiftRight(L0, 4, L1), a.Concatenate(Arg(0), Arg(1), L0),
                a.Store(a.Index(Arg(0), 3), L0), a.Increment(L0), a.Decrement(L1), a.ToInteger(Arg(0), L0),
                a.ToBuffer(Arg(0), L0), a.ToHexString(Arg(0), L0),
            )
        ],
    ),
    (
        ("Method (TEST, 2) { Store (Zero, Local0) If (LEqual (Arg0, 1)) { Return (1) } "
            "ElseIf (LGreater (Arg0, 2)) { Return (2) } "
        "Else { Return (3) } While (LLess (Local0, 10)) { If (LNotEqual (Local0, 5)) { Break } Else { Continue } "
        "If (LAnd (LGreaterEqual (Arg0, 1), LOr (LLessEqual (Arg1, 2), LNot (Arg1)))) { Noop } Increment (Local0) } "
        "Return (Zero) }"),
        [
            method(
                a.Store(0, L0),
                a.If(a.Equal(Arg(0), 1), a.Return(1)),
                a.ElseIf(a.Greater(Arg(0), 2), a.Return(2), otherwise=a.Else(a.Return(3))),
                a.While(
                    a.Less(L0, 10),
                    a.If(a.NotEqual(L0, 5), a.Break()),
                    a.Else(a.Continue()),
                    a.If(a.LAnd(a.GreaterEqual(Arg(0), 1), a.LOr(a.LessEqual(Arg(1), 2), a.LNot(Arg(1)))), a.NoOp()),
                    a.Increment(L0),
                ),
                a.Return(),
            )
        ],
    ),
    (
        ("Device (DEV0) {Name (_ADR, 0)} Mutex (MUT0, 0) Method (CALL, 2, Serialized, 1) {Return (Arg0)} "
        "Method (TEST, 2) { Acquire (MUT0, 0xFFFF) Notify (DEV0, 0x80) Sleep (10) Stall (20) Release (MUT0) "
        "Store (RefOf (Local0), Local1) Store (DerefOf (Local1), Local0) Store (SizeOf (Arg0), Local0) "
        "If (CondRefOf (DEV0, Local0)) {} Return (CALL (1, CALL (2, 3))) }"),
        [
            a.Device("DEV0", a.Name("_ADR", 0)),
            a.Mutex("MUT0"),
            a.Method("CALL", 2, a.Return(Arg(0)), serialized=True, sync_level=1),
            method(
                a.Acquire("MUT0"), a.Notify(Path("DEV0"), 0x80), a.Sleep(10), a.Stall(20), a.Release("MUT0"),
                a.Store(a.RefOf(L0), L1), a.Store(a.DerefOf(L1), L0), a.Store(a.SizeOf(Arg(0)), L0),
                a.If(a.CondRefOf(Path("DEV0"), L0)), a.Return(a.Call("CALL", 1, a.Call("CALL", 2, 3))),
            ),
        ],
    ),
    (
        ("Method (TEST, 2) { CreateBitField (Arg0, 3, BIT0) CreateByteField (Arg0, 1, BYT0) "
        "CreateWordField (Arg0, 2, WRD0) CreateDWordField (Arg0, 4, DWD0) CreateQWordField (Arg0, 8, QWD0) }"),
        [
            method(
                a.CreateBitField(Arg(0), 3, "BIT0"), a.CreateByteField(Arg(0), 1, "BYT0"),
                a.CreateWordField(Arg(0), 2, "WRD0"), a.CreateDWordField(Arg(0), 4, "DWD0"),
                a.CreateQWordField(Arg(0), 8, "QWD0"),
            )
        ],
    ),
    (
        ("Name (RES0, ResourceTemplate () { Memory32Fixed (ReadWrite, 0xD0000000, 0x1000) "
        "Memory32Fixed (ReadOnly, 0xD0001000, 0x200) IO (Decode16, 0x3F8, 0x3F8, 1, 8) IRQNoFlags () {4} "
        "IRQ (Level, ActiveLow, Shared) {9, 10} Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {33} "
        "Interrupt (ResourceConsumer, Level, ActiveLow, Shared) {16, 17} "
        "WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0, 0x1F, 0, 0x20) "
        "WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0xD00, 0xFFFF, 0, 0xF300) "
        "DWordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0x10000, 0x1FFFF, 0, 0x10000) "
        "DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite, "
        "0, 0xC0000000, 0xDFFFFFFF, 0, 0x20000000) "
        "QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite, "
        "0, 0x1000000000, 0x13FFFFFFFF, 0, 0x400000000) })"),
        [
            a.Name(
                "RES0",
                a.ResourceTemplate(
                    a.Memory32Fixed(0xD0000000, 0x1000), a.Memory32Fixed(0xD0001000, 0x200, writable=False),
                    a.Io(0x3F8, 8), a.IrqNoFlags(4), a.Irq(9, 10, level=True, low=True, shared=True), a.Interrupt(33),
                    a.Interrupt(16, 17, level=True, low=True, shared=True), a.WordBusNumber(0, 0x20),
                    a.WordIO(0xD00, 0xF300), a.DWordIO(0x10000, 0x10000), a.DWordMemory(0xC0000000, 0x20000000),
                    a.QWordMemory(0x1000000000, 0x400000000, cacheable=True),
                ),
            )
        ],
    ),
    (
        ("Scope (\\) { Processor (CP00, 0, 0, 0) {} } Name (\\_SB.NAM0, 1) Device (DEV0) { Name (_ADR, 0) "
        "Method (TEST) {Return (^^NAM1)} } Name (NAM1, 2)"),
        [
            a.Scope("\\", a.Processor("CP00", 0, 0, 0)),
            a.Name("\\_SB.NAM0", 1),
            a.Device("DEV0", a.Name("_ADR", 0), a.Method("TEST", 0, a.Return(Path("^^NAM1")))),
            a.Name("NAM1", 2),
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CASES)))
def test_same_bytes_as_iasl(number: int, tmp_path: pathlib.Path) -> None:
    iasl = need("iasl")
    asl, terms = CASES[number]
    source = tmp_path / "case.dsl"
    source.write_text(f'DefinitionBlock ("", "DSDT", 2, "PYVMM ", "PYVMM   ", 1) {{ {asl} }}')
    run(iasl, "-of", "-on", "-p", tmp_path / "case", source)
    compiled = (tmp_path / "case.aml").read_bytes()[HEADER_SIZE:]
    assert definition_block("DSDT", *terms)[HEADER_SIZE:].hex() == compiled.hex()


def test_external_is_what_disassemblers_read() -> None:
    assert bytes(a.External("\\_SB.PCI0", 6)) == b"\x15\\\x2e_SB_PCI0\x06\x00"


def test_names() -> None:
    assert name_string("\\") == b"\\\0"
    assert name_string("A.B.C") == b"\x2f\x03A___B___C___"
    for bad in ("", "ABCDE", "a", "1ABC", "A B", "A..B"):
        with pytest.raises(a.AmlError):
            Path(bad)
    with pytest.raises(a.AmlError, match="255"):
        Path(".".join(["A"] * 256))


def test_lengths_at_their_limits() -> None:
    for size in (0, 62, 63, 64, 4093, 4094, 4095, (1 << 20) - 4, (1 << 20) - 3):
        encoded = package_length(size)
        extra = encoded[0] >> 6
        value = encoded[0] & 0x3F if not extra else encoded[0] & 0xF | int.from_bytes(encoded[1:], "little") << 4
        assert value == size + len(encoded)
        assert extra == len(encoded) - 1
    for bad in (-1, MAX_PACKAGE + 1):
        with pytest.raises(a.AmlError):
            bare_length(bad)
    with pytest.raises(a.AmlError):
        package_length(MAX_PACKAGE)


def test_what_aml_cannot_say() -> None:
    cases: list[Callable[[], object]] = [
        lambda: a.Integer(-1),
        lambda: a.Integer(1 << 64),
        lambda: a.String("Grüße"),
        lambda: a.String("a\0b"),
        lambda: a.Buffer(b"abc", 2),
        lambda: a.EisaId("pnp0501"),
        lambda: a.EisaId("PNP05"),
        lambda: Local(8),
        lambda: Arg(7),
        lambda: a.Method("TEST", 8),
        lambda: a.Mutex("MUT0", 16),
        lambda: a.OperationRegion("REG0", "Nowhere", 0, 1),
        lambda: a.Field("REG0", "Bytes"),
        lambda: a.Io(0xFFFF, 8),
        lambda: a.Io(0x100, 300),
        lambda: a.IrqNoFlags(16),
        lambda: a.Memory32Fixed(0xFFFFF000, 0x2000),
        lambda: a.DWordMemory(0, 0),
        lambda: a.Io(0, 1, 256),
        lambda: a.Interrupt(-1),
        lambda: a.Interrupt(1 << 32),
        lambda: a.Interrupt(*range(256)),
        lambda: a.Acquire("MUT0", 0x10000),
        lambda: a.PowerResource("POW0", 256, 0),
        lambda: a.PowerResource("POW0", 0, -1),
        lambda: a.Processor("CPU0", 256, 0, 0),
        lambda: a.Processor("CPU0", 0, 1 << 32, 6),
        lambda: a.External("EXT0", 256),
    ]
    for case in cases:
        with pytest.raises(a.AmlError) as caught:
            case()
        assert "\n" not in str(caught.value)
    with pytest.raises(GuidError, match="8-4-4-4-12"):
        a.ToUuid("no uuid")


def test_terms_compare_by_their_bytes() -> None:
    assert a.Name("A", 1) == a.Name("A", a.Integer(1))
    assert len({a.Integer(5), a.Integer(5), a.Integer(6)}) == 2
    assert a.Integer(1) != 1
    assert repr(a.Integer(5)) == "<Integer 2 bytes of AML>"
    assert repr(a.Name("ABCD", 5)) == "<Name ABCD 7 bytes>"
    assert repr(Path("ABCD")) == "<Path ABCD>"
    assert bytes(a.Package(*range(300)))[:1] == b"\x13", "beyond 255 elements the count becomes a term"
