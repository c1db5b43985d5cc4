"""The vCPU calls that only x86 has: registers, CPUID, model-specific registers, LAPIC, FPU."""

from __future__ import annotations

from pyvmm_kvm._kvm import ffi, lib
from pyvmm_kvm.device_attrs import DeviceAttrs
from pyvmm_kvm.errors import StateError
from pyvmm_kvm.x86_64.structs import DebugRegs, Fpu, LapicState, Regs, Sregs, Sregs2, VcpuEvents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import TypeVar

    from typing_extensions import Buffer

    from pyvmm_kvm.fd import Fd
    from pyvmm_kvm.x86_64.cpuid import CpuId
    from pyvmm_kvm.x86_64.msrs import Msrs
    from pyvmm_kvm.x86_64.xsave import NestedState, Xsave2

    B = TypeVar("B", bound=bytearray)

# the one attribute of a vCPU on x86 (kvm/devices/vcpu.rst, 4)
_TSC_CTRL, _TSC_OFFSET = 0, 0
_MAX_XCRS = 16  # KVM_MAX_XCRS


def read_msrs(fd: Fd, indices: Iterable[int]) -> Msrs:
    """Call KVM_GET_MSRS on a vCPU, or on the system fd for feature MSRs."""
    from pyvmm_kvm.errors import MsrError
    from pyvmm_kvm.x86_64.msrs import MAX_IO_MSRS, Msrs, pack, unpack

    wanted = list(indices)
    found = Msrs()
    for start in range(0, len(wanted), MAX_IO_MSRS):
        part = wanted[start : start + MAX_IO_MSRS]
        buffer = bytearray(pack((index, 0) for index in part))
        with ffi.from_buffer("char[]", buffer) as argument:
            done = fd.ioctl("KVM_GET_MSRS", argument)
        if done < len(part):
            # the kernel stops without an error at the first one that it does not know
            raise MsrError("KVM_GET_MSRS", part[done], start + done)
        found.update(unpack(buffer, done))
    return found


def _bits(sets: Iterable[int]) -> int:
    bits = 0
    for each in sets:
        bits |= each
    return bits


class ArchVcpu(DeviceAttrs):
    """What `VcpuFd` adds on x86."""

    __slots__ = ()
    run_page: memoryview  # the run page, which VcpuFd maps

    SYNC_REGS = 1
    SYNC_SREGS = 2
    SYNC_EVENTS = 4

    def get_regs(self) -> Regs:
        """Return the general-purpose registers."""
        return self.get_struct("KVM_GET_REGS", Regs)

    def set_regs(self, regs: Regs) -> None:
        """Replace the general-purpose registers."""
        self.set_struct("KVM_SET_REGS", Regs, regs)

    def get_sregs(self) -> Sregs:
        """Return segments, descriptor tables and control registers."""
        return self.get_struct("KVM_GET_SREGS", Sregs)

    def set_sregs(self, sregs: Sregs) -> None:
        """Replace segments, descriptor tables and control registers."""
        self.set_struct("KVM_SET_SREGS", Sregs, sregs)

    def get_fpu(self) -> Fpu:
        """Return the x87 and SSE registers."""
        return self.get_struct("KVM_GET_FPU", Fpu)

    def set_fpu(self, fpu: Fpu) -> None:
        """Replace the x87 and SSE registers."""
        self.set_struct("KVM_SET_FPU", Fpu, fpu)

    def get_lapic(self) -> LapicState:
        """Return the local APIC's registers; needs the in-kernel LAPIC."""
        return self.get_struct("KVM_GET_LAPIC", LapicState)

    def set_lapic(self, lapic: LapicState) -> None:
        """Replace the local APIC's registers."""
        self.set_struct("KVM_SET_LAPIC", LapicState, lapic)

    def get_vcpu_events(self) -> VcpuEvents:
        """Return exceptions, interrupts and NMIs that are pending or half delivered."""
        return self.get_struct("KVM_GET_VCPU_EVENTS", VcpuEvents)

    def set_vcpu_events(self, events: VcpuEvents) -> None:
        """Replace them; `flags` says which optional parts are meant."""
        self.set_struct("KVM_SET_VCPU_EVENTS", VcpuEvents, events)

    def set_cpuid2(self, cpuid: CpuId) -> None:
        """Set what the guest's CPUID instruction answers; before the first `run()`."""
        from pyvmm_kvm.x86_64.cpuid import CpuId

        if not isinstance(cpuid, CpuId):
            raise TypeError(f"{type(cpuid).__name__} is no CpuId: CpuId.from_bytes reads what bytes() made of one")
        buffer = bytearray(bytes(cpuid))
        with ffi.from_buffer("char[]", buffer) as argument:
            self.ioctl("KVM_SET_CPUID2", argument)

    def get_cpuid2(self, count: int = 256) -> CpuId:
        """Return the table in force, with what KVM keeps up to date in it."""
        from pyvmm_kvm.x86_64.cpuid import CpuId, room_for

        buffer = room_for(count)
        with ffi.from_buffer("char[]", buffer) as argument:
            self.ioctl("KVM_GET_CPUID2", argument)
        return CpuId.from_bytes(buffer)

    def get_msrs(self, indices: Iterable[int]) -> Msrs:
        """Read registers by index; `MsrError` names the first that KVM does not know."""
        return read_msrs(self, indices)

    def set_msrs(self, msrs: Mapping[int, int]) -> int:
        """Write registers in the mapping's order and return how many; `MsrError` names the one that was refused."""
        from pyvmm_kvm.errors import MsrError
        from pyvmm_kvm.x86_64.msrs import MAX_IO_MSRS, pack

        items = list(msrs.items())
        for start in range(0, len(items), MAX_IO_MSRS):
            part = items[start : start + MAX_IO_MSRS]
            buffer = bytearray(pack(part))
            with ffi.from_buffer("char[]", buffer) as argument:
                done = self.ioctl("KVM_SET_MSRS", argument)
            if done < len(part):
                raise MsrError("KVM_SET_MSRS", part[done][0], start + done)
        return len(items)

    def nmi(self) -> None:
        """Queue a non-maskable interrupt."""
        self.ioctl_value("KVM_NMI")

    def interrupt(self, vector: int) -> None:
        """Inject an external interrupt; only without an in-kernel irqchip, when `ready_for_interrupt_injection`."""
        self.ioctl("KVM_INTERRUPT", ffi.new("struct kvm_interrupt *", (vector,)))

    def get_tsc_khz(self) -> int:
        """Return the guest's time-stamp counter frequency in kHz."""
        return self.ioctl_value("KVM_GET_TSC_KHZ")

    def set_tsc_khz(self, khz: int) -> None:
        """Change it, where the host can scale it; 0 means the host's own."""
        self.ioctl_value("KVM_SET_TSC_KHZ", khz)

    def get_sregs2(self) -> Sregs2:
        """Return the same as `get_sregs`, with the PAE page-directory pointers."""
        return self.get_struct("KVM_GET_SREGS2", Sregs2)

    def set_sregs2(self, sregs: Sregs2) -> None:
        """Replace them."""
        self.set_struct("KVM_SET_SREGS2", Sregs2, sregs)

    def get_debug_regs(self) -> DebugRegs:
        """Return DR0 to DR3, DR6 and DR7."""
        return self.get_struct("KVM_GET_DEBUGREGS", DebugRegs)

    def set_debug_regs(self, registers: DebugRegs) -> None:
        """Replace the debug registers."""
        self.set_struct("KVM_SET_DEBUGREGS", DebugRegs, registers)

    def get_xcrs(self) -> dict[int, int]:
        """Return the extended control registers by number; XCR0 is 0."""
        block = ffi.new("struct kvm_xcrs *")
        self.ioctl("KVM_GET_XCRS", block)
        return {entry.xcr: entry.value for entry in list(block.xcrs)[: block.nr_xcrs]}

    def set_xcrs(self, registers: Mapping[int, int]) -> None:
        """Replace the extended control registers."""
        entries = [(number, 0, value) for number, value in registers.items()]
        if not entries:
            return  # what a host without XSAVE gives, whose KVM takes nothing either
        if len(entries) > _MAX_XCRS:
            raise ValueError(f"{len(entries)} extended control registers: KVM takes {_MAX_XCRS}")
        self.ioctl("KVM_SET_XCRS", ffi.new("struct kvm_xcrs *", {"nr_xcrs": len(entries), "xcrs": entries}))

    def get_xsave(self) -> Xsave2:
        """Return the extended state area of 4096 bytes."""
        from pyvmm_kvm.x86_64.xsave import Xsave2

        return self._fill("KVM_GET_XSAVE", Xsave2())

    def get_xsave2(self, size: int) -> Xsave2:
        """Return the extended state area of any size; `size` is `VmFd.check_extension_raw(Cap.XSAVE2)`.

        `StateError` where that is less than this vCPU has.
        """
        from pyvmm_kvm.x86_64.xsave import Xsave2

        # KVM takes no length, and writes as much as the vCPU has
        area = self._fill("KVM_GET_XSAVE2", Xsave2(bytes(size)).padded())
        size = max(size, Xsave2.SMALLEST)
        if any(area[size:]):
            raise StateError(f"the extended state has more than {size} bytes")
        return Xsave2(area[:size])

    def set_xsave(self, area: Buffer) -> None:
        """Replace the extended state; a short block is padded to what the kernel reads."""
        from pyvmm_kvm.x86_64.xsave import Xsave2

        with ffi.from_buffer("char[]", Xsave2(area).padded()) as argument:
            self.ioctl("KVM_SET_XSAVE", argument)

    set_xsave2 = set_xsave

    def _fill(self, name: str, block: B) -> B:
        with ffi.from_buffer("char[]", block) as argument:
            self.ioctl(name, argument)
        return block

    def get_nested_state(self, size: int) -> NestedState | None:
        """Return the state of a guest hypervisor, or None; `size` is the answer for `Cap.NESTED_STATE`."""
        from pyvmm_kvm.x86_64.xsave import NestedState

        block = self._fill("KVM_GET_NESTED_STATE", NestedState.new(0, size))
        used = block.size
        return NestedState(block[:used]) if used > NestedState.HEADER else None

    nested_state = get_nested_state

    def set_nested_state(self, state: Buffer) -> None:
        """Replace the state of a guest hypervisor; `StateError` where it is shorter than it says."""
        from pyvmm_kvm.x86_64.xsave import NestedState

        self._fill("KVM_SET_NESTED_STATE", NestedState.from_bytes(state))

    def get_tsc_offset(self) -> int:
        """Return what KVM adds to the host's counter for this guest, a signed 64-bit number (`Cap.VCPU_ATTRIBUTES`)."""
        return int.from_bytes(self.get_device_attr(_TSC_CTRL, _TSC_OFFSET, 8), "little", signed=True)

    def set_tsc_offset(self, offset: int) -> None:
        """Change it: the same for all vCPUs, or their counters drift apart."""
        if not -1 << 63 <= offset < 1 << 64:
            raise ValueError(f"{offset:#x} is no number of 64 bits")
        self.set_device_attr(_TSC_CTRL, _TSC_OFFSET, (offset % (1 << 64)).to_bytes(8, "little"))

    def translate_gva(self, address: int) -> int | None:
        """Return the guest physical address behind a linear one, by the guest's page tables; None where unmapped."""
        request = ffi.new("struct kvm_translation *", (address,))
        self.ioctl("KVM_TRANSLATE", request)
        return int(request.physical_address) if request.valid else None

    def set_guest_debug(self, control: int, debugreg: Iterable[int] = ()) -> None:
        """Switch debugging on or off: bits of `GuestDebug`, and DR0 to DR7 for hardware breakpoints."""
        argument = ffi.new("struct kvm_guest_debug *", {"control": control, "arch": {"debugreg": list(debugreg)}})
        self.ioctl("KVM_SET_GUEST_DEBUG", argument)

    def smi(self) -> None:
        """Queue a system-management interrupt."""
        self.ioctl_value("KVM_SMI")

    def kvmclock_ctrl(self) -> None:
        """Tell the guest's paravirtual clock that it was stopped, so its watchdog does not bark."""
        self.ioctl_value("KVM_KVMCLOCK_CTRL")

    def setup_mce(self, capabilities: int) -> None:
        """Give the vCPU machine-check banks; bits of `Kvm.get_mce_cap_supported()`."""
        self.ioctl("KVM_X86_SETUP_MCE", ffi.new("__u64 *", capabilities))

    def set_mce(self, bank: int, status: int, addr: int = 0, misc: int = 0, mcg_status: int = 0) -> None:
        """Inject a machine check."""
        self.ioctl("KVM_X86_SET_MCE", ffi.new("struct kvm_x86_mce *", (status, addr, misc, mcg_status, bank)))

    def set_tpr_access_reporting(self, enabled: bool) -> None:
        """Report accesses to the task-priority register as `TprAccess`."""
        self.ioctl("KVM_TPR_ACCESS_REPORTING", ffi.new("struct kvm_tpr_access_ctl *", (enabled,)))

    def set_vapic_addr(self, address: int) -> None:
        """Set where the guest's shadow of that register lies."""
        self.ioctl("KVM_SET_VAPIC_ADDR", ffi.new("struct kvm_vapic_addr *", (address,)))

    def get_supported_hv_cpuid(self, count: int = 256) -> CpuId:
        """Return the Hyper-V leaves as this vCPU would have them."""
        from pyvmm_kvm.x86_64.cpuid import CpuId, room_for

        buffer = room_for(count)
        with ffi.from_buffer("char[]", buffer) as argument:
            self.ioctl("KVM_GET_SUPPORTED_HV_CPUID", argument)
        return CpuId.from_bytes(buffer)

    def xen_get_attr(self, kind: int) -> bytes:
        """Return a Xen attribute of the vCPU: 64 bytes, of which the kind uses the first few."""
        argument = ffi.new("struct pyvmm_xen_attr *", {"type": kind})
        self.ioctl("KVM_XEN_VCPU_GET_ATTR", argument)
        return bytes(memoryview(ffi.buffer(argument)))[8:]

    def xen_set_attr(self, kind: int, value: bytes) -> None:
        """Set a Xen attribute of the vCPU from up to 64 bytes."""
        argument = ffi.new("struct pyvmm_xen_attr *", {"type": kind})
        memoryview(ffi.buffer(argument)).cast("B")[8 : 8 + len(value)] = value
        self.ioctl("KVM_XEN_VCPU_SET_ATTR", argument)

    def set_sync_valid_reg(self, *sets: int) -> None:
        """Let every `run()` store these register sets in the run page: `SYNC_REGS`, `SYNC_SREGS`, `SYNC_EVENTS`."""
        self.run_page.cast("Q")[lib.PYVMM_RUN_VALID_REGS // 8] |= _bits(sets)

    def clear_sync_valid_reg(self, *sets: int) -> None:
        """Stop that for these."""
        self.run_page.cast("Q")[lib.PYVMM_RUN_VALID_REGS // 8] &= ~_bits(sets) & (1 << 64) - 1

    def set_sync_dirty_reg(self, *sets: int) -> None:
        """Let the next `run()` load these register sets from the run page first."""
        self.run_page.cast("Q")[lib.PYVMM_RUN_DIRTY_REGS // 8] |= _bits(sets)

    def clear_sync_dirty_reg(self, *sets: int) -> None:
        """Take that back."""
        self.run_page.cast("Q")[lib.PYVMM_RUN_DIRTY_REGS // 8] &= ~_bits(sets) & (1 << 64) - 1

    def sync_regs(self) -> tuple[Regs, Sregs, VcpuEvents]:
        """Return the register sets in the run page, live: valid after a `run()` that `set_sync_valid_reg` came before.

        They cost no system call. After changing one, `set_sync_dirty_reg` makes the next `run()` load it.
        """
        page = self.run_page
        return (
            Regs.over(page[lib.PYVMM_RUN_SYNC :]),
            Sregs.over(page[lib.PYVMM_RUN_SYNC_SREGS :]),
            VcpuEvents.over(page[lib.PYVMM_RUN_SYNC_EVENTS :]),
        )

    # what Rust calls the same when it is to be written
    sync_regs_mut = sync_regs

    @property
    def in_reset_state(self) -> bool:
        """Whether it stands where a processor starts: at 0xFFFFFFF0, before its first instruction."""
        code = self.get_sregs().cs
        return (code.base, self.get_regs().rip) == (0xFFFF0000, 0xFFF0)

    @property
    def registers(self) -> str:
        """All registers as people read them, for the terminal and for reports."""
        return f"{self.get_regs()}\n{self.get_sregs()}"
