"""Where things lie in a guest's memory: what a boot protocol is given, and into which it writes."""

from __future__ import annotations

from pyvmm_loader.errors import InvalidAscii, MemoryTooSmall, Overlap, ProtocolViolation, TooLarge
from pyvmm_loader.initrd.initrd import place_initrd
from pyvmm_loader.plan.placement import CMDLINE, INITRD, KERNEL, MODULE, Placement
from pyvmm_loader.x86_64.e820 import RAM, e820
from pyvmm_loader.x86_64.layout import CMDLINE_MAX_SIZE, CMDLINE_START, EBDA_START, HIMEM_START, PVH_INFO_START

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from pyvmm_loader.images.source import Source
    from pyvmm_loader.plan.placement import Role
    from pyvmm_loader.riscv64.interrupts import Interrupts
    from pyvmm_loader.x86_64.e820 import E820Entry
    from pyvmm_loader.x86_64.firmware_tables import FirmwareTables


class Module:
    """A file that the kernel is given besides its initrd, where it lies, and the words that go with it."""

    __slots__ = ("size", "start", "text")

    def __init__(self, start: int, size: int, text: str) -> None:
        self.start = start
        self.size = size
        self.text = text


class Layout:
    """The memory of one guest, with everything that is to lie in it before the first instruction.

    `kernel` and `entry` are names for messages and for protocols with several entries; `ranges` are the (start, size)
    pairs of RAM, `tables` what firmware leaves there. The rest is what a protocol places as it sees fit: `initrd`,
    `modules` as (file, words) pairs, `variables`, `dtb`, `load_address` and `interrupts` as in `BootPlan`.

    What protocols write: `placements` and `roms` by the methods, `cmdline` as the kernel will read it, and `e820` where
    the kernel is told of memory by such a map.
    """

    e820: list[E820Entry]

    def __init__(
        self,
        kernel: str,
        entry: str,
        arch: str,
        ranges: list[tuple[int, int]],
        tables: FirmwareTables,
        *,
        vcpus: int = 1,
        initrd: Source | None = None,
        modules: Sequence[tuple[Source, str]] = (),
        variables: Source | None = None,
        dtb: Source | None = None,
        load_address: int | None = None,
        interrupts: Interrupts | None = None,
    ) -> None:
        self.kernel = kernel
        self.entry = entry
        self.arch = arch
        self.ranges = ranges
        self.rsdp = tables.rsdp
        self.vcpus = vcpus
        self.initrd = initrd
        self.modules = modules
        self.variables = variables
        self.dtb = dtb
        self.load_address = load_address
        self.interrupts = interrupts
        self.cmdline = ""
        self.placements: list[Placement] = []
        self.roms: list[tuple[int, int]] = []
        self._reserved = tables.reserved
        self._views: list[memoryview] = []

    def add(
        self,
        start: int,
        data: Buffer | None,
        name: str,
        why: str,
        size: int | None = None,
        role: Role | None = None,
    ) -> None:
        """Put `data` at `start`, with zeros up to `size`; None only keeps the range free. `role` is a Placement's."""
        content = 0 if data is None else memoryview(data).nbytes
        length = size if size is not None else content
        if start < 0 or length < content or start + length > 1 << 64:
            raise ProtocolViolation(
                f"{name}: {content} bytes in {length:#x} at {start:#x}; give an address of 64 bits and room for them",
                start=start,
            )
        self.placements.append(Placement(start, length, name, why, data, role))

    def add_slice(self, view: memoryview, start: int, name: str, why: str, size: int, role: Role | None = None) -> None:
        """Put a part of the image, which is kept until the layout is closed."""
        self._views.append(view)
        self.add(start, view, name, why, size, role)

    def add_rom(self, start: int, view: memoryview, name: str, why: str, role: Role | None = None) -> None:
        """Put `view` where no RAM is; guest memory must have this range, too."""
        self.roms.append((start, len(view)))
        self.add(start, view, name, why, role=role)

    def parse_cmdline(self, text: str, limit: int) -> bytes:
        """Return the command line of at most `limit` characters with its NUL; raises what Cmdline refuses."""
        from pyvmm_loader.cmdline import Cmdline

        size = min(limit + 1, CMDLINE_MAX_SIZE)
        try:
            line = Cmdline.try_from(text, size)
        except TooLarge as error:
            raise TooLarge(
                f"the command line has {len(text)} characters, this kernel takes {size - 1}; shorten it",
                needed=len(text) + 1,
                capacity=size,
            ) from error
        self.cmdline = str(line)
        return line.as_cstring()

    def add_cmdline(self, text: str, limit: int, start: int = CMDLINE_START) -> None:
        """Put the command line of at most `limit` characters; raises TooLarge and what Cmdline refuses."""
        line = self.parse_cmdline(text, limit)
        size = min(limit + 1, CMDLINE_MAX_SIZE)
        self.add(start, line, "command line", f"{len(self.cmdline)} of {size - 1} characters", role=CMDLINE)

    def need_no_cmdline(self, text: str) -> None:
        """Raise where somebody gave words or files to a program that no protocol brings them to."""
        if text or self.initrd is not None or self.modules:
            raise ProtocolViolation(
                f"{self.kernel}: started by {self.entry}, which takes no command line, initrd or modules; omit them"
            )

    def add_initrd(self, kernel_end: int, addr_max: int) -> tuple[int, int] | None:
        """Put the initrd, if there is one, as high as allowed; return its address and size."""
        if self.modules:
            raise ProtocolViolation(
                f"{self.kernel}: {self.entry} knows one initrd and no modules; pass them to PVH or multiboot"
            )
        if self.initrd is None:
            return None
        at = self._add_high(self.initrd, kernel_end, addr_max, "initrd", INITRD)
        return at, len(self.initrd.view)

    def add_modules(self, kernel_end: int, addr_max: int) -> list[Module]:
        """Put initrd and modules as high as allowed; return them in their order, the initrd first."""
        found = []
        files = [] if self.initrd is None else [("initrd", self.initrd, "", INITRD)]
        files += [(f"module {number}", source, words, MODULE) for number, (source, words) in enumerate(self.modules)]
        for name, source, words, role in files:
            if not words.isascii() or "\0" in words:
                raise InvalidAscii(f"the words {words!r} of {source.name} are not ASCII; replace the characters")
            at = self._add_high(source, kernel_end, addr_max, name, role)
            found.append(Module(at, len(source.view), words))
            addr_max = at - 1
        return found

    def _add_high(self, source: Source, kernel_end: int, addr_max: int, name: str, role: Role) -> int:
        at = place_initrd(len(source.view), self.free_ram(), max(kernel_end, HIMEM_START), addr_max)
        self.add(at, source.view, name, f"as high as RAM and the limit {addr_max:#x} allow", role=role)
        return at

    def find_room(self, size: int, bottom: int = PVH_INFO_START, top: int = EBDA_START) -> int:
        """Return the highest page below 640 KiB that has `size` free bytes behind it; raises MemoryTooSmall."""
        at = top - size & ~0xFFF
        taken = sorted(self.placements, key=lambda placement: placement.start, reverse=True)
        for placement in taken:
            if placement.start < at + size and placement.end > at:
                at = placement.start - size & ~0xFFF
        if at < bottom:
            raise MemoryTooSmall(f"no {size} free bytes below 640 KiB; the kernel fills it", what="boot information")
        return at

    def free_ram(self) -> list[tuple[int, int]]:
        """Return the (start, size) pairs of RAM that no table lies in."""
        if self.arch != "x86_64":
            return self.ranges
        return [(entry.addr, entry.size) for entry in self.memory_map() if entry.type == RAM]

    def memory_map(self) -> list[E820Entry]:
        """Return the e820 map: RAM without what firmware keeps."""
        return e820(self.ranges, firmware=self._reserved)

    def check(self, entry: int) -> None:
        """Sort the placements, and raise unless each has memory to itself and the `entry` lies in the kernel."""
        self.placements.sort(key=lambda placement: placement.start)
        previous: Placement | None = None
        memory = [*self.ranges, *self.roms]
        for placement in self.placements:
            if not any(start <= placement.start and placement.end <= start + size for start, size in memory):
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
        kernel = [p for p in self.placements if p.role == KERNEL]
        if not any(p.start <= entry < p.end for p in kernel):
            raise ProtocolViolation(
                f"{self.kernel}: the entry {entry:#x} is in no loaded segment; the file is damaged", entry=entry
            )

    def close(self) -> None:
        """Let go of the files' bytes. Where they were to lie stays."""
        for placement in self.placements:
            placement.data = None
        for view in self._views:
            view.release()
        self._views.clear()
