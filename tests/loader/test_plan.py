from __future__ import annotations

import os
import subprocess
import sys
from struct import unpack_from
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from tests.loader.images import PVH_ENTRY, XEN_NOTE, FlatMemory, arm64, bzimage, elf, firmware

from pyvmm_loader import (
    BootPlan,
    EntryNotOffered,
    ImageError,
    ImageTruncated,
    InitrdTooLarge,
    InvalidHeader,
    LoaderError,
    MemoryTooSmall,
    NotAKernel,
    Overlap,
    ProtocolViolation,
    TooLarge,
    WrongArchitecture,
    inspect,
    place_initrd,
    reads_acpi,
    split_ram,
)
from pyvmm_loader.__main__ import main
from pyvmm_loader.x86_64 import layout
from pyvmm_loader.x86_64.e820 import RAM, E820Entry, e820
from pyvmm_loader.x86_64.mptable import mptable
from pyvmm_loader.x86_64.registers import SEGMENTS
from pyvmm_memory import GuestMemoryMmap

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 4 << 20


def test_pvh() -> None:
    initrd = b"\x33" * 5000
    with BootPlan(elf(notes=(XEN_NOTE,), bss=100), SIZE, "console=ttyS0", initrd, vcpus=3) as plan:
        memory = FlatMemory(SIZE)
        plan.apply(memory)
        assert "start_info" in str(plan)
        assert "BSS" in str(plan)
    assert plan.entry == "pvh"
    state = plan.registers
    assert (state.regs.rip, state.regs.rbx, state.regs.rflags) == (PVH_ENTRY, layout.PVH_INFO_START, 2)
    assert (state.sregs.cr0, state.sregs.cr4, state.sregs.efer) == (0x11, 0, 0)
    data = memory.data
    magic, version, _, modules, modlist, cmdline, rsdp, memmap, entries = unpack_from("<IIIIQQQQI", data, 0x6000)
    assert (magic, version, modules, rsdp) == (0x336EC578, 1, 1, 0)
    assert data[cmdline : cmdline + 14] == b"console=ttyS0\0"
    start, size = unpack_from("<QQ", data, modlist)
    assert (start, size) == (SIZE - 8192, 5000)
    assert data[start : start + size] == initrd
    found = [E820Entry(*unpack_from("<QQI", data, memmap + 24 * n)) for n in range(entries)]
    assert found == plan.e820
    assert data[layout.MPTABLE_START : layout.MPTABLE_START + 4] == b"_MP_"


def test_linux64_of_an_elf() -> None:
    with BootPlan(elf(), SIZE, "a=b -- c", b"x" * 10) as plan:
        memory = FlatMemory(SIZE)
        plan.apply(memory)
    assert plan.entry == "linux64"
    regs, sregs = plan.registers.regs, plan.registers.sregs
    assert (regs.rip, regs.rsi) == (0x100000, 0x7000)
    assert sregs.cr0 == 0x80000011
    assert (sregs.cr3, sregs.cr4, sregs.efer) == (0x9000, 0x20, 0x500)
    assert (sregs.cs.selector, sregs.cs.l, sregs.cs.db, sregs.ss.selector) == (0x10, 1, 0, 0x18)
    page = memory.data[0x7000:0x8000]
    assert page[0x1FE:0x200] == b"\x55\xaa"
    assert page[0x202:0x206] == b"HdrS"
    assert unpack_from("<I", page, 0x228) == (layout.CMDLINE_START,)
    assert unpack_from("<II", page, 0x218) == (SIZE - 4096, 10)
    assert page[0x210] == 0xFF
    assert page[0x1EF] == 0, "the sentinel"
    assert page[0x1E8] == len(plan.e820)
    # walk the tables for an address in each gigabyte
    for address in (0, 0x100000, 0x7FFFFFFF, 0xFFE00000):
        (pdpt,) = unpack_from("<Q", memory.data, 0x9000)
        (directory,) = unpack_from("<Q", memory.data, (pdpt & ~0xFFF) + (address >> 30) * 8)
        (page_entry,) = unpack_from("<Q", memory.data, (directory & ~0xFFF) + (address >> 21 & 511) * 8)
        assert page_entry == address & ~0x1FFFFF | 0x83


def test_upstream_gdt_limit_covers_exactly_the_table() -> None:
    with BootPlan(elf(), SIZE) as plan:
        state = plan.registers
    assert state.sregs.gdt.limit == len(state.gdt) - 1
    assert state.gdt[0x10:0x18].hex() == "ffff0000009baf00"
    assert state.gdt[0x18:0x20].hex() == "ffff00000093cf00"
    assert "l=1" in repr(state.sregs.cs)


def test_bzimage_entries() -> None:
    with BootPlan(bzimage(), SIZE) as plan:
        assert (plan.entry, plan.registers.regs.rip) == ("linux64", 0x100200)
        assert "workspace" in str(plan)
        plan.apply(FlatMemory(SIZE))
    with BootPlan(bzimage(), SIZE, entry="linux32") as plan:
        assert (plan.registers.regs.rip, plan.registers.sregs.cr0) == (0x100000, 0x11)
    with BootPlan(bzimage(xloadflags=0), SIZE) as plan:
        assert plan.entry == "linux32"
    with pytest.raises(EntryNotOffered, match="linux32") as caught:
        BootPlan(bzimage(xloadflags=0), SIZE, entry="linux64")
    assert caught.value.offered == ["linux32", "linux16"]


def test_errors_name_cause_and_cure(tmp_path: Path) -> None:
    text = tmp_path / "config"
    text.write_text("CONFIG_KVM_GUEST=y\n" * 100)
    cases: list[tuple[type[LoaderError], str, dict[str, object]]] = [
        (NotAKernel, "text file", {"kernel": text}),
        (WrongArchitecture, "arm64", {"kernel": arm64(), "arch": "x86_64"}),
        (WrongArchitecture, "arm64", {"kernel": elf(machine=183)}),
        (EntryNotOffered, "code for linux32", {"kernel": elf(bits=32, machine=3), "entry": "linux64"}),
        (ImageTruncated, "known magic", {"kernel": b"\0" * 100}),
        (NotAKernel, "no known kernel", {"kernel": b"\0" * 5000}),
        (InvalidHeader, "gzip data is damaged", {"kernel": b"\x1f\x8b\x08" + bytes(5000)}),
        (InitrdTooLarge, "more memory", {"initrd": bytes(SIZE)}),
        (TooLarge, "2047", {"cmdline": "x" * 2048}),
        (TooLarge, "takes 100", {"kernel": bzimage(cmdline_size=100), "cmdline": "x" * 101}),
        (TooLarge, "takes 255", {"kernel": bzimage(version=0x205), "cmdline": "x" * 256}),
        (MemoryTooSmall, "more memory", {"memory": 1 << 20}),
        (Overlap, "overlaps", {"kernel": elf(paddr=0x20000, entry=0x20000), "cmdline": "x" * 99}),
        (ProtocolViolation, "no loaded segment", {"kernel": elf(entry=0x300000)}),
    ]
    for error, words, arguments in cases:
        given: dict[str, Any] = {"kernel": elf(), "memory": SIZE, **arguments}
        with pytest.raises(error, match=words) as caught:
            BootPlan(**given)
        assert "\n" not in str(caught.value)


def test_command_line_of_exactly_the_limit() -> None:
    with BootPlan(elf(), SIZE, "x" * 2047) as plan:
        assert plan.cmdline == "x" * 2047


def test_closed_plan_and_too_small_memory() -> None:
    plan = BootPlan(elf(), SIZE)
    with pytest.raises(MemoryTooSmall):
        plan.apply(FlatMemory(1 << 20))
    plan.close()
    with pytest.raises(LoaderError, match="closed"):
        plan.apply(FlatMemory(SIZE))
    assert "BootPlan" in repr(plan)
    assert "Placement" in repr(plan.placements[0])


def test_roles_say_what_each_placement_is() -> None:
    with BootPlan(elf(notes=(XEN_NOTE,)), SIZE, "quiet", b"initrd", entry="linux64") as plan:
        roles = {p.name: p.role for p in plan.placements}
    assert roles["kernel segment 0"] == "kernel"
    assert (roles["initrd"], roles["command line"]) == ("initrd", "command line")
    assert {roles["GDT"], roles["page tables"]} == {"processor"}
    assert (roles["boot stack"], roles["zero page"], roles["MP table"]) == ("reserved", "data", "data")
    with BootPlan(elf(notes=(XEN_NOTE,)), SIZE, modules=[(b"m", "words")], entry="pvh") as plan:
        assert [p.name for p in plan.placements if p.role == "module"] == ["module 0"]
        plan.add(0x5000, b"mine", "kernel of its own name", "a table of the VMM's")
        assert plan.placements[-1].role == "data"
    with BootPlan(arm64(), 1 << 30) as plan:
        assert [p.name for p in plan.placements if p.role == "device tree"] == ["device tree"]


def test_no_mptable_beside_acpi() -> None:
    with BootPlan(elf(), SIZE, rsdp=layout.ACPI_START) as plan:
        assert "MP table" not in str(plan)
        memory = FlatMemory(SIZE)
        plan.apply(memory)
        assert unpack_from("<Q", memory.data, 0x7070) == (layout.ACPI_START,)


def test_registers_copy_by_name() -> None:
    names = ("rax", "rbp", "rbx", "rdi", "rflags", "rip", "rsi", "rsp")
    regs = SimpleNamespace(**dict.fromkeys(names, 1), r15=9)
    sregs = SimpleNamespace(**{name: SimpleNamespace() for name in (*SEGMENTS, "gdt", "idt")}, cr2=9)
    with BootPlan(elf(notes=(XEN_NOTE,)), SIZE) as plan:
        plan.registers.copy_to(regs, sregs)
    assert (regs.rip, regs.rsi, regs.r15, sregs.cr2, sregs.cs.type, sregs.tr.limit) == (PVH_ENTRY, 0, 9, 9, 0xB, 0x67)


def test_split_ram() -> None:
    assert split_ram(0xC0000000) == [(0, 0xC0000000)]
    assert split_ram(0xC0001000) == [(0, 0xC0000000), (1 << 32, 0x1000)]
    for bad in (0, -4096, 100):
        with pytest.raises(ValueError, match="multiple"):
            split_ram(bad)


def test_e820_leaves_out_what_firmware_keeps() -> None:
    entries = e820(split_ram(5 << 30))
    assert [(e.addr, e.addr + e.size) for e in entries if e.type == RAM] == [
        (0, 0x9FC00),
        (0x100000, 0xC0000000),
        (1 << 32, (1 << 32) + (2 << 30)),
    ]
    with pytest.raises(ProtocolViolation, match="128"):
        e820([(n << 21, 1 << 20) for n in range(200)])
    assert len({entries[0], E820Entry(0, 0x9FC00, RAM)}) == 1
    assert entries[0] != 1


def test_upstream_initrd_may_end_at_the_end_of_ram() -> None:
    assert place_initrd(4096, [(0, 2 << 20)], 0x100000, 0x7FFFFFFF) == (2 << 20) - 4096
    assert place_initrd(1 << 20, [(0, 2 << 20)], 0x100000, 0x7FFFFFFF) == 1 << 20
    with pytest.raises(InitrdTooLarge):
        place_initrd((1 << 20) + 1, [(0, 2 << 20)], 0x100000, 0x7FFFFFFF)
    assert place_initrd(4096, split_ram(5 << 30), 0x100000, 0x7FFFFFFF) == 0x7FFFF000


def test_memory_given_by_its_regions() -> None:
    with GuestMemoryMmap.from_ranges([(0, SIZE // 2), (SIZE // 2, SIZE // 2)]) as memory:
        for given in (memory, [(0, SIZE)]):
            with BootPlan(elf(notes=(XEN_NOTE,), bss=5000), given, "quiet", b"initrd") as plan:
                assert plan.ranges == [(0, SIZE)]
                plan.apply(memory)
        flat = FlatMemory(SIZE)
        flat.data[:] = bytes(SIZE)
        with BootPlan(elf(notes=(XEN_NOTE,), bss=5000), SIZE, "quiet", b"initrd") as plan:
            plan.apply(flat)
        data = bytearray(SIZE)
        memory.read_slice(data, 0)
        assert data == flat.data


@pytest.mark.parametrize("vcpus", [1, 2, 64, 255])
def test_mptable(vcpus: int) -> None:
    block = mptable(vcpus)
    assert sum(block[:16]) & 0xFF == 0
    assert unpack_from("<I", block, 4) == (layout.MPTABLE_START + 16,)
    signature, length = unpack_from("<4sH", block, 16)
    (count,) = unpack_from("<H", block, 16 + 34)
    table = block[16:]
    assert (signature, length, sum(table) & 0xFF) == (b"PCMP", len(table), 0)
    at, kinds = 44, []
    for _ in range(count):
        kinds.append(table[at])
        at += 20 if table[at] == 0 else 8
    assert at == len(table)
    assert kinds.count(0) == vcpus
    assert kinds == sorted(kinds)
    assert len(block) <= 0x10000


def test_mptable_limits() -> None:
    for vcpus in (0, 256):
        with pytest.raises(ValueError, match="255"):
            mptable(vcpus)
    for start in (-16, 0xF0001, 1 << 32):
        with pytest.raises(ValueError, match="16"):
            mptable(1, start)


def test_inspect_and_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kernel"
    multiboot = b"\x02\xb0\xad\x1b" + bytes(4) + (-0x1BADB002 & 0xFFFFFFFF).to_bytes(4, "little")
    banner = b"Linux version %s\0Linux version 6.1.0-test (me)\0"
    cases = [
        (elf(notes=(XEN_NOTE,)), "elf64", ["pvh", "linux64"]),
        (elf(banner), "elf64", ["linux64"]),
        (elf(multiboot, bits=32, machine=3), "multiboot", ["multiboot"]),
        (bzimage(), "bzimage", ["linux64", "linux32", "linux16"]),
        (arm64(), "arm64-image", ["arm64"]),
        (elf(machine=183), "elf64", []),
    ]
    for image, kind, entries in cases:
        path.write_bytes(image)
        found = inspect(path)
        assert (found["format"], found["entries"]) == (kind, entries)
        assert main(["inspect", "--json", str(path)]) == 0
        assert main(["inspect", str(path)]) == 0
        assert kind in capsys.readouterr().out
    path.write_bytes(elf(banner))
    assert inspect(path)["version"] == "6.1.0-test"
    assert main(["plan", str(path), "--memory", "64M"]) == 0
    assert "page tables" in capsys.readouterr().out
    path.write_text("text")
    assert main(["inspect", str(path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_every_prefix_of_a_bzimage_is_a_typed_error() -> None:
    image = bzimage()
    for size in range(1, len(image) - 16, 7):
        with pytest.raises(ImageError):
            BootPlan(image[:size], SIZE)


def test_a_boot_imports_nothing_slow() -> None:
    code = (
        "import sys, pyvmm_loader.cmdline, pyvmm_loader.images.elf, pyvmm_loader.plan.plan, pyvmm_loader.x86_64.pvh\n"
        "print(*sys.modules)"
    )
    command = [sys.executable, "-I", "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {"dataclasses", "pathlib", "logging", "typing", "re", "argparse", "enum", "json"} & set(loaded)


@pytest.mark.parametrize("image", [elf(), bzimage(), arm64(), firmware()], ids=["elf", "bzimage", "arm64", "firmware"])
def test_a_guest_without_memory(image: bytes) -> None:
    with pytest.raises(MemoryTooSmall, match="without RAM"):
        BootPlan(image, [])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x7fELF" + bytes(1000), False),
        (b"\x7fELF" + bytes(4090) + b"RSD PTR " + bytes(10), True),
        (bytes(0x202) + b"HdrS" + bytes(100), True),
        (bytes(1 << 16), False),
        (b"", False),
        (b"\x7f", False),
    ],
)
def test_whether_a_kernel_reads_acpi(tmp_path: Path, content: bytes, expected: bool) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(content)
    assert reads_acpi(path) is expected


def test_what_is_no_file_is_refused_by_who_loads_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "nothing", "."):
        assert not reads_acpi(tmp_path / name)
