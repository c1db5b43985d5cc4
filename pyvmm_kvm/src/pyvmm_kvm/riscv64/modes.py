"""How a RISC-V vCPU starts, and what its device tree has to say of it.

The kernel expects to find a hart in a state that Documentation/arch/riscv/boot.rst describes, and learns from the tree
what the hart has: its extensions, its page tables, its timer's frequency. All of that is the host's to say: KVM begins
with everything that the host has and a guest can have.
"""

from __future__ import annotations

import errno

from pyvmm_kvm.errors import KvmError
from pyvmm_kvm.riscv64.registers import ISA_EXTENSIONS, config, core, csr, isa_ext, timer
from pyvmm_kvm.riscv64.structs import Regs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from pyvmm_kvm.vcpu import VcpuFd

    class OneReg(Protocol):
        """As much of a vCPU as this needs."""

        def get_one_reg(self, register: int) -> int:
            """Call KVM_GET_ONE_REG."""


LETTERS = "imafdqcbvh"
"""Single-letter extensions in their canonical order."""
PAGING_MODES = {8: "sv39", 9: "sv48", 10: "sv57"}
_UNKNOWN = (errno.ENOENT, errno.EINVAL)


def setup_boot(vcpu: VcpuFd, entry: int, device_tree: int = 0, hart: int = 0) -> None:
    """Start at `entry` in supervisor mode without paging, the hart's number in a0 and the device tree in a1."""
    vcpu.set_one_reg(core("mode"), Regs.MODE_S)
    vcpu.set_one_reg(csr("satp"), 0)
    vcpu.set_one_reg(core("pc"), entry)
    vcpu.set_one_reg(core("a0"), hart)
    vcpu.set_one_reg(core("a1"), device_tree)


def extensions(vcpu: OneReg) -> list[str]:
    """Return the extensions that the vCPU has, by their names in `riscv,isa-extensions`, letters first."""
    found = [name.lower() for name in ISA_EXTENSIONS if _has(vcpu, name)]
    letters = sorted((name for name in found if len(name) == 1), key=LETTERS.index)
    return letters + [name for name in found if len(name) > 1]


def _has(vcpu: OneReg, name: str) -> bool:
    try:
        return vcpu.get_one_reg(isa_ext(name)) == 1
    except KvmError as error:
        if error.errno not in _UNKNOWN:
            raise
        return False  # a newer kernel's


def paging_mode(vcpu: OneReg) -> str:
    """Return the largest page tables that the vCPU can use: sv39, sv48 or sv57; sv39 where the kernel does not say."""
    try:
        return PAGING_MODES.get(vcpu.get_one_reg(config("satp_mode")), "sv39")
    except KvmError as error:
        if error.errno not in _UNKNOWN:
            raise
        return "sv39"


def timebase(vcpu: OneReg) -> int:
    """Return how often a second the vCPU's timer counts."""
    return vcpu.get_one_reg(timer("frequency"))
