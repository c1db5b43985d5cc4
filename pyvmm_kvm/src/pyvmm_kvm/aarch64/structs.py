"""The structures of arm64's asm/kvm.h, their fields named as there; the build compares each with the kernel's."""

from __future__ import annotations

from pyvmm_kvm.mp_state import MpState
from pyvmm_kvm.struct import Array, Struct

__all__ = [
    "Array",
    "CounterOffset",
    "DebugExitArch",
    "DeviceAddr",
    "GuestDebugArch",
    "MpState",
    "PmuEventFilter",
    "RegMaskRange",
    "Regs",
    "SmcccFilter",
    "SyncRegs",
    "VcpuEvents",
    "VcpuException",
    "VcpuInit",
]


class Regs(Struct, ctype="struct arm64_regs"):
    """The core registers (struct kvm_regs). KVM moves them one by one: `registers.core` gives the id of each field.

    `vregs` are the 32 vector registers as 64 words, low half first.
    """

    __slots__ = ()
    regs: Array
    sp: int
    pc: int
    pstate: int
    sp_el1: int
    elr_el1: int
    spsr: Array
    vregs: Array
    fpsr: int
    fpcr: int


class VcpuInit(Struct, ctype="struct arm64_vcpu_init"):
    """What kind of processor a vCPU becomes (struct kvm_vcpu_init): `target`, and a bitmap of features.

    >>> init = VcpuInit(target=5)
    >>> init.set_feature(VcpuInit.PSCI_0_2)
    >>> init.has_feature(VcpuInit.PSCI_0_2), list(init.features)
    (True, [4, 0, 0, 0, 0, 0, 0])
    """

    __slots__ = ()
    target: int
    features: Array

    POWER_OFF = 0
    EL1_32BIT = 1
    PSCI_0_2 = 2
    PMU_V3 = 3
    SVE = 4
    PTRAUTH_ADDRESS = 5
    PTRAUTH_GENERIC = 6
    HAS_EL2 = 7
    HAS_EL2_E2H0 = 8
    GENERIC_V8 = 5  # a target

    def set_feature(self, number: int, wanted: bool = True) -> None:
        """Ask for a feature, or stop asking."""
        word = self.features[number // 32]
        bit = 1 << number % 32
        self.features[number // 32] = word | bit if wanted else word & ~bit

    def has_feature(self, number: int) -> bool:
        """Say whether the feature is asked for."""
        return bool(self.features[number // 32] >> number % 32 & 1)


class GuestDebugArch(Struct, ctype="struct arm64_guest_debug_arch"):
    """16 breakpoints and 16 watchpoints, control and value registers of each (struct kvm_guest_debug_arch)."""

    __slots__ = ()
    dbg_bcr: Array
    dbg_bvr: Array
    dbg_wcr: Array
    dbg_wvr: Array


class DebugExitArch(Struct, ctype="struct arm64_debug_exit_arch"):
    """What a debug exit reports (struct kvm_debug_exit_arch)."""

    __slots__ = ()
    hsr: int
    hsr_high: int
    far: int


class SyncRegs(Struct, ctype="struct arm64_sync_regs"):
    """What the run page shares (struct kvm_sync_regs): the levels of in-kernel devices without an in-kernel GIC."""

    __slots__ = ()
    device_irq_level: int


class PmuEventFilter(Struct, ctype="struct arm64_pmu_event_filter"):
    """A range of performance events to allow (0) or deny (1) (struct kvm_pmu_event_filter)."""

    __slots__ = ()
    base_event: int
    nevents: int
    action: int


class VcpuException(Struct, ctype="struct arm64_vcpu_exception"):
    """The part of `VcpuEvents` that holds the pending abort."""

    __slots__ = ()
    serror_pending: int
    serror_has_esr: int
    ext_dabt_pending: int
    serror_esr: int


class VcpuEvents(Struct, ctype="struct arm64_vcpu_events"):
    """Aborts on their way into the guest (struct kvm_vcpu_events)."""

    __slots__ = ()
    exception: VcpuException


class DeviceAddr(Struct, ctype="struct arm64_device_addr"):
    """Where a device lies (struct kvm_arm_device_addr); newer kernels want device attributes instead."""

    __slots__ = ()
    id: int
    addr: int


class CounterOffset(Struct, ctype="struct arm64_counter_offset"):
    """How far the guest's counters are behind the host's (struct kvm_arm_counter_offset)."""

    __slots__ = ()
    counter_offset: int


class SmcccFilter(Struct, ctype="struct arm64_smccc_filter"):
    """What becomes of a range of SMCCC calls (struct kvm_smccc_filter)."""

    __slots__ = ()
    base: int
    nr_functions: int
    action: int

    HANDLE = 0
    DENY = 1
    FWD_TO_USER = 2


class RegMaskRange(Struct, ctype="struct arm64_reg_mask_range"):
    """A request for the writable bits of the feature id registers (struct reg_mask_range)."""

    __slots__ = ()
    addr: int
    range: int
