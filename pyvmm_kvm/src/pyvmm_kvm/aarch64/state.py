"""A snapshot of an arm64 vCPU. The GIC is a device whose registers are its attributes: `platform.VgicV3` reads them.

Shown to round-trip on a vCPU that the tests make up; nothing here ran on an arm64 host yet.
"""

from __future__ import annotations

from pyvmm_kvm.aarch64.registers import SVE_VLS
from pyvmm_kvm.aarch64.structs import MpState, VcpuEvents, VcpuInit
from pyvmm_kvm.reg_state import RegisterState, read_registers, write_registers
from pyvmm_kvm.state import finish_io

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, Self

    from pyvmm_kvm.reg_state import RegisterVcpu

    class ArmVcpu(RegisterVcpu, Protocol):
        """As much of an arm64 vCPU as this needs."""

        def vcpu_init(self, init: VcpuInit) -> None:
            """Call KVM_ARM_VCPU_INIT."""

        def vcpu_finalize(self, feature: int) -> None:
            """Call KVM_ARM_VCPU_FINALIZE."""

        def get_vcpu_events(self) -> VcpuEvents:
            """Call KVM_GET_VCPU_EVENTS."""

        def set_vcpu_events(self, events: VcpuEvents) -> None:
            """Call KVM_SET_VCPU_EVENTS."""


class VcpuState(RegisterState):
    """One vCPU: the kind of processor it was made as, every register KVM lists, pending aborts, whether it runs."""

    kind = 3
    required = ("init", "registers", "mp_state")

    @classmethod
    def save(cls, vcpu: ArmVcpu, init: VcpuInit) -> Self:
        """Read a stopped vCPU that `vcpu_init(init)` made. Its pending I/O is completed first."""
        finish_io(vcpu)
        parts = {"init": bytes(init), "registers": read_registers(vcpu), "mp_state": bytes(vcpu.get_mp_state())}
        parts["events"] = bytes(vcpu.get_vcpu_events())
        return cls(parts)

    def restore(self, vcpu: ArmVcpu) -> list[int]:
        """Make a fresh vCPU the same; return the registers whose value this kernel refused."""
        init = VcpuInit.from_bytes(self.parts["init"])
        vcpu.vcpu_init(init)
        refused = []
        if init.has_feature(VcpuInit.SVE):
            # the vector lengths settle which registers exist
            refused += write_registers(vcpu, self.parts["registers"], lambda register: register == SVE_VLS)
            vcpu.vcpu_finalize(VcpuInit.SVE)
        refused += write_registers(vcpu, self.parts["registers"], lambda register: register != SVE_VLS)
        vcpu.set_mp_state(MpState.from_bytes(self.parts["mp_state"]))
        if "events" in self.parts:
            vcpu.set_vcpu_events(VcpuEvents.from_bytes(self.parts["events"]))
        return refused
