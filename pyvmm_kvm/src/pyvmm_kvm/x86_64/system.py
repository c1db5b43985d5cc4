"""What /dev/kvm answers on x86 only: CPUID and model-specific registers."""

from __future__ import annotations

import errno

from pyvmm_kvm._kvm import ffi
from pyvmm_kvm.errors import KvmError
from pyvmm_kvm.fd import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvmm_kvm.x86_64.cpuid import CpuId
    from pyvmm_kvm.x86_64.msrs import MsrList, Msrs


class ArchKvm(Fd):
    """What `Kvm` adds on x86."""

    __slots__ = ()

    def default_vm_type(self) -> int:
        """Return what `create_vm` gives to KVM_CREATE_VM: the one unprotected type."""
        return 0

    def _get_cpuid(self, name: str, count: int) -> CpuId:
        from pyvmm_kvm.x86_64.cpuid import MAX_CPUID_ENTRIES, CpuId, room_for

        if count > MAX_CPUID_ENTRIES:
            raise KvmError(errno.ENOMEM, name, f"KVM takes at most {MAX_CPUID_ENTRIES} entries, not {count}")
        buffer = room_for(count)
        with ffi.from_buffer("char[]", buffer) as argument:
            self.ioctl(name, argument)
        return CpuId.from_bytes(buffer)

    def get_supported_cpuid(self, count: int = 256) -> CpuId:
        """Return what KVM and this processor can give to guests, in at most `count` entries (E2BIG if it is more)."""
        return self._get_cpuid("KVM_GET_SUPPORTED_CPUID", count)

    def get_emulated_cpuid(self, count: int = 256) -> CpuId:
        """Return the features that KVM emulates in software although the processor lacks them."""
        return self._get_cpuid("KVM_GET_EMULATED_CPUID", count)

    def get_supported_hv_cpuid(self, count: int = 256) -> CpuId:
        """Return the Hyper-V leaves that KVM can give to guests."""
        return self._get_cpuid("KVM_GET_SUPPORTED_HV_CPUID", count)

    def _msr_list(self, name: str) -> MsrList:
        import struct

        from pyvmm_kvm.x86_64.msrs import MsrList

        buffer = bytearray(4)
        for _ in range(2):
            try:
                with ffi.from_buffer("char[]", buffer) as argument:
                    self.ioctl(name, argument)
                break
            except KvmError as error:
                # the kernel writes the number it needs and says E2BIG
                if error.errno != errno.E2BIG:
                    raise
                needed = struct.unpack_from("<I", buffer)[0]
                buffer = bytearray(struct.pack("<I", needed) + bytes(4 * needed))
        return MsrList.from_bytes(buffer)

    def get_msr_index_list(self) -> MsrList:
        """Return every MSR that a vCPU's state consists of on this host: what a snapshot saves."""
        return self._msr_list("KVM_GET_MSR_INDEX_LIST")

    def get_msr_feature_index_list(self) -> MsrList:
        """Return the MSRs that describe what KVM can offer; `get_msrs` on this object reads them."""
        return self._msr_list("KVM_GET_MSR_FEATURE_INDEX_LIST")

    def get_msrs(self, indices: Iterable[int]) -> Msrs:
        """Read feature MSRs (`get_msr_feature_index_list`); `MsrError` names one that KVM does not know."""
        from pyvmm_kvm.x86_64.vcpu import read_msrs

        return read_msrs(self, indices)

    def get_mce_cap_supported(self) -> int:
        """Return the machine-check capabilities that `VcpuFd.setup_mce` may give to a guest."""
        value = ffi.new("__u64 *")
        self.ioctl("KVM_X86_GET_MCE_CAP_SUPPORTED", value)
        return int(value[0])
