#!/usr/bin/env python3
"""The same for arm64: a machine without any firmware that boots Linux by a device tree.

What any machine has is in `minimal_vmm.py`: the threads, what an exit is, how a machine ends, the command line. This
file says what an arm64 machine has instead of a PC's parts, at the addresses that QEMU's `virt` has them:

    GICv3     the interrupt controller, in KVM, which wants to know the processors before it is there
    ITS       its part that turns the messages of PCI devices into interrupts, for `--transport pci`
    PL011     the serial port
    PL031     the clock
    PSCI      calls that start processors and end the machine; KVM answers them, and exits for off and reset

Interrupt numbers are those of the GIC's shared peripheral interrupts (SPIs), counted from 0; KVM's GSIs are the same.
"""

from __future__ import annotations

import os
import sys

from kvm_interrupts import KvmInterrupts
from minimal_vmm import Machine, main, make_parser
from pyvmm_device import BusRange, PciRoot, Pl011, Pl031
from pyvmm_kvm import GsiRouter, IrqRoute, IrqRouting, RunControl
from pyvmm_kvm.aarch64.platform import VgicIts, VgicV3
from pyvmm_kvm.aarch64.structs import VcpuInit
from pyvmm_loader import BootPlan
from pyvmm_loader.aarch64 import layout
from pyvmm_loader.aarch64.registers import one_regs
from pyvmm_loader.aarch64.virt import pcie, virt_tree
from pyvmm_loader.fdt.machine import Chosen

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from pyvmm_kvm import VcpuFd
    from virtio_machine import VirtioMachine

DEVICE_SIZE = 0x1000
VIRTIO_SLOTS = 32
SPIS = layout.VIRTIO_SPI + VIRTIO_SLOTS
MESSAGES = 1024
"""GSIs from those of the SPIs up to this one stand for messages."""
PRIVATE_INTERRUPTS = 32
"""Before the shared ones, of each processor."""
DEFAULT_CMDLINE = "console=ttyAMA0 panic=-1"


class Arm64Machine(Machine):
    """A machine of processors, a GICv3 and a generic timer in KVM, a serial port and a clock."""

    name = "arm64_vmm"
    host = "aarch64"
    max_cpus = layout.MAX_CPUS

    def ranges(self) -> list[tuple[int, int]]:
        """Where memory is: in one piece."""
        return [(layout.RAM_START, self.arguments.memory)]

    def add_interrupt_controllers(self) -> None:
        """Make the processors, and the GIC, which has a redistributor for each; then KVM can take interrupts."""
        self.processor = self.vm.get_preferred_target()
        self.processor.set_feature(VcpuInit.PSCI_0_2)
        self.vcpus = [self.own(self.vm.create_vcpu(number)) for number in range(self.arguments.cpus)]
        for vcpu in self.vcpus:
            vcpu.vcpu_init(self.processor_of(vcpu))
        self.gic = self.own(VgicV3(self.vm, layout.GIC_DIST, layout.GIC_REDIST, len(self.vcpus)))
        self.gic.set_nr_irqs(-(-(PRIVATE_INTERRUPTS + SPIS) // 32) * 32)
        self.gic.init()
        if self.arguments.transport == "pci":
            self.own(VgicIts(self.vm, layout.GIC_ITS)).init()
        lines = IrqRouting([IrqRoute.irqchip(spi, 0, spi) for spi in range(SPIS)])
        router = GsiRouter(self.vm, lines, range(SPIS, MESSAGES), devids=True)
        self.interrupts = self.own(KvmInterrupts(self.vm, self.loop, router=router))

    def processor_of(self, vcpu: VcpuFd) -> VcpuInit:
        """Return what kind of processor a vCPU is: all but the first wait for the guest to start them by PSCI."""
        init = VcpuInit.from_bytes(bytes(self.processor))
        init.set_feature(VcpuInit.POWER_OFF, vcpu.id > 0)
        return init

    def add_devices(self) -> None:
        """One serial port and a clock, whose interrupts are levels."""
        self.console = self.make_console()
        self.serial = Pl011(self.interrupts.level(layout.UART_SPI), self.console)
        self.io.register_mmio(self.serial, [BusRange(layout.UART, DEVICE_SIZE)])
        rtc = Pl031(self.interrupts.level(layout.RTC_SPI), self.loop)
        self.io.register_mmio(rtc, [BusRange(layout.RTC, DEVICE_SIZE)])

    def make_virtio(self) -> VirtioMachine:
        """Make the devices that the command line asks for, each with a place and a line of its own, or on a PCI bus."""
        from virtio_machine import VirtioMachine

        root = None
        if self.arguments.transport == "pci":
            root = PciRoot(self.io, ecam=layout.PCIE_ECAM, buses=layout.PCIE_ECAM_SIZE >> 20, ports=False)
        places = range(VIRTIO_SLOTS)
        slots = [(layout.VIRTIO + number * layout.VIRTIO_SIZE, layout.VIRTIO_SPI + number) for number in places]
        return VirtioMachine(self, root, interrupts=self.interrupts, slots=slots, slot_size=layout.VIRTIO_SIZE)

    def plan(self) -> BootPlan:
        """Return what the kernel finds in memory, the device tree above all."""
        asked = self.arguments
        bus = pcie() if self.virtio and self.virtio.root else None
        slots = len(self.virtio.places) if self.virtio else 0
        seed = Chosen(rng_seed=os.urandom(64))
        tree = virt_tree(self.ranges(), asked.cpus, seed, virtio=slots, host=bus, its=bus is not None)
        return BootPlan(
            asked.kernel, self.ranges(), asked.cmdline, asked.initrd, asked.cpus, arch="arm64", dtb=bytes(tree)
        )

    def add_processors(self, plan: BootPlan) -> None:
        """Let the first processor start at the kernel's entry."""
        for register, value in one_regs(plan.boot_registers):
            self.vcpus[0].set_one_reg(register, value)
        self.control = RunControl(self.vcpus, self.on_exit)

    def is_halted(self, vcpu: VcpuFd) -> bool:
        """Say whether a processor was turned off by PSCI, or never on."""
        state = vcpu.get_mp_state()
        return state.mp_state == state.STOPPED


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line, or other words; leaves with status 2 where it makes no sense."""
    return make_parser(Arm64Machine, "an arm64 Image (such as /boot/vmlinuz-*)", DEFAULT_CMDLINE).parse_args(words)


if __name__ == "__main__":
    sys.exit(main(Arm64Machine, parse))
