"""A VM: its memory, its interrupt controllers, the way events enter and leave it, its vCPUs."""

from __future__ import annotations

from struct import Struct

from pyvmm_kvm._kvm import ffi, lib
from pyvmm_kvm.errors import KvmError
from pyvmm_kvm.fd import KvmFileDescriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pyvmm_kvm.ioevent import IoEventAddress
    from pyvmm_kvm.vcpu import VcpuFd

PAGE_SIZE = 4096

_MEMORY_REGION = Struct("<IIQQQ")  # slot, flags, guest_phys_addr, memory_size, userspace_addr
_IRQ_LEVEL = Struct("<II")  # irq, level
_IRQFD = Struct("<IIII16x")  # fd, gsi, flags, resamplefd
_IOEVENTFD = Struct("<QQIiI36x")  # datamatch, addr, len, fd, flags
_PIT_CONFIG = Struct("<I60x")  # flags
_DIRTY_LOG = Struct("<IIQ")  # slot, padding, dirty_bitmap


class VmFd(KvmFileDescriptor):
    """A virtual machine (kernel document virt/kvm/api, "VM ioctls"); made by `Kvm.create_vm`.

    It keeps the memory it was given alive until the slot is deleted or the VM is closed. The kernel frees the VM
    itself when its vCPUs are closed too, so close those first.
    """

    __slots__ = ("_slots", "run_size")

    def __init__(self, fd: int, run_size: int) -> None:
        super().__init__(fd)
        self.run_size = run_size
        self._slots: dict[int, tuple[object, int]] = {}

    def close(self) -> None:
        """Close the VM, then let go of the memory it mapped."""
        super().close()
        slots, self._slots = getattr(self, "_slots", {}), {}
        for memory, _ in slots.values():
            ffi.release(memory)

    def check_extension_raw(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION on the VM, which may know more than the system does."""
        return self._call("KVM_CHECK_EXTENSION", capability)

    def set_user_memory_region(self, slot: int, guest_phys_addr: int, memory: Buffer, flags: int = 0) -> None:
        """KVM_SET_USER_MEMORY_REGION: let the guest see a buffer of ours.

        Args:
            slot: which slot to set.
            guest_phys_addr: where the guest sees it, in bytes, a multiple of the page size.
            memory: any writable buffer that begins on a page, its size in whole pages; an empty one deletes the slot.
            flags: ``KVM_MEM_LOG_DIRTY_PAGES``, ``KVM_MEM_READONLY``.

        Raises:
            KvmError: the kernel refused; EEXIST where another slot overlaps.
        """
        view = ffi.from_buffer("char[]", memory, require_writable=True)
        size = len(view)
        address = int(ffi.cast("uintptr_t", view)) if size else 0
        try:
            region = _MEMORY_REGION.pack(slot, flags, guest_phys_addr, size, address)
            self._call_with("KVM_SET_USER_MEMORY_REGION", region)
        except BaseException:
            ffi.release(view)
            raise
        old, _ = self._slots.pop(slot, (None, 0))
        if old is not None:
            ffi.release(old)
        if size:
            self._slots[slot] = (view, size)
        else:
            ffi.release(view)

    def get_dirty_log(self, slot: int) -> memoryview:
        """KVM_GET_DIRTY_LOG: which pages of a slot were written since the last call, as 64-bit words, low bit first.

        Raises:
            KvmError: ENOENT where the slot has no memory or does not log.
        """
        import errno

        if slot not in self._slots:
            raise KvmError("KVM_GET_DIRTY_LOG", errno.ENOENT, f"slot {slot} has no memory")
        pages = self._slots[slot][1] // PAGE_SIZE
        bitmap = bytearray((pages + 63) // 64 * 8)
        words = ffi.from_buffer("char[]", bitmap)
        try:
            self._call_with("KVM_GET_DIRTY_LOG", _DIRTY_LOG.pack(slot, 0, int(ffi.cast("uintptr_t", words))))
        finally:
            ffi.release(words)
        return memoryview(bitmap).cast("Q")

    def set_tss_address(self, address: int) -> None:
        """KVM_SET_TSS_ADDR: three pages of guest-physical space that Intel hardware needs before the first run."""
        self._call("KVM_SET_TSS_ADDR", address)

    def set_identity_map_address(self, address: int) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR: one more such page; before any vCPU is created."""
        self._call_with("KVM_SET_IDENTITY_MAP_ADDR", Struct("<Q").pack(address))

    def create_irq_chip(self) -> None:
        """KVM_CREATE_IRQCHIP: two PICs, an IOAPIC, and a local APIC for each vCPU created later, all in the kernel."""
        self._call("KVM_CREATE_IRQCHIP")

    def create_pit2(self, flags: int = 0) -> None:
        """KVM_CREATE_PIT2: the 8254 timer in the kernel; needs `create_irq_chip`."""
        self._call_with("KVM_CREATE_PIT2", _PIT_CONFIG.pack(flags))

    def set_irq_line(self, irq: int, active: bool) -> None:
        """KVM_IRQ_LINE: raise or lower an input of the interrupt controllers."""
        self._call_with("KVM_IRQ_LINE", _IRQ_LEVEL.pack(irq, active))

    def register_irqfd(self, fd: int, gsi: int) -> None:
        """KVM_IRQFD: from now on a write to this eventfd is an edge on this interrupt.

        Raises:
            KvmError: EBUSY where the eventfd is bound already.
        """
        self._call_with("KVM_IRQFD", _IRQFD.pack(fd, gsi, 0, 0))

    def register_irqfd_with_resample(self, fd: int, resample_fd: int, gsi: int) -> None:
        """KVM_IRQFD for a level interrupt: ``resample_fd`` is signalled when the guest ends the interrupt."""
        self._call_with("KVM_IRQFD", _IRQFD.pack(fd, gsi, lib.KVM_IRQFD_FLAG_RESAMPLE, resample_fd))

    def unregister_irqfd(self, fd: int, gsi: int) -> None:
        """KVM_IRQFD: undo `register_irqfd`; doing it twice is no error."""
        self._call_with("KVM_IRQFD", _IRQFD.pack(fd, gsi, lib.KVM_IRQFD_FLAG_DEASSIGN, 0))

    def register_ioevent(self, fd: int, address: IoEventAddress, datamatch: tuple[int, int] | None = None) -> None:
        """KVM_IOEVENTFD: a guest's write to an address signals an eventfd and never leaves the kernel.

        Args:
            fd: the eventfd.
            address: ``IoEventAddress.Pio(port)`` or ``IoEventAddress.Mmio(address)``.
            datamatch: only writes of this ``(value, width in bytes)``; of any value and width where it is None.
        """
        self._ioevent(fd, address, datamatch, 0)

    def unregister_ioevent(self, fd: int, address: IoEventAddress, datamatch: tuple[int, int] | None = None) -> None:
        """KVM_IOEVENTFD: undo `register_ioevent`, with the very same arguments."""
        self._ioevent(fd, address, datamatch, lib.KVM_IOEVENTFD_FLAG_DEASSIGN)

    def _ioevent(self, fd: int, address: IoEventAddress, datamatch: tuple[int, int] | None, flags: int) -> None:
        value, width = datamatch or (0, 0)
        flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH if datamatch else 0
        flags |= lib.KVM_IOEVENTFD_FLAG_PIO if address.is_pio else 0
        self._call_with("KVM_IOEVENTFD", _IOEVENTFD.pack(value, address.address, width, fd, flags))

    def create_vcpu(self, vcpu_id: int) -> VcpuFd:
        """KVM_CREATE_VCPU: a virtual processor; its id is also its APIC id.

        Raises:
            KvmError: EEXIST where the id is taken, EINVAL where it is out of range.
        """
        from pyvmm_kvm.vcpu import VcpuFd

        return VcpuFd(self._call("KVM_CREATE_VCPU", vcpu_id), self.run_size, vcpu_id)
