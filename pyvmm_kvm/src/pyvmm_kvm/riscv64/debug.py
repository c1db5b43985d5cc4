"""A debugger's view of a RISC-V vCPU: KVM hands the guest's `ebreak` to us, and has no other breakpoints.

The kernel (arch/riscv/kvm/vcpu.c) knows KVM_GUESTDBG_ENABLE and refuses nothing else, but does nothing with it
either: there is no single step.
"""

from __future__ import annotations

from pyvmm_kvm.debugger import ENABLE, Debugger
from pyvmm_kvm.exits.foreign import RiscvDebug
from pyvmm_kvm.riscv64.registers import core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from pyvmm_kvm.debugger import Runnable
    from pyvmm_kvm.exits.hot import VcpuExit

    class DebugVcpu(Runnable, Protocol):
        """As much of a RISC-V vCPU as this needs."""

        def get_one_reg(self, register: int) -> int:
            """Call KVM_GET_ONE_REG."""


USE_SW_BP = 1 << 16


class GuestDebug(Debugger):
    """Debugging of one vCPU, switched off again by `with`: put an `ebreak` into memory, then `resume()`."""

    __slots__ = ()
    stop_kind = RiscvDebug
    vcpu: DebugVcpu

    def arm(self, extra: int = 0) -> None:
        """Give the control bits to KVM."""
        if extra:
            raise ValueError("KVM has no single step on RISC-V: put an ebreak behind the instruction")
        self.vcpu.set_guest_debug(ENABLE | USE_SW_BP)

    def position(self, _exit: VcpuExit, /) -> int:
        """Return the program counter."""
        return self.vcpu.get_one_reg(core("pc"))


__all__ = ["ENABLE", "USE_SW_BP", "GuestDebug"]
