"""An arm64 guest with a GICv3, and an ITS if wanted; run as a program it restores one that ticks, and goes on.

The ticking guest counts the interrupts of its virtual timer and writes each count to MMIO.
"""

from __future__ import annotations

import mmap
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm_kvm import Kvm
from pyvmm_kvm.aarch64.modes import setup_boot
from pyvmm_kvm.aarch64.platform import VgicIts, VgicV3
from pyvmm_kvm.aarch64.state import VcpuState, VmState
from pyvmm_kvm.aarch64.structs import VcpuInit

from ..checks import number
from ..guests import ENTRY, put, words

if TYPE_CHECKING:
    from typing import Any, TypeAlias

    # with arm64's calls
    Vm: TypeAlias = Any
    Vcpu: TypeAlias = Any

VECTORS, MMIO, SIZE = 0x2000, 0x9000000, 1 << 20
IRQ_VECTOR = VECTORS + 0x280  # from the current exception level with its own stack pointer
DISTRIBUTOR, REDISTRIBUTORS, ITS = 0x8000000, 0x80A0000, 0x8080000
INTERRUPTS = 96


# VBAR_EL1 = 0x2000; ICC_SRE_EL1.SRE; ICC_PMR_EL1 = 0xf0; ICC_IGRPEN1_EL1 = 1
CPU_INTERFACE = "d2840000 d518c000 d538cca0 b2400000 d518cca0 d5033fdf d2801e00 d5184600 d2800020 d518cce0 "
# GICD_CTLR = ARE and group 1; GICR_WAKER = 0; GICR_IGROUPR0 = all ones; GICR_ISENABLER0 = 1 << 27
CONTROLLER = "d2a10001 52800240 b9000020 d2a10141 b900143f d2a10161 12800000 b9008020 52a10000 b9010020 "
# x1 = MMIO; x11 = 0; x12 = 20000; CNTV_TVAL_EL0 = x12; CNTV_CTL_EL0 = 1; DAIFClr 2; again: wfi; b again
TIMER = "d2a12001 d280000b d289c40c d51be30c d2800020 d51be320 d5033fdf d50342ff d503207f 17ffffff"
TICKING = words(CPU_INTERFACE + CONTROLLER + TIMER)
# x10 = ICC_IAR1_EL1; x11 += 1; CNTV_TVAL_EL0 = x12; ICC_EOIR1_EL1 = x10; str x11,[x1]; eret
TICKED = words("d538cc0a 9100056b d51be30c d5033fdf d518cc2a f900002b d69f03e0")


class Machine:
    """The VM around such a guest; the vCPUs begin as processors with PSCI, at `ENTRY`."""

    def __init__(self, kvm: Kvm, code: bytes = b"", memory: bytes = b"", *, vcpus: int = 1, its: bool = False) -> None:
        self.memory = mmap.mmap(-1, SIZE)
        for page in range(0, len(memory), mmap.PAGESIZE):
            if any(content := memory[page : page + mmap.PAGESIZE]):
                put(self.memory, page, content)
        put(self.memory, ENTRY, code)
        vm: Vm = kvm.create_vm()
        self.vm = vm
        self.vm.set_user_memory_region(0, 0, self.memory)
        self.gic = VgicV3(self.vm, DISTRIBUTOR, REDISTRIBUTORS, vcpus)
        self.gic.set_nr_irqs(INTERRUPTS)
        self.vcpus: list[Vcpu] = [self.vm.create_vcpu(number) for number in range(vcpus)]
        self.vcpu = self.vcpus[0]
        self.init: VcpuInit = self.vm.get_preferred_target()
        self.init.set_feature(VcpuInit.PSCI_0_2)
        for vcpu in self.vcpus:
            vcpu.vcpu_init(self.init)
            setup_boot(vcpu, ENTRY)
        self.gic.init()
        self.its: VgicIts | None = None
        if its:
            self.its = VgicIts(self.vm, ITS)
            self.its.init()

    @classmethod
    def ticking(cls, kvm: Kvm) -> Machine:
        """The guest that counts."""
        machine = cls(kvm, TICKING)
        put(machine.memory, IRQ_VECTOR, TICKED)
        return machine

    def save(self, folder: Path) -> None:
        """The whole machine as files; the GIC before memory, which it writes its tables into."""
        (folder / "vm").write_bytes(bytes(VmState.save(self.gic, self.vcpus, self.its)))
        for at, vcpu in enumerate(self.vcpus):
            (folder / f"vcpu{at}").write_bytes(bytes(VcpuState.save(vcpu, self.init)))
        (folder / "memory").write_bytes(self.memory[:])

    @classmethod
    def restore(cls, kvm: Kvm, folder: Path, *, vcpus: int = 1, its: bool = False) -> Machine:
        """And back."""
        machine = cls(kvm, memory=(folder / "memory").read_bytes(), vcpus=vcpus, its=its)
        for at, vcpu in enumerate(machine.vcpus):
            refused = VcpuState.from_bytes((folder / f"vcpu{at}").read_bytes()).restore(vcpu)
            if refused:
                raise AssertionError(f"registers were refused: {[hex(register) for register in refused]}")
        VmState.from_bytes((folder / "vm").read_bytes()).restore(machine.gic, machine.vcpus, machine.its)
        return machine

    def close(self) -> None:
        """Everything that was opened."""
        for fd in (*self.vcpus, self.gic, *([self.its] if self.its else []), self.vm, self.memory):
            fd.close()


if __name__ == "__main__":
    with Kvm() as opened:
        again = Machine.restore(opened, Path(sys.argv[1]))
        sys.stdout.write(" ".join(str(number(again.vcpu.run())) for _ in range(3)))
        again.close()
