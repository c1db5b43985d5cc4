"""The VM calls that only x86 has: timers, irqchips, clock, MSR filter, encryption, Xen and Hyper-V."""

from __future__ import annotations

import errno
import struct

from pyvmm_kvm._kvm import ffi
from pyvmm_kvm.errors import KvmError
from pyvmm_kvm.fd import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Buffer

    from pyvmm_kvm.x86_64.msr_filter import MsrFilterRange
    from pyvmm_kvm.x86_64.platform import ClockData, IrqChip, PitState2

PIT_SPEAKER_DUMMY = 1


class ArchVm(Fd):
    """What `VmFd` adds on x86."""

    __slots__ = ()

    def set_tss_address(self, address: int) -> None:
        """Give KVM three pages below 4 GiB, free of memory and devices, that Intel hosts need; any VM may."""
        self.ioctl_value("KVM_SET_TSS_ADDR", address)

    def set_identity_map_address(self, address: int) -> None:
        """Give KVM one such page for real mode without paging on Intel; before the first vCPU."""
        self.ioctl("KVM_SET_IDENTITY_MAP_ADDR", ffi.new("__u64 *", address))

    def set_boot_cpu_id(self, vcpu_id: int) -> None:
        """Set which vCPU starts running; the others wait for INIT and SIPI. Before the first vCPU; 0 by default."""
        self.ioctl_value("KVM_SET_BOOT_CPU_ID", vcpu_id)

    def set_nr_mmu_pages(self, pages: int) -> None:
        """Set how many shadow pages KVM may use for this VM."""
        self.ioctl_value("KVM_SET_NR_MMU_PAGES", pages)

    def create_pit2(self, flags: int = PIT_SPEAKER_DUMMY) -> None:
        """Make the in-kernel i8254 timer; after `create_irq_chip`. The default also answers the speaker port 0x61."""
        self.ioctl("KVM_CREATE_PIT2", ffi.new("struct kvm_pit_config *", {"flags": flags}))

    def get_pit2(self) -> PitState2:
        """Return the timer's three channels."""
        from pyvmm_kvm.x86_64.platform import PitState2

        state = PitState2()
        self.ioctl("KVM_GET_PIT2", state.cdata)
        return state

    def set_pit2(self, state: PitState2) -> None:
        """Replace the timer's state."""
        from pyvmm_kvm.x86_64.platform import PitState2

        if not isinstance(state, PitState2):
            raise TypeError(f"{type(state).__name__} is no PitState2, whose channels have no names in others")
        self.ioctl("KVM_SET_PIT2", state.cdata)

    def reinject_control(self, reinject: bool) -> None:
        """Set whether timer ticks that the guest missed are delivered later."""
        self.ioctl("KVM_REINJECT_CONTROL", ffi.new("struct kvm_reinject_control *", (reinject,)))

    def get_irqchip(self, chip_id: int) -> IrqChip:
        """Return the state of `IrqChip.PIC_MASTER`, `PIC_SLAVE` or `IOAPIC`."""
        from pyvmm_kvm.x86_64.platform import IrqChip

        chip = IrqChip(chip_id=chip_id)
        self.ioctl("KVM_GET_IRQCHIP", chip.cdata)
        return chip

    def set_irqchip(self, chip: IrqChip) -> None:
        """Replace the controller that `chip.chip_id` names."""
        from pyvmm_kvm.x86_64.platform import IrqChip

        self.set_struct("KVM_SET_IRQCHIP", IrqChip, chip)

    def get_clock(self) -> ClockData:
        """Return the paravirtual clock in nanoseconds, and how it relates to the host's."""
        from pyvmm_kvm.x86_64.platform import ClockData

        clock = ClockData()
        self.ioctl("KVM_GET_CLOCK", clock.cdata)
        return clock

    def set_clock(self, clock: ClockData) -> None:
        """Set the paravirtual clock; the flags that only KVM_GET_CLOCK reports are cleared on the way."""
        from pyvmm_kvm.x86_64.platform import CLOCK_REALTIME, ClockData

        value = ClockData()
        value.replace(clock)
        value.flags &= CLOCK_REALTIME
        self.ioctl("KVM_SET_CLOCK", value.cdata)

    def set_tsc_khz(self, khz: int) -> None:
        """Set the time-stamp counter frequency of vCPUs made from now on (`Cap.VM_TSC_CONTROL`)."""
        self.ioctl_value("KVM_SET_TSC_KHZ", khz)

    def get_tsc_khz(self) -> int:
        """Return that frequency in kHz."""
        return self.ioctl_value("KVM_GET_TSC_KHZ")

    def set_msr_filter(self, default_allow: bool, ranges: Iterable[MsrFilterRange] = ()) -> None:
        """Set which MSRs the guest reaches without asking; see `MsrFilterRange`.

        Allow by default without ranges switches filtering off. To get `X86Rdmsr` and `X86Wrmsr` exits for what is
        denied, enable `Cap.X86_USER_SPACE_MSR` with `X86Rdmsr.FILTER`.
        """
        from pyvmm_kvm.x86_64.msr_filter import DEFAULT_DENY, MAX_RANGES

        table = list(ranges)
        if len(table) > MAX_RANGES:
            raise KvmError(errno.EINVAL, "KVM_X86_SET_MSR_FILTER", f"{len(table)} ranges; KVM takes {MAX_RANGES}")
        if not table and not default_allow:
            raise KvmError(errno.EINVAL, "KVM_X86_SET_MSR_FILTER", "deny by default needs at least one range")
        argument = ffi.new("struct kvm_msr_filter *")
        argument.flags = 0 if default_allow else DEFAULT_DENY
        keep = []
        for slot, entry in zip(argument.ranges, table, strict=False):
            # the kernel reads whole words of 64 bits
            keep.append(ffi.from_buffer("__u8[]", bytearray(entry.bitmap) + bytes(8)))
            slot.flags, slot.nmsrs, slot.base, slot.bitmap = entry.flags, entry.count, entry.base, keep[-1]
        self.ioctl("KVM_X86_SET_MSR_FILTER", argument)

    def set_pmu_event_filter(self, action: int, events: Iterable[int], fixed_counters: int = 0, flags: int = 0) -> None:
        """Allow (0) or deny (1) performance events; `fixed_counters` is a bitmap."""
        table = list(events)
        block = struct.pack(f"<4I16x{len(table)}Q", action, len(table), fixed_counters, flags, *table)
        with ffi.from_buffer("char[]", bytearray(block)) as argument:
            self.ioctl("KVM_SET_PMU_EVENT_FILTER", argument)

    def encrypt_op(self, argument: Buffer) -> None:
        """Call KVM_MEMORY_ENCRYPT_OP with a block that SEV or TDX defines; it may be written to."""
        with ffi.from_buffer("char[]", argument) as block:
            self.ioctl("KVM_MEMORY_ENCRYPT_OP", block)

    def encrypt_op_sev(self, command: int, data: int, sev_fd: int) -> int:
        """Give one SEV command with the address of its argument; return the firmware's error number."""
        argument = ffi.new("struct kvm_sev_cmd *", (command, data, 0, sev_fd & 0xFFFFFFFF))
        self.ioctl("KVM_MEMORY_ENCRYPT_OP", argument)
        return int(argument.error)

    def register_enc_memory_region(self, address: int, size: int) -> None:
        """Pin host memory that the guest will encrypt."""
        self.ioctl("KVM_MEMORY_ENCRYPT_REG_REGION", ffi.new("struct kvm_enc_region *", (address, size)))

    def unregister_enc_memory_region(self, address: int, size: int) -> None:
        """Undo that."""
        self.ioctl("KVM_MEMORY_ENCRYPT_UNREG_REGION", ffi.new("struct kvm_enc_region *", (address, size)))

    def hyperv_eventfd(self, conn_id: int, fd: int, remove: bool = False) -> None:
        """Signal an eventfd on a Hyper-V connection."""
        self.ioctl("KVM_HYPERV_EVENTFD", ffi.new("struct kvm_hyperv_eventfd *", (conn_id, fd, remove)))

    def xen_hvm_config(self, flags: int, msr: int = 0) -> None:
        """Switch the Xen calls on; `msr` is where the guest asks for the hypercall page."""
        self.ioctl("KVM_XEN_HVM_CONFIG", ffi.new("struct kvm_xen_hvm_config *", (flags, msr)))

    def xen_hvm_get_attr(self, kind: int) -> bytes:
        """Return a Xen attribute of the VM: 64 bytes, of which the kind uses the first few."""
        argument = ffi.new("struct pyvmm_xen_attr *", {"type": kind})
        self.ioctl("KVM_XEN_HVM_GET_ATTR", argument)
        return bytes(memoryview(ffi.buffer(argument)))[8:]

    def xen_hvm_set_attr(self, kind: int, value: bytes) -> None:
        """Set a Xen attribute of the VM from up to 64 bytes."""
        argument = ffi.new("struct pyvmm_xen_attr *", {"type": kind})
        memoryview(ffi.buffer(argument)).cast("B")[8 : 8 + len(value)] = value
        self.ioctl("KVM_XEN_HVM_SET_ATTR", argument)

    def xen_hvm_evtchn_send(self, port: int, vcpu: int, priority: int = 0xFFFFFFFF) -> None:
        """Deliver a Xen event."""
        argument = ffi.new("struct kvm_irq_routing_xen_evtchn *", (port, vcpu, priority))
        self.ioctl("KVM_XEN_HVM_EVTCHN_SEND", argument)
