"""`/dev/kvm` itself: what this host offers, and the way to a VM."""

from __future__ import annotations

import errno
import os

from pyvmm_kvm._arch import ArchKvm
from pyvmm_kvm.device_attrs import ReadableAttrs
from pyvmm_kvm.errors import KvmError
from pyvmm_kvm.extensions import Extensions
from pyvmm_kvm.fd import check_kind
from pyvmm_kvm.vm import VmFd

# as in `Cap`, which takes longer to make than a boot has for it
_CAP_NR_VCPUS, _CAP_NR_MEMSLOTS, _CAP_MAX_VCPUS, _CAP_MAX_VCPU_ID = 9, 10, 66, 128
# what the kernel's document says of a KVM that answers 0
_NR_VCPUS_UNSAID, _NR_MEMSLOTS_UNSAID = 4, 32
_API_VERSION = 12
_IPA_SIZE_MASK = 0xFF  # KVM_VM_TYPE_ARM_IPA_SIZE_MASK


class Kvm(ArchKvm, Extensions, ReadableAttrs):
    """The system file descriptor.

    Raises:
        KvmError: the device is missing, may not be opened or is not KVM's; `cause` says what to do.

    Example::

        with Kvm() as kvm, kvm.create_vm() as vm: ...

    """

    __slots__ = ("path",)

    def __init__(self, path: str = "/dev/kvm") -> None:
        self.path = path
        try:
            super().__init__(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise KvmError(error.errno or errno.EIO, "open") from error
        try:
            self._check_version()
        except BaseException:
            self.close()
            raise

    def _check_version(self) -> None:
        try:
            version = self.get_api_version()
        except KvmError as error:
            number = error.errno or errno.ENOTTY
            raise KvmError(number, "KVM_GET_API_VERSION", f"{self.path} is not KVM's device, /dev/kvm") from error
        # api.rst, 4.1: "Applications should refuse to run if KVM_GET_API_VERSION returns a value other than 12"
        if version != _API_VERSION:
            cause = f"{self.path} has version {version}, and this package knows {_API_VERSION}"
            raise KvmError(errno.ENOTSUP, "KVM_GET_API_VERSION", cause)

    def get_api_version(self) -> int:
        """Return 12, the version of every kernel that is not an antique; others are refused when this is made."""
        return self.ioctl_value("KVM_GET_API_VERSION")

    def get_vcpu_mmap_size(self) -> int:
        """Return how many bytes of a vCPU's file descriptor can be mapped: the run page and what follows it."""
        return self.ioctl_value("KVM_GET_VCPU_MMAP_SIZE")

    def get_nr_vcpus(self) -> int:
        """Return the recommended largest number of vCPUs in a VM; 4 where KVM does not say."""
        return self.check_extension_raw(_CAP_NR_VCPUS) or _NR_VCPUS_UNSAID

    def get_max_vcpus(self) -> int:
        """Return the largest number of vCPUs that a VM can have."""
        return self.check_extension_raw(_CAP_MAX_VCPUS) or self.get_nr_vcpus()

    def get_max_vcpu_id(self) -> int:
        """Return the number that vCPU ids are below."""
        return self.check_extension_raw(_CAP_MAX_VCPU_ID) or self.get_max_vcpus()

    def get_nr_memslots(self) -> int:
        """Return how many memory slots a VM has; 32 where KVM does not say."""
        return self.check_extension_raw(_CAP_NR_MEMSLOTS) or _NR_MEMSLOTS_UNSAID

    def create_vm(self) -> VmFd:
        """Make a VM without memory, vCPUs or devices, of the architecture's usual type."""
        return self.create_vm_with_type(self.default_vm_type())

    def create_vm_with_type(self, vm_type: int) -> VmFd:
        """Make a VM of a type that the architecture defines (on x86: protected kinds; on arm64: the address size)."""
        while True:
            try:
                return VmFd(self.ioctl_value("KVM_CREATE_VM", vm_type), self.get_vcpu_mmap_size())
            except KvmError as error:
                # the kernel asks for another try when a signal met it half-way; nothing was created
                if error.errno != errno.EINTR:
                    raise

    def create_vm_with_ipa_size(self, ipa_size: int) -> VmFd:
        """Make an arm64 VM of physical addresses with this many bits, 32 to `get_host_ipa_limit()`; fail elsewhere."""
        return self.create_vm_with_type(ipa_size & _IPA_SIZE_MASK)

    def create_vmfd_from_rawfd(self, fd: int) -> VmFd:
        """Take over a VM's file descriptor that came from elsewhere, such as from another process.

        `ValueError` for one of something else.
        """
        check_kind(fd, "kvm-vm")
        return VmFd(fd, self.get_vcpu_mmap_size())

    def __repr__(self) -> str:
        return f"<Kvm {self.path} {'closed' if self.closed else f'fd={self.fileno()}'}>"
