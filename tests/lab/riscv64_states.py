"""A riscv64 machine that moves into another VM while its guest runs (`moving`): run in a host of the lab."""

import sys
from typing import Any

from tests.lab.moving import MovingMachine, main

from pyvmm_kvm.riscv64.platform import Aia
from pyvmm_kvm.riscv64.registers import timer
from pyvmm_kvm.riscv64.state import VcpuState, VmState
from riscv64_vmm import Riscv64Machine, parse


class MovingRiscv64Machine(MovingMachine, Riscv64Machine):
    """Its AIA is in KVM, where it has one; a PLIC is one of the devices."""

    vcpu_state = VcpuState
    vm_state = VmState
    going_on = (timer("time"),)

    def of_vm(self) -> tuple[Any, ...]:
        """Return the AIA."""
        return self.owned_of(Aia), len(self.vcpus)


if __name__ == "__main__":
    sys.exit(main(MovingRiscv64Machine, parse))
