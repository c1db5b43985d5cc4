"""The vCPU calls that only RISC-V has.

`interrupt` may be called by any thread while the vCPU runs: KVM_INTERRUPT is an asynchronous ioctl there.
"""

from __future__ import annotations

from pyvmm_kvm._kvm import ffi
from pyvmm_kvm.fd import Fd

INTERRUPT_SET, INTERRUPT_UNSET = 0xFFFFFFFF, 0xFFFFFFFE


class ArchVcpu(Fd):
    """What `VcpuFd` adds on RISC-V."""

    __slots__ = ()
    in_reset_state = False  # KVM resets no vCPU of this architecture by itself

    def interrupt(self, active: bool) -> None:
        """Raise or lower the supervisor's external interrupt; without an in-kernel AIA."""
        level = INTERRUPT_SET if active else INTERRUPT_UNSET
        self.ioctl("KVM_INTERRUPT", ffi.new("struct kvm_interrupt *", (level,)))

    def set_guest_debug(self, control: int) -> None:
        """Hand the guest's `ebreak` to us (`GuestDebug`), or with 0 back to the guest."""
        self.ioctl("KVM_SET_GUEST_DEBUG", ffi.new("struct riscv64_guest_debug *", (control,)))

    @property
    def registers(self) -> str:
        """The core registers as people read them, for the terminal and for reports."""
        from pyvmm_kvm.one_reg import get_one_reg
        from pyvmm_kvm.riscv64.registers import core
        from pyvmm_kvm.riscv64.structs import Regs

        cells = [f"{name:>4} {get_one_reg(self, core(name)):016x}" for name in Regs.field_names]
        return "\n".join("  ".join(cells[start : start + 4]) for start in range(0, len(cells), 4))
