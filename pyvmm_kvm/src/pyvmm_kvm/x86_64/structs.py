"""The structures of x86's asm/kvm.h that vCPUs are set up with, their fields named as there."""

from __future__ import annotations

from pyvmm_kvm.mp_state import MpState
from pyvmm_kvm.struct import Array, Struct

__all__ = [
    "Array",
    "DebugRegs",
    "Dtable",
    "Fpu",
    "LapicState",
    "MpState",
    "Regs",
    "Segment",
    "Sregs",
    "Sregs2",
    "VcpuEvents",
    "Xcr",
]

CR0_PE, CR0_PG = 1 << 0, 1 << 31
CR4_PAE, CR4_LA57 = 1 << 5, 1 << 12
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
_TYPE_CODE = 1 << 3
_FLAGS = {
    0: "CF", 2: "PF", 4: "AF", 6: "ZF", 7: "SF", 8: "TF", 9: "IF", 10: "DF", 11: "OF", 14: "NT", 16: "RF", 17: "VM",
    18: "AC", 21: "ID",
}  # fmt: skip
_CR0 = {0: "PE", 1: "MP", 2: "EM", 3: "TS", 4: "ET", 5: "NE", 16: "WP", 18: "AM", 29: "NW", 30: "CD", 31: "PG"}
_CR4 = {
    0: "VME", 1: "PVI", 2: "TSD", 3: "DE", 4: "PSE", 5: "PAE", 6: "MCE", 7: "PGE", 8: "PCE", 9: "OSFXSR",
    10: "OSXMMEXCPT", 11: "UMIP", 12: "LA57", 13: "VMXE", 16: "FSGSBASE", 17: "PCIDE", 18: "OSXSAVE", 20: "SMEP",
    21: "SMAP", 22: "PKE", 23: "CET",
}  # fmt: skip
_EFER = {0: "SCE", 8: "LME", 10: "LMA", 11: "NXE", 12: "SVME", 14: "FFXSR"}


def _bits(value: int, names: dict[int, str]) -> str:
    return " ".join(name for bit, name in names.items() if value >> bit & 1) or "-"


class Regs(Struct, ctype="struct kvm_regs"):
    """The general-purpose registers (struct kvm_regs).

    >>> regs = Regs(rip=0x1000, rflags=2)
    >>> regs.rax = 7
    >>> regs.rax, hex(regs.rip)
    (7, '0x1000')
    """

    __slots__ = ()
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

    def __str__(self) -> str:
        lines = []
        for start in range(0, 16, 4):
            names = self.field_names[start : start + 4]
            lines.append("  ".join(f"{name:>3} {getattr(self, name):016x}" for name in names))
        lines.append(f"rip {self.rip:016x}  rflags {self.rflags:08x} [{_bits(self.rflags, _FLAGS)}]")
        return "\n".join(lines)


class Segment(Struct, ctype="struct kvm_segment"):
    """A segment register with its hidden part (struct kvm_segment). `limit` is in bytes, scaled by `g` already."""

    __slots__ = ()
    base: int
    limit: int
    selector: int
    type: int
    present: int
    dpl: int
    db: int
    s: int
    l: int  # noqa: E741 - the header's name
    g: int
    avl: int
    unusable: int

    def __str__(self) -> str:
        kind = ("code" if self.type & _TYPE_CODE else "data") if self.s else "system"
        width = "64" if self.l else "32" if self.db else "16"
        state = " unusable" if self.unusable else "" if self.present else " absent"
        return f"{self.selector:04x} base {self.base:016x} limit {self.limit:08x} {kind}{width} dpl{self.dpl}{state}"


class Dtable(Struct, ctype="struct kvm_dtable"):
    """GDTR or IDTR (struct kvm_dtable)."""

    __slots__ = ()
    base: int
    limit: int


class _Special(Struct):
    __slots__ = ()
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

    @property
    def mode(self) -> str:
        """How the processor reads code now: "real", "protected", "compatibility" or "long"."""
        if not self.cr0 & CR0_PE:
            return "real"
        if self.efer & EFER_LMA:
            return "long" if self.cs.l else "compatibility"
        return "protected"

    @property
    def paging(self) -> str:
        """The page-table format in use: "none", "32-bit", "PAE", "4-level" or "5-level"."""
        if not self.cr0 & CR0_PG:
            return "none"
        if not self.cr4 & CR4_PAE:
            return "32-bit"
        if not self.efer & EFER_LMA:
            return "PAE"
        return "5-level" if self.cr4 & CR4_LA57 else "4-level"

    def __str__(self) -> str:
        lines = [f"mode {self.mode}, paging {self.paging}, cpl {self.ss.dpl}"]
        lines += [f"{name:>3} {getattr(self, name)}" for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")]
        lines += [
            f"{name} base {t.base:016x} limit {t.limit:04x}" for name, t in (("gdt", self.gdt), ("idt", self.idt))
        ]
        lines.append(f"cr0 {self.cr0:08x} [{_bits(self.cr0, _CR0)}]  cr2 {self.cr2:016x}  cr3 {self.cr3:016x}")
        lines.append(f"cr4 {self.cr4:08x} [{_bits(self.cr4, _CR4)}]  cr8 {self.cr8:x}")
        lines.append(f"efer {self.efer:08x} [{_bits(self.efer, _EFER)}]  apic_base {self.apic_base:016x}")
        return "\n".join(lines)


class Sregs(_Special, ctype="struct kvm_sregs"):
    """Segments, descriptor tables and control registers (struct kvm_sregs); every part can be assigned in place."""

    __slots__ = ()
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
    interrupt_bitmap: Array


class Sregs2(_Special, ctype="struct kvm_sregs2"):
    """As `Sregs`, with the PAE page-directory pointers instead of the pending interrupt (struct kvm_sregs2)."""

    __slots__ = ()
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
    flags: int
    pdptrs: Array


class Fpu(Struct, ctype="struct kvm_fpu"):
    """x87 and SSE registers (struct kvm_fpu); `fpr` and `xmm` are 8 and 16 times 16 bytes."""

    __slots__ = ()
    fpr: memoryview
    fcw: int
    fsw: int
    ftwx: int
    last_opcode: int
    last_ip: int
    last_dp: int
    xmm: memoryview
    mxcsr: int


class LapicState(Struct, ctype="struct kvm_lapic_state"):
    """The local APIC's register page (struct kvm_lapic_state): 1 KiB, one 32-bit register every 16 bytes.

    >>> lapic = LapicState()
    >>> lapic.set_reg(0x350, 0x700)
    >>> hex(lapic.get_reg(0x350))
    '0x700'
    """

    __slots__ = ()
    regs: memoryview

    def get_reg(self, offset: int) -> int:
        """Return the register at this byte offset of the APIC page (Intel SDM volume 3, table 11-1)."""
        self._check(offset)
        value: int = self.regs.cast("I")[offset // 4]
        return value

    def set_reg(self, offset: int, value: int) -> None:
        """Change the register at this byte offset; `VcpuFd.set_lapic` gives it to KVM."""
        self._check(offset)
        self.regs.cast("I")[offset // 4] = value

    @staticmethod
    def _check(offset: int) -> None:
        if offset % 16 or not 0 <= offset < 0x400:
            raise ValueError(f"APIC registers lie at multiples of 0x10 below 0x400, not at {offset:#x}")


class DebugRegs(Struct, ctype="struct kvm_debugregs"):
    """DR0 to DR3, DR6 and DR7 (struct kvm_debugregs)."""

    __slots__ = ()
    db: Array
    dr6: int
    dr7: int
    flags: int


class Xcr(Struct, ctype="struct kvm_xcr"):
    """One extended control register (struct kvm_xcr)."""

    __slots__ = ()
    xcr: int
    value: int


class VcpuException(Struct, ctype="struct pyvmm_vcpu_exception"):
    """The exception part of `VcpuEvents`."""

    __slots__ = ()
    injected: int
    nr: int
    has_error_code: int
    pending: int
    error_code: int


class VcpuInterrupt(Struct, ctype="struct pyvmm_vcpu_interrupt"):
    """The interrupt part of `VcpuEvents`."""

    __slots__ = ()
    injected: int
    nr: int
    soft: int
    shadow: int


class VcpuNmi(Struct, ctype="struct pyvmm_vcpu_nmi"):
    """The NMI part of `VcpuEvents`."""

    __slots__ = ()
    injected: int
    pending: int
    masked: int


class VcpuSmi(Struct, ctype="struct pyvmm_vcpu_smi"):
    """The system-management part of `VcpuEvents`."""

    __slots__ = ()
    smm: int
    pending: int
    smm_inside_nmi: int
    latched_init: int


class VcpuTripleFault(Struct, ctype="struct pyvmm_vcpu_triple_fault"):
    """The triple-fault part of `VcpuEvents`."""

    __slots__ = ()
    pending: int


class VcpuEvents(Struct, ctype="struct pyvmm_vcpu_events"):
    """Exceptions, interrupts and NMIs on their way into the guest (struct kvm_vcpu_events)."""

    __slots__ = ()
    exception: VcpuException
    interrupt: VcpuInterrupt
    nmi: VcpuNmi
    sipi_vector: int
    flags: int
    smi: VcpuSmi
    triple_fault: VcpuTripleFault
    exception_has_payload: int
    exception_payload: int
