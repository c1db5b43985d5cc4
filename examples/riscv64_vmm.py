#!/usr/bin/env python3
"""The same for riscv64: a machine without any firmware that boots Linux by a device tree.

What any machine has is in `minimal_vmm.py`: the threads, what an exit is, how a machine ends, the command line. This
file says what a riscv64 machine has instead of a PC's parts, at the addresses that QEMU's `virt` has them:

    PLIC      the interrupt controller, a device of ours, which moves each hart's one line by KVM_INTERRUPT; or
    AIA       with `--interrupts aia`: APLIC and IMSICs in KVM, where the host's processors have them
    16550A    the serial port, in memory
    SBI       calls that start harts, set timers and end the machine; KVM answers them, and exits for reset

KVM's harts have no machine mode, so the PLIC has one context for each: the supervisor's.
"""

from __future__ import annotations

import errno
import os
import sys

from minimal_vmm import Machine, UsageError, main, make_parser
from pyvmm_device import BusRange, Plic, Serial
from pyvmm_kvm import KvmError, RunControl
from pyvmm_kvm.riscv64 import modes, platform
from pyvmm_loader import BootPlan
from pyvmm_loader.fdt.machine import Chosen
from pyvmm_loader.riscv64 import layout
from pyvmm_loader.riscv64.interrupts import AiaLayout, PlicLayout
from pyvmm_loader.riscv64.registers import one_regs
from pyvmm_loader.riscv64.virt import virt_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from pyvmm_device import EdgeInterrupt, EventFdGroup, LevelInterrupt
    from pyvmm_kvm import VcpuExit, VcpuFd, VmFd
    from virtio_machine import VirtioMachine

UART_SIZE = 8
NO_PCI = "this machine has no PCI bus: use --transport mmio"
DEFAULT_CMDLINE = "console=ttyS0 panic=-1"
UNDESCRIBED = ("h", "ssaia", "zicbom", "zicboz")
"""Extensions that the tree does not say by name: the hypervisor's, AIA's own affair, and those with a block size."""
SBI_PUTCHAR, SBI_GETCHAR = 1, 2
SBI_NOT_SUPPORTED = (1 << 64) - 2


class Interrupts:
    """What hands out the interrupts of a machine without messages."""

    def edge(self, source: int) -> EdgeInterrupt:
        """Return a source that is triggered."""
        raise NotImplementedError

    def level(self, source: int) -> LevelInterrupt:
        """Return a source that is asserted and cleared."""
        raise NotImplementedError

    def group(self, count: int) -> EventFdGroup:
        """Refuse: messages are for devices on a PCI bus."""
        raise UsageError(f"no {count} messages: {NO_PCI}")


class PlicInterrupts(Interrupts):
    """A PLIC's: KVM takes no part in them."""

    def __init__(self, plic: Plic) -> None:
        self.plic = plic

    def edge(self, source: int) -> EdgeInterrupt:
        """Return a source that is triggered."""
        return self.plic.edge(source)

    def level(self, source: int) -> LevelInterrupt:
        """Return a source that is asserted and cleared."""
        return self.plic.source(source)


class AiaInterrupts(Interrupts):
    """Those of KVM's APLIC, all by KVM_IRQ_LINE.

    An eventfd would do for messages only: a line is raised by KVM's irqfd and never lowered (arch/riscv/kvm/vm.c,
    kvm_arch_set_irq_inatomic), and nobody is told of ends of interrupts.
    """

    def __init__(self, vm: VmFd) -> None:
        self.vm = vm

    def edge(self, source: int) -> EdgeInterrupt:
        """Return a line that is triggered."""
        return AiaEdge(self.vm, source)

    def level(self, source: int) -> LevelInterrupt:
        """Return a line that is asserted and cleared."""
        return AiaLine(self.vm, source)


class AiaLine:
    """A line into KVM's APLIC, a level interrupt."""

    def __init__(self, vm: VmFd, gsi: int) -> None:
        self.vm = vm
        self.gsi = gsi

    def assert_(self) -> None:
        """Raise the line."""
        self.vm.set_irq_line(self.gsi, True)

    def clear(self) -> None:
        """Lower the line."""
        self.vm.set_irq_line(self.gsi, False)


class AiaEdge(AiaLine):
    """The same as an edge interrupt."""

    def trigger(self) -> None:
        """Raise the line and lower it."""
        self.vm.set_irq_line(self.gsi, True)
        self.vm.set_irq_line(self.gsi, False)


class Riscv64Machine(Machine):
    """A machine of harts with timers in KVM, a PLIC or KVM's AIA, and a serial port."""

    name = "riscv64_vmm"
    host = "riscv64"
    max_cpus = 512

    def ranges(self) -> list[tuple[int, int]]:
        """Where memory is: in one piece."""
        return [(layout.RAM_START, self.arguments.memory)]

    def add_interrupt_controllers(self) -> None:
        """Make the harts, and what interrupts them."""
        if self.arguments.transport == "pci":
            raise UsageError(NO_PCI)
        self.vcpus = [self.own(self.vm.create_vcpu(number)) for number in range(self.arguments.cpus)]
        self.interrupts = self.aia() if self.arguments.interrupts == "aia" else self.plic()

    def plic(self) -> Interrupts:
        """Make a PLIC."""
        self.controllers: PlicLayout | AiaLayout = PlicLayout(contexts=1)
        plic = Plic([vcpu.interrupt for vcpu in self.vcpus], self.controllers.sources)
        self.io.register_mmio(plic, [BusRange(layout.PLIC, layout.PLIC_SIZE)])
        return PlicInterrupts(plic)

    def aia(self) -> Interrupts:
        """Let KVM make an APLIC and an IMSIC for each hart."""
        self.controllers = AiaLayout(aplic_size=platform.APLIC_SIZE)
        try:
            aia = self.own(platform.Aia(self.vm, sources=self.controllers.sources, ids=self.controllers.ids))
        except KvmError as error:
            if error.errno != errno.ENODEV:
                raise
            raise UsageError("the KVM of this host has no AIA: use --interrupts plic") from error
        aia.set_config(platform.CONFIG_HART_BITS, (len(self.vcpus) - 1).bit_length())
        aia.place(layout.APLIC, [layout.IMSIC + layout.IMSIC_SIZE * vcpu.id for vcpu in self.vcpus])
        aia.init()
        return AiaInterrupts(self.vm)

    def add_devices(self) -> None:
        """One serial port."""
        self.console = self.make_console()
        self.serial = Serial(self.interrupts.level(layout.UART_IRQ), self.console)
        self.io.register_mmio(self.serial, [BusRange(layout.UART, UART_SIZE)])

    def make_virtio(self) -> VirtioMachine:
        """Make the devices that the command line asks for, each with a place and a line of its own."""
        from virtio_machine import VirtioMachine

        places = range(layout.VIRTIO_SLOTS)
        slots = [(layout.VIRTIO + number * layout.VIRTIO_SIZE, layout.VIRTIO_IRQ + number) for number in places]
        return VirtioMachine(self, interrupts=self.interrupts, slots=slots, slot_size=layout.VIRTIO_SIZE)

    def plan(self) -> BootPlan:
        """Return what the kernel finds in memory, the device tree above all."""
        asked, hart = self.arguments, self.vcpus[0]
        tree = virt_tree(
            self.ranges(),
            asked.cpus,
            Chosen(rng_seed=os.urandom(64)),
            interrupts=self.controllers,
            clock=False,
            virtio=len(self.virtio.places) if self.virtio else 0,
            extensions=[name for name in modes.extensions(hart) if name not in UNDESCRIBED],
            mmu=modes.paging_mode(hart),
            timebase=modes.timebase(hart),
        )
        return BootPlan(
            asked.kernel, self.ranges(), asked.cmdline, asked.initrd, asked.cpus, arch="riscv64", dtb=bytes(tree)
        )

    def add_processors(self, plan: BootPlan) -> None:
        """Let the first hart start at the kernel's entry; the others wait for it to start them by SBI."""
        for register, value in one_regs(plan.boot_registers):
            self.vcpus[0].set_one_reg(register, value)
        self.control = RunControl(self.vcpus, self.on_exit)

    def on_rare_exit(self, vcpu: VcpuFd, exit_: VcpuExit) -> None:
        """Answer what the guest asks of firmware and KVM leaves to us; the rest is as for any machine."""
        from pyvmm_kvm import RiscvSbi

        if not isinstance(exit_, RiscvSbi):
            super().on_rare_exit(vcpu, exit_)
            return
        exit_.ret0, exit_.ret1 = SBI_NOT_SUPPORTED, 0
        if exit_.extension_id == SBI_PUTCHAR:  # the oldest firmware's console, for `earlycon=sbi`
            self.console.write(bytes([exit_.args[0] & 0xFF]))
            exit_.ret0 = 0
        elif exit_.extension_id == SBI_GETCHAR:
            exit_.ret0 = (1 << 64) - 1

    def is_halted(self, vcpu: VcpuFd) -> bool:
        """Say whether a hart was stopped by SBI, or never started."""
        state = vcpu.get_mp_state()
        return state.mp_state == state.STOPPED


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line, or other words; leaves with status 2 where it makes no sense."""
    parser = make_parser(Riscv64Machine, "a riscv64 Image (such as /boot/vmlinuz-*)", DEFAULT_CMDLINE)
    parser.add_argument(
        "--interrupts", choices=("plic", "aia"), default="plic", help="a PLIC, or KVM's AIA (%(default)s)"
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(Riscv64Machine, parse))
