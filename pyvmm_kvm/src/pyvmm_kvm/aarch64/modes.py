"""How an arm64 vCPU starts: the state in which a kernel expects to find it (Documentation/arch/arm64/booting.rst)."""

from __future__ import annotations

from pyvmm_kvm.aarch64.registers import core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_kvm.vcpu import VcpuFd

# EL1 with its own stack pointer; debug, SError, IRQ and FIQ masked
PSTATE_EL1H_MASKED = 0x3C5


def setup_boot(vcpu: VcpuFd, entry: int, device_tree: int = 0) -> None:
    """Start at `entry` in EL1 with interrupts masked and the device tree's address in X0; after `vcpu_init`."""
    vcpu.set_one_reg(core("pstate"), PSTATE_EL1H_MASKED)
    vcpu.set_one_reg(core("pc"), entry)
    vcpu.set_one_reg(core("regs", 0), device_tree)
    for number in (1, 2, 3):
        vcpu.set_one_reg(core("regs", number), 0)
