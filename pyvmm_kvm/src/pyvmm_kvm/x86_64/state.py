"""Snapshots: everything KVM knows of a vCPU and of a VM, as bytes that another process restores.

Memory is not in it: save that beside it, while the vCPUs are stopped.
"""

from __future__ import annotations

import struct
from contextlib import suppress

from pyvmm_kvm.errors import KvmError, MsrError, StateError
from pyvmm_kvm.state import State, exactly, finish_io, rows, whole
from pyvmm_kvm.x86_64.cpuid import CpuId
from pyvmm_kvm.x86_64.msrs import Msrs
from pyvmm_kvm.x86_64.platform import ClockData, IrqChip, PitState2
from pyvmm_kvm.x86_64.structs import DebugRegs, LapicState, MpState, Regs, Sregs, VcpuEvents
from pyvmm_kvm.x86_64.xsave import NestedState, Xsave2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar, Self

    from pyvmm_kvm.state import Check
    from pyvmm_kvm.system import Kvm
    from pyvmm_kvm.vcpu import VcpuFd
    from pyvmm_kvm.vm import VmFd

_TSC_DEADLINE = 0x6E0  # IA32_TSC_DEADLINE
_TSC_TOLERANCE = 4000  # 250 parts in a million
_CONTROLLERS = (IrqChip.PIC_MASTER, IrqChip.PIC_SLAVE, IrqChip.IOAPIC)
# of lists that KVM_GET_MSR_INDEX_LIST gives, "a few hundred" each; and KVM_MAX_XCRS
_MOST_MSRS, _MOST_XCRS = 4096, 16


def _check_cpuid(data: bytes) -> None:
    if len(bytes(CpuId.from_bytes(data))) != len(data):
        raise StateError("bytes are left behind the CPUID table")


def _check_msrs(data: bytes) -> None:
    rows(Msrs.ENTRY_SIZE, _MOST_MSRS)(data[Msrs.HEADER_SIZE :])
    if len(bytes(Msrs.from_bytes(data))) != len(data):
        raise StateError("the list of MSRs has bytes left, or names one twice")


def _check_xcrs(data: bytes) -> None:
    rows(16, _MOST_XCRS)(data)
    numbers = [number for number, _ in struct.iter_unpack("<QQ", data)]
    if len(set(numbers)) < len(numbers) or any(number >> 32 for number in numbers):
        raise StateError("an extended control register is there twice, or has a number of more than 32 bits")


def _check_irqchip(number: int) -> Callable[[bytes], None]:
    def check(data: bytes) -> None:
        whole(IrqChip)(data)
        if IrqChip.from_bytes(data).chip_id != number:
            raise StateError(f"it is of controller {IrqChip.from_bytes(data).chip_id}, not {number}")

    return check


class VcpuState(State):
    """One vCPU: CPUID, registers, FPU and extended state, MSRs, LAPIC, events, debug registers, nested state."""

    __slots__ = ()
    kind = 1
    required = ("cpuid", "regs", "sregs", "msrs", "events", "mp_state")
    PARTS: ClassVar[dict[str, Check]] = {
        "mp_state": whole(MpState),
        "cpuid": _check_cpuid,
        "regs": whole(Regs),
        "sregs": whole(Sregs),
        "xsave": Xsave2.check,
        "xcrs": _check_xcrs,
        "debugregs": whole(DebugRegs),
        "lapic": whole(LapicState),
        "tsc_khz": exactly(4),
        "msrs": _check_msrs,
        "nested": NestedState.check,
        "events": whole(VcpuEvents),
    }

    @classmethod
    def save(cls, kvm: Kvm, vm: VmFd, vcpu: VcpuFd) -> Self:
        """Read a stopped vCPU. Its pending I/O is completed first, or the guest would repeat it."""
        from pyvmm_kvm.cap import Cap

        finish_io(vcpu)
        # the multiprocessor state first: reading it lets KVM take pending INIT and SIPI into account
        parts = {"mp_state": bytes(vcpu.get_mp_state()), "cpuid": bytes(vcpu.get_cpuid2())}
        parts["regs"] = bytes(vcpu.get_regs())
        parts["sregs"] = bytes(vcpu.get_sregs())
        parts["xsave"] = bytes(vcpu.get_xsave2(vm.check_extension_raw(Cap.XSAVE2)))
        parts["xcrs"] = b"".join(struct.pack("<QQ", *item) for item in vcpu.get_xcrs().items())
        parts["debugregs"] = bytes(vcpu.get_debug_regs())
        with suppress(KvmError):
            # refused where there is no in-kernel LAPIC, and then there is nothing to save
            parts["lapic"] = bytes(vcpu.get_lapic())
        parts["tsc_khz"] = struct.pack("<I", vcpu.get_tsc_khz())
        msrs = Msrs()
        for index in kvm.get_msr_index_list():
            try:
                msrs.update(vcpu.get_msrs([index]))
            except MsrError:
                # the list is the host's; this guest's CPUID may lack the register
                continue
        parts["msrs"] = bytes(msrs)
        nested = vcpu.get_nested_state(size) if (size := vm.check_extension_raw(Cap.NESTED_STATE)) else None
        if nested:
            parts["nested"] = bytes(nested)
        parts["events"] = bytes(vcpu.get_vcpu_events())
        return cls(parts)

    def restore(self, vcpu: VcpuFd) -> list[int]:
        """Write everything into a fresh vCPU, in the order that the parts depend on each other.

        Returns:
            The MSRs whose value this kernel refused; empty where all is well.

        Raises:
            StateError: a part has not the form of what it is; nothing was changed.
            KvmError: the kernel refuses a value; KVM_SET_TSC_KHZ, where the guest's counter ran at another rate and
                this host cannot scale it.
        """
        self.check()
        parts = self.parts
        vcpu.set_cpuid2(CpuId.from_bytes(parts["cpuid"]))
        # before the counter's value, which is given in the guest's cycles
        self._restore_frequency(vcpu)
        vcpu.set_mp_state(MpState.from_bytes(parts["mp_state"]))
        vcpu.set_regs(Regs.from_bytes(parts["regs"]))
        vcpu.set_sregs(Sregs.from_bytes(parts["sregs"]))
        if "xcrs" in parts:
            vcpu.set_xcrs(dict(struct.iter_unpack("<QQ", parts["xcrs"])))
        if "xsave" in parts:
            vcpu.set_xsave2(parts["xsave"])
        if "debugregs" in parts:
            vcpu.set_debug_regs(DebugRegs.from_bytes(parts["debugregs"]))
        # the TSC before the LAPIC's deadline timer, which counts in it
        refused = self._restore_msrs(vcpu, deadline=False)
        if "lapic" in parts:
            vcpu.set_lapic(LapicState.from_bytes(parts["lapic"]))
        refused += self._restore_msrs(vcpu, deadline=True)
        if "nested" in parts:
            vcpu.set_nested_state(parts["nested"])
        vcpu.set_vcpu_events(VcpuEvents.from_bytes(parts["events"]))
        return refused

    def _restore_frequency(self, vcpu: VcpuFd) -> None:
        if "tsc_khz" not in self.parts:
            return
        khz = struct.unpack("<I", self.parts["tsc_khz"])[0]
        own = vcpu.get_tsc_khz()
        # what two measurements of the same clock may differ by; the guest's own calibration is no better
        if khz and abs(own - khz) * _TSC_TOLERANCE > khz:
            vcpu.set_tsc_khz(khz)

    def _restore_msrs(self, vcpu: VcpuFd, *, deadline: bool) -> list[int]:
        refused = []
        pending = [
            item for item in Msrs.from_bytes(self.parts["msrs"]).items() if (item[0] == _TSC_DEADLINE) == deadline
        ]
        at, count = 0, len(pending)
        while at < len(pending):
            part = pending[at : at + count]
            try:
                at += vcpu.set_msrs(dict(part))
                count *= 2
            except MsrError as error:
                # KVM stops at it; where one is refused more may be, and each try costs what it sends
                index, value = part[error.done]
                if value:
                    refused.append(index)
                at += error.done + 1
                count = max(1, count // 4)
        return refused


class VmState(State):
    """What belongs to the VM as a whole: the two PICs, the IOAPIC, the PIT and the clock."""

    __slots__ = ()
    kind = 2
    required = ("clock",)
    PARTS: ClassVar[dict[str, Check]] = {
        "clock": whole(ClockData),
        **{f"irqchip{number}": _check_irqchip(number) for number in _CONTROLLERS},
        "pit": whole(PitState2),
    }

    @classmethod
    def save(cls, vm: VmFd) -> Self:
        """Read them, from a VM whose vCPUs are stopped."""
        parts = {"clock": bytes(vm.get_clock())}
        with suppress(KvmError):
            # refused by a VM without these controllers, which has nothing to save of them
            for number in _CONTROLLERS:
                parts[f"irqchip{number}"] = bytes(vm.get_irqchip(number))
            parts["pit"] = bytes(vm.get_pit2())
        return cls(parts)

    def restore(self, vm: VmFd) -> None:
        """Write them into a VM that has the same controllers, before its vCPUs run.

        Restore devices of your own after this: the interrupt that one raises again would be wiped out here.

        Raises:
            StateError: a part has not the form of what it is, or the VM has not the same controllers.
            KvmError: the kernel refuses a value. In either case the controllers are as they were.
        """
        self.check()
        before = type(self).save(vm)
        if set(before.parts) != set(self.parts):
            raise StateError(
                f"the state has {', '.join(sorted(self.parts))}; this VM {', '.join(sorted(before.parts))}"
            )
        try:
            self._write(vm)
        except KvmError:
            with suppress(KvmError):
                before._write_controllers(vm)
            raise

    def _write(self, vm: VmFd) -> None:
        self._write_controllers(vm)
        clock = ClockData.from_bytes(self.parts["clock"])
        # the guest's clock stands still between save and restore
        clock.flags = 0
        vm.set_clock(clock)

    def _write_controllers(self, vm: VmFd) -> None:
        for number in _CONTROLLERS:
            if f"irqchip{number}" in self.parts:
                vm.set_irqchip(IrqChip.from_bytes(self.parts[f"irqchip{number}"]))
        if "pit" in self.parts:
            vm.set_pit2(PitState2.from_bytes(self.parts["pit"]))
