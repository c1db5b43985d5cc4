"""`/dev/kvm` itself: what this host offers, and the way to a VM."""

from __future__ import annotations

import errno
import os

from ._kvm import ffi
from .errors import KvmError
from .fd import Fd
from .vm import VmFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .x86_64.cpuid import CpuId
    from .x86_64.msrs import MsrList, Msrs

_CAP_NR_VCPUS, _CAP_NR_MEMSLOTS, _CAP_MAX_VCPUS, _CAP_MAX_VCPU_ID = 9, 10, 66, 128


class Kvm(Fd):
    """The system file descriptor.

    Raises:
        KvmError: the device is missing or may not be opened; `cause` says what to do.

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

    def get_api_version(self) -> int:
        """12 on every kernel that is not an antique; a VMM must refuse any other number."""
        return self._ioctl_value("KVM_GET_API_VERSION", 0)

    def check_extension_raw(self, number: int) -> int:
        """What KVM_CHECK_EXTENSION says about a capability's number: 0 is no, some answer with a size or a mask."""
        return self._ioctl_value("KVM_CHECK_EXTENSION", number)

    check_extension_int = check_extension_raw

    def check_extension(self, number: int) -> bool:
        """Whether the capability is there at all."""
        return self.check_extension_raw(number) > 0

    def get_vcpu_mmap_size(self) -> int:
        """How many bytes of a vCPU's file descriptor can be mapped: the run page and what follows it."""
        return self._ioctl_value("KVM_GET_VCPU_MMAP_SIZE", 0)

    def get_nr_vcpus(self) -> int:
        """The recommended largest number of vCPUs in a VM; 4 where KVM does not say."""
        return self.check_extension_raw(_CAP_NR_VCPUS) or 4

    def get_max_vcpus(self) -> int:
        """The largest number of vCPUs that a VM can have."""
        return self.check_extension_raw(_CAP_MAX_VCPUS) or self.get_nr_vcpus()

    def get_max_vcpu_id(self) -> int:
        """VCPU ids are below this."""
        return self.check_extension_raw(_CAP_MAX_VCPU_ID) or self.get_max_vcpus()

    def get_nr_memslots(self) -> int:
        """How many memory slots a VM has; 32 where KVM does not say."""
        return self.check_extension_raw(_CAP_NR_MEMSLOTS) or 32

    def create_vm(self) -> VmFd:
        """A VM without memory, vCPUs or devices."""
        return self.create_vm_with_type(0)

    def create_vm_with_type(self, vm_type: int) -> VmFd:
        """A VM of a type that the architecture defines (on x86: protected kinds; on arm64: the address size)."""
        while True:
            try:
                return VmFd(self._ioctl_value("KVM_CREATE_VM", vm_type), self.get_vcpu_mmap_size())
            except KvmError as error:
                # the kernel asks for another try when a signal met it half-way; nothing was created
                if error.errno != errno.EINTR:
                    raise

    def create_vmfd_from_rawfd(self, fd: int) -> VmFd:
        """Take over a VM's file descriptor that came from elsewhere, such as from another process."""
        return VmFd(fd, self.get_vcpu_mmap_size())

    def _get_cpuid(self, name: str, count: int) -> CpuId:
        from .x86_64.cpuid import MAX_CPUID_ENTRIES, CpuId, room_for

        if count > MAX_CPUID_ENTRIES:
            raise KvmError(errno.ENOMEM, name, f"KVM takes at most {MAX_CPUID_ENTRIES} entries, not {count}")
        buffer = room_for(count)
        with ffi.from_buffer("char[]", buffer) as argument:
            self._ioctl(name, argument)
        return CpuId.from_bytes(buffer)

    def get_supported_cpuid(self, count: int = 256) -> CpuId:
        """What KVM and this processor can give to guests, in at most `count` entries (E2BIG where it is more)."""
        return self._get_cpuid("KVM_GET_SUPPORTED_CPUID", count)

    def get_emulated_cpuid(self, count: int = 256) -> CpuId:
        """Features that KVM emulates in software although the processor lacks them."""
        return self._get_cpuid("KVM_GET_EMULATED_CPUID", count)

    def get_supported_hv_cpuid(self, count: int = 256) -> CpuId:
        """The Hyper-V leaves that KVM can give to guests."""
        return self._get_cpuid("KVM_GET_SUPPORTED_HV_CPUID", count)

    def _msr_list(self, name: str) -> MsrList:
        import struct

        from .x86_64.msrs import MsrList

        buffer = bytearray(4)
        for _ in range(2):
            try:
                with ffi.from_buffer("char[]", buffer) as argument:
                    self._ioctl(name, argument)
                break
            except KvmError as error:
                # the kernel writes the number it needs and says E2BIG
                if error.errno != errno.E2BIG:
                    raise
                needed = struct.unpack_from("<I", buffer)[0]
                buffer = bytearray(struct.pack("<I", needed) + bytes(4 * needed))
        count = struct.unpack_from("<I", buffer)[0]
        return MsrList(struct.unpack_from(f"<{count}I", buffer, 4))

    def get_msr_index_list(self) -> MsrList:
        """Every MSR that a vCPU's state consists of on this host: what a snapshot saves."""
        return self._msr_list("KVM_GET_MSR_INDEX_LIST")

    def get_msr_feature_index_list(self) -> MsrList:
        """MSRs that describe what KVM can offer; `get_msrs` on this object reads them."""
        return self._msr_list("KVM_GET_MSR_FEATURE_INDEX_LIST")

    def get_msrs(self, indices: Iterable[int]) -> Msrs:
        """Values of feature MSRs (`get_msr_feature_index_list`); `MsrError` names one that KVM does not know."""
        from .x86_64.vcpu import read_msrs

        return read_msrs(self, indices)

    def get_mce_cap_supported(self) -> int:
        """The machine-check capabilities that `VcpuFd.setup_mce` may give to a guest."""
        value = ffi.new("__u64 *")
        self._ioctl("KVM_X86_GET_MCE_CAP_SUPPORTED", value)
        return int(value[0])

    def __repr__(self) -> str:
        return f"<Kvm {self.path} {'closed' if self._fd < 0 else f'fd={self._fd}'}>"
