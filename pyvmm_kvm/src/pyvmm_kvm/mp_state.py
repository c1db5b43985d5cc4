"""Whether a vCPU runs, halts or waits: the one state structure that all architectures share."""

from __future__ import annotations

from pyvmm_kvm.struct import Struct


class MpState(Struct, ctype="struct kvm_mp_state"):
    """Whether the vCPU runs, halts or waits for INIT and SIPI (struct kvm_mp_state)."""

    __slots__ = ()
    mp_state: int

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    SIPI_RECEIVED = 4
    STOPPED = 5
    AP_RESET_HOLD = 9
    SUSPENDED = 10
