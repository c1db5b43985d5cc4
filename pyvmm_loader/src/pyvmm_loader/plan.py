"""The layout of a guest's memory before its first instruction, as a thing that can be read before it is done."""

from __future__ import annotations

from .errors import EntryNotOffered, LoaderError, MemoryTooSmall, Overlap, ProtocolViolation, TooLarge
from .formats import identify, refuse
from .initrd import place_initrd
from .memory import need_ram, ranges_of, write_zeros
from .source import Source
from .x86_64 import layout, registers
from .x86_64.e820 import e820

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer

    from .cmdline import Cmdline
    from .elf import ElfFile
    from .memory import GuestMemory
    from .source import ImageLike
    from .x86_64.bootparam import SetupHeader

# COMMAND_LINE_SIZE of x86 is 2048 with the NUL; `cmdline_size` of the setup header does not count the NUL.
ELF_CMDLINE_SIZE = 2047


class Placement:
    """Bytes at an address: `data` first, zeros up to `size`; `data` None only reserves the range."""

    __slots__ = ("data", "name", "size", "start", "why")

    def __init__(self, start: int, size: int, name: str, why: str, data: Buffer | None = None) -> None:
        self.start = start
        self.size = size
        self.name = name
        self.why = why
        self.data = data

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.start + self.size

    def __repr__(self) -> str:
        return f"<Placement {self.name} {self.start:#x}..{self.end:#x}>"


class BootPlan:
    """What goes where in an x86 guest, and why, for one kernel file.

    `kernel` is a path, an open file or a buffer; `memory` a size in bytes, (start, size) pairs or a guest memory;
    `cmdline` a str or Cmdline; `initrd` like `kernel`; `entry` one of auto, pvh, linux64, linux32. `rsdp` is where
    ACPI tables of yours begin (then the MP table is left out), or 0.

    A plan is complete and checked when it exists. `str(plan)` is a table, `plan.apply(memory)` writes it, and
    `plan.registers` is the state of the first CPU. Close it, or use `with`, to unmap the files.

    Raises ImageError for the file, PlacementError where it does not fit, CmdlineError for the command line.
    """

    def __init__(
        self,
        kernel: ImageLike,
        memory: object,
        cmdline: str | Cmdline = "",
        initrd: ImageLike | None = None,
        vcpus: int = 1,
        entry: str = "auto",
        *,
        rsdp: int = 0,
    ) -> None:
        self.ranges = ranges_of(memory)
        self.vcpus = vcpus
        self.rsdp = rsdp
        self.placements: list[Placement] = []
        self._views: list[memoryview] = []
        self._sources: list[Source] = []
        try:
            source = self._source(kernel)
            self.kernel = source.name
            self.kind = identify(source.view)
            self.initrd = None if initrd is None else self._source(initrd)
            self.registers = self._plan(source, str(cmdline), entry)
            self._check()
        except BaseException:
            self.close()
            raise

    def _source(self, image: ImageLike) -> Source:
        source = Source(image)
        self._sources.append(source)
        return source

    def _add(self, start: int, data: Buffer | None, name: str, why: str, size: int | None = None) -> None:
        length = size if size is not None else len(memoryview(data or b""))
        self.placements.append(Placement(start, length, name, why, data))

    def _plan(self, source: Source, cmdline: str, entry: str) -> registers.Registers:
        if self.kind == "elf":
            state = self._elf(source, cmdline, entry)
        elif self.kind == "bzimage":
            state = self._bzimage(source, cmdline, entry)
        else:
            raise refuse(self.kind, source.name, len(source.view))
        self._add(layout.GDT_START, state.gdt, "GDT", "segments the entry expects loaded")
        if self.entry == "linux64":
            self._add(layout.PML4_START, registers.identity_map(), "page tables", "identity map of 4 GiB for long mode")
        if not self.rsdp:
            from .x86_64.mptable import mptable

            table = mptable(self.vcpus)
            self._add(
                layout.MPTABLE_START, table, "MP table", f"{self.vcpus} CPU(s), I/O APIC; kernel scans 0xf0000..0xfffff"
            )
        return state

    def _elf(self, source: Source, cmdline: str, entry: str) -> registers.Registers:
        from .elf import EM_X86_64, ElfFile

        elf = ElfFile(source.view, source.name)
        elf.need_x86()
        pvh = elf.pvh_entry()
        offered = [] if pvh is None else ["pvh"]
        if elf.bits == 64 and elf.machine == EM_X86_64:
            offered.append("linux64")
        self.entry = self._choose(entry, offered, source.name)
        end = self._segments(elf)
        if self.entry == "pvh":
            assert pvh is not None
            self._pvh(cmdline, end)
            return registers.pvh(pvh)
        from .x86_64.bootparam import SetupHeader

        self._zero_page(SetupHeader.for_elf(), cmdline, end)
        return registers.linux64(elf.entry)

    def _segments(self, elf: ElfFile) -> int:
        for number, segment in enumerate(elf.segments):
            data = elf.view[segment.offset : segment.offset + segment.filesz]
            self._views.append(data)
            zeros = segment.memsz - segment.filesz
            why = f"PT_LOAD at its physical address{f', {zeros:#x} bytes of BSS zeroed' if zeros else ''}"
            self._add(segment.paddr, data, f"kernel segment {number}", why, segment.memsz)
        return max(placement.end for placement in self.placements)

    def _bzimage(self, source: Source, cmdline: str, entry: str) -> registers.Registers:
        from .bzimage import BzImageFile

        image = BzImageFile(source.view, source.name)
        self._views.append(image.payload)
        header = image.header
        offered = (["linux64"] if image.has_64bit_entry else []) + ["linux32"]
        self.entry = self._choose(entry, offered, source.name)
        start = header.code32_start
        self._add(start, image.payload, "kernel", "bzImage payload where code32_start asks")
        low, high = image.runtime
        behind = start + len(image.payload)
        if high > behind:
            self._add(
                max(low, behind),
                None,
                "kernel workspace",
                "init_size: the kernel unpacks itself here",
                high - max(low, behind),
            )
        self._zero_page(header, cmdline, max(high, behind))
        return registers.linux64(start + 0x200) if self.entry == "linux64" else registers.linux32(start)

    def _choose(self, entry: str, offered: list[str], name: str) -> str:
        if entry == "auto" and offered:
            return offered[0]
        if entry not in offered:
            raise EntryNotOffered(
                f"{name}: no entry {entry!r}; it offers {' and '.join(offered) or 'none'}",
                path=name,
                entry=entry,
                offered=offered,
            )
        return entry

    def _cmdline(self, text: str, limit: int) -> None:
        from .cmdline import Cmdline

        size = min(limit + 1, layout.CMDLINE_MAX_SIZE)
        try:
            line = Cmdline.try_from(text, size)
        except TooLarge as error:
            raise TooLarge(
                f"the command line has {len(text)} characters, this kernel takes {size - 1}; shorten it",
                needed=len(text) + 1,
                capacity=size,
            ) from error
        self.cmdline = str(line)
        self._add(layout.CMDLINE_START, line.as_cstring(), "command line", f"{len(line)} of {size - 1} characters")

    def _initrd(self, kernel_end: int, addr_max: int) -> tuple[int, int] | None:
        if self.initrd is None:
            return None
        size = len(self.initrd.view)
        at = place_initrd(size, self.ranges, max(kernel_end, layout.HIMEM_START), addr_max)
        self._add(at, self.initrd.view, "initrd", f"as high as RAM and initrd_addr_max {addr_max:#x} allow")
        return at, size

    def _pvh(self, cmdline: str, end: int) -> None:
        from .x86_64.pvh import start_info

        self._cmdline(cmdline, ELF_CMDLINE_SIZE)
        initrd = self._initrd(end, 0x7FFFFFFF)
        self.e820 = e820(self.ranges)
        info = start_info(layout.CMDLINE_START, self.e820, [] if initrd is None else [initrd], self.rsdp)
        self._add(layout.PVH_INFO_START, info, "start_info", "PVH: ebx points here; modules and memory map follow")

    def _zero_page(self, header: SetupHeader, cmdline: str, end: int) -> None:
        from .x86_64.bootparam import zero_page

        # Before 2.06 there is no cmdline_size; boot.rst says the limit is then 255.
        self._cmdline(cmdline, header.cmdline_size if header.version >= 0x206 else 255)
        header.type_of_loader = 0xFF
        header.cmd_line_ptr = layout.CMDLINE_START
        initrd = self._initrd(end, header.initrd_addr_max if header.version >= 0x203 else 0x37FFFFFF)
        self.e820 = e820(self.ranges)
        page = zero_page(header, self.e820, initrd, self.rsdp)
        self._add(layout.ZERO_PAGE_START, page, "zero page", "struct boot_params: rsi points here")
        self._add(layout.BOOT_STACK_START, None, "boot stack", "rsp at the entry", 0x1000)

    def _check(self) -> None:
        self.placements.sort(key=lambda placement: placement.start)
        previous: Placement | None = None
        for placement in self.placements:
            if not any(start <= placement.start and placement.end <= start + size for start, size in self.ranges):
                raise MemoryTooSmall(
                    f"{placement.name} needs {placement.start:#x}..{placement.end:#x}, which is not all guest RAM; "
                    "give the guest more memory",
                    what=placement.name,
                    start=placement.start,
                    end=placement.end,
                )
            if previous is not None and placement.start < previous.end:
                raise Overlap(
                    f"{placement.name} at {placement.start:#x} overlaps {previous.name} until {previous.end:#x}; "
                    "link the kernel at 1 MiB or above, or make one of them smaller",
                    first=previous.name,
                    second=placement.name,
                )
            if previous is None or placement.end > previous.end:
                previous = placement
        rip = self.registers.regs.rip
        kernel = [p for p in self.placements if p.name.startswith("kernel")]
        if not any(p.start <= rip < p.end for p in kernel):
            raise ProtocolViolation(
                f"{self.kernel}: the entry {rip:#x} is in no loaded segment; the file is damaged", entry=rip
            )

    def apply(self, memory: GuestMemory) -> None:
        """Write everything into `memory`, which must have the RAM that the plan was made for."""
        if not self._sources:
            raise LoaderError("the plan is closed; apply it before that")
        for placement in self.placements:
            need_ram(memory, placement.start, placement.size, placement.name)
        for source in self._sources:
            source.populate()
        for placement in self.placements:
            if placement.data is not None:
                with memoryview(placement.data) as data:
                    memory.write_slice(data, placement.start)
                    write_zeros(memory, placement.start + len(data), placement.size - len(data))

    def close(self) -> None:
        """Unmap the files. The text of the plan and its registers stay."""
        for placement in self.placements:
            placement.data = None
        for view in self._views:
            view.release()
        self._views.clear()
        while self._sources:
            self._sources.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __str__(self) -> str:
        rows = [f"{self.kernel}: {self.kind}, entry {self.entry} at {self.registers.regs.rip:#x}, {self.vcpus} vCPU(s)"]
        for p in self.placements:
            rows.append(f"  {p.start:#012x}..{p.end:#012x} {p.size:>10}  {p.name:<17} {p.why}")
        rows.extend([f"  RAM {start:#x}..{start + size:#x}" for start, size in self.ranges])
        return "\n".join(rows)

    def __repr__(self) -> str:
        return f"<BootPlan {self.kernel} by {self.entry}, {len(self.placements)} placements>"
