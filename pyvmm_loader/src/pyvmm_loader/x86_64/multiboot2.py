"""Multiboot 2: the header of tags that a kernel carries, and the tags that it is given.

Source: Multiboot2 Specification version 2.0, sections 3.1 to 3.6.
"""

from __future__ import annotations

from struct import Struct

from pyvmm_loader.errors import InvalidHeader, ProtocolViolation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm_loader.images.elf import ElfFile
    from pyvmm_loader.memory import Loadable
    from pyvmm_loader.plan.plan import BootPlan, Module
    from pyvmm_loader.x86_64.e820 import E820Entry
    from pyvmm_loader.x86_64.multiboot_image import MultibootFile
    from pyvmm_loader.x86_64.registers import Registers

HEADER_MAGIC, BOOTLOADER_MAGIC = 0xE85250D6, 0x36D76289
SEARCH = 32768
"""3.1: "completely within the first 32768 bytes", "64-bit aligned"."""
FIELDS = Struct("<IIII")
TAG = Struct("<HHI")
OPTIONAL = 1
MAX_TAGS = 256

END, REQUEST, ADDRESS, ENTRY, CONSOLE, FRAMEBUFFER, ALIGN, EFI_SERVICES, EFI32, EFI64, RELOCATABLE = range(11)
NAMES = (
    "end", "information request", "address", "entry address", "console flags", "framebuffer", "module alignment",
    "EFI boot services", "EFI i386 entry address", "EFI amd64 entry address", "relocatable",
)  # fmt: skip
EFI_TAGS = (EFI_SERVICES, EFI32, EFI64)
CONSOLE_REQUIRED = 1

INFO_END, INFO_CMDLINE, INFO_NAME, INFO_MODULE, INFO_MEMORY, INFO_MMAP, INFO_LOAD_BASE = 0, 1, 2, 3, 4, 6, 21
GIVEN = (INFO_CMDLINE, INFO_NAME, INFO_MODULE, INFO_MEMORY, INFO_MMAP, INFO_LOAD_BASE)
LOADER_NAME = b"pyvmm\0"
CMDLINE_SIZE = 4095
PREFER_LOWEST, PREFER_HIGHEST = 1, 2


class Relocation:
    """Where a relocatable kernel may go: lowest and highest address, alignment, and which end it prefers."""

    __slots__ = ("align", "highest", "lowest", "preference")

    def __init__(self, lowest: int, highest: int, align: int, preference: int) -> None:
        self.lowest = lowest
        self.highest = highest
        self.align = align
        self.preference = preference


class Header:
    """A header whose checksum is right, with what its tags ask for."""

    __slots__ = ("addresses", "architecture", "entry", "offset", "relocation", "tags", "wishes")

    def __init__(self, offset: int, architecture: int) -> None:
        self.offset = offset
        self.architecture = architecture
        self.addresses: tuple[int, int, int, int] | None = None
        self.entry: int | None = None
        self.relocation: Relocation | None = None
        self.tags: list[tuple[int, bool]] = []
        self.wishes: list[str] = []

    def refusal(self) -> str | None:
        """Say why the kernel cannot be started as it asks, or return None."""
        if self.architecture:
            return f"its multiboot2 header is for architecture {self.architecture}, not i386"
        return self.wishes[0] if self.wishes else None

    def ignored(self) -> list[str]:
        """Return the tags that count on EFI platforms only, which this is not."""
        return [NAMES[kind] for kind, _ in self.tags if kind in EFI_TAGS]


def find(view: memoryview) -> Header | None:
    """Return the first valid header, or None; raise InvalidHeader for one whose tags leave it."""
    head = bytes(view[:SEARCH])
    magic = HEADER_MAGIC.to_bytes(4, "little")
    at = head.find(magic)
    while at >= 0:
        if at % 8 == 0 and at + FIELDS.size <= len(head):
            _, architecture, length, checksum = FIELDS.unpack_from(head, at)
            if HEADER_MAGIC + architecture + length + checksum & 0xFFFFFFFF == 0 and at + length <= len(head):
                header = Header(at, architecture)
                _read_tags(header, head[at : at + length])
                return header
        at = head.find(magic, at + 1)
    return None


def _read_tags(header: Header, block: bytes) -> None:
    at = FIELDS.size
    for _ in range(MAX_TAGS):
        if at + TAG.size > len(block):
            raise InvalidHeader("the multiboot2 header has no end tag", field="tags", value=at)
        kind, flags, size = TAG.unpack_from(block, at)
        if kind == END:
            return
        if size < TAG.size or at + size > len(block):
            raise InvalidHeader(f"a multiboot2 tag of {size} bytes leaves its header", field="size", value=size)
        header.tags.append((kind, bool(flags & OPTIONAL)))
        _read_tag(header, kind, bool(flags & OPTIONAL), block[at + TAG.size : at + size])
        at += size + 7 & ~7
    raise InvalidHeader(f"more than {MAX_TAGS} multiboot2 tags", field="tags", value=MAX_TAGS)


def _read_tag(header: Header, kind: int, optional: bool, body: bytes) -> None:
    words = [int.from_bytes(body[n : n + 4], "little") for n in range(0, len(body) - 3, 4)]
    needed = {ADDRESS: 4, ENTRY: 1, CONSOLE: 1, RELOCATABLE: 4}.get(kind, 0)
    if len(words) < needed:
        raise InvalidHeader(f"a multiboot2 {NAMES[kind]} tag has {len(body)} bytes", field="size", value=len(body))
    if kind == REQUEST and not optional:
        missing = [word for word in words if word not in GIVEN]
        if missing:
            header.wishes.append(f"its multiboot2 header requires information of types {missing}, which is not given")
    elif kind == ADDRESS:
        header.addresses = (words[0], words[1], words[2], words[3])
    elif kind == ENTRY:
        header.entry = words[0]
    elif kind == CONSOLE and not optional and words[0] & CONSOLE_REQUIRED:
        header.wishes.append("its multiboot2 header requires a console that the loader describes, and there is none")
    elif kind == FRAMEBUFFER and not optional:
        header.wishes.append("its multiboot2 header requires a framebuffer, and there is none")
    elif kind == RELOCATABLE:
        header.relocation = Relocation(words[0], words[1], words[2] or 1, words[3])
    elif kind > RELOCATABLE and not optional:
        # 3.1.3: a tag may only be ignored if its flag says so.
        header.wishes.append(f"its multiboot2 header requires tag {kind}, which the specification does not define")


def _tag(kind: int, body: bytes) -> bytes:
    size = 8 + len(body)
    return Struct("<II").pack(kind, size) + body + bytes(-size % 8)


def info(
    cmdline: bytes,
    entries: Sequence[E820Entry],
    modules: Sequence[Module],
    lower: int,
    upper: int,
    load_base: int | None = None,
) -> bytes:
    """Return the boot information; `lower` and `upper` are KiB of RAM from 0 and from 1 MiB."""
    words = Struct("<II")
    tags = _tag(INFO_CMDLINE, cmdline) + _tag(INFO_NAME, LOADER_NAME)
    for module in modules:
        ends = words.pack(module.start, module.start + module.size)
        tags += _tag(INFO_MODULE, ends + module.text.encode("ascii") + b"\0")
    tags += _tag(INFO_MEMORY, words.pack(lower, upper))
    rows = [Struct("<QQII").pack(entry.addr, entry.size, entry.type, 0) for entry in entries]
    tags += _tag(INFO_MMAP, words.pack(24, 0) + b"".join(rows))
    if load_base is not None:
        tags += _tag(INFO_LOAD_BASE, load_base.to_bytes(4, "little"))
    tags += _tag(INFO_END, b"")
    return words.pack(8 + len(tags), 0) + tags


def plan(boot: BootPlan, image: ElfFile | MultibootFile, cmdline: str) -> Registers:
    """Plan a kernel by its multiboot 2 header."""
    from pyvmm_loader.x86_64 import bios, registers
    from pyvmm_loader.x86_64.multiboot import amounts
    from pyvmm_loader.x86_64.multiboot_image import add_pieces, relocate

    header = find(image.view)
    if header is None:
        raise ProtocolViolation(f"{image.name}: no multiboot2 header")
    loadable: Loadable = image.loadable(header)
    base = None
    if header.relocation is not None:
        relocate(boot, image.name, loadable, header.relocation)
        base = loadable.start
    end = add_pieces(boot, image.view, loadable)
    boot.e820 = boot.memory_map()
    line = boot.parse_cmdline(cmdline, CMDLINE_SIZE)
    modules = boot.add_modules(end, 0xFFFFFFFF)
    # a PC's protocol: Xen goes back to real mode and asks the BIOS, and finds its low memory by the data area
    bios.add(boot)
    block = info(line, boot.e820, modules, *amounts(boot.ranges), base)
    at = boot.find_room(len(block))
    boot.add(at, block, "multiboot2 info", "ebx points here; tags with memory map, modules and command line")
    return registers.multiboot(loadable.entry, BOOTLOADER_MAGIC, at)
