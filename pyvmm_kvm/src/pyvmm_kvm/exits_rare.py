"""The exits that are not on a hot path: each decodes its payload from the run page when it happens.

Payload offsets are those of the union in struct kvm_run (linux/kvm.h); a test compares them with the compiler's.
"""

from __future__ import annotations

import struct

from .exits import VcpuExit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar, Literal, Self


class RareExit(VcpuExit):
    """An exit whose fields are copied from its payload; `_payload` stays for fields that the VMM may write."""

    __slots__ = ("_payload",)
    _format: ClassVar[struct.Struct] = struct.Struct("")

    def __init__(self, *values: object, payload: memoryview | None = None) -> None:
        self._payload = payload if payload is not None else memoryview(bytearray(256))
        for name, value in zip(self.__match_args__, values, strict=True):
            setattr(self, name, value)

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        """Read it from the 256 bytes of the run page's union."""
        return cls(*cls._format.unpack_from(payload), payload=payload)


class Live:
    """A field that the VMM answers in: reading and writing go to the run page."""

    __slots__ = ("code", "index")
    code: Literal["B", "I", "Q"]

    def __init__(self, offset: int, code: Literal["B", "I", "Q"] = "Q") -> None:
        self.code = code
        self.index = offset // struct.calcsize(code)

    def __get__(self, exit_: RareExit, owner: type) -> int:
        value: int = exit_._payload.cast(self.code)[self.index]
        return value

    def __set__(self, exit_: RareExit, value: int) -> None:
        exit_._payload.cast(self.code)[self.index] = value


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


class Watchdog(RareExit):
    """PowerPC: the guest's watchdog expired."""

    __slots__ = ()
    reason = 21


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
    _format = struct.Struct("<II")


class Hypercall(RareExit):
    """The guest called the hypervisor; write the answer to `ret`."""

    __slots__ = ("args", "longmode", "nr")
    __match_args__ = ("nr", "args", "longmode")
    nr: int
    args: tuple[int, ...]
    longmode: int
    ret = Live(56)
    reason = 3
    _format = struct.Struct("<7Q8xI")

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        """Read it from the run page's union."""
        values = cls._format.unpack_from(payload)
        return cls(values[0], values[1:7], values[7], payload=payload)


class Debug(RareExit):
    """x86: a breakpoint, watchpoint or single step. `exception` is 1 (#DB) or 3 (#BP), `pc` the linear address."""

    __slots__ = ("dr6", "dr7", "exception", "pc")
    __match_args__ = ("exception", "pc", "dr6", "dr7")
    exception: int
    pc: int
    dr6: int
    dr7: int
    reason = 4
    _format = struct.Struct("<I4xQQQ")


class ArmDebug(RareExit):
    """arm64: a breakpoint, watchpoint or single step, with the syndrome and the faulting address."""

    __slots__ = ("far", "hsr", "hsr_high")
    __match_args__ = ("hsr", "hsr_high", "far")
    hsr: int
    hsr_high: int
    far: int
    reason = 4
    _format = struct.Struct("<IIQ")


class FailEntry(RareExit):
    """The processor refused to enter the guest; `hardware_entry_failure_reason` is its code."""

    __slots__ = ("cpu", "hardware_entry_failure_reason")
    __match_args__ = ("hardware_entry_failure_reason", "cpu")
    hardware_entry_failure_reason: int
    cpu: int
    reason = 9
    _format = struct.Struct("<QI")


class TprAccess(RareExit):
    """The guest touched the task-priority register (asked for by `VcpuFd.set_tpr_access_reporting`)."""

    __slots__ = ("is_write", "rip")
    __match_args__ = ("rip", "is_write")
    rip: int
    is_write: int
    reason = 12
    _format = struct.Struct("<QI")


class S390Sieic(RareExit):
    """s390: an intercept."""

    __slots__ = ("icptcode", "ipa", "ipb")
    __match_args__ = ("icptcode", "ipa", "ipb")
    icptcode: int
    ipa: int
    ipb: int
    reason = 13
    _format = struct.Struct("=BxHI")


class S390Reset(RareExit):
    """s390: a reset of the kind that `flags` says."""

    __slots__ = ("flags",)
    __match_args__ = ("flags",)
    flags: int
    reason = 14
    _format = struct.Struct("=Q")


class Dcr(RareExit):
    """PowerPC: an access to a device control register."""

    __slots__ = ("dcrn", "is_write")
    __match_args__ = ("dcrn", "is_write")
    dcrn: int
    is_write: int
    data = Live(4, "I")
    reason = 15
    _format = struct.Struct("=I4xB")


class InternalError(RareExit):
    """KVM gave up: `suberror` says why, `data` are the kernel's words about it.

    Suberror 1 is an instruction that KVM's emulator lacks; `flags` and `instruction` then say which bytes.
    """

    __slots__ = ("data", "suberror")
    __match_args__ = ("suberror", "data")
    suberror: int
    data: tuple[int, ...]
    reason = 17

    NAMES: ClassVar[dict[int, str]] = {
        1: "EMULATION", 2: "SIMUL_EX", 3: "DELIVERY_EV", 4: "UNEXPECTED_EXIT_REASON",
    }  # fmt: skip

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        """Read it from the run page's union."""
        suberror, count = struct.unpack_from("<II", payload)
        return cls(suberror, struct.unpack_from(f"<{min(count, 16)}Q", payload, 8), payload=payload)

    @property
    def flags(self) -> int:
        """For suberror 1: which parts of the report are valid."""
        return self.data[0] if self.suberror == 1 and self.data else 0

    @property
    def instruction(self) -> bytes:
        """For suberror 1: the bytes of the instruction, or nothing where the kernel gave none."""
        if not self.flags & 1 or len(self.data) < 3:
            return b""
        block = struct.pack("<QQ", *self.data[1:3])
        return block[1 : 1 + min(block[0], 15)]

    def __repr__(self) -> str:
        name = self.NAMES.get(self.suberror, "?")
        code = f", instruction <{self.instruction.hex(' ')}>" if self.instruction else ""
        return f"InternalError({self.suberror} {name}{code}, data=({', '.join(format(x, '#x') for x in self.data)}))"


class Osi(RareExit):
    """PowerPC: a MacOnLinux hypercall, with the 32 general registers."""

    __slots__ = ("gprs",)
    __match_args__ = ("gprs",)
    gprs: tuple[int, ...]
    reason = 18

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        """Read it from the run page's union."""
        return cls(struct.unpack_from("=32Q", payload), payload=payload)


class PaprHcall(RareExit):
    """PowerPC: a PAPR hypercall; write the answer to `ret`."""

    __slots__ = ("args", "nr")
    __match_args__ = ("nr", "args")
    nr: int
    args: tuple[int, ...]
    ret = Live(8)
    reason = 19

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        """Read it from the run page's union."""
        values = struct.unpack_from("=Q8x9Q", payload)
        return cls(values[0], values[1:], payload=payload)


class S390Ucontrol(RareExit):
    """s390: a page fault of a user-controlled VM."""

    __slots__ = ("pgm_code", "trans_exc_code")
    __match_args__ = ("trans_exc_code", "pgm_code")
    trans_exc_code: int
    pgm_code: int
    reason = 20
    _format = struct.Struct("=QI")


class S390Tsch(RareExit):
    """s390: TEST SUBCHANNEL."""

    __slots__ = ("dequeued", "io_int_parm", "io_int_word", "ipb", "subchannel_id", "subchannel_nr")
    __match_args__ = ("subchannel_id", "subchannel_nr", "io_int_parm", "io_int_word", "ipb", "dequeued")
    subchannel_id: int
    subchannel_nr: int
    io_int_parm: int
    io_int_word: int
    ipb: int
    dequeued: int
    reason = 22
    _format = struct.Struct("=HHIIIB")


class Epr(RareExit):
    """PowerPC: the guest acknowledges an external interrupt; write its vector to `epr`."""

    __slots__ = ()
    epr = Live(0, "I")
    reason = 23


class SystemEvent(RareExit):
    """The guest asked for a shutdown (1), reset (2), crash (3), wakeup (4), suspend (5) or SEV termination (6)."""

    __slots__ = ("data", "type")
    __match_args__ = ("type", "data")
    type: int
    data: tuple[int, ...]
    reason = 24

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        """Read it from the run page's union."""
        kind, count = struct.unpack_from("<II", payload)
        return cls(kind, struct.unpack_from(f"<{min(count, 16)}Q", payload, 8), payload=payload)


class S390Stsi(RareExit):
    """s390: STORE SYSTEM INFORMATION."""

    __slots__ = ("addr", "ar", "fc", "sel1", "sel2")
    __match_args__ = ("addr", "ar", "fc", "sel1", "sel2")
    addr: int
    ar: int
    fc: int
    sel1: int
    sel2: int
    reason = 25
    _format = struct.Struct("=QBxBBH")


class IoapicEoi(RareExit):
    """Split irqchip: the guest ended a level interrupt with this vector; tell your IOAPIC."""

    __slots__ = ("vector",)
    __match_args__ = ("vector",)
    vector: int
    reason = 26
    _format = struct.Struct("<B")


class Hyperv(RareExit):
    """A Hyper-V call: `type` 1 synic (msr, control, evt_page, msg_page), 2 hypercall (input, params), 3 debugger."""

    __slots__ = ("type", "values")
    __match_args__ = ("type", "values")
    type: int
    values: tuple[int, ...]
    result = Live(16)
    status = Live(24)
    reason = 27

    _FORMATS: ClassVar[dict[int, str]] = {1: "<8xI4x3Q", 2: "<8xQ8x2Q", 3: "<8xI4x5Q"}

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        """Read it from the run page's union."""
        kind = struct.unpack_from("<I", payload)[0]
        return cls(kind, struct.unpack_from(cls._FORMATS.get(kind, "<8x6Q"), payload), payload=payload)


class ArmNisv(RareExit):
    """arm64: a data abort whose instruction the syndrome does not describe."""

    __slots__ = ("esr_iss", "fault_ipa")
    __match_args__ = ("esr_iss", "fault_ipa")
    esr_iss: int
    fault_ipa: int
    reason = 28
    _format = struct.Struct("<QQ")


class _MsrExit(RareExit):
    __slots__ = ("index", "why")
    __match_args__ = ("index", "why", "data")
    why: int
    index: int
    error = Live(0, "B")
    data = Live(16)
    _format = struct.Struct("<8xII")

    INVALID = 1
    UNKNOWN = 2
    FILTER = 4

    def __init__(self, index: int, why: int, data: int = 0, payload: memoryview | None = None) -> None:
        self._payload = payload if payload is not None else memoryview(bytearray(256))
        self.index = index
        self.why = why
        if payload is None:
            self.data = data

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        """Read it from the run page's union."""
        why, index = cls._format.unpack_from(payload)
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
    """A Xen hypercall (type 1); write the answer to `result`."""

    __slots__ = ("cpl", "input", "longmode", "params", "type")
    __match_args__ = ("type", "longmode", "cpl", "input", "params")
    type: int
    longmode: int
    cpl: int
    input: int
    params: tuple[int, ...]
    result = Live(24)
    reason = 34

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        """Read it from the run page's union."""
        values = struct.unpack_from("<I4xIIQ8x6Q", payload)
        return cls(*values[:4], values[4:], payload=payload)


class RiscvSbi(RareExit):
    """RISC-V: an SBI call that KVM leaves to user space; write `ret0` (error) and `ret1` (value)."""

    __slots__ = ("args", "extension_id", "function_id")
    __match_args__ = ("extension_id", "function_id", "args")
    extension_id: int
    function_id: int
    args: tuple[int, ...]
    ret0 = Live(64)
    ret1 = Live(72)
    reason = 35

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        """Read it from the run page's union."""
        values = struct.unpack_from("<8Q", payload)
        return cls(values[0], values[1], values[2:], payload=payload)


class RiscvCsr(RareExit):
    """RISC-V: an access to a control register that KVM leaves to user space; write `ret_value`."""

    __slots__ = ("csr_num", "new_value", "write_mask")
    __match_args__ = ("csr_num", "new_value", "write_mask")
    csr_num: int
    new_value: int
    write_mask: int
    ret_value = Live(24)
    reason = 36
    _format = struct.Struct("<QQQ")


class Notify(RareExit):
    """The guest kept the processor from noticing interrupts for too long; bit 0 of `flags`: its state is lost."""

    __slots__ = ("flags",)
    __match_args__ = ("flags",)
    flags: int
    reason = 37
    _format = struct.Struct("<I")


class LoongarchIocsr(RareExit):
    """LoongArch: an access to an I/O control register."""

    __slots__ = ("is_write", "len", "phys_addr")
    __match_args__ = ("phys_addr", "len", "is_write")
    phys_addr: int
    len: int
    is_write: int
    data = Live(8)
    reason = 38
    _format = struct.Struct("<Q8xIB")


class MemoryFault(RareExit):
    """The guest touched memory that cannot be given to it, such as a private page without backing. Reported with -1."""

    __slots__ = ("flags", "gpa", "size")
    __match_args__ = ("flags", "gpa", "size")
    flags: int
    gpa: int
    size: int
    reason = 39
    _format = struct.Struct("<QQQ")


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


BY_REASON: dict[int, type[RareExit]] = {
    kind.reason: kind
    for kind in (
        GuestException, Hypercall, Debug, IrqWindowOpen, FailEntry, SetTpr, TprAccess, S390Sieic, S390Reset, Dcr, Nmi,
        InternalError, Osi, PaprHcall, S390Ucontrol, Watchdog, S390Tsch, Epr, SystemEvent, S390Stsi, IoapicEoi, Hyperv,
        ArmNisv, X86Rdmsr, X86Wrmsr, DirtyRingFull, ApResetHold, X86BusLock, Xen, RiscvSbi, RiscvCsr, Notify,
        LoongarchIocsr, MemoryFault, Tdx,
    )
}  # fmt: skip
