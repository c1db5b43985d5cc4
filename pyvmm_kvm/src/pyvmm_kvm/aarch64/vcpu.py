"""The vCPU calls that only arm64 has."""

from __future__ import annotations

import struct

from pyvmm_kvm._kvm import ffi, lib
from pyvmm_kvm.aarch64.structs import GuestDebugArch, SyncRegs, VcpuEvents, VcpuInit
from pyvmm_kvm.device_attrs import DeviceAttrs

PMU_V3_CTRL, PMU_V3_IRQ, PMU_V3_INIT, PMU_V3_FILTER, PMU_V3_SET_PMU = 0, 0, 1, 2, 3
TIMER_CTRL, TIMER_IRQ_VTIMER, TIMER_IRQ_PTIMER = 1, 0, 1
PVTIME_CTRL, PVTIME_IPA = 2, 0


class ArchVcpu(DeviceAttrs):
    """What `VcpuFd` adds on arm64."""

    __slots__ = ()
    in_reset_state = False  # KVM resets no vCPU of this architecture by itself
    run_page: memoryview  # the run page, which VcpuFd maps

    def vcpu_init(self, init: VcpuInit) -> None:
        """Make it a processor of this kind, with its features; before anything else, and again to reset it."""
        self.set_struct("KVM_ARM_VCPU_INIT", VcpuInit, init)

    def vcpu_finalize(self, feature: int) -> None:
        """Settle a feature that is configured after `vcpu_init`: `VcpuInit.SVE`."""
        self.ioctl("KVM_ARM_VCPU_FINALIZE", ffi.new("int *", feature))

    def get_vcpu_events(self) -> VcpuEvents:
        """Return the aborts that are pending."""
        return self.get_struct("KVM_GET_VCPU_EVENTS", VcpuEvents)

    def set_vcpu_events(self, events: VcpuEvents) -> None:
        """Replace them; `ext_dabt_pending` injects a data abort."""
        self.set_struct("KVM_SET_VCPU_EVENTS", VcpuEvents, events)

    def set_guest_debug(self, control: int, debugreg: GuestDebugArch | None = None) -> None:
        """Switch debugging on or off, with hardware breakpoints and watchpoints; see `GuestDebug`."""
        registers = GuestDebugArch()
        if debugreg is not None:
            registers.update(debugreg)
        arch = bytes(registers)
        with ffi.from_buffer("char[]", bytearray(struct.pack("<II", control, 0) + arch)) as argument:
            self.ioctl("KVM_SET_GUEST_DEBUG", argument)

    def sync_regs(self) -> SyncRegs:
        """Return, without an in-kernel GIC, the levels of the in-kernel timer and PMU at the last exit, live."""
        return SyncRegs.over(self.run_page[lib.PYVMM_RUN_SYNC :])

    def init_pmu(self, irq: int | None = None) -> None:
        """Give the performance monitor its interrupt (with an in-kernel GIC) and switch it on."""
        if irq is not None:
            self.set_device_attr(PMU_V3_CTRL, PMU_V3_IRQ, bytearray(struct.pack("<i", irq)))
        self.set_device_attr(PMU_V3_CTRL, PMU_V3_INIT)

    def set_timer_irq(self, irq: int, *, physical: bool = False) -> None:
        """Set the private interrupt of the virtual or the physical timer; before the vCPU runs."""
        attr = TIMER_IRQ_PTIMER if physical else TIMER_IRQ_VTIMER
        self.set_device_attr(TIMER_CTRL, attr, bytearray(struct.pack("<i", irq)))

    def set_pvtime_ipa(self, address: int) -> None:
        """Set where the guest reads its stolen time, 64 bytes aligned to 64."""
        self.set_device_attr(PVTIME_CTRL, PVTIME_IPA, bytearray(struct.pack("<Q", address)))

    @property
    def registers(self) -> str:
        """The core registers as people read them, for the terminal and for reports."""
        from pyvmm_kvm.aarch64.registers import core
        from pyvmm_kvm.one_reg import get_one_reg

        values = [(f"x{number}", core("regs", number)) for number in range(31)]
        values += [(name, core(name)) for name in ("sp", "pc", "pstate", "sp_el1", "elr_el1")]
        cells = [f"{name:>7} {get_one_reg(self, register):016x}" for name, register in values]
        return "\n".join("  ".join(cells[start : start + 4]) for start in range(0, len(cells), 4))
