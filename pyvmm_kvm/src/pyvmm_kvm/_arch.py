"""Which architecture's calls `VmFd` and `VcpuFd` have: those of the machine this runs on."""

from __future__ import annotations

import os

TYPE_CHECKING = False

ARCH = os.uname().machine

# type checkers read the x86 names; the others answer to the same ones where the kernel has the call
if TYPE_CHECKING or ARCH == "x86_64":
    from .x86_64.vcpu import ArchVcpu
    from .x86_64.vm import ArchVm
elif ARCH == "aarch64":
    from .aarch64.vcpu import ArchVcpu
    from .aarch64.vm import ArchVm
elif ARCH == "riscv64":
    from .riscv64.vcpu import ArchVcpu
    from .riscv64.vm import ArchVm
else:
    raise ImportError(f"pyvmm_kvm knows x86_64, aarch64 and riscv64, not {ARCH}")

__all__ = ["ARCH", "ArchVcpu", "ArchVm"]
