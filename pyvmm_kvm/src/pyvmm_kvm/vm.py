"""A virtual machine: memory slots, vCPUs, interrupts and eventfds."""

from __future__ import annotations

import errno
import os

from pyvmm_kvm._arch import ArchVm
from pyvmm_kvm._kvm import ffi
from pyvmm_kvm.device_attrs import DeviceAttrs
from pyvmm_kvm.errors import ClosedError, KvmError
from pyvmm_kvm.extensions import Extensions
from pyvmm_kvm.fd import check_kind
from pyvmm_kvm.memory_slot import MEM_GUEST_MEMFD, MemorySlot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pyvmm_kvm._kvm import CData
    from pyvmm_kvm.device import DeviceFd
    from pyvmm_kvm.fd import FileLike
    from pyvmm_kvm.ioevent import IoEventAddress
    from pyvmm_kvm.routing import IrqRouting
    from pyvmm_kvm.stats import Stats
    from pyvmm_kvm.vcpu import VcpuFd

# KVM_IRQFD_FLAG_*, KVM_IOEVENTFD_FLAG_* and the one flag of struct kvm_msi
_IRQFD_DEASSIGN, _IRQFD_RESAMPLE = 1 << 0, 1 << 1
_IOEVENTFD_DATAMATCH, _IOEVENTFD_PIO, _IOEVENTFD_DEASSIGN = 1 << 0, 1 << 1, 1 << 2
_MSI_VALID_DEVID = 1 << 0
_DATAMATCH_WIDTH = 4


class VmFd(ArchVm, Extensions, DeviceAttrs):
    """A VM's file descriptor.

    It and each of its vCPUs keep a reference to all memory in its slots; the memory can be unmapped once the VM and
    its vCPUs are closed.
    """

    __slots__ = ("_run_size", "_slots", "lost_messages")

    def __init__(self, fd: int, run_size: int) -> None:
        super().__init__(fd)
        self._run_size = run_size
        #: how many messages nobody took, by errno
        self.lost_messages: dict[int, int] = {}
        # shared with the vCPUs: the kernel's VM lives until the last of them is closed, so the memory must too
        self._slots: dict[int, MemorySlot] = {}

    def close(self) -> None:
        """Give the VM back. Its memory is released when its last vCPU is closed too."""
        super().close()
        self._slots = {}

    @property
    def memory_slots(self) -> dict[int, MemorySlot]:
        """The registered slots by number, a copy."""
        return dict(self._slots)

    def run_size(self) -> int:
        """Return how many bytes of each vCPU are mapped."""
        return self._run_size

    def enable_cap(self, cap: int, *args: int, flags: int = 0) -> int:
        """Switch a capability on for the VM, with up to four numbers that its documentation explains."""
        return self.ioctl("KVM_ENABLE_CAP", ffi.new("struct kvm_enable_cap *", (cap, flags, args)))

    # memory

    def set_user_memory_region(
        self,
        slot: int,
        guest_phys_addr: int,
        memory: Buffer | None,
        flags: int = 0,
        *,
        guest_memfd: FileLike | None = None,
        guest_memfd_offset: int = 0,
    ) -> MemorySlot | None:
        """Put `memory` at a guest physical address, or delete the slot with None or an empty buffer.

        Args:
            slot: its number, below `Kvm.get_nr_memslots()`.
            guest_phys_addr: where the guest sees it, a multiple of the page size.
            memory: anything writable with whole, page-aligned pages: an `mmap`, a memory region.
            flags: `MEM_LOG_DIRTY_PAGES`, `MEM_READONLY` (the guest's writes become MMIO exits).
            guest_memfd: memory from `create_guest_memfd` beside the shared one. It chooses
                KVM_SET_USER_MEMORY_REGION2; without it the older call works on every kernel.
            guest_memfd_offset: where in there the slot begins.

        The buffer is referenced until the slot is replaced or deleted and the VM and all its vCPUs are closed.

        """
        entry = None
        if guest_memfd is not None:
            flags |= MEM_GUEST_MEMFD
        if memory is not None:
            entry = MemorySlot.pinned(slot, guest_phys_addr, memory, flags)
        where = (slot, flags, guest_phys_addr, entry.memory_size, entry.userspace_addr) if entry else (slot, 0, 0, 0, 0)
        if entry and guest_memfd is not None:
            values = (*where, guest_memfd_offset, _number(guest_memfd))
            argument = ffi.new("struct kvm_userspace_memory_region2 *", values)
            self._register("KVM_SET_USER_MEMORY_REGION2", argument, slot, entry)
        else:
            argument = ffi.new("struct kvm_userspace_memory_region *", where)
            self._register("KVM_SET_USER_MEMORY_REGION", argument, slot, entry)
        return entry

    def _register(self, ioctl: str, argument: CData, slot: int, entry: MemorySlot | None) -> None:
        try:
            self.ioctl(ioctl, argument)
        except BaseException:
            # the exception's traceback would keep the buffer exported, and whoever owns it could not close it
            if entry:
                entry.release()
            raise
        # the kernel has let go of what was in the slot, so its owner may unmap it again
        if old := self._slots.pop(slot, None):
            old.release()
        if entry:
            self._slots[slot] = entry

    def get_dirty_log(self, slot: int) -> memoryview:
        """Return which pages of a slot the guest wrote since the last call: bit n of 64-bit word m is page 64 m + n.

        The bitmap is sized from the slot as it was registered. Unless manual protection is on, reading clears it.
        """
        pages = self._pages(slot, "KVM_GET_DIRTY_LOG")
        words = memoryview(bytearray(8 * -(-pages // 64))).cast("Q")
        with ffi.from_buffer("char[]", words) as bitmap:
            self.ioctl("KVM_GET_DIRTY_LOG", ffi.new("struct kvm_dirty_log *", {"slot": slot, "dirty_bitmap": bitmap}))
        return words

    def _pages(self, slot: int, ioctl: str) -> int:
        # a number and not the slot: an exception's traceback would keep the slot's memory exported
        if slot not in self._slots:
            raise KvmError(errno.ENOENT, ioctl, f"slot {slot} is not registered in this VM")
        return self._slots[slot].memory_size // os.sysconf("SC_PAGESIZE")

    # vCPUs

    def create_vcpu(self, vcpu_id: int) -> VcpuFd:
        """Make a vCPU with an id of at least 0 and below `Kvm.get_max_vcpu_id()`; on x86 it is its APIC id."""
        from pyvmm_kvm.vcpu import VcpuFd

        return VcpuFd(self.ioctl_value("KVM_CREATE_VCPU", vcpu_id), self._run_size, vcpu_id, self._slots)

    def create_vcpu_from_rawfd(self, fd: int, vcpu_id: int = -1) -> VcpuFd:
        """Take over a vCPU's file descriptor that came from elsewhere. `ValueError` for one of something else."""
        from pyvmm_kvm.vcpu import VcpuFd

        check_kind(fd, "kvm-vcpu")
        return VcpuFd(fd, self._run_size, vcpu_id, self._slots)

    # interrupts and events

    def create_irq_chip(self) -> None:
        """Make the in-kernel interrupt controllers (x86: two PICs, an IOAPIC, a LAPIC per vCPU). Before any vCPU."""
        self.ioctl_value("KVM_CREATE_IRQCHIP")

    def set_irq_line(self, irq: int, active: bool) -> None:
        """Set an interrupt line's level; an edge is active, then inactive."""
        self.ioctl("KVM_IRQ_LINE", ffi.new("struct kvm_irq_level *", {"irq": irq, "level": active}))

    def irq_line_status(self, irq: int, active: bool) -> int:
        """Set a line's level and return above 0 delivered to that many, 0 merged with a pending one, below 0 masked."""
        level = ffi.new("struct kvm_irq_level *", {"irq": irq, "level": active})
        self.ioctl("KVM_IRQ_LINE_STATUS", level)
        return int(level.status)

    def signal_msi(self, address: int, data: int, devid: int | None = None) -> int:
        """Deliver a message-signalled interrupt: above 0 delivered, 0 blocked by the guest, below 0 nobody took it.

        A guest writes the message, so one that leads nowhere is no error here: the interrupt is lost, as on a PC.
        `lost_messages` counts them by the errno that KVM gave.
        """
        flags = _MSI_VALID_DEVID if devid is not None else 0
        message = ffi.new("struct kvm_msi *", (address & 0xFFFFFFFF, address >> 32, data, flags, devid or 0))
        try:
            return self.ioctl("KVM_SIGNAL_MSI", message)
        except ClosedError:
            raise
        except KvmError as error:
            # api.rst, KVM_SIGNAL_MSI: "-1 on error", which a system call says as EPERM; others are of a message that no
            # interrupt controller could be given at all
            number = error.errno or 0
            self.lost_messages[number] = self.lost_messages.get(number, 0) + 1
            return -1

    def register_irqfd(self, fd: FileLike, gsi: int) -> None:
        """Let a write to this eventfd raise interrupt `gsi`, without waking this process."""
        self._irqfd(fd, gsi, 0, 0)

    def register_irqfd_with_resample(self, fd: FileLike, resample_fd: FileLike, gsi: int) -> None:
        """Let `fd` assert a level interrupt; KVM de-asserts it and signals `resample_fd` at the EOI."""
        self._irqfd(fd, gsi, _IRQFD_RESAMPLE, resample_fd)

    def unregister_irqfd(self, fd: FileLike, gsi: int) -> None:
        """Undo `register_irqfd`; unregistering twice is not an error for the kernel."""
        self._irqfd(fd, gsi, _IRQFD_DEASSIGN, 0)

    def _irqfd(self, fd: FileLike, gsi: int, flags: int, resample_fd: FileLike) -> None:
        self.ioctl("KVM_IRQFD", ffi.new("struct kvm_irqfd *", (_number(fd), gsi, flags, _number(resample_fd))))

    def register_ioevent(
        self, fd: FileLike, addr: IoEventAddress, datamatch: int | tuple[int, int] | None = None
    ) -> None:
        """Let the guest's write to a port or address signal this eventfd inside the kernel, instead of exiting.

        Args:
            fd: an eventfd, or an object with `fileno()`.
            addr: `IoEventAddress.Pio(port)` or `IoEventAddress.Mmio(address)`.
            datamatch: None for any write of any width, a value for 4-byte writes of just that, or (value, width).
        """
        self._ioeventfd(fd, addr, datamatch, 0)

    def unregister_ioevent(
        self, fd: FileLike, addr: IoEventAddress, datamatch: int | tuple[int, int] | None = None
    ) -> None:
        """Undo `register_ioevent`; every argument must be the same as there."""
        self._ioeventfd(fd, addr, datamatch, _IOEVENTFD_DEASSIGN)

    def _ioeventfd(
        self, fd: FileLike, addr: IoEventAddress, datamatch: int | tuple[int, int] | None, flags: int
    ) -> None:
        from pyvmm_kvm.ioevent import IoEventAddress

        if not isinstance(addr, IoEventAddress):
            raise TypeError(f"{addr!r} is neither IoEventAddress.Pio nor IoEventAddress.Mmio")
        value, length = 0, 0
        if datamatch is not None:
            value, length = datamatch if isinstance(datamatch, tuple) else (datamatch, _DATAMATCH_WIDTH)
            flags |= _IOEVENTFD_DATAMATCH
            if not 0 <= value < 1 << 8 * length:
                raise ValueError(f"no write of {length} bytes has the value {value:#x}, which is to match")
        if isinstance(addr, IoEventAddress.Pio):
            flags |= _IOEVENTFD_PIO
        values = (value, addr.address, length, _number(fd), flags)
        self.ioctl("KVM_IOEVENTFD", ffi.new("struct kvm_ioeventfd *", values))

    # logs, statistics, devices and private memory

    def clear_dirty_log(self, slot: int, first_page: int, pages: int, bitmap: Buffer) -> None:
        """Forget, with manual protection, the pages whose bit is set, from `first_page` (a multiple of 64) on."""
        total = self._pages(slot, "KVM_CLEAR_DIRTY_LOG")
        with ffi.from_buffer("char[]", bitmap) as bits:
            # the kernel reads whole words of 64 bits
            if first_page + pages > total or len(bits) < -(-pages // 64) * 8:
                raise KvmError(
                    errno.EINVAL, "KVM_CLEAR_DIRTY_LOG", f"slot {slot} has {total} pages, the bitmap {len(bits)} bytes"
                )
            values = {"slot": slot, "num_pages": pages, "first_page": first_page, "dirty_bitmap": bits}
            self.ioctl("KVM_CLEAR_DIRTY_LOG", ffi.new("struct kvm_clear_dirty_log *", values))

    def reset_dirty_rings(self) -> int:
        """Give harvested dirty-ring entries back to the kernel; return how many."""
        return self.ioctl_value("KVM_RESET_DIRTY_RINGS")

    def register_coalesced_mmio(self, addr: int, size: int, pio: bool = False) -> None:
        """Collect the guest's writes to this range in a ring instead of exiting (`VcpuFd.coalesced_mmio_read`)."""
        zone = ffi.new("struct kvm_coalesced_mmio_zone *", {"addr": addr, "size": size, "pio": pio})
        self.ioctl("KVM_REGISTER_COALESCED_MMIO", zone)

    def unregister_coalesced_mmio(self, addr: int, size: int, pio: bool = False) -> None:
        """Undo `register_coalesced_mmio`."""
        zone = ffi.new("struct kvm_coalesced_mmio_zone *", {"addr": addr, "size": size, "pio": pio})
        self.ioctl("KVM_UNREGISTER_COALESCED_MMIO", zone)

    def set_gsi_routing(self, routing: IrqRouting) -> None:
        """Replace the whole table of where interrupts go."""
        from pyvmm_kvm.routing import IrqRouting

        if not isinstance(routing, IrqRouting):
            raise TypeError(f"{type(routing).__name__} is no IrqRouting, which a list of IrqRoute makes")
        buffer = bytearray(bytes(routing))
        with ffi.from_buffer("char[]", buffer) as argument:
            self.ioctl("KVM_SET_GSI_ROUTING", argument)

    def create_device(self, device_type: int, flags: int = 0) -> DeviceFd | None:
        """Make an in-kernel device (`DeviceFd` has the types), or see whether it could be (`CREATE_DEVICE_TEST`)."""
        from pyvmm_kvm.device import CREATE_DEVICE_TEST, DeviceFd

        request = ffi.new("struct kvm_create_device *", (device_type, 0, flags))
        self.ioctl("KVM_CREATE_DEVICE", request)
        return None if flags & CREATE_DEVICE_TEST else DeviceFd(request.fd, device_type)

    def get_stats_fd(self) -> Stats:
        """Return the VM's counters, by name."""
        from pyvmm_kvm.stats import Stats

        return Stats(self.ioctl_value("KVM_GET_STATS_FD"))

    def set_user_memory_region2(
        self, slot: int, guest_phys_addr: int, memory: Buffer, flags: int, guest_memfd: int, guest_memfd_offset: int = 0
    ) -> MemorySlot | None:
        """Call `set_user_memory_region` with a guest_memfd, in the order of struct kvm_userspace_memory_region2."""
        return self.set_user_memory_region(
            slot, guest_phys_addr, memory, flags, guest_memfd=guest_memfd, guest_memfd_offset=guest_memfd_offset
        )

    def create_guest_memfd(self, size: int, flags: int = 0) -> int:
        """Make a file descriptor of memory that only the guest may map; the caller owns and closes it.

        `flags`: `GUEST_MEMFD_MMAP` lets the host map it too, `GUEST_MEMFD_INIT_SHARED` makes it shared at first;
        `Cap.GUEST_MEMFD_FLAGS` has the mask of those that this kernel knows.
        """
        return self.ioctl("KVM_CREATE_GUEST_MEMFD", ffi.new("struct kvm_create_guest_memfd *", (size, flags)))

    def set_memory_attributes(self, address: int, size: int, attributes: int) -> None:
        """Make a range private (`MEMORY_ATTRIBUTE_PRIVATE`) or shared (0)."""
        self.ioctl("KVM_SET_MEMORY_ATTRIBUTES", ffi.new("struct kvm_memory_attributes *", (address, size, attributes)))

    def __repr__(self) -> str:
        return f"<VmFd {'closed' if self.closed else f'fd={self.fileno()}'}, {len(self._slots)} memory slots>"


def _number(fd: FileLike) -> int:
    return fd if isinstance(fd, int) else fd.fileno()
