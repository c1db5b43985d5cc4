"""``/dev/kvm`` itself: what this host's KVM can do, and the way to a VM."""

from __future__ import annotations

import os

from pyvmm_kvm._kvm import lib
from pyvmm_kvm.errors import KvmError
from pyvmm_kvm.fd import KvmFileDescriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_kvm.vm import VmFd
    from pyvmm_kvm.x86_64.cpuid import CpuId

MAX_CPUID_ENTRIES = 256
"""KVM_MAX_CPUID_ENTRIES: the kernel never returns more."""


class Kvm(KvmFileDescriptor):
    """The system file descriptor (kernel document virt/kvm/api, "system ioctls").

    Args:
        path: the device node.

    Raises:
        KvmError: the device does not open, or its API is not version 12.
    """

    __slots__ = ()

    def __init__(self, path: str | os.PathLike[str] = "/dev/kvm") -> None:
        try:
            super().__init__(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise KvmError("open", error.errno or 0, where=os.fspath(path)) from None

    def get_api_version(self) -> int:
        """KVM_GET_API_VERSION: 12, since Linux 2.6.22."""
        return self._call("KVM_GET_API_VERSION")

    def check_extension_raw(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION: 0 where a capability is missing, otherwise 1 or its own number."""
        return self._call("KVM_CHECK_EXTENSION", capability)

    def get_vcpu_mmap_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE: bytes shared with the kernel for each vCPU."""
        return self._call("KVM_GET_VCPU_MMAP_SIZE")

    def get_nr_vcpus(self) -> int:
        """The number of vCPUs the kernel recommends as the most; 4 where it does not say."""
        return self.check_extension_raw(lib.KVM_CAP_NR_VCPUS) or 4

    def get_max_vcpus(self) -> int:
        """The number of vCPUs the kernel allows at the most."""
        return self.check_extension_raw(lib.KVM_CAP_MAX_VCPUS) or self.get_nr_vcpus()

    def get_nr_memslots(self) -> int:
        """The number of memory slots; 32 where the kernel does not say."""
        return self.check_extension_raw(lib.KVM_CAP_NR_MEMSLOTS) or 32

    def get_supported_cpuid(self, num_entries: int = MAX_CPUID_ENTRIES) -> CpuId:
        """KVM_GET_SUPPORTED_CPUID: what a guest may be told.

        Raises:
            KvmError: E2BIG where ``num_entries`` is too few, ENOMEM where it is more than the kernel's limit.
        """
        from pyvmm_kvm.x86_64.cpuid import CpuId

        table = CpuId.reserve(num_entries)
        self._call_with("KVM_GET_SUPPORTED_CPUID", table)
        return CpuId.unpack(table)

    def create_vm(self) -> VmFd:
        """KVM_CREATE_VM: a machine with no memory, no devices and no vCPU."""
        from pyvmm_kvm.vm import VmFd

        return VmFd(self._call("KVM_CREATE_VM"), self.get_vcpu_mmap_size())
