"""What /dev/kvm answers on RISC-V only: nothing beyond what all architectures have."""

from __future__ import annotations

from pyvmm_kvm.fd import Fd


class ArchKvm(Fd):
    """What `Kvm` adds on RISC-V."""

    __slots__ = ()

    def _default_vm_type(self) -> int:
        return 0
