"""A riscv64 machine whose harts and PLIC lose their state while it runs, and get it back: run in a host of the lab.

When the guest's init asks for input, every vCPU is paused, its state saved and restored twice: on a fresh vCPU of
another VM, which is asked for its state in turn, and on itself, once its registers hold other values. Then the guest
goes on, and is told to power off by what is typed. With `--interrupts aia`, whose state is KVM's, it is only told that.
"""

import json
import sys

from minimal_vmm import main
from pyvmm_device import Plic
from pyvmm_kvm import VmFd
from pyvmm_kvm.one_reg import reg_size
from pyvmm_kvm.riscv64.registers import core, timer
from pyvmm_kvm.riscv64.state import VcpuState
from riscv64_vmm import PlicInterrupts, Riscv64Machine, parse
from terminal import Console

READY = b"type a line"


class Watcher(Console):
    """A console that says when the guest's init waits."""

    def __init__(self, machine: "ForgetfulMachine") -> None:
        super().__init__()
        self.machine = machine

    def read_line(self, line: bytes) -> None:
        """Look for what the init says."""
        super().read_line(line)
        if READY in line:
            self.machine.loop.call_soon(self.machine.on_ready)


class ForgetfulMachine(Riscv64Machine):
    """It saves, forgets and restores."""

    def make_console(self) -> Console:
        """Listen to the guest."""
        return Watcher(self)

    def on_ready(self) -> None:
        """Do it, and type."""
        if isinstance(self.interrupts, PlicInterrupts):
            self.forget(self.interrupts.plic)
        assert self.serial.enqueue(b"hello\npoweroff\n") == 15

    def forget(self, plic: Plic) -> None:
        """Do it, and let the guest go on."""
        self.control.pause()
        controller = json.dumps(plic.state())
        saved = [bytes(VcpuState.save(vcpu)) for vcpu in self.vcpus]
        with self.kvm.create_vm() as vm:
            self.compare(vm, saved)
        refused = []
        plic.reset()
        for vcpu, data in zip(self.vcpus, saved, strict=True):
            for name in ("pc", "ra", "sp", "gp", "tp", "a0", "s11", "t6"):
                vcpu.set_one_reg(core(name), 0xDEAD)
            refused += VcpuState.from_bytes(data).restore(vcpu)
        plic.restore(json.loads(controller))
        print(f"\nrestored {len(self.vcpus)} vCPUs, refused {[hex(register) for register in refused]}", flush=True)
        self.control.resume()

    def compare(self, vm: VmFd, saved: list[bytes]) -> None:
        """Restore on vCPUs that were never run, and say which registers are not the same there."""
        fresh = [vm.create_vcpu(vcpu.id) for vcpu in self.vcpus]
        differ = set()
        for vcpu, data in zip(fresh, saved, strict=True):
            state = VcpuState.from_bytes(data)
            refused = state.restore(vcpu)
            again = VcpuState.save(vcpu)
            before, after = registers(state.parts["registers"]), registers(again.parts["registers"])
            assert before.keys() == after.keys(), "another list of registers"
            differ |= {hex(register) for register in before if before[register] != after[register]} - {
                hex(timer("time"))  # which goes on
            }
            assert again.parts["mp_state"] == state.parts["mp_state"]
            assert not refused, [hex(register) for register in refused]
            vcpu.close()
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
