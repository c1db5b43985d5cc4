"""Firmware, flat binaries, compressed images, EFI zboot and the arm64 and riscv64 boot protocols."""

from __future__ import annotations

import gzip
import os
import random
import subprocess
import tracemalloc
from inspect import signature
from pathlib import Path
from struct import unpack_from
from typing import TYPE_CHECKING

import pytest
from tests.loader.images import FlatMemory, arm64, bzimage, elf, firmware, riscv64, zboot

from pyvmm_loader import (
    BootPlan,
    BzImage,
    Elf,
    EntryNotOffered,
    Firmware,
    Flat,
    Image,
    ImageError,
    ImageTruncated,
    InvalidHeader,
    LoaderError,
    MemoryTooSmall,
    NotAKernel,
    ProtocolViolation,
    WrongArchitecture,
    extract,
    inspect,
)
from pyvmm_loader.images.firmware import NVRAM_GUID
from pyvmm_loader.images.source import Source
from pyvmm_loader.x86_64 import bios
from pyvmm_memory import GuestMemoryMmap

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm_loader import KernelLoaderResult

SIZE = 4 << 20
OVMF = b"\0" * 0x28 + b"_FVH"
VARIABLES = (bytes(16) + NVRAM_GUID + bytes(8) + b"_FVH").ljust(0x2000, b"\xff")


def test_all_loaders_have_one_interface() -> None:
    interfaces = {str(signature(loader.load)) for loader in (BzImage, Elf, Firmware, Flat, Image)}
    assert len(interfaces) == 1
    assert all(loader.load.__doc__ for loader in (BzImage, Elf, Firmware, Flat, Image))


@pytest.mark.parametrize(
    ("image", "family", "version"),
    [
        (firmware(start=b"SeaBIOS (version %s)\0\0rel-1.16.2-0-gea1b\0"), "seabios", "1.16.2-0-gea1b"),
        (firmware(start=b"\0U-Boot 2023.01+dfsg (x) \0", jump=b"\xfa\xfc\xe9\x0b\xf8"), "u-boot", "2023.01+dfsg"),
        (firmware(start=b"etc/table-loader", jump=b"\xe9\x8d\xff"), "qboot", None),
        (firmware(start=OVMF, jump=b"\x90\x90\xe9\x5b\xff"), "ovmf", None),
        (firmware(), "unknown", None),
    ],
)
def test_firmware_is_recognised(image: bytes, family: str, version: str | None) -> None:
    found = inspect(image)
    assert (found["format"], found["entries"], found["refused"]) == ("firmware", ["reset"], {})
    assert (found["family"], found["version"]) == (family, version)
    assert (found["start"], found["end"]) == (0xFFFF0000, 1 << 32)


def test_firmware_lies_below_4_gib_with_its_variables_and_a_copy_below_1_mib() -> None:
    rom = firmware(0x40000, start=OVMF)
    with BootPlan(rom, SIZE, variables=VARIABLES) as plan:
        assert plan.roms == [(0xFFFC0000, 0x40000), (0xFFFBE000, 0x2000)]
        assert "ROM 0xfffc0000..0x100000000" in str(plan)
        with GuestMemoryMmap.from_ranges([*plan.ranges, (0xFFFBE000, 0x42000)]) as memory:
            plan.apply(memory)
            data = bytearray(0x42000)
            memory.read_slice(data, 0xFFFBE000)
            assert data == VARIABLES + rom
            memory.read_slice(data[:0], 0)
            copy = bytearray(0x20000)
            memory.read_slice(copy, 0xE0000)
            assert copy == rom[-0x20000:]
        assert "MP table" not in str(plan)
    state = plan.registers
    # Intel SDM volume 3, table 10-1
    assert (plan.start, state.regs.rip, state.sregs.cs.base, state.sregs.cs.selector) == (
        0xFFFFFFF0, 0xFFF0, 0xFFFF0000, 0xF000,
    )  # fmt: skip
    assert (state.sregs.cr0, state.regs.rflags, state.sregs.cs.limit) == (0x60000010, 2, 0xFFFF)


def test_firmware_load() -> None:
    rom = firmware()
    with GuestMemoryMmap.from_ranges([(0, 1 << 20), (0xFFFF0000, 0x10000)]) as memory:
        result = Firmware.load(memory, None, rom)
        assert (result.kernel_load, result.kernel_end) == (0xFFFFFFF0, 1 << 32)
        assert Firmware.load(memory, 0x10000, rom).kernel_end == 0x20000
        with pytest.raises(MemoryTooSmall, match="below"):
            Firmware.load(memory, None, rom, 0xFFFF1000)
        with pytest.raises(NotAKernel):
            Firmware.load(memory, None, bytes(0x10000))


def test_what_firmware_refuses() -> None:
    with pytest.raises(ProtocolViolation, match="no command line"):
        BootPlan(firmware(), SIZE, "quiet")
    with pytest.raises(InvalidHeader, match="variable store"):
        BootPlan(firmware(), SIZE, variables=bytes(100))
    with pytest.raises(NotAKernel, match="variable store"):
        BootPlan(VARIABLES, SIZE)


@pytest.mark.parametrize(
    ("entry", "offset", "start", "cr0"),
    [
        ("flat16", None, 0x7C00, 0x10),
        ("flat16", 0x12345, 0x12345, 0x10),
        ("flat32", None, 0x100000, 0x11),
        ("flat64", 0x200000, 0x200000, 0x80000011),
    ],
)
def test_flat_binary(entry: str, offset: int | None, start: int, cr0: int) -> None:
    memory = FlatMemory(SIZE)
    with BootPlan(b"\x5d\0\0" + bytes(60), SIZE, entry=entry, load_address=offset) as plan:
        plan.apply(memory)
    assert (plan.start, plan.registers.sregs.cr0, plan.kind) == (start, cr0, "flat")
    assert memory.data[start] == 0x5D


def test_flat_binary_by_its_loader() -> None:
    memory = FlatMemory(SIZE)
    assert Flat.load(memory, None, b"\x90").kernel_load == 0x7C00
    assert Flat.load(memory, 0x5000, b"\x90").kernel_end == 0x5001
    assert Flat.load(memory, None, b"\x90", 0x100000).kernel_load == 0x100000
    with pytest.raises(MemoryTooSmall):
        Flat.load(memory, SIZE, b"\x90")
    with pytest.raises(ProtocolViolation, match="1 MiB"):
        BootPlan(b"\x90", SIZE, entry="flat16", load_address=0x100000)


def test_compressed_images_load_and_plan() -> None:
    packed = gzip.compress(arm64(), 1)
    memory = FlatMemory(SIZE)
    assert Image.load(memory, 0, packed).kernel_end == 0x83000
    assert memory.data[0x80040] == 1
    found = inspect(packed)
    assert (found["format"], found["compression"], found["size"]) == ("arm64-image", "gzip", len(packed))
    with BootPlan(gzip.compress(elf(), 1), SIZE) as plan:
        assert plan.entry == "linux64"
        plan.apply(FlatMemory(SIZE))


def test_compressed_images_are_bounded() -> None:
    bomb = gzip.compress(bytes(64 << 20), 9)
    for call in (inspect, lambda image: BootPlan(image, SIZE)):
        with pytest.raises(InvalidHeader, match="more than"):
            call(bomb)
    kernel = gzip.compress(arm64(body=64 << 20), 9)
    with pytest.raises(InvalidHeader, match="more than"):
        Image.load(FlatMemory(24 << 20), None, kernel)
    with pytest.raises(MemoryTooSmall):
        Image.load(FlatMemory(1 << 20), None, kernel)


def test_a_compressed_image_goes_to_memory_piece_by_piece() -> None:
    noise = random.Random(1).randbytes(8 << 20)
    packed = gzip.compress(arm64(9 << 20) + noise, 1)
    memory = FlatMemory(16 << 20)
    tracemalloc.start()
    try:
        result = Image.load(memory, None, packed)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20, "neither file nor content is copied to the heap"
    finally:
        tracemalloc.stop()
    assert (result.kernel_load, result.kernel_end) == (0x80000, 0x80000 + (9 << 20))
    assert memory.data[0x81000 : 0x81000 + len(noise)] == noise
    assert not any(memory.data[0x81000 + len(noise) : 0x80000 + (9 << 20)])
    assert memory.data[0x80000 + (9 << 20)] == 0xAA
    with pytest.raises(InvalidHeader, match="damaged"):
        Image.load(FlatMemory(16 << 20), None, packed[:-100])


@pytest.mark.parametrize(
    ("load", "image"),
    [
        (Elf.load, elf(b"code" * 5000, bss=5000)),
        (BzImage.load, bzimage(b"code" * 5000)),
        (Image.load, arm64()),
        (Image.load, gzip.compress(arm64())),
        (Flat.load, b"\xf4" * 5000),
    ],
    ids=["elf", "bzimage", "image", "compressed image", "flat"],
)
def test_files_are_read_into_memory_as_buffers_are_copied(
    load: Callable[..., KernelLoaderResult], image: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "image"
    path.write_bytes(image)
    copied = FlatMemory(SIZE)
    expected = load(copied, None, image)
    before = os.listdir("/proc/self/fd")
    with GuestMemoryMmap.from_ranges([(0, SIZE)]) as memory, path.open("rb") as file:
        file.read(3)
        for kernel in (path, file):
            memory.write_slice(b"\xaa" * SIZE, 0)
            loaded = load(memory, None, kernel)
            assert (loaded.kernel_load, loaded.kernel_end) == (expected.kernel_load, expected.kernel_end)
            written = bytearray(SIZE)
            memory.read_slice(written, 0)
            assert written == copied.data
        assert file.tell() == 3, "the file is the caller's, with its position"
        with pytest.raises(LoaderError):
            load(memory, SIZE, path)
    assert os.listdir("/proc/self/fd") == before


def test_a_file_that_becomes_shorter_is_named(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(9000))
    with GuestMemoryMmap.from_ranges([(0, SIZE)]) as memory, Source(path) as source:
        os.truncate(path, 5000)
        with pytest.raises(ImageTruncated, match="shorter"):
            source.write_to(memory, 0)


def test_compressed_kernels_for_the_other_loaders_are_named() -> None:
    for load in (Elf.load, BzImage.load):
        with pytest.raises(NotAKernel, match=r"gzip-compressed data, .*extract"):
            load(FlatMemory(SIZE), None, gzip.compress(elf()))


def test_zboot() -> None:
    image = zboot(gzip.compress(arm64()))
    found = inspect(image)
    assert (found["format"], found["arch"], found["entries"]) == ("zboot", "arm64", ["efi"])
    assert found["payload_compression"] == "gzip"
    assert extract(image) == arm64()
    with pytest.raises(NotAKernel, match="extract"):
        BootPlan(image, SIZE)
    with pytest.raises(InvalidHeader, match="rot13"):
        inspect(zboot(b"", b"rot13"))
    with pytest.raises(ImageTruncated):
        inspect(image[:-1])
    with pytest.raises(ImageTruncated):
        inspect(image[:40])


def test_arm64_boot_protocol() -> None:
    with BootPlan(arm64(), 64 << 20, initrd=b"initrd") as plan:
        tree = plan.boot_registers["x0"]
        assert plan.boot_registers == {"pc": 0x40080000, "x0": tree, "x1": 0, "x2": 0, "x3": 0, "pstate": 0x3C5}
        assert tree % 0x200000 == 0
        assert tree >= 0x40083000
        base = 0x40000000
        with GuestMemoryMmap.from_ranges([(base, 64 << 20)]) as memory:
            plan.apply(memory)
            data = bytearray(4)
            memory.read_slice(data, tree)
            assert data == b"\xd0\x0d\xfe\xed"
        with pytest.raises(LoaderError, match="boot_registers"):
            _ = plan.registers


def test_riscv64_boot_protocol() -> None:
    with BootPlan(riscv64(), 64 << 20, "console=hvc0") as plan:
        assert plan.boot_registers["pc"] == 0x80200000
        assert plan.boot_registers["a0"] == 0
        assert any(p.start == plan.boot_registers["a1"] for p in plan.placements)
        assert "a1 points here" in str(plan)
    with BootPlan(elf(), SIZE) as x86, pytest.raises(LoaderError, match="in registers"):
        _ = x86.boot_registers


def test_what_image_plans_refuse() -> None:
    with pytest.raises(MemoryTooSmall, match="device tree"):
        BootPlan(arm64(), 2 << 20)
    with pytest.raises(ImageError, match="device tree"):
        BootPlan(arm64(), 64 << 20, dtb=b"text")
    with pytest.raises(WrongArchitecture, match="riscv64"):
        BootPlan(riscv64(), 64 << 20, arch="x86_64")
    with pytest.raises(WrongArchitecture, match="Image"):
        BootPlan(elf(), 64 << 20, arch="arm64")
    with pytest.raises(NotAKernel, match="EFI program"):
        inspect(b"MZ" + bytes(5000))


def test_32_bit_vmlinux() -> None:
    with BootPlan(elf(bits=32, machine=3), SIZE) as plan:
        assert (plan.entry, plan.registers.sregs.cr0) == ("linux32", 0x11)
    program = bytearray(elf(notes=(b"",)))
    program[64 + 56 : 64 + 60] = b"\3\0\0\0"  # PT_INTERP
    with pytest.raises(EntryNotOffered, match="user space"):
        BootPlan(program, SIZE, entry="linux64")


def test_16_bit_entry() -> None:
    image = bzimage(setup_sects=3, cmdline_size=2047)
    memory = FlatMemory(SIZE)
    with BootPlan(image, SIZE, "console=ttyS0", b"initrd", entry="linux16") as plan:
        plan.apply(memory)
    state, data = plan.registers, memory.data
    # boot.rst, "Running the Kernel": ds = es = fs = gs = ss, cs:ip = 0x20 segments behind
    assert (state.sregs.cs.selector, state.regs.rip, state.sregs.ds.selector) == (0x9020, 0, 0x9000)
    assert (state.sregs.ss.base, state.regs.rsp, state.sregs.cr0) == (0x90000, 0xE000, 0x10)
    setup = data[0x90000:0x9E000]
    assert (setup[0x210], setup[0x211]) == (0xFF, 0x81)
    assert unpack_from("<H", setup, 0x224) == (0xE000 - 0x200,)
    (cmdline,) = unpack_from("<I", setup, 0x228)
    assert data[cmdline : cmdline + 14] == b"console=ttyS0\0"
    start, size = unpack_from("<II", setup, 0x218)
    assert data[start : start + size] == b"initrd"
    assert setup[0x800:] == bytes(0xE000 - 0x800)
    offset, segment = unpack_from("<HH", data, 4 * 0x15)
    assert segment << 4 <= (segment << 4) + offset < bios.BIOS_START + len(bios.CODE)


def test_16_bit_entry_of_old_protocols() -> None:
    memory = FlatMemory(SIZE)
    with BootPlan(bzimage(version=0x201), SIZE, "old", entry="linux16") as plan:
        plan.apply(memory)
    assert unpack_from("<HH", memory.data, 0x90020) == (0xA33F, 0xE000)
    assert memory.data[0x90211] == 0x81
    with BootPlan(bzimage(version=0x200), SIZE, "older", entry="linux16") as plan:
        plan.apply(memory)
    assert memory.data[0x90211] == 0x01
    with pytest.raises(EntryNotOffered, match="32 KiB"):
        BootPlan(bzimage(setup_sects=100), SIZE, entry="linux16")
    with pytest.raises(EntryNotOffered, match="code32_start"):
        BootPlan(bzimage(code32_start=0), SIZE, entry="linux32")


def test_bios_is_what_its_source_assembles_to(tmp_path: Path) -> None:
    source = os.path.join(os.path.dirname(bios.__file__), "bios.S")
    target, flat = tmp_path / "bios.o", tmp_path / "bios.bin"
    try:
        subprocess.run(["as", "--32", "-o", target, source], check=True)
    except FileNotFoundError:
        pytest.skip("binutils is not installed")
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", target, flat], check=True)
    assert flat.read_bytes() == bios.CODE


def test_bios_refuses_more_ranges_than_it_holds() -> None:
    from pyvmm_loader.x86_64.e820 import E820Entry

    with pytest.raises(ProtocolViolation, match="memory ranges"):
        bios.bios([E820Entry(n << 20, 1 << 19, 1) for n in range(500)])


def test_refusal_of_pvh_does_not_take_every_elf_for_linux() -> None:
    assert "which Linux has if it is built with CONFIG_PVH" in inspect(elf())["refused"]["pvh"]


def test_damaged_files_are_closed_with_the_error_that_names_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bzimage(syssize=1 << 20))
    for use in (
        inspect,
        extract,
        lambda file: BootPlan(file, SIZE),
        lambda file: BzImage.load(FlatMemory(1), None, file),
    ):
        with pytest.raises(ImageTruncated, match="the kernel ends at"):
            use(path)
    assert str(path) not in Path("/proc/self/maps").read_text()
