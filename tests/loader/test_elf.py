from __future__ import annotations

from io import BytesIO
from struct import pack
from typing import TYPE_CHECKING

import pytest
from tests.loader.images import PVH_ENTRY, XEN_NOTE, FlatMemory, elf, note

from pyvmm_loader import (
    Elf,
    ImageEmpty,
    ImageError,
    ImageNotFound,
    ImageTruncated,
    InvalidHeader,
    LoaderError,
    MemoryTooSmall,
    NotAKernel,
    PlacementError,
    ProtocolViolation,
    WrongArchitecture,
)
from pyvmm_loader.images.result import PvhEntryIgnored, PvhEntryNotPresent, PvhEntryPresent

if TYPE_CHECKING:
    from pathlib import Path

RAM = 2 << 20


def test_segments_go_to_their_physical_addresses() -> None:
    memory = FlatMemory(RAM)
    result = Elf.load(memory, None, elf(b"\x11" * 100))
    assert (result.kernel_load, result.kernel_end) == (0x100000, 0x100064)
    assert memory.data[0xFFFFF:0x100065] == b"\xaa" + b"\x11" * 100 + b"\xaa"
    assert result.pvh_boot_cap == PvhEntryNotPresent
    assert not result.pvh_boot_cap


def test_upstream_bss_is_zeroed_in_reused_memory() -> None:
    memory = FlatMemory(RAM)
    result = Elf.load(memory, None, elf(b"\x11" * 100, bss=0x12345))
    assert memory.data[0x100064 : 0x100064 + 0x12345] == bytes(0x12345)
    assert memory.data[0x100064 + 0x12345] == 0xAA
    assert result.kernel_end == 0x100064 + 0x12345


def test_upstream_memsz_is_checked_before_anything_is_written() -> None:
    memory = FlatMemory(RAM)
    with pytest.raises(MemoryTooSmall, match="more memory") as caught:
        Elf.load(memory, None, elf(bss=RAM))
    assert caught.value.end == 0x100000 + 64 + RAM
    assert not memory.written


@pytest.mark.parametrize(("machine", "arch"), [(183, "arm64"), (243, "riscv"), (8, "mips"), (999, "machine 999")])
def test_upstream_machine_is_checked(machine: int, arch: str) -> None:
    with pytest.raises(WrongArchitecture, match=arch):
        Elf.load(FlatMemory(RAM), None, elf(machine=machine))


@pytest.mark.parametrize("kind", [0, 1, 4])
def test_upstream_type_is_checked(kind: int) -> None:
    with pytest.raises(InvalidHeader, match="executable"):
        Elf.load(FlatMemory(RAM), None, elf(kind=kind))


def test_upstream_class_and_byte_order_are_checked() -> None:
    image = bytearray(elf())
    image[4] = 3
    with pytest.raises(InvalidHeader, match="class"):
        Elf.load(FlatMemory(RAM), None, image)
    image[4:6] = b"\2\2"
    with pytest.raises(WrongArchitecture, match="big-endian"):
        Elf.load(FlatMemory(RAM), None, image)


def test_upstream_a_later_note_segment_keeps_the_pvh_entry() -> None:
    image = elf(notes=(XEN_NOTE, note(b"GNU", 3, bytes(20))))
    assert Elf.load(FlatMemory(RAM), None, image).pvh_boot_cap == PvhEntryPresent(PVH_ENTRY)


def test_pvh_note_behind_others_of_odd_sizes() -> None:
    image = elf(notes=(note(b"GNU", 3, bytes(5)) + note(b"Xen", 5, b"xen-3.0\0") + XEN_NOTE,))
    capability = Elf.load(FlatMemory(RAM), None, image).pvh_boot_cap
    assert capability.address == PVH_ENTRY
    assert repr(capability) == "PvhEntryPresent(0x100010)"
    assert len({capability, PvhEntryPresent(PVH_ENTRY)}) == 1
    assert capability != "PvhEntryPresent"


@pytest.mark.parametrize("desc", [b"\1", pack("<Q", 1 << 32)])
def test_bad_pvh_notes(desc: bytes) -> None:
    with pytest.raises(InvalidHeader, match="PVH"):
        Elf.load(FlatMemory(RAM), None, elf(notes=(note(b"Xen", 18, desc),)))


def test_note_that_leaves_its_segment_and_too_many_notes() -> None:
    with pytest.raises(InvalidHeader, match="leaves"):
        Elf.load(FlatMemory(RAM), None, elf(notes=(pack("<III", 4, 0xFFFFFFFF, 18) + b"Xen\0",)))
    with pytest.raises(InvalidHeader, match="notes"):
        Elf.load(FlatMemory(RAM), None, elf(notes=(bytes(12 * 5000),)))


def test_upstream_entry_moves_with_the_offset() -> None:
    memory = FlatMemory(RAM)
    result = Elf.load(memory, 0x1000, elf(b"\x11" * 8, notes=(XEN_NOTE,)))
    assert (result.kernel_load, result.pvh_boot_cap) == (0x101000, PvhEntryIgnored)
    assert memory.data[0x101000] == 0x11
    assert Elf.load(memory, 0x1000, elf()).pvh_boot_cap == PvhEntryNotPresent


def test_offset_keeps_the_alignment_of_the_segments() -> None:
    image = bytearray(elf())
    image[112:120] = pack("<Q", 0x200000)  # p_align
    assert Elf.load(FlatMemory(2 * RAM), 0x200000, image).kernel_load == 0x300000
    with pytest.raises(PlacementError, match="0x1000; its segments need a multiple of 0x200000"):
        Elf.load(FlatMemory(RAM), 0x1000, image)


def test_program_headers_do_not_lie_in_the_elf_header() -> None:
    image = bytearray(elf())
    image[0x20] = 0x10
    with pytest.raises(InvalidHeader, match="0x10 lie in the ELF header"):
        Elf.load(FlatMemory(RAM), None, image)


def test_bytes_in_a_stream_are_viewed() -> None:
    stream = BytesIO(elf(b"\x11" * 100))
    memory = FlatMemory(RAM)
    assert Elf.load(memory, None, stream).kernel_end == 0x100064
    assert memory.data[0x100000:0x100064] == b"\x11" * 100
    stream.truncate(0)  # nobody has a view of it any more
    with pytest.raises(ImageEmpty):
        Elf.load(memory, None, stream)


def test_highmem_start() -> None:
    with pytest.raises(ProtocolViolation, match="below"):
        Elf.load(FlatMemory(RAM), None, elf(), 0x200000)


def test_elf32_loads() -> None:
    memory = FlatMemory(RAM)
    result = Elf.load(memory, None, elf(b"\x22" * 8, bits=32, machine=3, notes=(XEN_NOTE,)))
    assert memory.data[0x100000] == 0x22
    assert result.pvh_boot_cap


def test_headers_that_lie() -> None:
    good = elf()
    cases = [
        (good[:3] + b"G", NotAKernel),
        (good[:10], InvalidHeader),
        (good[:40], ImageTruncated),
        (good[:70], ImageTruncated),
        (good[:-1], ImageTruncated),
        (good[:54] + b"\1" + good[55:], InvalidHeader),  # e_phentsize
        (good[:56] + b"\xff\xff" + good[58:], InvalidHeader),  # e_phnum
        (good[:56] + b"\0\0" + good[58:], InvalidHeader),
        (good[:104] + b"\1" + good[105:], InvalidHeader),  # p_memsz
    ]
    for image, error in cases:
        with pytest.raises(error):
            Elf.load(FlatMemory(RAM), None, image)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    with pytest.raises(ImageNotFound, match="No such file"):
        Elf.load(FlatMemory(RAM), None, path)
    with pytest.raises(ImageNotFound, match="directory"):
        Elf.load(FlatMemory(RAM), None, tmp_path)
    path.touch()
    with pytest.raises(ImageEmpty, match="empty"):
        Elf.load(FlatMemory(RAM), None, path)
    path.write_bytes(elf())
    assert Elf.load(FlatMemory(RAM), None, str(path)).kernel_end == 0x100040
    with path.open("rb") as file:
        assert "kernel_end=0x100040" in repr(Elf.load(FlatMemory(RAM), None, file))


def test_every_prefix_is_a_typed_error() -> None:
    image = elf(notes=(XEN_NOTE,))
    for size in range(1, len(image)):
        with pytest.raises(ImageError) as caught:
            Elf.load(FlatMemory(RAM), None, image[:size])
        assert "\n" not in str(caught.value)


def test_facts_are_attributes() -> None:
    error = LoaderError("text", path="x")
    assert error.path == "x"
    with pytest.raises(AttributeError):
        _ = error.other
