"""An arm64 machine whose processors lose their registers while it runs, and get them back: run in a host of the lab.

When the guest's init asks for input, every vCPU is paused, its state saved and restored twice: on a fresh vCPU of
another VM, which is asked for its state in turn, and on itself, once its registers hold other values. Then the guest
goes on, and is told to power off by what is typed.
"""

import sys
from typing import Any

from arm64_vmm import Arm64Machine, parse
from minimal_vmm import main
from pyvmm_kvm import VmFd
from pyvmm_kvm.aarch64.platform import VgicV3
from pyvmm_kvm.aarch64.registers import core
from pyvmm_kvm.aarch64.state import VcpuState
from pyvmm_kvm.one_reg import reg_size
from pyvmm_loader.aarch64 import layout
from terminal import Console

READY = b"type a line"
# of the virtual and physical timers, which go on: EL0's CNTVCT, CNTPCT and the control registers with their status bit
TIMER = range(0x603000000013DF00, 0x603000000013DF20)


class Watcher(Console):
    """A console that says when the guest's init waits."""

    def __init__(self, machine: "ForgetfulMachine") -> None:
        super().__init__()
        self.machine = machine

    def read_line(self, line: bytes) -> None:
        """Look for what the init says."""
        super().read_line(line)
        if READY in line:
            self.machine.loop.call_soon(self.machine.forget)


class ForgetfulMachine(Arm64Machine):
    """It saves, forgets and restores."""

    def make_console(self) -> Console:
        """Listen to the guest."""
        return Watcher(self)

    def forget(self) -> None:
        """Do it, and let the guest go on."""
        self.control.pause()
        saved = [bytes(VcpuState.save(vcpu, self.processor_of(vcpu))) for vcpu in self.vcpus]
        with self.kvm.create_vm() as vm:
            self.compare(vm, saved)
        refused = []
        for vcpu, data in zip(self.vcpus, saved, strict=True):
            for number in range(31):
                vcpu.set_one_reg(core("regs", number), 0xDEAD0000 + number)
            vcpu.set_one_reg(core("pc"), 0xDEAD)
            refused += VcpuState.from_bytes(data).restore(vcpu)
        print(f"\nrestored {len(self.vcpus)} vCPUs, refused {[hex(register) for register in refused]}", flush=True)
        self.control.resume()
        assert self.serial.enqueue(b"hello\npoweroff\n") == 15

    def compare(self, vm: VmFd, saved: list[bytes]) -> None:
        """Restore on vCPUs that were never run, and say which registers are not the same there."""
        fresh: list[Any] = [vm.create_vcpu(vcpu.id) for vcpu in self.vcpus]
        for vcpu in fresh:
            vcpu.vcpu_init(self.processor_of(vcpu))
        gic = VgicV3(vm, layout.GIC_DIST, layout.GIC_REDIST, len(fresh))
        gic.init()
        differ = set()
        for vcpu, data in zip(fresh, saved, strict=True):
            state = VcpuState.from_bytes(data)
            refused = state.restore(vcpu)
            again = VcpuState.save(vcpu, self.processor_of(vcpu))
            before, after = registers(state.parts["registers"]), registers(again.parts["registers"])
            assert before.keys() == after.keys(), "another list of registers"
            differ |= {hex(register) for register in before if before[register] != after[register]} - {
                hex(register) for register in TIMER
            }
            assert again.parts["mp_state"] == state.parts["mp_state"]
            assert not refused, [hex(register) for register in refused]
            vcpu.close()
        gic.close()
        print(f"\nfresh vCPUs have {len(before)} registers, other values in {sorted(differ)}", flush=True)


def registers(data: bytes) -> dict[int, bytes]:
    """Return the registers of a state, by id."""
    found = {}
    at = 0
    while at < len(data):
        register = int.from_bytes(data[at : at + 8], "little")
        size = reg_size(register)
        found[register] = data[at + 8 : at + 8 + size]
        at += 8 + size
    return found


if __name__ == "__main__":
    sys.exit(main(ForgetfulMachine, parse))
