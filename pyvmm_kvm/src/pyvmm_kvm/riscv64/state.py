"""A snapshot of a RISC-V vCPU.

Shown to round-trip on a vCPU that the tests make up; nothing here ran on a RISC-V host yet.
"""

from __future__ import annotations

from pyvmm_kvm.reg_state import RegisterState, read_registers, write_registers
from pyvmm_kvm.riscv64.registers import timer
from pyvmm_kvm.riscv64.structs import MpState
from pyvmm_kvm.state import finish_io

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from pyvmm_kvm.reg_state import RegisterVcpu


class VcpuState(RegisterState):
    """One vCPU: every register KVM lists, and whether it runs."""

    kind = 4

    @classmethod
    def save(cls, vcpu: RegisterVcpu) -> Self:
        """Read a stopped vCPU. Its pending I/O is completed first."""
        finish_io(vcpu)
        return cls({"registers": read_registers(vcpu), "mp_state": bytes(vcpu.get_mp_state())})

    def restore(self, vcpu: RegisterVcpu) -> list[int]:
        """Make a fresh vCPU the same; return the registers whose value this kernel refused."""
        state = timer("state")
        refused = write_registers(vcpu, self.parts["registers"], lambda register: register != state)
        # arming the timer takes the compare value into account, so it comes last
        refused += write_registers(vcpu, self.parts["registers"], lambda register: register == state)
        vcpu.set_mp_state(MpState.from_bytes(self.parts["mp_state"]))
        return refused
