"""What linux-loader and vmm-reference leave open, beyond the tests named `upstream` beside their subjects."""

from __future__ import annotations

from struct import pack, unpack_from
from typing import TYPE_CHECKING

import pytest
from tests.loader.images import XEN_NOTE, FlatMemory, arm64, bzimage, elf

from pyvmm_loader import (
    BootPlan,
    BzImage,
    Elf,
    Image,
    InvalidHeader,
    MemoryTooSmall,
    PlacementError,
    ProtocolViolation,
)
from pyvmm_loader.images.result import PvhEntryIgnored, PvhEntryPresent

if TYPE_CHECKING:
    from typing_extensions import Buffer

SIZE = 4 << 20


class High(FlatMemory):
    """RAM from 4 GiB."""

    def check_range(self, addr: int, length: int, /) -> bool:
        return addr >= 1 << 32 and super().check_range(addr - (1 << 32), length)

    def write_slice(self, buffer: Buffer, addr: int, /) -> None:
        super().write_slice(buffer, addr - (1 << 32))


def test_upstream_segment_without_bytes_in_the_file_is_zeroed() -> None:
    image = bytearray(elf(b"\x11" * 64, bss=100))
    image[96:104] = pack("<Q", 0)  # p_filesz
    memory = FlatMemory(SIZE)
    result = Elf.load(memory, None, image)
    assert memory.data[0x100000 : 0x100000 + 164] == bytes(164)
    assert result.kernel_end == 0x100000 + 164


def test_upstream_elf_of_nothing_but_a_note_has_its_entry() -> None:
    image = bytearray(elf(b"", notes=(XEN_NOTE,)))
    memory = FlatMemory(SIZE)
    result = Elf.load(memory, None, image)
    assert (result.kernel_end, result.pvh_boot_cap) == (0, PvhEntryPresent(0x100010))
    assert Elf.load(memory, 0x200000, image).pvh_boot_cap == PvhEntryIgnored
    assert not memory.written
    with pytest.raises(InvalidHeader, match="no segment"):
        BootPlan(image, SIZE, entry="pvh")
    image[64:68] = pack("<I", 0)  # PT_NULL
    with pytest.raises(InvalidHeader, match="nothing to load"):
        Elf.load(memory, None, image)


def test_upstream_linux_entry_at_a_virtual_address_is_translated() -> None:
    image = bytearray(elf())
    image[24:32] = pack("<Q", 0xFFFFFFFF81000010)
    image[80:88] = pack("<Q", 0xFFFFFFFF81000000)  # p_vaddr of the only segment
    assert Elf.load(FlatMemory(SIZE), None, image).kernel_load == 0x100010


def test_upstream_offset_above_4_gib_is_not_cut_to_32_bits() -> None:
    memory = High(SIZE)
    place = (1 << 32) + 0x200000
    with pytest.raises(ProtocolViolation, match="below 4 GiB"):
        BzImage.load(memory, place, bzimage(xloadflags=1))
    assert not memory.written
    result = BzImage.load(memory, place, bzimage(xloadflags=3))
    assert result.kernel_load == place
    assert result.setup_header is not None
    assert result.setup_header.code32_start == 0x100000


def test_upstream_arm64_image_without_a_size_goes_to_the_default_offset() -> None:
    image = bytearray(arm64())
    image[8:24] = bytes(16)
    assert Image.load(FlatMemory(SIZE), None, image).kernel_load == 0x80000
    with pytest.raises(ProtocolViolation, match="2 MiB"):
        Image.load(FlatMemory(SIZE), 0x1000, image)


def test_upstream_kernel_may_end_at_the_end_of_ram() -> None:
    exact = 0x100000 + 64
    assert Elf.load(FlatMemory(exact), None, elf()).kernel_end == exact
    with pytest.raises(MemoryTooSmall):
        Elf.load(FlatMemory(exact - 1), None, elf())
    assert BzImage.load(FlatMemory(0x100800), None, bzimage()).kernel_end == 0x100800
    assert BzImage.load(FlatMemory(SIZE), SIZE - 2048, bzimage()).kernel_end == SIZE


def test_upstream_modules_are_checked_before_anything_is_written() -> None:
    image = elf(notes=(XEN_NOTE,))
    with pytest.raises(PlacementError):
        BootPlan(image, SIZE, modules=[(bytes(SIZE), "too large")])


def test_upstream_loader_type_is_set_and_the_map_leaves_the_ebda_alone() -> None:
    memory = FlatMemory(SIZE)
    with BootPlan(bzimage(), SIZE, entry="linux64") as plan:
        plan.apply(memory)
    zero_page = plan.registers.regs.rsi
    assert memory.data[zero_page + 0x210] == 0xFF
    assert unpack_from("<QQI", memory.data, zero_page + 0x2D0) == (0, 0x9FC00, 1)
