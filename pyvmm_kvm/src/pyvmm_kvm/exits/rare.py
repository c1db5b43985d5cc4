"""Every exit of x86 and of no particular architecture that is not on a hot path, and the table of them all.

A debug exit is the one whose payload differs between architectures (struct kvm_debug_exit_arch): `BY_REASON` has that
of this host.
"""

from __future__ import annotations

import struct

from pyvmm_kvm._arch import ARCH
from pyvmm_kvm.exits.base import Live, RareExit
from pyvmm_kvm.exits.foreign import (
    ArmDebug,
    ArmNisv,
    ArmSea,
    Dcr,
    Epr,
    LoongarchIocsr,
    Osi,
    PaprHcall,
    RiscvCsr,
    RiscvDebug,
    RiscvSbi,
    S390Reset,
    S390Sieic,
    S390Stsi,
    S390Tsch,
    S390Ucontrol,
    Watchdog,
)
from pyvmm_kvm.exits.hot import PAYLOAD_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar, Self


class IrqWindowOpen(RareExit):
    """The guest can take an interrupt now (asked for by `request_interrupt_window`)."""

    __slots__ = ()
    reason = 7


class SetTpr(RareExit):
    """The guest changed CR8 without an in-kernel irqchip; see `VcpuFd.cr8`."""

    __slots__ = ()
    reason = 11


class Nmi(RareExit):
    """A non-maskable interrupt arrived."""

    __slots__ = ()
    reason = 16


class DirtyRingFull(RareExit):
    """The vCPU's dirty ring is full: collect it and call `VmFd.reset_dirty_rings`, then run again."""

    __slots__ = ()
    reason = 31


class ApResetHold(RareExit):
    """SEV-ES: the vCPU asks to be held until INIT and SIPI."""

    __slots__ = ()
    reason = 32


class X86BusLock(RareExit):
    """The guest held the memory bus with a split or uncached locked access."""

    __slots__ = ()
    reason = 33


class GuestException(RareExit):
    """The guest raised an exception that KVM reports."""

    __slots__ = ("error_code", "exception")
    __match_args__ = ("exception", "error_code")
    exception: int
    error_code: int
    reason = 1
    layout = struct.Struct("<II")


class Hypercall(RareExit):
    """The guest called the hypervisor; write the answer to `ret`."""

    __slots__ = ("args", "longmode", "nr")
    __match_args__ = ("nr", "args", "longmode")
    nr: int
    args: tuple[int, ...]
    longmode: int
    ret = Live(56)
    reason = 3
    layout = struct.Struct("<7Q8xI")

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        """Read it from the run page's union."""
        values = cls.layout.unpack_from(payload)
        return cls(values[0], values[1:7], values[7], payload=payload)


class Debug(RareExit):
    """x86: a breakpoint, watchpoint or single step. `exception` is `DB` or `BP`, `pc` the linear address."""

    __slots__ = ("dr6", "dr7", "exception", "pc")
    __match_args__ = ("exception", "pc", "dr6", "dr7")
    exception: int
    pc: int
    dr6: int
    dr7: int
    reason = 4
    layout = struct.Struct("<I4xQQQ")

    DB, BP = 1, 3


class FailEntry(RareExit):
    """The processor refused to enter the guest; `hardware_entry_failure_reason` is its code."""

    __slots__ = ("cpu", "hardware_entry_failure_reason")
    __match_args__ = ("hardware_entry_failure_reason", "cpu")
    hardware_entry_failure_reason: int
    cpu: int
    reason = 9
    layout = struct.Struct("<QI")


class TprAccess(RareExit):
    """The guest touched the task-priority register (asked for by `VcpuFd.set_tpr_access_reporting`)."""

    __slots__ = ("is_write", "rip")
    __match_args__ = ("rip", "is_write")
    rip: int
    is_write: int
    reason = 12
    layout = struct.Struct("<QI")


class InternalError(RareExit):
    """KVM gave up: `suberror` says why, `data` are the kernel's words about it.

    `EMULATION` is an instruction that KVM's emulator lacks; `flags` and `instruction` then say which bytes.
    """

    __slots__ = ("data", "suberror")
    __match_args__ = ("suberror", "data")
    suberror: int
    data: tuple[int, ...]
    reason = 17

    EMULATION, SIMUL_EX, DELIVERY_EV, UNEXPECTED_EXIT_REASON = range(1, 5)
    NAMES: ClassVar[dict[int, str]] = {
        EMULATION: "EMULATION",
        SIMUL_EX: "SIMUL_EX",
        DELIVERY_EV: "DELIVERY_EV",
        UNEXPECTED_EXIT_REASON: "UNEXPECTED_EXIT_REASON",
    }
    INSTRUCTION_BYTES = 1 << 0  # in `flags`

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        """Read it from the run page's union."""
        suberror, count = struct.unpack_from("<II", payload)
        return cls(suberror, struct.unpack_from(f"<{min(count, 16)}Q", payload, 8), payload=payload)

    @property
    def flags(self) -> int:
        """For `EMULATION`: which parts of the report are valid."""
        return self.data[0] if self.suberror == self.EMULATION and self.data else 0

    @property
    def instruction(self) -> bytes:
        """For `EMULATION`: the bytes of the instruction, or nothing where the kernel gave none."""
        if not self.flags & self.INSTRUCTION_BYTES or len(self.data) < 3:
            return b""
        # behind the flags: the length in one byte, then the bytes of the longest instruction there is
        length, *code = struct.pack("<QQ", *self.data[1:3])
        return bytes(code[:length])

    def __repr__(self) -> str:
        name = self.NAMES.get(self.suberror, "?")
        code = f", instruction <{self.instruction.hex(' ')}>" if self.instruction else ""
        return f"InternalError({self.suberror} {name}{code}, data=({', '.join(format(x, '#x') for x in self.data)}))"


class SystemEvent(RareExit):
    """The guest asked for a change of the whole machine, of the kind that `type` says."""

    __slots__ = ("data", "type")
    __match_args__ = ("type", "data")
    type: int
    data: tuple[int, ...]
    reason = 24

    SHUTDOWN, RESET, CRASH, WAKEUP, SUSPEND, SEV_TERM, TDX_FATAL = range(1, 8)

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        """Read it from the run page's union."""
        kind, count = struct.unpack_from("<II", payload)
        return cls(kind, struct.unpack_from(f"<{min(count, 16)}Q", payload, 8), payload=payload)


class IoapicEoi(RareExit):
    """Split irqchip: the guest ended a level interrupt with this vector; tell your IOAPIC."""

    __slots__ = ("vector",)
    __match_args__ = ("vector",)
    vector: int
    reason = 26
    layout = struct.Struct("<B")


class Hyperv(RareExit):
    """A Hyper-V call: `type` is `SYNIC` (msr, control, evt_page, msg_page), `HCALL` (input, params) or `SYNDBG`."""

    __slots__ = ("type", "values")
    __match_args__ = ("type", "values")
    type: int
    values: tuple[int, ...]
    result = Live(16)
    status = Live(24)
    reason = 27

    SYNIC, HCALL, SYNDBG = range(1, 4)
    _FORMATS: ClassVar[dict[int, str]] = {SYNIC: "<8xI4x3Q", HCALL: "<8xQ8x2Q", SYNDBG: "<8xI4x5Q"}

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        """Read it from the run page's union."""
        kind = struct.unpack_from("<I", payload)[0]
        return cls(kind, struct.unpack_from(cls._FORMATS.get(kind, "<8x6Q"), payload), payload=payload)


class _MsrExit(RareExit):
    __slots__ = ("index", "why")
    __match_args__ = ("index", "why", "data")
    why: int
    index: int
    error = Live(0, "B")
    data = Live(16)
    layout = struct.Struct("<8xII")

    # bits of `why`
    INVALID = 1 << 0
    UNKNOWN = 1 << 1
    FILTER = 1 << 2

    def __init__(self, index: int, why: int, data: int = 0, payload: memoryview | None = None) -> None:
        self.note("payload", payload if payload is not None else memoryview(bytearray(PAYLOAD_SIZE)))
        self.note("index", index)
        self.note("why", why)
        if payload is None:
            self.data = data

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        """Read it from the run page's union."""
        why, index = cls.layout.unpack_from(payload)
        return cls(index, why, payload=payload)


class X86Rdmsr(_MsrExit):
    """The guest reads an MSR that user space handles: write `data`, or set `error` to 1 for #GP. `why` is a bit."""

    __slots__ = ()
    reason = 29


class X86Wrmsr(_MsrExit):
    """The guest wrote `data` to an MSR that user space handles; set `error` to 1 to give it #GP."""

    __slots__ = ()
    reason = 30


class Xen(RareExit):
    """A Xen hypercall (`type` is `HCALL`); write the answer to `result`."""

    __slots__ = ("cpl", "input", "longmode", "params", "type")
    __match_args__ = ("type", "longmode", "cpl", "input", "params")
    type: int
    longmode: int
    cpl: int
    input: int
    params: tuple[int, ...]
    result = Live(24)
    reason = 34

    HCALL = 1

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        """Read it from the run page's union."""
        values = struct.unpack_from("<I4xIIQ8x6Q", payload)
        return cls(*values[:4], values[4:], payload=payload)


class Notify(RareExit):
    """The guest held interrupts off for too long; with `CONTEXT_INVALID` in `flags` its state is lost."""

    __slots__ = ("flags",)
    __match_args__ = ("flags",)
    flags: int
    reason = 37
    layout = struct.Struct("<I")

    CONTEXT_INVALID = 1 << 0


class MemoryFault(RareExit):
    """The guest touched memory that cannot be given to it, such as a private page without backing. Reported with -1."""

    __slots__ = ("flags", "gpa", "size")
    __match_args__ = ("flags", "gpa", "size")
    flags: int
    gpa: int
    size: int
    reason = 39
    layout = struct.Struct("<QQQ")


class Tdx(RareExit):
    """A TDX guest's TDVMCALL `nr`; `values` are its words and `ret` takes the answer."""

    __slots__ = ("flags", "nr", "values")
    __match_args__ = ("flags", "nr", "values")
    flags: int
    nr: int
    values: tuple[int, ...]
    ret = Live(16)
    reason = 40

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        """Read it from the run page's union."""
        flags, nr, *values = struct.unpack_from("<QQ8x5Q", payload)
        return cls(flags, nr, tuple(values), payload=payload)


DEBUG_BY_ARCH: dict[str, type[RareExit]] = {"x86_64": Debug, "aarch64": ArmDebug, "riscv64": RiscvDebug}
BY_REASON: dict[int, type[RareExit]] = {
    kind.reason: kind
    for kind in (
        GuestException, Hypercall, DEBUG_BY_ARCH[ARCH], IrqWindowOpen, FailEntry, SetTpr, TprAccess, S390Sieic,
        S390Reset, Dcr, Nmi, InternalError, Osi, PaprHcall, S390Ucontrol, Watchdog, S390Tsch, Epr, SystemEvent,
        S390Stsi, IoapicEoi, Hyperv, ArmNisv, X86Rdmsr, X86Wrmsr, DirtyRingFull, ApResetHold, X86BusLock, Xen,
        RiscvSbi, RiscvCsr, Notify,
        LoongarchIocsr, MemoryFault, Tdx, ArmSea,
    )
}  # fmt: skip
