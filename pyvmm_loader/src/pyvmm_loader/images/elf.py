"""ELF kernels: `vmlinux`, 32 or 64 bits, by the Linux entry or by PVH.

Sources: the System V ABI, chapters 4 and 5; Xen's public/elfnote.h (note 18, XEN_ELFNOTE_PHYS32_ENTRY).
"""

from __future__ import annotations

from struct import Struct

from pyvmm_loader.errors import ImageTruncated, InvalidHeader, ProtocolViolation, WrongArchitecture
from pyvmm_loader.images.identify import banner, refuse_magic
from pyvmm_loader.images.pieces import Loadable, Piece
from pyvmm_loader.images.result import KernelLoaderResult, PvhEntryIgnored, PvhEntryNotPresent, PvhEntryPresent
from pyvmm_loader.images.source import Source
from pyvmm_loader.memory import address, need_ram, write_zeros

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, ClassVar, SupportsIndex

    from pyvmm_loader.images.multiboot import Header
    from pyvmm_loader.images.result import KernelLoader, PvhBootCapability
    from pyvmm_loader.images.source import ImageLike
    from pyvmm_loader.memory import GuestMemory

EHDR = {1: Struct("<16xHHIIIIIHHHHHH"), 2: Struct("<16xHHIQQQIHHHHHH")}
PHDR = {1: Struct("<IIIIIIII"), 2: Struct("<IIQQQQQQ")}
NOTE = Struct("<III")

PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4
ET_EXEC, ET_DYN = 2, 3
EM_386, EM_X86_64, EM_RISCV = 3, 62, 243
MACHINES = {
    3: "x86",
    8: "mips",
    20: "ppc",
    21: "ppc64",
    22: "s390",
    40: "arm",
    62: "x86_64",
    183: "arm64",
}
XEN_ELFNOTE_PHYS32_ENTRY = 18

MAX_SEGMENTS = 1024  # a kernel has four to ten
MAX_NOTES = 4096


class Segment:
    """One program header; the same names as in elf.h."""

    __slots__ = ("align", "filesz", "kind", "memsz", "offset", "paddr", "vaddr")

    def __init__(self, kind: int, offset: int, vaddr: int, paddr: int, filesz: int, memsz: int, align: int) -> None:
        self.kind = kind
        self.offset = offset
        self.vaddr = vaddr
        self.paddr = paddr
        self.filesz = filesz
        self.memsz = memsz
        self.align = align

    def __repr__(self) -> str:
        return f"<Segment type={self.kind} paddr={self.paddr:#x} filesz={self.filesz:#x} memsz={self.memsz:#x}>"


class ElfFile:
    """A checked ELF header with its program headers; `segments` are those to load."""

    entry: int
    __slots__ = ("_multiboot", "bits", "entry", "headers", "kind", "machine", "name", "view")

    def __init__(self, view: memoryview, name: str = "<buffer>") -> None:
        self.view = view
        self.name = name
        self._multiboot: dict[str, Header] | None = None
        if bytes(view[:4]) != b"\x7fELF":
            raise refuse_magic(view, name, "no ELF magic; pass vmlinux, or load a bzImage as one")
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
        if phnum and phoff < ehdr.size:
            raise InvalidHeader(
                f"{name}: the program headers at {phoff:#x} lie in the ELF header", field="e_phoff", value=phoff
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
                kind, _, offset, vaddr, paddr, filesz, memsz, align = raw
            else:
                kind, offset, vaddr, paddr, filesz, memsz, _, align = raw
            if kind in (PT_LOAD, PT_NOTE):
                self._need(offset + filesz, f"segment {number}")
            if kind == PT_LOAD and memsz < filesz:
                raise InvalidHeader(
                    f"{name}: segment {number} has more bytes in the file than in memory", field="p_memsz"
                )
            self.headers.append(Segment(kind, offset, vaddr, paddr, filesz, memsz, align))

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
        if self.machine == EM_RISCV:
            return f"riscv{self.bits}"
        return MACHINES.get(self.machine, f"machine {self.machine}")

    @property
    def segments(self) -> list[Segment]:
        """What has to be in memory."""
        return [segment for segment in self.headers if segment.kind == PT_LOAD and segment.memsz]

    @property
    def multiboot(self) -> dict[str, Header]:
        """The multiboot headers in it, by the names of their entries."""
        if self._multiboot is None:
            from pyvmm_loader.images.multiboot import headers

            self._multiboot = headers(self.view) if self.machine in (EM_386, EM_X86_64) else {}
        return self._multiboot

    @property
    def format(self) -> str:
        """`elf64` or `elf32`; `multiboot2` or `multiboot` where that is the only way to start it."""
        entries = self.entries()
        only = bool(entries) and all(entry.startswith("multiboot") for entry in entries)
        return entries[0] if only else f"elf{self.bits}"

    def entries(self) -> list[str]:
        """Return the boot protocols that an x86 kernel offers, the one to prefer first; none for other machines."""
        return self._offers()[0]

    def refused(self) -> dict[str, str]:
        """Return the boot protocols that it does not offer, each with the reason."""
        return self._offers()[1]

    def _offers(self) -> tuple[list[str], dict[str, str]]:
        offered: list[str] = []
        refused: dict[str, str] = {}
        if self.machine not in (EM_386, EM_X86_64):
            return offered, refused
        if self.pvh_entry() is None:
            refused["pvh"] = "it has no note of type 18 by Xen, which Linux has if it is built with CONFIG_PVH"
        else:
            offered.append("pvh")
        for name, header in self.multiboot.items():
            reason = header.refusal()
            if reason is None:
                offered.append(name)
            else:
                refused[name] = reason
        native, other = "linux32", "linux64"
        if self.bits == 64 and self.machine == EM_X86_64:
            native, other = other, native
        refused[other] = f"the entry of an ELF for {self.arch} is code for {native}"
        reason = self._not_linux()
        if reason is None:
            offered.append(native)
        else:
            refused[native] = reason
        return offered, refused

    def _not_linux(self) -> str | None:
        """Say why e_entry does not follow Linux's boot protocol, or return None."""
        if self.kind not in (ET_EXEC, ET_DYN):
            return f"ELF type {self.kind} is not executable"
        if any(segment.kind == PT_INTERP for segment in self.headers):
            return "it is a program for user space: it names an interpreter"
        # Only Linux has these entries; a kernel with a multiboot header is something else.
        if self.multiboot:
            return "it has a multiboot header, which Linux has not"
        return None if self.segments else "it has nothing to load"

    @property
    def physical_entry(self) -> int:
        """e_entry as a physical address: kernels that are linked at a virtual address may name that one."""
        for segment in self.segments:
            if segment.paddr <= self.entry < segment.paddr + segment.memsz:
                return self.entry
        for segment in self.segments:
            if segment.vaddr <= self.entry < segment.vaddr + segment.memsz:
                return self.entry - segment.vaddr + segment.paddr
        return self.entry

    @property
    def alignment(self) -> int:
        """The largest alignment that a segment asks for."""
        return max([segment.align for segment in self.segments], default=0)

    def version(self) -> str | None:
        """Return the release in `linux_banner`, where there is one."""
        return banner(self.view)

    def facts(self) -> dict[str, Any]:
        """Return what its headers say of place and entry."""
        segments = self.segments
        facts: dict[str, Any] = {
            "entry": self.entry,
            "pvh_entry": self.pvh_entry() if self.machine in (EM_386, EM_X86_64) else None,
            "type": self.kind,
            "relocatable": self.kind == ET_DYN,
            "alignment": self.alignment,
            "start": min([segment.paddr for segment in segments], default=0),
            "end": max([segment.paddr + segment.memsz for segment in segments], default=0),
            "segments": len(segments),
        }
        if self.multiboot:
            from pyvmm_loader.images.multiboot import describe

            facts.update(describe(self.multiboot))
        return facts

    def loadable(self, header: Header) -> Loadable:
        """Return what a multiboot loader loads: by the header's address fields if it has them, else the segments."""
        if header.addresses is not None:
            from pyvmm_loader.images.multiboot import by_addresses

            return by_addresses(self.view, self.name, header)
        if not self.segments:
            raise InvalidHeader(f"{self.name}: no segment to load; pass the linked kernel", field="e_phnum")
        pieces = [Piece(s.paddr, s.offset, s.filesz, s.memsz) for s in self.segments]
        entry = getattr(header, "entry", None)
        return Loadable(pieces, self.physical_entry if entry is None else entry)

    def close(self) -> None:
        """Do nothing; the file's view belongs to the caller."""

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
        # One that takes no memory will do: linux-loader loads such an ELF, which has nothing but a PVH note.
        if not any(header.kind == PT_LOAD for header in self.headers):
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


def load_elf(
    memory: GuestMemory,
    kernel_offset: SupportsIndex | None,
    image: ImageLike,
    highmem_start: SupportsIndex | None = None,
) -> KernelLoaderResult:
    """Put every PT_LOAD segment of `image` into `memory` and zero its BSS.

    Segments go to their physical addresses, or with `kernel_offset` to that plus the physical address; then
    `kernel_load` is the entry moved alike and PVH, whose address cannot move, is ignored. `highmem_start` is the
    lowest entry accepted. Raises ImageError for the file, PlacementError where memory is too small or the offset
    no multiple of the segments' alignment.
    """
    with Source(image) as source:
        elf = ElfFile(source.view, source.name)
        elf.need_x86()
        offset = 0 if kernel_offset is None else address(kernel_offset)
        # Linux's __startup_64 stops without a word where it lies on no multiple of 2 MiB, its segments' alignment.
        if elf.alignment > 1 and offset % elf.alignment:
            raise ProtocolViolation(
                f"{elf.name}: moved by {offset:#x}; its segments need a multiple of {elf.alignment:#x}",
                start=offset,
                alignment=elf.alignment,
            )
        entry = elf.physical_entry
        if highmem_start is not None and entry < address(highmem_start):
            raise ProtocolViolation(
                f"{elf.name}: entry {entry:#x} lies below {address(highmem_start):#x}; link the kernel higher",
                entry=entry,
            )
        capability = _pvh(elf, moved=kernel_offset is not None)
        end = _load_segments(memory, source, elf, offset)
        return KernelLoaderResult(offset + entry, end, None, capability)


def _pvh(elf: ElfFile, *, moved: bool) -> PvhBootCapability:
    """Return whether PVH is offered. Its entry is an absolute address, of no use where the kernel was moved."""
    if moved:
        return PvhEntryIgnored if any(header.kind == PT_NOTE for header in elf.headers) else PvhEntryNotPresent
    entry = elf.pvh_entry()
    return PvhEntryNotPresent if entry is None else PvhEntryPresent(entry)


def _load_segments(memory: GuestMemory, source: Source, elf: ElfFile, offset: int) -> int:
    """Write the segments, all checked before the first byte is written; return where the last one ends."""
    segments = elf.segments
    for segment in segments:
        need_ram(memory, offset + segment.paddr, segment.memsz, f"{elf.name}: a segment")
    for segment in segments:
        start = offset + segment.paddr
        if segment.filesz:
            source.write_to(memory, start, segment.offset, segment.filesz)
        write_zeros(memory, start + segment.filesz, segment.memsz - segment.filesz)
    return max([offset + segment.paddr + segment.memsz for segment in segments], default=0)


class Elf:
    """Loads ELF kernels."""

    load: ClassVar[KernelLoader] = staticmethod(load_elf)
