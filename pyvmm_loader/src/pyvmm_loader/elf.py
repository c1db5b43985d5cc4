"""ELF kernels: `vmlinux`, 32 or 64 bits, by the Linux entry or by PVH.

Sources: the System V ABI, chapters 4 and 5; Xen's public/elfnote.h (note 18, XEN_ELFNOTE_PHYS32_ENTRY).
"""

from __future__ import annotations

from struct import Struct

from .errors import ImageTruncated, InvalidHeader, NotAKernel, ProtocolViolation, WrongArchitecture
from .memory import address, need_ram, write_zeros
from .result import KernelLoaderResult, PvhEntryIgnored, PvhEntryNotPresent, PvhEntryPresent
from .source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import SupportsIndex

    from .memory import GuestMemory
    from .source import ImageLike

EHDR = {1: Struct("<16xHHIIIIIHHHHHH"), 2: Struct("<16xHHIQQQIHHHHHH")}
PHDR = {1: Struct("<IIIIIIII"), 2: Struct("<IIQQQQQQ")}
NOTE = Struct("<III")

PT_LOAD, PT_NOTE = 1, 4
ET_EXEC, ET_DYN = 2, 3
EM_386, EM_X86_64 = 3, 62
MACHINES = {
    3: "x86",
    8: "mips",
    20: "ppc",
    21: "ppc64",
    22: "s390",
    40: "arm",
    62: "x86_64",
    183: "arm64",
    243: "riscv",
}
XEN_ELFNOTE_PHYS32_ENTRY = 18

MAX_SEGMENTS = 1024  # a kernel has four to ten
MAX_NOTES = 4096


class Segment:
    """One program header; the same names as in elf.h."""

    __slots__ = ("filesz", "kind", "memsz", "offset", "paddr", "vaddr")

    def __init__(self, kind: int, offset: int, vaddr: int, paddr: int, filesz: int, memsz: int) -> None:
        self.kind = kind
        self.offset = offset
        self.vaddr = vaddr
        self.paddr = paddr
        self.filesz = filesz
        self.memsz = memsz

    def __repr__(self) -> str:
        return f"<Segment type={self.kind} paddr={self.paddr:#x} filesz={self.filesz:#x} memsz={self.memsz:#x}>"


class ElfFile:
    """A checked ELF header with its program headers; `segments` are those to load."""

    __slots__ = ("bits", "entry", "headers", "kind", "machine", "name", "view")

    def __init__(self, view: memoryview, name: str = "<buffer>") -> None:
        self.view = view
        self.name = name
        if bytes(view[:4]) != b"\x7fELF":
            raise NotAKernel(f"{name}: no ELF magic; pass vmlinux, or load a bzImage as one", path=name)
        if len(view) < 16 or view[4] not in EHDR:
            raise InvalidHeader(f"{name}: ELF class is neither 32 nor 64 bits; the file is damaged", field="EI_CLASS")
        if view[5] != 1:
            raise WrongArchitecture(
                f"{name}: a big-endian ELF; build the kernel for a little-endian CPU", arch="big-endian"
            )
        self.bits = 32 * view[4]
        ehdr = EHDR[view[4]]
        self._need(ehdr.size, "ELF header")
        fields = ehdr.unpack_from(view)
        self.kind, self.machine, _, self.entry, phoff, _, _, _, phentsize, phnum, _, _, _ = fields
        phdr = PHDR[view[4]]
        if phnum and phentsize != phdr.size:
            raise InvalidHeader(
                f"{name}: e_phentsize is {phentsize}, not {phdr.size}", field="e_phentsize", value=phentsize
            )
        if phnum > MAX_SEGMENTS:
            raise InvalidHeader(
                f"{name}: {phnum} program headers; at most {MAX_SEGMENTS} are read", field="e_phnum", value=phnum
            )
        self._need(phoff + phnum * phdr.size, "program headers")
        self.headers = []
        for number in range(phnum):
            raw = phdr.unpack_from(view, phoff + number * phdr.size)
            if self.bits == 64:
                kind, _, offset, vaddr, paddr, filesz, memsz, _ = raw
            else:
                kind, offset, vaddr, paddr, filesz, memsz, _, _ = raw
            if kind in (PT_LOAD, PT_NOTE):
                self._need(offset + filesz, f"segment {number}")
            if kind == PT_LOAD and memsz < filesz:
                raise InvalidHeader(
                    f"{name}: segment {number} has more bytes in the file than in memory", field="p_memsz"
                )
            self.headers.append(Segment(kind, offset, vaddr, paddr, filesz, memsz))

    def _need(self, end: int, what: str) -> None:
        if end > len(self.view):
            raise ImageTruncated(
                f"{self.name}: {what} ends at {end:#x}, the file at {len(self.view):#x}; copy or build it again",
                path=self.name,
                needed=end,
                available=len(self.view),
            )

    @property
    def arch(self) -> str:
        """The machine's usual name."""
        return MACHINES.get(self.machine, f"machine {self.machine}")

    @property
    def segments(self) -> list[Segment]:
        """What has to be in memory."""
        return [segment for segment in self.headers if segment.kind == PT_LOAD and segment.memsz]

    def entries(self) -> list[str]:
        """Return the boot protocols that an x86 kernel offers, the one to prefer first."""
        offered = [] if self.pvh_entry() is None else ["pvh"]
        if self.bits == 64 and self.machine == EM_X86_64:
            offered.append("linux64")
        return offered

    def need_x86(self) -> None:
        """Raise unless this is an executable for x86."""
        if self.machine not in (EM_386, EM_X86_64):
            raise WrongArchitecture(
                f"{self.name}: an ELF for {self.arch}; an x86 guest needs a kernel built for x86",
                path=self.name,
                arch=self.arch,
            )
        if self.kind not in (ET_EXEC, ET_DYN):
            raise InvalidHeader(
                f"{self.name}: ELF type {self.kind} is not executable; pass the linked vmlinux",
                field="e_type",
                value=self.kind,
            )
        if not self.segments:
            raise InvalidHeader(
                f"{self.name}: the ELF has nothing to load; pass the linked vmlinux", field="e_phnum", value=0
            )

    def notes(self) -> Iterator[tuple[bytes, int, memoryview]]:
        """Yield (owner, type, description) of every note of every PT_NOTE segment.

        Name and description are padded to 4 bytes in all notes that kernels carry, whatever p_align says.
        """
        count = 0
        for segment in self.headers:
            if segment.kind != PT_NOTE:
                continue
            at, end = segment.offset, segment.offset + segment.filesz
            while at + NOTE.size <= end:
                count += 1
                if count > MAX_NOTES:
                    raise InvalidHeader(f"{self.name}: more than {MAX_NOTES} notes", field="PT_NOTE")
                namesz, descsz, kind = NOTE.unpack_from(self.view, at)
                desc = at + NOTE.size + (namesz + 3 & ~3)
                if desc + descsz > end:
                    raise InvalidHeader(f"{self.name}: a note leaves its segment at {at:#x}", field="PT_NOTE", value=at)
                yield bytes(self.view[at + 12 : at + 12 + namesz]).rstrip(b"\0"), kind, self.view[desc : desc + descsz]
                at = desc + (descsz + 3 & ~3)

    def pvh_entry(self) -> int | None:
        """Return the physical address of the 32-bit PVH entry, or None. The first Xen note counts."""
        for owner, kind, desc in self.notes():
            if owner == b"Xen" and kind == XEN_ELFNOTE_PHYS32_ENTRY:
                if len(desc) not in (4, 8):
                    raise InvalidHeader(
                        f"{self.name}: the PVH note has {len(desc)} bytes, not 4 or 8", field="PHYS32_ENTRY"
                    )
                entry = int.from_bytes(desc, "little")
                if entry >> 32:
                    raise InvalidHeader(
                        f"{self.name}: the PVH entry {entry:#x} is above 4 GiB", field="PHYS32_ENTRY", value=entry
                    )
                return entry
        return None


class Elf:
    """Loads ELF kernels."""

    @staticmethod
    def load(
        memory: GuestMemory,
        kernel_offset: SupportsIndex | None,
        image: ImageLike,
        highmem_start: SupportsIndex | None = None,
    ) -> KernelLoaderResult:
        """Put every PT_LOAD segment of `image` into `memory` and zero its BSS.

        Segments go to their physical addresses, or with `kernel_offset` to that plus the physical address; then
        `kernel_load` is the entry moved alike and PVH, whose address cannot move, is ignored. `highmem_start` is the
        lowest entry accepted. Raises ImageError for the file, PlacementError where memory is too small.
        """
        with Source(image) as source:
            elf = ElfFile(source.view, source.name)
            elf.need_x86()
            offset = 0 if kernel_offset is None else address(kernel_offset)
            if highmem_start is not None and elf.entry < address(highmem_start):
                raise ProtocolViolation(
                    f"{elf.name}: entry {elf.entry:#x} lies below {address(highmem_start):#x}; link the kernel higher",
                    entry=elf.entry,
                )
            source.populate()
            end = load_segments(memory, elf, offset)
            pvh = None if kernel_offset is not None else elf.pvh_entry()
            if kernel_offset is not None:
                capability = PvhEntryIgnored
            else:
                capability = PvhEntryNotPresent if pvh is None else PvhEntryPresent(pvh)
            return KernelLoaderResult(offset + elf.entry, end, None, capability)


def load_segments(memory: GuestMemory, elf: ElfFile, offset: int = 0) -> int:
    """Write the segments, all checked before the first byte is written; return where the last one ends."""
    segments = elf.segments
    for segment in segments:
        need_ram(memory, offset + segment.paddr, segment.memsz, f"{elf.name}: a segment")
    for segment in segments:
        start = offset + segment.paddr
        with elf.view[segment.offset : segment.offset + segment.filesz] as data:
            memory.write_slice(data, start)
        write_zeros(memory, start + segment.filesz, segment.memsz - segment.filesz)
    return max(offset + segment.paddr + segment.memsz for segment in segments)
