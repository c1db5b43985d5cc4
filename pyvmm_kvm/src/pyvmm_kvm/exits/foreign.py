"""Exits that only other architectures than x86 have; decoded everywhere, produced there."""

from __future__ import annotations

import struct

from pyvmm_kvm.exits.base import Live, RareExit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class Watchdog(RareExit):
    """PowerPC: the guest's watchdog expired."""

    __slots__ = ()
    reason = 21


class ArmDebug(RareExit):
    """arm64: a breakpoint, watchpoint or single step, with the syndrome and the faulting address."""

    __slots__ = ("far", "hsr", "hsr_high")
    __match_args__ = ("hsr", "hsr_high", "far")
    hsr: int
    hsr_high: int
    far: int
    reason = 4
    layout = struct.Struct("<IIQ")


class RiscvDebug(RareExit):
    """RISC-V: the guest executed an `ebreak`. KVM says no more: the program counter is still at it."""

    __slots__ = ()
    reason = 4


class S390Sieic(RareExit):
    """s390: an intercept."""

    __slots__ = ("icptcode", "ipa", "ipb")
    __match_args__ = ("icptcode", "ipa", "ipb")
    icptcode: int
    ipa: int
    ipb: int
    reason = 13
    layout = struct.Struct("=BxHI")


class S390Reset(RareExit):
    """s390: a reset of the kind that `flags` says."""

    __slots__ = ("flags",)
    __match_args__ = ("flags",)
    flags: int
    reason = 14
    layout = struct.Struct("=Q")


class Dcr(RareExit):
    """PowerPC: an access to a device control register."""

    __slots__ = ("dcrn", "is_write")
    __match_args__ = ("dcrn", "is_write")
    dcrn: int
    is_write: int
    data = Live(4, "I")
    reason = 15
    layout = struct.Struct("=I4xB")


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
    layout = struct.Struct("=QI")


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
    layout = struct.Struct("=HHIIIB")


class Epr(RareExit):
    """PowerPC: the guest acknowledges an external interrupt; write its vector to `epr`."""

    __slots__ = ()
    epr = Live(0, "I")
    reason = 23


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
    layout = struct.Struct("=QBxBBH")


class ArmNisv(RareExit):
    """arm64: a data abort whose instruction the syndrome does not describe."""

    __slots__ = ("esr_iss", "fault_ipa")
    __match_args__ = ("esr_iss", "fault_ipa")
    esr_iss: int
    fault_ipa: int
    reason = 28
    layout = struct.Struct("<QQ")


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
    layout = struct.Struct("<QQQ")


class LoongarchIocsr(RareExit):
    """LoongArch: an access to an I/O control register."""

    __slots__ = ("is_write", "len", "phys_addr")
    __match_args__ = ("phys_addr", "len", "is_write")
    phys_addr: int
    len: int
    is_write: int
    data = Live(8)
    reason = 38
    layout = struct.Struct("<Q8xIB")


class ArmSea(RareExit):
    """arm64: the guest read poisoned memory (KVM_CAP_ARM_SEA_TO_USER); `gpa` counts where bit 0 of `flags` is set."""

    __slots__ = ("esr", "flags", "gpa", "gva")
    __match_args__ = ("flags", "esr", "gva", "gpa")
    flags: int
    esr: int
    gva: int
    gpa: int
    reason = 41
    layout = struct.Struct("<QQQQ")
