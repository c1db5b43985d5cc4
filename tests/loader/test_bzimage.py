from __future__ import annotations

import pytest
from tests.loader.images import FlatMemory, arm64, bzimage

from pyvmm_loader import (
    BootPlan,
    BzImage,
    Image,
    ImageError,
    ImageTruncated,
    InvalidHeader,
    MemoryTooSmall,
    NotAKernel,
    ProtocolViolation,
    WrongArchitecture,
)

RAM = 4 << 20


def test_payload_goes_where_the_header_asks() -> None:
    memory = FlatMemory(RAM)
    result = BzImage.load(memory, None, bzimage(b"\x55" * 1000))
    assert (result.kernel_load, result.kernel_end) == (0x100000, 0x100000 + 1000)
    assert memory.data[0x100000:0x1003E9] == b"\x55" * 1000 + b"\xaa"
    assert result.setup_header is not None
    assert result.setup_header.version == 0x20F


def test_offset_is_written_back_to_the_header() -> None:
    result = BzImage.load(FlatMemory(RAM), 0x200000, bzimage())
    assert result.setup_header is not None
    assert result.setup_header.code32_start == result.kernel_load == 0x200000


def test_no_setup_sectors_means_four() -> None:
    memory = FlatMemory(RAM)
    BzImage.load(memory, None, bzimage(b"\x77" * 64, setup_sects=0))
    assert memory.data[0x100000] == 0x77


def test_refusals() -> None:
    cases = [
        (b"x" * 0x300, NotAKernel),
        (bzimage()[:0x220], ImageTruncated),
        (bzimage(version=0x1FF), InvalidHeader),
        (bzimage(loadflags=0), InvalidHeader),
        (bzimage(setup_sects=63)[:4096], ImageTruncated),
        (bzimage()[:-100], ImageTruncated),
    ]
    for image, error in cases:
        with pytest.raises(error):
            BzImage.load(FlatMemory(RAM), None, image)
    with pytest.raises(MemoryTooSmall):
        BzImage.load(FlatMemory(1 << 20), None, bzimage())
    with pytest.raises(ProtocolViolation):
        BzImage.load(FlatMemory(RAM), None, bzimage(), 0x200000)


def test_a_kernel_that_ends_with_memory_fits() -> None:
    assert BzImage.load(FlatMemory(0x100000 + 2048), None, bzimage()).kernel_end == 0x100000 + 2048


def test_arm64_image() -> None:
    memory = FlatMemory(RAM)
    result = Image.load(memory, 0x200000, arm64())
    assert (result.kernel_load, result.kernel_end) == (0x280000, 0x283000)
    assert memory.data[0x280FFF:0x281002] == b"\1\0\0"
    with pytest.raises(ProtocolViolation, match="2 MiB"):
        Image.load(memory, 0x1000, arm64())
    with pytest.raises(ProtocolViolation, match="below"):
        Image.load(memory, 0, arm64(), 0x200000)


def test_image_size_zero_means_the_old_offset() -> None:
    assert Image.load(FlatMemory(RAM), None, arm64(size=0)).kernel_load == 0x80000


def test_image_headers_that_lie() -> None:
    riscv = bytearray(arm64(size=0))
    riscv[0x38:0x3C] = b"RSC\x05"
    with pytest.raises(InvalidHeader, match="image_size"):
        Image.load(FlatMemory(RAM), None, riscv)
    big = bytearray(arm64())
    big[24] |= 1
    with pytest.raises(InvalidHeader, match="big-endian"):
        Image.load(FlatMemory(RAM), None, big)
    with pytest.raises(InvalidHeader, match="image_size"):
        Image.load(FlatMemory(RAM), None, arm64(size=1 << 40))
    with pytest.raises(ImageTruncated):
        Image.load(FlatMemory(RAM), None, arm64()[:0x3C])
    with pytest.raises(ImageError):
        Image.load(FlatMemory(RAM), None, bzimage())
    with pytest.raises(WrongArchitecture):
        BootPlan(arm64(), RAM, arch="x86_64")
