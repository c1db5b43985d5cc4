"""SMBIOS tables against dmidecode, and read back."""

from __future__ import annotations

import random
from struct import pack
from typing import TYPE_CHECKING

import pytest
from tests.loader.images import XEN_NOTE, FlatMemory, elf
from tests.loader.tools import need, run

from pyvmm_loader import BootPlan, FieldRange, LoaderError, split_ram
from pyvmm_loader.checksum import checksum
from pyvmm_loader.smbios import Smbios, Structure, read_smbios
from pyvmm_loader.smbios.reader import find_anchor
from pyvmm_loader.smbios.structure import Strings
from pyvmm_loader.smbios.tables import ANCHOR_3_SIZE, TABLE_OFFSET
from pyvmm_loader.x86_64 import layout

if TYPE_CHECKING:
    from pathlib import Path

UUID = "12345678-9abc-def0-1234-56789abcdef0"


def machine(memory: int = 64 << 30) -> Smbios:
    return Smbios(
        manufacturer="Example & Sons", product="Box", serial="S-1", asset="A-1", sku="K-1", family="F-1", uuid=UUID,
        vcpus=300, memory=split_ram(memory), oem=["first", "second"],
    )  # fmt: skip


def dump(smbios: Smbios, version: int) -> bytes:
    """A file as dmidecode takes it: an anchor whose address is an offset in the file."""
    block = smbios.place(0)
    if version == 3:
        anchor = bytearray(block[:ANCHOR_3_SIZE])
        anchor[16:24] = pack("<Q", 32)
        anchor[5] = 0
        anchor[5] = checksum(anchor)
    else:
        anchor = bytearray(block[32:63])
        anchor[24:28] = pack("<I", 32)
        for start, at in ((16, 21), (0, 4)):
            anchor[at] = 0
            anchor[at] = checksum(anchor[start:])
    return bytes(anchor).ljust(32, b"\0") + smbios.table()


@pytest.mark.parametrize("version", [2, 3])
def test_dmidecode_reads_what_was_meant(version: int, tmp_path: Path) -> None:
    dmidecode = need("dmidecode")
    path = tmp_path / "dump"
    path.write_bytes(dump(machine(), version))
    text = run(dmidecode, "--from-dump", path)
    for words in (
        f"SMBIOS {'3.3.0' if version == 3 else '2.8'} present", "Manufacturer: Example & Sons", "Product Name: Box",
        "Serial Number: S-1", f"UUID: {UUID}", "SKU Number: K-1", "Family: F-1", "Asset Tag: A-1", "Core Count: 300",
        "Thread Count: 300", "System is a virtual machine", "Maximum Capacity: 64 GB", "Size: 3 GB", "Size: 61 GB",
        "Starting Address: 0x00100000000", "Ending Address: 0x0103FFFFFFF", "String 2: second",
        "Status: No errors detected", "End Of Table",
    ):  # fmt: skip
        assert words in text, words
    assert "<" not in text, "nothing is out of specification"
    assert "Unknown Type" not in text


@pytest.mark.parametrize(("size", "words"), [(640 << 10, "Size: 640 kB"), (5 << 40, "Maximum Capacity: 5 TB")])
def test_small_and_large_memory(size: int, words: str, tmp_path: Path) -> None:
    dmidecode = need("dmidecode")
    path = tmp_path / "dump"
    path.write_bytes(dump(Smbios(memory=[(1 << 43, size)]), 3))
    text = run(dmidecode, "--from-dump", path)
    assert words in text
    assert "Starting Address: 0x0000080000000000" in text


def test_read_back() -> None:
    block = machine().place(layout.SMBIOS_START)
    address, length = find_anchor(block)
    assert address == layout.SMBIOS_START + TABLE_OFFSET
    table = block[TABLE_OFFSET : TABLE_OFFSET + length]
    found = list(read_smbios(table))
    assert [structure.type for structure in found] == [0, 1, 3, 4, 11, 16, 17, 19, 17, 19, 32, 127]
    assert len({structure.handle for structure in found}) == len(found)
    assert b"".join([bytes(structure) for structure in found]) == table
    system = found[1]
    assert system.string(system.formatted[0]) == "Example & Sons"
    assert system.string(0) == system.string(99) == ""
    only_two = bytes(32) + block[32:]
    assert find_anchor(only_two) == (address, length)


def test_plan_places_it_beside_either_table() -> None:
    with BootPlan(elf(notes=(XEN_NOTE,)), 4 << 20, smbios=machine(4 << 20)) as plan:
        memory = FlatMemory(4 << 20)
        plan.apply(memory)
        assert "SMBIOS" in str(plan)
        assert "MP table" in str(plan)
    address, length = find_anchor(bytes(memory.data[0xF0000:0x100000]))
    assert [s.type for s in read_smbios(memory.data[address : address + length])][-1] == 127


def test_what_is_no_smbios() -> None:
    with pytest.raises(LoaderError, match="64 KiB"):
        Smbios(oem=["x" * 70000]).place(0xF8000)
    with pytest.raises(LoaderError, match="align"):
        Smbios().place(0xF8001)
    with pytest.raises(LoaderError, match="NUL"):
        Smbios(product="a\0b")
    for oem in (["a", "", "b"], ["a\0b"], ["a"] * 256):  # an empty string would end the structure in its middle
        with pytest.raises(LoaderError):
            Smbios(oem=oem)
    with pytest.raises(LoaderError, match="at most 255"):
        Structure(11, 0, b"", ("a",) * 256)
    for vcpus in (-1, 0, 65536):
        with pytest.raises(ValueError, match="processors"):
            Smbios(vcpus=vcpus)
    for memory in ([(-1, 4096)], [(0, 0)], [(1 << 64, 4096)], [(4096, (1 << 64) - 4095)]):
        with pytest.raises(ValueError, match="RAM"):
            Smbios(memory=memory)
    modules = [(number << 20, 1 << 20) for number in range(513)]
    with pytest.raises(ValueError, match="modules"):
        Smbios(memory=modules)
    handles = [structure.handle for structure in Smbios(memory=modules[1:]).structures]
    assert len(handles) == len(set(handles))
    for kind, handle in ((256, 0), (0, 0x10000)):
        with pytest.raises(FieldRange):
            bytes(Structure(kind, handle))
    with pytest.raises(ValueError, match="UUID"):
        Smbios(uuid="x")
    with pytest.raises(LoaderError, match="anchor"):
        find_anchor(bytes(100))
    strings = Strings()
    for number in range(255):
        strings(str(number))
    with pytest.raises(LoaderError, match="255"):
        strings("one more")
    assert repr(Smbios()) == "<Smbios Virtual Machine, 7 structures>"
    assert repr(Structure(1, 2, b"", ("a", "b"))) == "<Structure type 1 handle 0x2 a / b>"


def test_mutated_tables_are_typed_errors() -> None:
    chance = random.Random(5)
    table = machine().table()
    refused = 0
    for _ in range(1000):
        copy = bytearray(table)
        for _ in range(chance.randint(1, 4)):
            copy[chance.randrange(len(copy))] = chance.choice((0, 1, 3, 255, chance.randrange(256)))
        try:
            count = sum(1 for _ in read_smbios(copy[: chance.randint(1, len(copy))]))
            assert count <= len(copy)
        except LoaderError:
            refused += 1
    assert refused > 300
    with pytest.raises(LoaderError, match="65535"):
        list(read_smbios(bytes([1, 4, 0, 0, 0, 0]) * 70000))
