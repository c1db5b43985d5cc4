"""The layout of a guest's memory before its first instruction, as a thing that can be read before it is done."""

from __future__ import annotations

from pyvmm_loader.errors import (
    EntryNotOffered,
    InvalidAscii,
    LoaderError,
    MemoryTooSmall,
    Overlap,
    ProtocolViolation,
    TooLarge,
)
from pyvmm_loader.images.identify import identify, refuse, refuse_arch
from pyvmm_loader.images.open import open_image
from pyvmm_loader.images.source import Source
from pyvmm_loader.initrd.initrd import place_initrd
from pyvmm_loader.memory import need_ram, ranges_of, write_zeros
from pyvmm_loader.plan.placement import Placement
from pyvmm_loader.x86_64 import layout
from pyvmm_loader.x86_64.e820 import RAM, e820
from pyvmm_loader.x86_64.firmware_tables import FirmwareTables
from pyvmm_loader.x86_64.registers import Registers, identity_map

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import Any, Self

    from typing_extensions import Buffer

    from pyvmm_loader.acpi.tables import AcpiTables
    from pyvmm_loader.cmdline import Cmdline
    from pyvmm_loader.images.open import KernelImage
    from pyvmm_loader.images.source import ImageLike
    from pyvmm_loader.memory import GuestMemory
    from pyvmm_loader.smbios.tables import Smbios
    from pyvmm_loader.x86_64.e820 import E820Entry


class Module:
    """A file that the kernel is given besides its initrd, where it lies, and the words that go with it."""

    __slots__ = ("size", "start", "text")

    def __init__(self, start: int, size: int, text: str) -> None:
        self.start = start
        self.size = size
        self.text = text


class BootPlan:
    """What goes where in a guest, and why, for one kernel or firmware file.

    `kernel` is a path, an open file or a buffer, compressed or not; `memory` a size in bytes, (start, size) pairs or
    a guest memory; `cmdline` a str or Cmdline; `initrd` like `kernel`; `entry` one of auto, pvh, linux64, linux32,
    linux16, multiboot, multiboot2, reset (firmware), arm64, riscv64, and for a flat binary flat16, flat32, flat64.

    `acpi` describes the machine by ACPI instead of by an MP table, `smbios` says what it is called; `rsdp` is where
    ACPI tables of your own begin, or 0. `initrd` may be a list of several; `bootconfig` is text that goes behind them.
    `modules` are (file, words) pairs for the protocols that know modules (PVH, multiboot). `variables` is the variable
    store of UEFI firmware. `load_address` says where a flat binary goes. `dtb` is the device tree of an arm64 or
    riscv64 guest, that of its virt machine if none is given; its /chosen learns the command line and the initrd. `arch`
    is what the guest is (`x86_64`, `arm64`, `riscv64`): a kernel for another one is refused; without it, the kernel
    decides.

    A plan is complete and checked when it exists. `str(plan)` is a table, `plan.apply(memory)` writes it, and
    `plan.registers` is the state of the first CPU. Firmware lies in `roms`, ranges beyond RAM that `memory` must have
    as well (KVM: a read-only slot). Close it, or use `with`, to unmap the files.

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
        modules: Iterable[tuple[ImageLike, str]] = (),
        variables: ImageLike | None = None,
        load_address: int | None = None,
        dtb: ImageLike | None = None,
        arch: str | None = None,
    ) -> None:
        self.vcpus = vcpus
        self.load_address = load_address
        self.cmdline = ""
        self.placements: list[Placement] = []
        self.roms: list[tuple[int, int]] = []
        self._views: list[memoryview] = []
        self._sources: list[Source] = []
        self._image: KernelImage | None = None
        try:
            source = self._source(kernel)
            if not entry.startswith("flat"):
                source.unpack()
            self.kernel = source.name
            self.kind = "flat" if entry.startswith("flat") else identify(source.view)
            self._image = image = open_image(source.view, source.name, self.kind)
            self.arch = "x86_64" if image.arch == "x86" else image.arch
            if arch is not None and self.arch != arch:
                raise refuse_arch(image.arch, source.name, arch)
            self.ranges = ranges_of(memory, self.arch)
            if not self.ranges:
                raise MemoryTooSmall(f"{source.name}: a guest without RAM; give the guest some", what="RAM")
            # An MP table is for PCs; how many processors a tree describes is for the tree to say.
            self.firmware_tables = FirmwareTables(
                vcpus if self.arch == "x86_64" else 1, self.ranges, acpi, smbios, rsdp
            )
            self.rsdp = self.firmware_tables.rsdp
            self.initrd = self._join(initrd, bootconfig)
            self.modules = [(self._source(file), words) for file, words in modules]
            self.variables = None if variables is None else self._source(variables)
            self.dtb = None if dtb is None else self._source(dtb)
            self.entry = self._choose(entry, image, source.name)
            if (acpi or smbios) and (self.entry == "reset" or self.arch != "x86_64"):
                raise ProtocolViolation(
                    f"{self.kernel}: started by {self.entry}, which takes no ACPI or SMBIOS tables; omit them"
                )
            self._state = self._protocol(image, str(cmdline))
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
        from pyvmm_loader.initrd.initrd import join_initrds

        return self._source(join_initrds([self._source(part).view for part in parts], bootconfig=bootconfig))

    @property
    def registers(self) -> Registers:
        """The state of an x86 guest's first CPU; raises LoaderError for others, which have `boot_registers`."""
        if not isinstance(self._state, Registers):
            raise LoaderError(f"{self.kernel}: a kernel for {self.arch}; its registers are in boot_registers")
        return self._state

    @property
    def boot_registers(self) -> dict[str, int]:
        """The registers of an arm64 or riscv64 guest's first CPU, by name; all others are zero."""
        if isinstance(self._state, Registers):
            raise LoaderError(f"{self.kernel}: a kernel for {self.arch}; its state is in registers")
        return self._state

    @property
    def start(self) -> int:
        """The address of the first instruction."""
        return self._state.entry if isinstance(self._state, Registers) else self._state["pc"]

    def _protocol(self, image: Any, cmdline: str) -> Registers | dict[str, int]:  # noqa: ANN401 (by format)
        """Let the boot protocol that was chosen place the kernel and what it reads."""
        if self.arch == "arm64":
            from pyvmm_loader.aarch64 import linux_boot as arm64

            return arm64.plan(self, image, cmdline)
        if self.arch == "riscv64":
            from pyvmm_loader.riscv64 import linux_boot as riscv64

            return riscv64.plan(self, image, cmdline)
        state = self._x86(image, cmdline)
        if state.gdt:
            self.add(layout.GDT_START, state.gdt, "GDT", "segments the entry expects loaded")
        if state.sregs.cr3:
            self.add(layout.PML4_START, identity_map(), "page tables", "identity map of 4 GiB for long mode")
        if self.entry != "reset":
            # what every kernel on a PC reads, whatever its boot protocol
            self.placements.extend(self.firmware_tables.placements)
        return state

    def _x86(self, image: Any, cmdline: str) -> Registers:  # noqa: ANN401 (by format)
        if self.entry in ("linux64", "linux32"):
            from pyvmm_loader.x86_64 import linux_boot

            plan = linux_boot.plan_elf if self.kind == "elf" else linux_boot.plan_bzimage
            return plan(self, image, cmdline)
        if self.entry == "linux16":
            from pyvmm_loader.x86_64 import linux16

            return linux16.plan(self, image, cmdline)
        if self.entry == "pvh":
            from pyvmm_loader.x86_64 import pvh

            return pvh.plan(self, image, cmdline)
        if self.entry == "multiboot":
            from pyvmm_loader.x86_64 import multiboot

            return multiboot.plan(self, image, cmdline)
        if self.entry == "multiboot2":
            from pyvmm_loader.x86_64 import multiboot2

            return multiboot2.plan(self, image, cmdline)
        if self.entry == "reset":
            from pyvmm_loader.images import firmware

            return firmware.plan(self, image, cmdline)
        from pyvmm_loader.images import flat

        return flat.plan(self, image, cmdline)

    def _choose(self, entry: str, image: KernelImage, name: str) -> str:
        offered = image.entries()
        if entry == "auto" and offered and offered[0] != "efi":
            return offered[0]
        if entry in offered and entry != "efi":
            return entry
        if self.kind == "zboot":
            raise refuse(self.kind, name, 0)
        if not offered and self.arch != "x86_64":
            raise refuse_arch(self.arch, name, "x86_64")
        reason = image.refused().get(entry)
        raise EntryNotOffered(
            f"{name}: no entry {entry!r}{f' ({reason})' if reason else ''}; "
            f"it offers {' and '.join(offered) or 'none'}",
            path=name,
            entry=entry,
            offered=offered,
        )

    # What a boot protocol calls while it plans:

    def add(self, start: int, data: Buffer | None, name: str, why: str, size: int | None = None) -> None:
        """Put `data` at `start`, with zeros up to `size`; data None only keeps the range free."""
        length = size if size is not None else len(memoryview(data or b""))
        self.placements.append(Placement(start, length, name, why, data))

    def add_slice(self, view: memoryview, start: int, name: str, why: str, size: int) -> None:
        """Put a part of the image, which the plan keeps until it is closed."""
        self._views.append(view)
        self.add(start, view, name, why, size)

    def add_rom(self, start: int, view: memoryview, name: str, why: str) -> None:
        """Put `view` where no RAM is; the memory that the plan is applied to must have this range, too."""
        self.roms.append((start, len(view)))
        self.add(start, view, name, why)

    def parse_cmdline(self, text: str, limit: int) -> bytes:
        """Return the command line of at most `limit` characters with its NUL; raises what Cmdline refuses."""
        from pyvmm_loader.cmdline import Cmdline

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
        return line.as_cstring()

    def add_cmdline(self, text: str, limit: int, start: int = layout.CMDLINE_START) -> None:
        """Put the command line of at most `limit` characters; raises TooLarge and what Cmdline refuses."""
        line = self.parse_cmdline(text, limit)
        size = min(limit + 1, layout.CMDLINE_MAX_SIZE)
        self.add(start, line, "command line", f"{len(self.cmdline)} of {size - 1} characters")

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
        at = self._add_high(self.initrd, kernel_end, addr_max, "initrd")
        return at, len(self.initrd.view)

    def add_modules(self, kernel_end: int, addr_max: int) -> list[Module]:
        """Put initrd and modules as high as allowed; return them in their order, the initrd first."""
        found = []
        files = [] if self.initrd is None else [("initrd", self.initrd, "")]
        files += [(f"module {number}", source, words) for number, (source, words) in enumerate(self.modules)]
        for name, source, words in files:
            if not words.isascii() or "\0" in words:
                raise InvalidAscii(f"the words {words!r} of {source.name} are not ASCII; replace the characters")
            at = self._add_high(source, kernel_end, addr_max, name)
            found.append(Module(at, len(source.view), words))
            addr_max = at - 1
        return found

    def _add_high(self, source: Source, kernel_end: int, addr_max: int, name: str) -> int:
        at = place_initrd(len(source.view), self.free_ram(), max(kernel_end, layout.HIMEM_START), addr_max)
        self.add(at, source.view, name, f"as high as RAM and the limit {addr_max:#x} allow")
        return at

    def find_room(self, size: int, bottom: int = layout.PVH_INFO_START, top: int = layout.EBDA_START) -> int:
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
        return e820(self.ranges, firmware=self.firmware_tables.reserved)

    def _check(self) -> None:
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
        at = self.start
        kernel = [p for p in self.placements if p.name.startswith("kernel")]
        if not any(p.start <= at < p.end for p in kernel):
            raise ProtocolViolation(
                f"{self.kernel}: the entry {at:#x} is in no loaded segment; the file is damaged", entry=at
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
        if self._image is not None:
            self._image.close()
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
        rows = [f"{self.kernel}: {self.kind}, entry {self.entry} at {self.start:#x}, {self.vcpus} vCPU(s)"]
        for p in self.placements:
            rows.append(f"  {p.start:#012x}..{p.end:#012x} {p.size:>10}  {p.name:<17} {p.why}")
        rows.extend([f"  RAM {start:#x}..{start + size:#x}" for start, size in self.ranges])
        rows.extend([f"  ROM {start:#x}..{start + size:#x}" for start, size in self.roms])
        return "\n".join(rows)

    def svg(self) -> str:
        """Return the layout as a picture: what lies where, and who reads it."""
        from pyvmm_loader.plan.svg import svg

        return svg(self)

    def __repr__(self) -> str:
        return f"<BootPlan {self.kernel} by {self.entry}, {len(self.placements)} placements>"
