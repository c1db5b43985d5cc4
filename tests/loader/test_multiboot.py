"""Multiboot 1 and 2: headers found and refused, the information given, and a kernel that reads it on a real vCPU."""

from __future__ import annotations

import os
from struct import pack, unpack_from

import pytest
from tests.loader.images import FlatMemory, elf, multiboot, multiboot2, multiboot2_header, tag

from pyvmm_loader import (
    BootPlan,
    EntryNotOffered,
    ImageTruncated,
    InvalidAscii,
    InvalidHeader,
    LoaderError,
    MemoryTooSmall,
    ProtocolViolation,
    inspect,
)
from pyvmm_memory import GuestMemoryMmap

SIZE = 4 << 20
MODULES = ((b"first module", "one two"), (b"second", ""))


def tags_of(data: bytes | bytearray, at: int) -> dict[int, list[bytes]]:
    total, _ = unpack_from("<II", data, at)
    found: dict[int, list[bytes]] = {}
    here = at + 8
    while here < at + total:
        kind, size = unpack_from("<II", data, here)
        found.setdefault(kind, []).append(bytes(data[here + 8 : here + size]))
        here += size + 7 & ~7
    return found


def text(data: bytearray, at: int) -> bytes:
    return bytes(data[at : data.index(0, at)])


def test_multiboot1_information() -> None:
    memory = FlatMemory(SIZE)
    with BootPlan(multiboot(bss=100), SIZE, "a=1 b", b"initrd", modules=MODULES) as plan:
        plan.apply(memory)
    assert (plan.kind, plan.entry, plan.start) == ("multiboot", "multiboot", 0x100020)
    regs, sregs = plan.registers.regs, plan.registers.sregs
    assert (regs.rax, sregs.cr0, sregs.cs.db, sregs.cs.limit, regs.rflags) == (0x2BADB002, 0x11, 1, 0xFFFFFFFF, 2)
    data = memory.data
    flags, lower, upper, _, cmdline, count, modules = unpack_from("<7I", data, regs.rbx)
    assert (flags, lower, upper, count) == (0b1001001101, 639, 3072, 3)
    assert text(data, cmdline) == b"a=1 b"
    expected = [(b"initrd", b""), (b"first module", b"one two"), (b"second", b"")]
    for number, (content, words) in enumerate(expected):
        start, end, string, _ = unpack_from("<4I", data, modules + 16 * number)
        assert (bytes(data[start:end]), text(data, string), start % 4096) == (content, words, 0)
    length, at, _, _, _, name = unpack_from("<6I", data, regs.rbx + 44)
    assert text(data, name) == b"pyvmm"
    rows = [unpack_from("<IQQI", data, at + n) for n in range(0, length, 24)]
    assert [(e.addr, e.size, e.type) for e in plan.e820] == [row[1:] for row in rows]
    assert {row[0] for row in rows} == {20}
    assert data[0x100060 : 0x100060 + 101] == bytes(100) + b"\xaa"


def test_multiboot2_information() -> None:
    memory = FlatMemory(SIZE)
    with BootPlan(multiboot2(), SIZE, "words here", modules=MODULES) as plan:
        plan.apply(memory)
    regs = plan.registers.regs
    assert (plan.entry, regs.rax, regs.rbx % 8) == ("multiboot2", 0x36D76289, 0)
    found = tags_of(memory.data, regs.rbx)
    assert found[1] == [b"words here\0"]
    assert found[2] == [b"pyvmm\0"]
    assert found[4] == [pack("<II", 639, 3072)]
    assert found[6][0][:8] == pack("<II", 24, 0)
    assert len(found[6][0]) == 8 + 24 * len(plan.e820)
    assert 21 not in found
    assert list(found)[-1] == 0
    for row, (content, words) in zip(found[3], MODULES, strict=True):
        start, end = unpack_from("<II", row)
        assert bytes(memory.data[start:end]) == content
        assert row[8:] == words.encode() + b"\0"


def test_elf_kernel_with_both_headers() -> None:
    one = pack("<III", 0x1BADB002, 3, -(0x1BADB002 + 3) & 0xFFFFFFFF)
    two = multiboot2_header(tag(7, b"", 1), tag(9, bytes(4)), tag(6, b""))
    image = elf(two + one + b"\xf4" * 64, bits=32, machine=3)
    shift = -image.index(two) % 8
    assert shift == 4, "the code of a 32-bit ELF begins four bytes off; the header moves behind a filler"
    image = elf(bytes(shift) + two + one + b"\xf4" * 64, bits=32, machine=3)
    found = inspect(image)
    assert (found["format"], found["entries"]) == ("multiboot2", ["multiboot2", "multiboot"])
    assert found["multiboot2_ignored"] == ["EFI boot services", "EFI amd64 entry address"]
    assert "multiboot header" in found["refused"]["linux32"]
    for entry in ("multiboot", "multiboot2"):
        with BootPlan(image, SIZE, entry=entry) as plan:
            plan.apply(FlatMemory(SIZE))
            assert plan.start == 0x100000


def test_upstream_entry_at_a_virtual_address_is_translated() -> None:
    image = bytearray(elf(pack("<III", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF) + bytes(4) + b"\xf4" * 9))
    image[24:32] = pack("<Q", 0xFFFFFFFF80100010)
    image[80:88] = pack("<Q", 0xFFFFFFFF80100000)  # p_vaddr of the only segment
    with BootPlan(image, SIZE) as plan:
        assert (plan.entry, plan.start) == ("multiboot", 0x100010)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ((tag(1, pack("<I", 8)),), r"information of types \[8\]"),
        ((tag(4, pack("<I", 1)),), "console"),
        ((tag(5, bytes(12)),), "framebuffer"),
        ((tag(99, b""),), "tag 99"),
    ],
)
def test_multiboot2_requirements_that_cannot_be_met(tags: tuple[bytes, ...], reason: str) -> None:
    with pytest.raises(EntryNotOffered, match=reason):
        BootPlan(multiboot2(b"\xf4", *tags), SIZE, entry="multiboot2")
    optional = [tag(t[0] | t[1] << 8, t[8:], 1) for t in tags]
    with BootPlan(multiboot2(b"\xf4" * 8, *optional), SIZE) as plan:
        assert plan.entry == "multiboot2"


def test_headers_that_are_refused() -> None:
    with pytest.raises(EntryNotOffered, match="flags 0x8"):
        BootPlan(multiboot(flags=0x10008), SIZE, entry="multiboot")
    header = multiboot2_header(architecture=4) + bytes(600)
    with pytest.raises(EntryNotOffered, match="architecture 4"):
        BootPlan(header, SIZE, entry="multiboot2")
    with pytest.raises(EntryNotOffered, match="no address fields"):
        BootPlan(multiboot(flags=3).ljust(600, b"\0"), SIZE, entry="multiboot")


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (pack("<HHI", 1, 0, 4) + bytes(8), "leaves its header"),
        (pack("<HHI", 1, 0, 400) + bytes(8), "leaves its header"),
        (tag(2, bytes(8)), "has 8 bytes"),
        (tag(6, b"") * 300, "more than 256"),
    ],
)
def test_multiboot2_headers_that_lie(tags: bytes, words: str) -> None:
    with pytest.raises(InvalidHeader, match=words):
        inspect(multiboot2_header(tags) + bytes(600))


def test_multiboot2_without_an_end_tag() -> None:
    body = tag(6, b"")
    size = 16 + len(body)
    header = pack("<IIII", 0xE85250D6, 0, size, -(0xE85250D6 + size) & 0xFFFFFFFF) + body
    with pytest.raises(InvalidHeader, match="no end tag"):
        inspect(header + bytes(600))


def test_address_fields_that_lie() -> None:
    good = multiboot()

    def changed(at: int, value: int) -> bytes:
        return good[:at] + pack("<I", value) + good[at + 4 :]

    for at, value, error in (
        (12, 0xFFFFF, InvalidHeader),  # the header in front of the load address
        (12, 0x200000, InvalidHeader),  # the load address in front of the file
        (20, 0x200000, ImageTruncated),
        (20, 0xFFF00, InvalidHeader),
        (24, 0x100001, InvalidHeader),
    ):
        with pytest.raises(error):
            BootPlan(changed(at, value), SIZE)
    with BootPlan(changed(20, 0), SIZE) as plan:
        assert plan.placements[-1].end - 0x100000 == len(good)
    with pytest.raises(InvalidHeader, match="entry address"):
        BootPlan(multiboot2_header(tag(2, pack("<IIII", 0x100000, 0x100000, 0, 0))) + bytes(600), SIZE)
    from_the_start = multiboot2_header(tag(2, pack("<IIII", 0x100000, 0xFFFFFFFF, 0, 0)), tag(3, pack("<I", 0x100040)))
    with BootPlan(from_the_start + bytes(600), SIZE) as plan:
        assert plan.placements[-1].start == 0x100000


def relocatable(lowest: int, highest: int, align: int, preference: int, paddr: int = 0x800000) -> bytes:
    header = multiboot2_header(tag(10, pack("<IIII", lowest, highest, align, preference)))
    return elf(header + b"\xf4" * 64, paddr=paddr, entry=paddr + len(header))


@pytest.mark.parametrize(
    ("preference", "expected"), [(0, 0x100000), (1, 0x100000), (2, SIZE - 0x10000)], ids=["none", "lowest", "highest"]
)
def test_relocatable_kernel_moves_into_ram(preference: int, expected: int) -> None:
    image = relocatable(0x100000, 0xFFFFFFFF, 0x10000, preference)
    memory = FlatMemory(SIZE)
    with BootPlan(image, SIZE) as plan:
        plan.apply(memory)
    assert memory.data[plan.start] == 0xF4
    assert plan.start & ~0xFFFF == expected
    assert tags_of(memory.data, plan.registers.regs.rbx)[21] == [pack("<I", expected)]


def test_relocatable_kernel_stays_where_it_was_linked_if_it_can() -> None:
    with BootPlan(relocatable(0x100000, 0xFFFFFFFF, 0x1000, 2, 0x200000), SIZE) as plan:
        assert plan.start & ~0xFFF == 0x200000
    with pytest.raises(MemoryTooSmall, match="not free RAM"):
        BootPlan(relocatable(0x1000000, 0xFFFFFFFF, 0x1000, 0), SIZE)
    # below 1 MiB lie EBDA, video memory and tables: a kernel that may go anywhere goes above
    with BootPlan(relocatable(0x9F000, 0xFFFFFFFF, 0x1000, 1), SIZE) as plan:
        assert plan.start >= 0x100000


def test_information_moves_out_of_a_low_kernels_way() -> None:
    low = multiboot(load=0x9000, bss=0x60000)
    with BootPlan(low, SIZE, modules=MODULES) as plan:
        plan.apply(FlatMemory(SIZE))
        assert plan.registers.regs.rbx >= 0x69000
    with pytest.raises(LoaderError, match="640 KiB"):
        BootPlan(multiboot(load=0x6000, bss=0x99C00 - 96), SIZE)


def test_words_of_a_module_are_ascii() -> None:
    for words in ("caf\u00e9", "nul\0"):
        with pytest.raises(InvalidAscii):
            BootPlan(multiboot(), SIZE, modules=[(b"x", words)])


def test_modules_are_refused_where_the_protocol_has_none() -> None:
    with pytest.raises(ProtocolViolation, match="no modules"):
        BootPlan(elf(), SIZE, modules=MODULES)


# mov dx, 0x3f8; out dx, eax; mov eax, [ebx + n]; out dx, eax; hlt
PROGRAM = "66baf803 ef 8b43{:02x} ef f4"


@pytest.mark.kvm
@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="/dev/kvm does not open")
@pytest.mark.parametrize("version", [1, 2])
def test_kernel_finds_magic_and_information(version: int) -> None:
    from pyvmm_kvm import IoOut, Kvm

    # flags of multiboot 1; of multiboot 2 the type of the first tag
    code = bytes.fromhex(PROGRAM.format(0 if version == 1 else 8))
    image, magic, word = (multiboot(code), 0x2BADB002, 0x24D) if version == 1 else (multiboot2(code), 0x36D76289, 1)
    with (
        GuestMemoryMmap.from_ranges([(0, SIZE)]) as memory,
        Kvm() as kvm,
        kvm.create_vm() as vm,
        BootPlan(image, memory) as plan,
    ):
        plan.apply(memory)
        vm.set_user_memory_region(0, 0, next(iter(memory)).buffer)
        with vm.create_vcpu(0) as vcpu:
            regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
            plan.registers.copy_to(regs, sregs)
            vcpu.set_sregs(sregs)
            vcpu.set_regs(regs)
            for expected in (magic, word):
                match vcpu.run():
                    case IoOut(port, data):
                        assert (port, int.from_bytes(data, "little")) == (0x3F8, expected)
                    case other:
                        pytest.fail(repr(other))
