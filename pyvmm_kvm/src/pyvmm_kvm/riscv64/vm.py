"""The VM calls that only RISC-V has: none; the interrupt controller is a device (`platform`)."""

from __future__ import annotations

from pyvmm_kvm.fd import Fd


class ArchVm(Fd):
    """What `VmFd` adds on RISC-V."""

    __slots__ = ()
