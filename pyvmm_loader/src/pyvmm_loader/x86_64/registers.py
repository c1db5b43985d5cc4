"""The CPU at its first instruction, GDT and page tables, in neutral form with the names of linux/kvm.h.

Source: Documentation/x86/boot.rst, "64-bit Boot Protocol" and "32-bit Boot Protocol"; Xen's docs/misc/pvh.pandoc.
"""

from __future__ import annotations

from struct import pack

from pyvmm_loader.x86_64.layout import (
    BOOT_STACK_POINTER,
    GDT_START,
    PD_START,
    PDPT_START,
    PML4_START,
    PVH_INFO_START,
    ZERO_PAGE_START,
)

CR0_PE, CR0_ET, CR0_NW, CR0_CD, CR0_PG = 1 << 0, 1 << 4, 1 << 29, 1 << 30, 1 << 31
CR4_PAE = 1 << 5
EFER_LME, EFER_LMA = 1 << 8, 1 << 10

SEGMENT_FIELDS = ("base", "limit", "selector", "type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable")
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr")


class Segment:
    """A segment register, fields as in `struct kvm_segment`."""

    __slots__ = SEGMENT_FIELDS

    def __init__(
        self,
        selector: int = 0,
        type: int = 3,  # noqa: A002 - the field's name
        base: int = 0,
        limit: int = 0xFFFFFFFF,
        db: int = 0,
        s: int = 1,
        l: int = 0,  # noqa: E741 - the field's name
        g: int = 0,
    ) -> None:
        self.base = base
        self.limit = limit
        self.selector = selector
        self.type = type
        self.present = 1
        self.dpl = 0
        self.db = db
        self.s = s
        self.l = l
        self.g = g
        self.avl = 0
        self.unusable = 0

    def descriptor(self) -> int:
        """Return the 8-byte descriptor that loads as this register. SDM volume 3, 3.4.5."""
        limit = self.limit >> 12 if self.g else self.limit
        access = self.type | self.s << 4 | self.dpl << 5 | self.present << 7
        flags = self.avl | self.l << 1 | self.db << 2 | self.g << 3
        low = limit & 0xFFFF | (self.base & 0xFFFFFF) << 16 | access << 40
        return low | (limit >> 16 & 0xF) << 48 | flags << 52 | (self.base >> 24 & 0xFF) << 56

    def __repr__(self) -> str:
        where = f"base={self.base:#x} limit={self.limit:#x}"
        return f"<Segment {self.selector:#x} {where} type={self.type:#x} l={self.l} db={self.db}>"


class DescriptorTable:
    """GDTR or IDTR."""

    __slots__ = ("base", "limit")

    def __init__(self, base: int = 0, limit: int = 0) -> None:
        self.base = base
        self.limit = limit


class Regs:
    """General registers that the entry needs; all others are zero."""

    __slots__ = ("rax", "rbp", "rbx", "rdi", "rflags", "rip", "rsi", "rsp")

    def __init__(self, rip: int, rsi: int = 0, rsp: int = 0, rbx: int = 0, rax: int = 0) -> None:
        self.rip = rip
        self.rsi = rsi
        self.rsp = rsp
        self.rbx = rbx
        self.rax = rax
        self.rbp = self.rdi = 0
        self.rflags = 2  # bit 1 is always set; interrupts are off


class Sregs:
    """System registers that the entry needs."""

    __slots__ = ("cr0", "cr3", "cr4", "cs", "ds", "efer", "es", "fs", "gdt", "gs", "idt", "ss", "tr")

    def __init__(self, code: Segment, data: Segment, task: Segment, gdt: DescriptorTable, cr0: int) -> None:
        self.cs = code
        self.ds = self.es = self.fs = self.gs = self.ss = data
        self.tr = task
        self.gdt = gdt
        self.idt = DescriptorTable()
        self.cr0 = cr0
        self.cr3 = self.cr4 = self.efer = 0


class Registers:
    """`regs`, `sregs`, and the `gdt` that must lie at sregs.gdt.base."""

    __slots__ = ("gdt", "regs", "sregs")

    def __init__(self, regs: Regs, sregs: Sregs, gdt: bytes) -> None:
        self.regs = regs
        self.sregs = sregs
        self.gdt = gdt

    @property
    def entry(self) -> int:
        """The linear address of the first instruction."""
        return self.sregs.cs.base + self.regs.rip

    def copy_to(self, regs: object, sregs: object) -> None:
        """Set the same attributes on two structures shaped like `kvm_regs` and `kvm_sregs`; others are left alone."""
        for name in Regs.__slots__:
            setattr(regs, name, getattr(self.regs, name))
        for name in ("cr0", "cr3", "cr4", "efer"):
            setattr(sregs, name, getattr(self.sregs, name))
        for name in ("gdt", "idt"):
            source, target = getattr(self.sregs, name), getattr(sregs, name)
            target.base, target.limit = source.base, source.limit
        for name in SEGMENTS:
            source, target = getattr(self.sregs, name), getattr(sregs, name)
            for field in SEGMENT_FIELDS:
                setattr(target, field, getattr(source, field))


def _flat(bits: int) -> tuple[Segment, Segment, Segment, bytes]:
    # __BOOT_CS must be 0x10 and __BOOT_DS 0x18 (boot.rst); a TSS descriptor has 16 bytes in 64-bit mode.
    code = Segment(0x10, 0xB, db=int(bits == 32), l=int(bits == 64), g=1)
    data = Segment(0x18, 0x3, db=1, g=1)
    task = Segment(0x20, 0xB, limit=0x67, s=0)
    table = pack("<6Q", 0, 0, code.descriptor(), data.descriptor(), task.descriptor(), 0)
    return code, data, task, table


def linux64(entry: int) -> Registers:
    """Return long mode on identity page tables, rsi at the zero page."""
    code, data, task, table = _flat(64)
    sregs = Sregs(code, data, task, DescriptorTable(GDT_START, len(table) - 1), CR0_PE | CR0_ET | CR0_PG)
    sregs.cr3 = PML4_START
    sregs.cr4 = CR4_PAE
    sregs.efer = EFER_LME | EFER_LMA
    return Registers(Regs(entry, rsi=ZERO_PAGE_START, rsp=BOOT_STACK_POINTER), sregs, table)


def linux32(entry: int) -> Registers:
    """Return protected mode without paging, esi at the zero page."""
    code, data, task, table = _flat(32)
    sregs = Sregs(code, data, task, DescriptorTable(GDT_START, len(table) - 1), CR0_PE | CR0_ET)
    return Registers(Regs(entry, rsi=ZERO_PAGE_START, rsp=BOOT_STACK_POINTER), sregs, table)


def pvh(entry: int) -> Registers:
    """Return protected mode without paging, ebx at the start_info."""
    code, data, task, table = _flat(32)
    sregs = Sregs(code, data, task, DescriptorTable(GDT_START, len(table) - 1), CR0_PE | CR0_ET)
    return Registers(Regs(entry, rbx=PVH_INFO_START), sregs, table)


def multiboot(entry: int, magic: int, information: int) -> Registers:
    """Return protected mode without paging, eax the loader's magic number, ebx at the boot information.

    Multiboot 1, 3.2, and multiboot 2, 3.3 ask for the same state.
    """
    code, data, task, table = _flat(32)
    sregs = Sregs(code, data, task, DescriptorTable(GDT_START, len(table) - 1), CR0_PE | CR0_ET)
    return Registers(Regs(entry, rbx=information, rax=magic), sregs, table)


def real_mode(code: int, offset: int, data: int = 0, stack: int = 0) -> Registers:
    """Return real mode: cs is the segment `code`, all others `data`; the first instruction is at code:offset."""
    return _real(
        Segment(code, 0xB, base=code << 4, limit=0xFFFF),
        Segment(data, 0x3, base=data << 4, limit=0xFFFF),
        Regs(offset, rsp=stack),
    )


def reset() -> Registers:
    """Return the state after a reset: real mode, but with the code segment's base just below 4 GiB.

    Intel SDM volume 3, table 10-1; the first instruction is at 0xfffffff0.
    """
    code = Segment(0xF000, 0xB, base=0xFFFF0000, limit=0xFFFF)
    data = Segment(0, 0x3, limit=0xFFFF)
    state = _real(code, data, Regs(0xFFF0))
    state.sregs.cr0 = CR0_ET | CR0_NW | CR0_CD
    return state


def _real(code: Segment, data: Segment, regs: Regs) -> Registers:
    task = Segment(0, 0xB, limit=0xFFFF, s=0)
    sregs = Sregs(code, data, task, DescriptorTable(0, 0xFFFF), CR0_ET)
    sregs.idt = DescriptorTable(0, 0xFFFF)  # the interrupt vector table at 0
    return Registers(regs, sregs, b"")


def identity_map() -> bytes:
    """Return PML4, PDPT and four page directories that map the first 4 GiB one to one in pages of 2 MiB.

    They must lie at PML4_START, next to each other. "The loaded kernel, zero_page and command line must be
    identity mapped" (boot.rst).
    """
    pml4 = pack("<Q", PDPT_START | 0x03).ljust(4096, b"\0")
    pdpt = pack("<4Q", *[PD_START + page * 4096 | 0x03 for page in range(4)]).ljust(4096, b"\0")
    directories = pack("<2048Q", *[page << 21 | 0x83 for page in range(2048)])
    return pml4 + pdpt + directories
