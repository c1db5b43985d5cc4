"""Which architecture's calls `Kvm`, `VmFd` and `VcpuFd` have: those of the machine this runs on."""

from __future__ import annotations

import os

ARCH = os.uname().machine
_KNOWN = ("x86_64", "aarch64", "riscv64")
if ARCH not in _KNOWN:
    raise ImportError(f"pyvmm_kvm drives {', '.join(_KNOWN)} hosts; this one is {ARCH}")

TYPE_CHECKING = False
if TYPE_CHECKING or ARCH == "x86_64":
    from pyvmm_kvm.x86_64.system import ArchKvm
    from pyvmm_kvm.x86_64.vcpu import ArchVcpu
    from pyvmm_kvm.x86_64.vm import ArchVm
else:
    from importlib import import_module

    ArchKvm = import_module(f"{__package__}.{ARCH}.system").ArchKvm
    ArchVcpu = import_module(f"{__package__}.{ARCH}.vcpu").ArchVcpu
    ArchVm = import_module(f"{__package__}.{ARCH}.vm").ArchVm

__all__ = ["ARCH", "ArchKvm", "ArchVcpu", "ArchVm"]
