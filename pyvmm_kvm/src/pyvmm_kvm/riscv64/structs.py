"""The structures of RISC-V's asm/kvm.h, their fields named as there; the build compares each with the kernel's.

KVM moves none of them as a whole: `registers` makes the id of each field for `VcpuFd.get_one_reg`.
"""

from __future__ import annotations

from pyvmm_kvm.mp_state import MpState
from pyvmm_kvm.struct import Array, Struct

__all__ = [
    "AiaCsr",
    "Array",
    "Config",
    "Csr",
    "DExtState",
    "FExtState",
    "MpState",
    "Regs",
    "SbiSta",
    "SmstateenCsr",
    "Timer",
]


class Config(Struct, ctype="struct riscv64_config"):
    """What the vCPU is (struct kvm_riscv_config): the single-letter extensions, block sizes, identity, paging mode."""

    __slots__ = ()
    isa: int
    zicbom_block_size: int
    mvendorid: int
    marchid: int
    mimpid: int
    zicboz_block_size: int
    satp_mode: int


class Regs(Struct, ctype="struct riscv64_core"):
    """The integer registers, the program counter and the mode (struct kvm_riscv_core): 1 supervisor, 0 user."""

    __slots__ = ()
    pc: int
    ra: int
    sp: int
    gp: int
    tp: int
    t0: int
    t1: int
    t2: int
    s0: int
    s1: int
    a0: int
    a1: int
    a2: int
    a3: int
    a4: int
    a5: int
    a6: int
    a7: int
    s2: int
    s3: int
    s4: int
    s5: int
    s6: int
    s7: int
    s8: int
    s9: int
    s10: int
    s11: int
    t3: int
    t4: int
    t5: int
    t6: int
    mode: int

    MODE_U = 0
    MODE_S = 1


class Csr(Struct, ctype="struct riscv64_csr"):
    """The supervisor's control and status registers (struct kvm_riscv_csr)."""

    __slots__ = ()
    sstatus: int
    sie: int
    stvec: int
    sscratch: int
    sepc: int
    scause: int
    stval: int
    sip: int
    satp: int
    scounteren: int
    senvcfg: int


class AiaCsr(Struct, ctype="struct riscv64_aia_csr"):
    """Those of the advanced interrupt architecture (struct kvm_riscv_aia_csr)."""

    __slots__ = ()
    siselect: int
    iprio1: int
    iprio2: int
    sieh: int
    siph: int
    iprio1h: int
    iprio2h: int


class SmstateenCsr(Struct, ctype="struct riscv64_smstateen_csr"):
    """The state-enable register (struct kvm_riscv_smstateen_csr)."""

    __slots__ = ()
    sstateen0: int


class Timer(Struct, ctype="struct riscv64_timer"):
    """The timer (struct kvm_riscv_timer): `frequency` in Hz may only be compared, `state` is 1 while it is armed."""

    __slots__ = ()
    frequency: int
    time: int
    compare: int
    state: int


class SbiSta(Struct, ctype="struct riscv64_sbi_sta"):
    """Where the guest reads its stolen time (struct kvm_riscv_sbi_sta)."""

    __slots__ = ()
    shmem_lo: int
    shmem_hi: int


class FExtState(Struct, ctype="struct riscv64_f_ext_state"):
    """Single-precision registers (struct __riscv_f_ext_state)."""

    __slots__ = ()
    f: Array
    fcsr: int


class DExtState(Struct, ctype="struct riscv64_d_ext_state"):
    """Double-precision registers (struct __riscv_d_ext_state)."""

    __slots__ = ()
    f: Array
    fcsr: int
