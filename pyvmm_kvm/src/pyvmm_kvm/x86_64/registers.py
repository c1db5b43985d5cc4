"""The registers of a vCPU, with the names and layouts of ``struct kvm_regs`` and ``struct kvm_sregs``."""

from __future__ import annotations

from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

CR0_PE, CR0_PG = 1 << 0, 1 << 31
CR4_PAE = 1 << 5
EFER_LME, EFER_LMA = 1 << 8, 1 << 10

# The order of the kernel's structures, which is the order in their bytes.
_REGS_FIELDS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
_SEGMENT_FIELDS = ("base", "limit", "selector", "type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable")
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_TABLES = ("gdt", "idt")
_CONTROLS = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")

_REGS = Struct("<18Q")
_SEGMENT = Struct("<QIH10B")
_DTABLE = Struct("<QH6x")
_CONTROL = Struct("<7Q")
_BITMAP = Struct("<4Q")


class _Fields:
    """A set of named numbers that compares and prints by them."""

    __slots__: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(getattr(self, n) == getattr(other, n) for n in self.fields)

    __hash__ = None  # type: ignore[assignment]  # registers change

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={_hex(getattr(self, n))}' for n in self.fields)})"


def _hex(value: object) -> str:
    return f"{value:#x}" if isinstance(value, int) else repr(value)


class Regs(_Fields):
    """``struct kvm_regs``: the general registers, ``rip`` and ``rflags``; ``str`` shows them as people read them."""

    __slots__ = fields = _REGS_FIELDS
    size = _REGS.size
    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rsp: int
    rbp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int

    def __init__(self, **values: int) -> None:
        for name in self.fields:
            setattr(self, name, values.pop(name, 0))
        if values:
            raise TypeError(f"kvm_regs has no {', '.join(values)}")

    @classmethod
    def unpack(cls, raw: Buffer) -> Self:
        """Read the structure from its bytes."""
        return cls(**dict(zip(cls.fields, _REGS.unpack(raw), strict=True)))

    def pack(self) -> bytes:
        """Return the structure's bytes."""
        return _REGS.pack(*(getattr(self, name) for name in self.fields))

    def __str__(self) -> str:
        order = [*self.fields[:8], *self.fields[8:16]]
        rows = ["  ".join(f"{name:>3} {getattr(self, name):016x}" for name in order[i : i + 4]) for i in (0, 4, 8, 12)]
        return "\n".join([f"rip {self.rip:016x}  rflags {self.rflags:08x} [{flag_names(self.rflags)}]", *rows])


def flag_names(rflags: int) -> str:
    """The flags that are set, by the names of the manual."""
    names = {0: "CF", 2: "PF", 4: "AF", 6: "ZF", 7: "SF", 8: "TF", 9: "IF", 10: "DF", 11: "OF", 14: "NT", 17: "VM"}
    return " ".join(name for bit, name in names.items() if rflags >> bit & 1)


class Segment(_Fields):
    """``struct kvm_segment``: a segment register with its hidden descriptor; ``limit`` in bytes, ``g`` applied."""

    __slots__ = fields = _SEGMENT_FIELDS
    size = _SEGMENT.size
    base: int
    limit: int
    selector: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int  # noqa: E741 (the kernel's name)
    g: int
    avl: int
    unusable: int

    @classmethod
    def unpack(cls, raw: Buffer) -> Self:
        """Read the structure from its bytes."""
        self = cls()
        for name, value in zip(cls.fields, _SEGMENT.unpack(raw), strict=False):
            setattr(self, name, value)
        return self

    def pack(self) -> bytes:
        """Return the structure's bytes."""
        return _SEGMENT.pack(*(getattr(self, name) for name in self.fields), 0)


class Dtable(_Fields):
    """``struct kvm_dtable``: where a descriptor table lies; ``limit`` is its size less one."""

    __slots__ = fields = ("base", "limit")
    size = _DTABLE.size
    base: int
    limit: int

    @classmethod
    def unpack(cls, raw: Buffer) -> Self:
        """Read the structure from its bytes."""
        self = cls()
        self.base, self.limit = _DTABLE.unpack(raw)
        return self

    def pack(self) -> bytes:
        """Return the structure's bytes."""
        return _DTABLE.pack(self.base, self.limit)


class Sregs(_Fields):
    """``struct kvm_sregs``: segments, descriptor tables, control registers, and the interrupt being injected."""

    __slots__ = fields = (*_SEGMENTS, *_TABLES, *_CONTROLS, "interrupt_bitmap")
    size = len(_SEGMENTS) * _SEGMENT.size + len(_TABLES) * _DTABLE.size + _CONTROL.size + _BITMAP.size
    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: Dtable
    idt: Dtable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int
    interrupt_bitmap: tuple[int, ...]

    @classmethod
    def unpack(cls, raw: Buffer) -> Self:
        """Read the structure from its bytes."""
        self = cls()
        view = memoryview(raw)
        at = 0
        for names, kind in ((_SEGMENTS, Segment), (_TABLES, Dtable)):
            for name in names:
                setattr(self, name, kind.unpack(view[at : at + kind.size]))
                at += kind.size
        for name, value in zip(_CONTROLS, _CONTROL.unpack_from(view, at), strict=True):
            setattr(self, name, value)
        self.interrupt_bitmap = _BITMAP.unpack_from(view, at + _CONTROL.size)
        return self

    def pack(self) -> bytes:
        """Return the structure's bytes."""
        parts = [getattr(self, name).pack() for name in (*_SEGMENTS, *_TABLES)]
        parts.append(_CONTROL.pack(*(getattr(self, name) for name in _CONTROLS)))
        parts.append(_BITMAP.pack(*self.interrupt_bitmap))
        return b"".join(parts)

    @property
    def mode(self) -> str:
        """The processor's mode in words."""
        if not self.cr0 & CR0_PE:
            return "real mode"
        if self.efer & EFER_LMA:
            return f"long mode, {64 if self.cs.l else 32 if self.cs.db else 16}-bit code"
        return f"protected mode, {32 if self.cs.db else 16}-bit code, paging {'on' if self.cr0 & CR0_PG else 'off'}"

    def __str__(self) -> str:
        segments = [
            f"{name:>3} {s.selector:04x} base {s.base:016x} limit {s.limit:08x} type {s.type:#x} dpl {s.dpl}"
            for name, s in ((name, getattr(self, name)) for name in ("cs", "ds", "ss", "tr"))
        ]
        controls = f"cr0 {self.cr0:08x}  cr2 {self.cr2:016x}  cr3 {self.cr3:016x}  cr4 {self.cr4:08x}"
        return "\n".join([f"{self.mode}, CPL {self.cs.selector & 3}", f"{controls}  efer {self.efer:x}", *segments])
