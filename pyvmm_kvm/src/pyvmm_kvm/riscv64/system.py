"""What /dev/kvm answers on RISC-V only: nothing beyond what all architectures have."""

from __future__ import annotations

from pyvmm_kvm.fd import Fd


class ArchKvm(Fd):
    """What `Kvm` adds on RISC-V."""

    __slots__ = ()

    def default_vm_type(self) -> int:
        """Return what `create_vm` gives to KVM_CREATE_VM: the one type there is."""
        return 0
