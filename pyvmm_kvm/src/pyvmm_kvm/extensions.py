"""Capabilities, as /dev/kvm and each VM answer for them (KVM_CHECK_EXTENSION)."""

from __future__ import annotations

import errno

from pyvmm_kvm.errors import KvmError
from pyvmm_kvm.fd import Fd


class Extensions(Fd):
    """What `Kvm` and `VmFd` have in common: a VM's answer may depend on its type, and on what it was given before."""

    __slots__ = ()

    def check_extension_raw(self, number: int) -> int:
        """Return what KVM_CHECK_EXTENSION says about a capability: 0 is no, some answer with a size or a mask.

        A capability of VMs that /dev/kvm has no answer for (arm64: `Cap.MSI_DEVID`) is 0 there: ask the VM.
        """
        try:
            return self.ioctl_value("KVM_CHECK_EXTENSION", number)
        except KvmError as error:
            if error.errno != errno.EINVAL:
                raise
            return 0

    check_extension_int = check_extension_raw

    def check_extension(self, number: int) -> bool:
        """Say whether the capability is there at all."""
        return self.check_extension_raw(number) > 0
