"""What /dev/kvm answers on arm64 only."""

from __future__ import annotations

from pyvmm_kvm.extensions import Extensions

# as in `Cap`, which takes longer to make than a boot has for it
_CAP_GUEST_DEBUG_HW_BPS, _CAP_GUEST_DEBUG_HW_WPS, _CAP_ARM_VM_IPA_SIZE = 119, 120, 165
_IPA_SIZE_MASK = 0xFF  # KVM_VM_TYPE_ARM_IPA_SIZE_MASK


class ArchKvm(Extensions):
    """What `Kvm` adds on arm64."""

    __slots__ = ()

    def default_vm_type(self) -> int:
        """Return what `create_vm` gives to KVM_CREATE_VM: as in kvm-ioctls, the host's largest address space."""
        return self.get_host_ipa_limit() & _IPA_SIZE_MASK

    def get_host_ipa_limit(self) -> int:
        """Return how many bits a guest physical address can have here; 0 where only the default of 40 can be had."""
        return self.check_extension_raw(_CAP_ARM_VM_IPA_SIZE)

    def get_guest_debug_hw_bps(self) -> int:
        """Return how many hardware breakpoints `set_guest_debug` has."""
        return self.check_extension_raw(_CAP_GUEST_DEBUG_HW_BPS)

    def get_guest_debug_hw_wps(self) -> int:
        """Return how many hardware watchpoints it has."""
        return self.check_extension_raw(_CAP_GUEST_DEBUG_HW_WPS)
