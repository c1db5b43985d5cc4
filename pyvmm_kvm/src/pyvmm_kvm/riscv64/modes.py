"""How a RISC-V vCPU starts: the state in which a kernel expects to find it (Documentation/arch/riscv/boot.rst).

Nothing here ran on a RISC-V host yet.
"""

from __future__ import annotations

from pyvmm_kvm.riscv64.registers import core, csr
from pyvmm_kvm.riscv64.structs import Regs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_kvm.vcpu import VcpuFd


def setup_boot(vcpu: VcpuFd, entry: int, device_tree: int = 0, hart: int = 0) -> None:
    """Start at `entry` in supervisor mode without paging, the hart's number in a0 and the device tree in a1."""
    vcpu.set_one_reg(core("mode"), Regs.MODE_S)
    vcpu.set_one_reg(csr("satp"), 0)
    vcpu.set_one_reg(core("pc"), entry)
    vcpu.set_one_reg(core("a0"), hart)
    vcpu.set_one_reg(core("a1"), device_tree)
