"""Multiboot 2: the header of tags that a kernel carries.

Source: Multiboot2 Specification version 2.0, section 3.1.
"""

from __future__ import annotations

from struct import Struct

from pyvmm_loader.errors import InvalidHeader

HEADER_MAGIC = 0xE85250D6
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
PREFER_LOWEST, PREFER_HIGHEST = 1, 2

INFO_END, INFO_CMDLINE, INFO_NAME, INFO_MODULE, INFO_MEMORY, INFO_MMAP, INFO_LOAD_BASE = 0, 1, 2, 3, 4, 6, 21
GIVEN = (INFO_CMDLINE, INFO_NAME, INFO_MODULE, INFO_MEMORY, INFO_MMAP, INFO_LOAD_BASE)
"""The types of information that the loader has for every kernel; a header that requires others is refused."""


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
