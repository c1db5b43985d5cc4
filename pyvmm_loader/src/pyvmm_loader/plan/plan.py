"""A boot as a thing that can be read before it is done: by which protocol, what goes where, and why."""

from __future__ import annotations

from pyvmm_loader.errors import EntryNotOffered, LoaderError, MemoryTooSmall, ProtocolViolation
from pyvmm_loader.images.identify import identify, refuse, refuse_arch
from pyvmm_loader.images.open import open_image
from pyvmm_loader.images.source import Source
from pyvmm_loader.memory import need_ram, ranges_of, write_zeros
from pyvmm_loader.plan.layout import Layout
from pyvmm_loader.plan.placement import PROCESSOR
from pyvmm_loader.x86_64.firmware_tables import FirmwareTables
from pyvmm_loader.x86_64.layout import GDT_START, PML4_START
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
    from pyvmm_loader.plan.placement import Placement, Role
    from pyvmm_loader.riscv64.interrupts import Interrupts
    from pyvmm_loader.smbios.tables import Smbios
    from pyvmm_loader.x86_64.e820 import E820Entry


class BootPlan:
    """What goes where in a guest, and why, for one kernel or firmware file.

    `kernel` is a path, an open file or a buffer, compressed or not; `memory` a size in bytes, (start, size) pairs or
    a guest memory; `cmdline` a str or Cmdline; `initrd` like `kernel`; `entry` one of auto, pvh, linux64, linux32,
    linux16, multiboot, multiboot2, reset (firmware), arm64, riscv64, and for a flat binary flat16, flat32, flat64.

    `acpi` describes the machine by ACPI instead of by an MP table, `smbios` says what it is called; `rsdp` is where
    ACPI tables of your own begin, or 0. `initrd` may be a list of several; `bootconfig` is text that goes behind them.
    `modules` are (file, words) pairs for the protocols that know modules (PVH, multiboot). `variables` is the variable
    store of UEFI firmware. `load_address` says where a flat binary goes. `dtb` is the device tree of an arm64 or
    riscv64 guest, that of its virt machine if none is given; its /chosen learns the command line and the initrd.
    `interrupts` is what takes the interrupts of the riscv64 virt machine: plic (what it has if none is given), aia, or
    a layout of one. `arch` is what the guest is (`x86_64`, `arm64`, `riscv64`): a kernel for another one is refused;
    without it, the kernel decides.

    A plan is complete and checked when it exists. `str(plan)` is a table, `plan.apply(memory)` writes it, and
    `plan.registers` is the state of the first CPU. Firmware lies in `roms`, ranges beyond RAM that `memory` must have
    as well (KVM: a read-only slot). `layout` holds all of it, and room for what a VMM adds. Close the plan, or use
    `with`, to unmap the files.

    Raises ImageError for the file, PlacementError where it does not fit, CmdlineError for the command line.
    """

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
        interrupts: Interrupts | None = None,
    ) -> None:
        self.vcpus = vcpus
        self.interrupts = interrupts
        self.load_address = load_address
        self._sources: list[Source] = []
        self._held: list[KernelImage | Layout] = []  # they have views of the sources
        try:
            image = self._open(kernel, entry, arch)
            self.ranges = ranges_of(memory, self.arch)
            if not self.ranges:
                raise MemoryTooSmall(f"{self.kernel}: a guest without RAM; give the guest some", what="RAM")
            # An MP table is for PCs; how many processors a tree describes is for the tree to say.
            self.firmware_tables = FirmwareTables(
                vcpus if self.arch == "x86_64" else 1, self.ranges, acpi, smbios, rsdp
            )
            self.initrd = self._join(initrd, bootconfig)
            self.modules = [(self._source(file), words) for file, words in modules]
            self.variables = None if variables is None else self._source(variables)
            self.dtb = None if dtb is None else self._source(dtb)
            self.entry = self._choose(entry, image)
            if (acpi or smbios) and (self.entry == "reset" or self.arch != "x86_64"):
                raise ProtocolViolation(
                    f"{self.kernel}: started by {self.entry}, which takes no ACPI or SMBIOS tables; omit them"
                )
            self._refuse_unused(cmdline)
            if interrupts is not None and (self.arch != "riscv64" or dtb is not None):
                raise ProtocolViolation(
                    f"{self.kernel}: interrupts are chosen for the riscv64 virt machine's tree only; omit them"
                )
            self.layout = self._empty_layout()
            self._state = self._protocol(image, str(cmdline))
            self.layout.check(self.start)
        except BaseException:
            self.close()
            raise

    def _refuse_unused(self, cmdline: object) -> None:
        """Raise for what this way to start would not look at."""
        if not isinstance(cmdline, str) and not hasattr(cmdline, "as_cstring"):
            raise TypeError(f"{type(cmdline).__name__} is no command line: give a str or a Cmdline")
        for what, given, used in (
            ("a device tree", self.dtb is not None, self.arch != "x86_64"),
            ("a load address", self.load_address is not None, self.entry.startswith("flat")),
            ("a variable store", self.variables is not None, self.entry == "reset"),
        ):
            if given and not used:
                raise ProtocolViolation(
                    f"{self.kernel}: started by {self.entry}, which is given no {what[2:]}; omit it"
                )

    def _open(self, kernel: ImageLike, entry: str, arch: str | None) -> KernelImage:
        """Open the kernel and learn what it is; raise where it is for another guest than one of `arch`."""
        source = self._source(kernel)
        if not entry.startswith("flat"):
            source.unpack()
        self.kernel = source.name
        self.kind = "flat" if entry.startswith("flat") else identify(source.view)
        image = open_image(source.view, source.name, self.kind)
        self._held.append(image)
        self.arch = "x86_64" if image.arch == "x86" else image.arch
        if arch is not None and self.arch != arch:
            raise refuse_arch(image.arch, source.name, arch)
        return image

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

    def _empty_layout(self) -> Layout:
        """Return the memory with nothing in it yet, and what the boot protocol is to put there."""
        layout = Layout(
            self.kernel,
            self.entry,
            self.arch,
            self.ranges,
            self.firmware_tables,
            vcpus=self.vcpus,
            initrd=self.initrd,
            modules=self.modules,
            variables=self.variables,
            dtb=self.dtb,
            load_address=self.load_address,
            interrupts=self.interrupts,
        )
        self._held.append(layout)
        return layout

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

    def _protocol(self, image: Any, cmdline: str) -> Registers | dict[str, int]:  # noqa: ANN401 - by format
        """Let the boot protocol that was chosen place the kernel and what it reads."""
        if self.arch == "arm64":
            from pyvmm_loader.aarch64 import linux_boot as arm64

            return arm64.plan(self.layout, image, cmdline)
        if self.arch == "riscv64":
            from pyvmm_loader.riscv64 import linux_boot as riscv64

            return riscv64.plan(self.layout, image, cmdline)
        state = self._x86(image, cmdline)
        if state.gdt:
            self.layout.add(GDT_START, state.gdt, "GDT", "segments the entry expects loaded", role=PROCESSOR)
        if state.sregs.cr3:
            self.layout.add(
                PML4_START, identity_map(), "page tables", "identity map of 4 GiB for long mode", role=PROCESSOR
            )
        if self.entry != "reset":
            # what every kernel on a PC reads, whatever its boot protocol
            self.layout.placements.extend(self.firmware_tables.placements)
        return state

    def _x86(self, image: Any, cmdline: str) -> Registers:  # noqa: ANN401 - by format
        if self.entry in ("linux64", "linux32"):
            from pyvmm_loader.x86_64 import linux_boot

            plan = linux_boot.plan_elf if self.kind == "elf" else linux_boot.plan_bzimage
            return plan(self.layout, image, cmdline)
        if self.entry == "linux16":
            from pyvmm_loader.x86_64 import linux16

            return linux16.plan(self.layout, image, cmdline)
        if self.entry == "pvh":
            from pyvmm_loader.x86_64 import pvh

            return pvh.plan(self.layout, image, cmdline)
        if self.entry == "multiboot":
            from pyvmm_loader.x86_64 import multiboot

            return multiboot.plan(self.layout, image, cmdline)
        if self.entry == "multiboot2":
            from pyvmm_loader.x86_64 import multiboot2

            return multiboot2.plan(self.layout, image, cmdline)
        if self.entry == "reset":
            from pyvmm_loader.x86_64 import firmware_boot

            return firmware_boot.plan(self.layout, image, cmdline)
        from pyvmm_loader.x86_64 import flat_boot

        return flat_boot.plan(self.layout, image, cmdline)

    def _choose(self, entry: str, image: KernelImage) -> str:
        name = self.kernel
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

    @property
    def placements(self) -> list[Placement]:
        """What lies where, from low addresses to high ones; the `role` of each says what it is."""
        return self.layout.placements

    @property
    def roms(self) -> list[tuple[int, int]]:
        """The (start, size) pairs beyond RAM that `memory` must have as well."""
        return self.layout.roms

    @property
    def e820(self) -> list[E820Entry]:
        """The memory map that an x86 kernel is given; firmware and flat binaries have none."""
        return self.layout.e820

    @property
    def cmdline(self) -> str:
        """The command line as the kernel reads it."""
        return self.layout.cmdline

    @property
    def rsdp(self) -> int:
        """Where the ACPI tables begin, or 0."""
        return self.layout.rsdp

    def add(
        self,
        start: int,
        data: Buffer | None,
        name: str,
        why: str,
        size: int | None = None,
        role: Role | None = None,
    ) -> None:
        """Put more in, as `Layout.add` does; nothing checks that it has memory to itself."""
        self.layout.add(start, data, name, why, size, role)

    def free_ram(self) -> list[tuple[int, int]]:
        """Return the (start, size) pairs of RAM that no table lies in."""
        return self.layout.free_ram()

    def memory_map(self) -> list[E820Entry]:
        """Return the e820 map: RAM without what firmware keeps."""
        return self.layout.memory_map()

    def apply(self, memory: GuestMemory) -> None:
        """Write everything into `memory`; raises MemoryTooSmall unless it has the RAM that the plan was made for."""
        if not self._sources:
            raise LoaderError("the plan is closed; apply it before that")
        # the guest is told of all of it: by the e820 map, its start_info or its device tree
        for start, size in self.ranges:
            need_ram(memory, start, size, "the RAM that the plan was made for")
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
        while self._held:
            self._held.pop().close()
        while self._sources:
            self._sources.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _title(self) -> str:
        return f"{self.kernel}: {self.kind}, entry {self.entry} at {self.start:#x}, {self.vcpus} vCPU(s)"

    def __str__(self) -> str:
        rows = [self._title()]
        for p in self.placements:
            rows.append(f"  {p.start:#012x}..{p.end:#012x} {p.size:>10}  {p.name:<17} {p.why}")
        rows.extend([f"  RAM {start:#x}..{start + size:#x}" for start, size in self.ranges])
        rows.extend([f"  ROM {start:#x}..{start + size:#x}" for start, size in self.roms])
        return "\n".join(rows)

    def svg(self) -> str:
        """Return the layout as a picture: what lies where, and who reads it."""
        from pyvmm_loader.plan.svg import svg

        return svg(self._title(), self.ranges, self.placements)

    def __repr__(self) -> str:
        return f"<BootPlan {self.kernel} by {self.entry}, {len(self.placements)} placements>"
