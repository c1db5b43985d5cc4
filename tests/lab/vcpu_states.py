"""An arm64 machine that moves into another VM while its guest runs (`moving`): run in a host of the lab."""

import sys
from typing import Any

from tests.lab.moving import MovingMachine, main

from arm64_vmm import Arm64Machine, parse
from pyvmm_kvm import VcpuFd
from pyvmm_kvm.aarch64.platform import VgicIts
from pyvmm_kvm.aarch64.state import VcpuState, VmState


class MovingArm64Machine(MovingMachine, Arm64Machine):
    """Its GICv3 is in KVM, with an ITS where there is a PCI bus."""

    vcpu_state = VcpuState
    vm_state = VmState
    # of the virtual and physical timers: EL0's CNTVCT, CNTPCT and the control registers with their status bit
    going_on = range(0x603000000013DF00, 0x603000000013DF20)

    def of_vcpu(self, vcpu: VcpuFd) -> tuple[Any, ...]:
        """Return what kind of processor it is."""
        return (self.processor_of(vcpu),)

    def of_vm(self) -> tuple[Any, ...]:
        """Return the interrupt controllers, of processors that say who they are."""
        return self.gic, self.vcpus, self.owned_of(VgicIts)


if __name__ == "__main__":
    sys.exit(main(MovingArm64Machine, parse))
