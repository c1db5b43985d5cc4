"""The VM calls that only x86 has: PIT, TSS, identity map, clock, irqchips and the MSR filter."""

from __future__ import annotations

from .._kvm import ffi
from ..fd import Fd

PIT_SPEAKER_DUMMY = 1


class ArchVm(Fd):
    """What `VmFd` adds on x86."""

    __slots__ = ()

    def set_tss_address(self, address: int) -> None:
        """Three pages below 4 GiB, free of memory and devices, that Intel hosts need; any VM may set it."""
        self._ioctl_value("KVM_SET_TSS_ADDR", address)

    def set_identity_map_address(self, address: int) -> None:
        """One such page for real mode without paging on Intel; before the first vCPU."""
        self._ioctl("KVM_SET_IDENTITY_MAP_ADDR", ffi.new("__u64 *", address))

    def create_pit2(self, flags: int = PIT_SPEAKER_DUMMY) -> None:
        """The in-kernel i8254 timer; after `create_irq_chip`. The default also answers the speaker port 0x61."""
        self._ioctl("KVM_CREATE_PIT2", ffi.new("struct kvm_pit_config *", {"flags": flags}))
