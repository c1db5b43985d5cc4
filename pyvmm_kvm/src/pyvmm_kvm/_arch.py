"""Which architecture's calls `VmFd` and `VcpuFd` have: those of the machine this runs on."""

from __future__ import annotations

import os

ARCH = os.uname().machine
if ARCH != "x86_64":
    raise ImportError(f"pyvmm_kvm drives x86_64 hosts; this one is {ARCH}")

from .x86_64.vcpu import ArchVcpu  # noqa: E402 - only after the sentence that says why it would fail
from .x86_64.vm import ArchVm  # noqa: E402

__all__ = ["ARCH", "ArchVcpu", "ArchVm"]
