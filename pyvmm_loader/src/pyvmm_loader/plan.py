"""The layout of a guest's memory before its first instruction, as a thing that can be read before it is done."""

from __future__ import annotations

from .errors import EntryNotOffered, LoaderError, MemoryTooSmall, Overlap, ProtocolViolation, TooLarge
from .formats import identify, refuse
from .initrd import place_initrd
from .memory import need_ram, ranges_of, write_zeros
from .placement import Placement
from .source import Source
from .x86_64 import layout, registers
from .x86_64.e820 import RAM, e820
from .x86_64.firmware_tables import FirmwareTables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer

    from .acpi.tables import AcpiTables
    from .cmdline import Cmdline
    from .memory import GuestMemory
    from .smbios.tables import Smbios
    from .source import ImageLike
    from .x86_64.e820 import E820Entry


class BootPlan:
    """What goes where in an x86 guest, and why, for one kernel file.

    `kernel` is a path, an open file or a buffer; `memory` a size in bytes, (start, size) pairs or a guest memory;
    `cmdline` a str or Cmdline; `initrd` like `kernel`; `entry` one of auto, pvh, linux64, linux32. `rsdp` is where
    ACPI tables of yours begin (then the MP table is left out), or 0.

    `acpi` describes the machine by ACPI instead of by an MP table, `smbios` says what it is called. `initrd` may be a
    list of several; `bootconfig` is text that goes behind them.

    A plan is complete and checked when it exists. `str(plan)` is a table, `plan.apply(memory)` writes it, and
    `plan.registers` is the state of the first CPU. Close it, or use `with`, to unmap the files.

    Raises ImageError for the file, PlacementError where it does not fit, CmdlineError for the command line.
    """

    e820: list[E820Entry]

    def __init__(
        self,
        kernel: ImageLike,
        memory: object,
        cmdline: str | Cmdline = "",
        initrd: ImageLike | Sequence[ImageLike] | None = None,
        vcpus: int = 1,
        entry: str = "auto",
        *,
        rsdp: int = 0,
        acpi: AcpiTables | None = None,
        smbios: Smbios | None = None,
        bootconfig: str = "",
    ) -> None:
        self.ranges = ranges_of(memory)
        self.vcpus = vcpus
        self.firmware_tables = FirmwareTables(vcpus, self.ranges, acpi, smbios, rsdp)
        self.rsdp = self.firmware_tables.rsdp
        self.placements: list[Placement] = []
        self._views: list[memoryview] = []
        self._sources: list[Source] = []
        try:
            source = self._source(kernel)
            self.kernel = source.name
            self.kind = identify(source.view)
            self.initrd = self._join(initrd, bootconfig)
            self.registers = self._protocol(source, str(cmdline), entry)
            self._tables()
            self._check()
        except BaseException:
            self.close()
            raise

    def _source(self, image: ImageLike) -> Source:
        source = Source(image)
        self._sources.append(source)
        return source

    def _join(self, initrd: ImageLike | Sequence[ImageLike] | None, bootconfig: str) -> Source | None:
        """Open the initrd; several, or a bootconfig, make a new one."""
        parts: list[ImageLike] = []
        if isinstance(initrd, (list, tuple)):
            parts.extend(initrd)
        elif initrd is not None:
            parts.append(initrd)  # type: ignore[arg-type]  # a list or tuple is no ImageLike, the rest is
        if not bootconfig and len(parts) <= 1:
            return self._source(parts[0]) if parts else None
        from .initrd import join_initrds

        return self._source(join_initrds([self._source(part).view for part in parts], bootconfig=bootconfig))

    def _protocol(self, source: Source, cmdline: str, entry: str) -> registers.Registers:
        """Let the boot protocol that was asked for place the kernel and what it reads."""
        if self.kind == "elf":
            from .elf import ElfFile

            elf = ElfFile(source.view, source.name)
            elf.need_x86()
            self.entry = self._choose(entry, elf.entries(), source.name)
            if self.entry == "pvh":
                from .x86_64 import pvh

                return pvh.plan(self, elf, cmdline)
            from .x86_64 import linux_boot

            return linux_boot.plan_elf(self, elf, cmdline)
        if self.kind == "bzimage":
            from .bzimage import BzImageFile
            from .x86_64 import linux_boot

            image = BzImageFile(source.view, source.name)
            self._views.append(image.payload)
            self.entry = self._choose(entry, image.entries(), source.name)
            return linux_boot.plan_bzimage(self, image, cmdline, self.entry)
        raise refuse(self.kind, source.name, len(source.view))

    def _tables(self) -> None:
        """Add what every kernel on this machine reads, whatever its boot protocol."""
        self.add(layout.GDT_START, self.registers.gdt, "GDT", "segments the entry expects loaded")
        if self.entry == "linux64":
            self.add(layout.PML4_START, registers.identity_map(), "page tables", "identity map of 4 GiB for long mode")
        self.placements.extend(self.firmware_tables.placements)

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

    # What a boot protocol calls while it plans:

    def add(self, start: int, data: Buffer | None, name: str, why: str, size: int | None = None) -> None:
        """Put `data` at `start`, with zeros up to `size`; data None only keeps the range free."""
        length = size if size is not None else len(memoryview(data or b""))
        self.placements.append(Placement(start, length, name, why, data))

    def add_slice(self, view: memoryview, start: int, name: str, why: str, size: int) -> None:
        """Put a part of the image, which the plan keeps until it is closed."""
        self._views.append(view)
        self.add(start, view, name, why, size)

    def add_cmdline(self, text: str, limit: int, start: int = layout.CMDLINE_START) -> None:
        """Put the command line of at most `limit` characters; raises TooLarge and what Cmdline refuses."""
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
        self.add(start, line.as_cstring(), "command line", f"{len(line)} of {size - 1} characters")

    def memory_map(self) -> list[E820Entry]:
        """Return the e820 map: RAM without what firmware keeps."""
        return e820(self.ranges, firmware=self.firmware_tables.reserved)

    def add_initrd(self, kernel_end: int, addr_max: int) -> tuple[int, int] | None:
        """Put the initrd, if there is one, as high as allowed; return its address and size."""
        if self.initrd is None:
            return None
        size = len(self.initrd.view)
        ram = [(entry.addr, entry.size) for entry in self.memory_map() if entry.type == RAM]
        at = place_initrd(size, ram, max(kernel_end, layout.HIMEM_START), addr_max)
        self.add(at, self.initrd.view, "initrd", f"as high as RAM and initrd_addr_max {addr_max:#x} allow")
        return at, size

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

    def svg(self) -> str:
        """Return the layout as a picture: what lies where, and who reads it."""
        from .svg import svg

        return svg(self)

    def __repr__(self) -> str:
        return f"<BootPlan {self.kernel} by {self.entry}, {len(self.placements)} placements>"
