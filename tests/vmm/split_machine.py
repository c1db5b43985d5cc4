"""The example's machine with its interrupt controllers and timer in software: KVM keeps only the local APICs.

KVM calls this a split irqchip. (A fully userspace irqchip would need a local APIC in software as well, which this
package does not have.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.vmm.device_machine import Recorder

from kvm_interrupts import KvmInterrupts
from minimal_vmm import TSS_ADDRESS, Machine
from pyvmm_device import BusRange, FanOut, Ioapic, MsiIrqConfig, Pic, Pit, register_ports
from pyvmm_device.pc.ioapic import BASE, INPUTS, SIZE
from pyvmm_kvm import Cap, IoapicEoi, IrqRouting, IrqWindowOpen, SystemEvent

if TYPE_CHECKING:
    from pyvmm_kvm import VcpuExit, VcpuFd

TIMER_INPUT = 2
"""Of the IOAPIC, where a PC has its timer; on the 8259s it is input 0."""


class SplitMachine(Machine):
    """A PC whose 8259s, IOAPIC and 8254 are pyvmm_device's."""

    console: Recorder

    def make_console(self) -> Recorder:
        return Recorder()

    def add_interrupt_controllers(self) -> None:
        self.vm.set_tss_address(TSS_ADDRESS)
        self.vm.enable_cap(Cap.SPLIT_IRQCHIP, INPUTS)
        self.kvm_interrupts = self.own(KvmInterrupts(self.vm, self.loop, lines=IrqRouting()))
        self.ioapic = Ioapic(self.send)
        self.ioapic.on_route = self.on_route
        self.io.register_mmio(self.ioapic, [BusRange(BASE, SIZE)])
        self.sent = self.injected = self.late = self.ended = 0
        self.pic = Pic(self.on_intr)
        self.ticks = 0
        self.timer = FanOut(self.pic.line(0), self.ioapic.line(TIMER_INPUT))
        self.pit = Pit(self, self.loop)
        register_ports(self.io, self.pic)
        self.io.register_pio(self.pit, [BusRange(0x40, 4)])  # the example's keyboard controller has port 0x61

    def send(self, address: int, data: int) -> None:
        """Send a message of the IOAPIC."""
        self.sent += 1
        self.vm.signal_msi(address, data)

    # the timer's interrupt, counted

    def assert_(self) -> None:
        """Raise it."""
        self.ticks += 1
        self.timer.assert_()

    def clear(self) -> None:
        """Lower it."""
        self.timer.clear()

    def interrupt(self, gsi: int) -> FanOut:
        """A line as a PC wires it: the same input of the 8259s and of the IOAPIC."""
        return FanOut(self.pic.line(gsi), self.ioapic.line(gsi))

    def on_route(self, number: int, address: int | None, data: int | None) -> None:
        """Tell KVM what an input stands for, so that it reports the ends of level interrupts."""
        config = None if address is None or data is None else MsiIrqConfig(address >> 32, address & 0xFFFFFFFF, data)
        self.kvm_interrupts.route(number, config)

    def on_intr(self, level: bool) -> None:
        """The 8259s raised their output: the first processor has to come out and take the interrupt."""
        if level and hasattr(self, "control"):
            self.control.kick(self.control.vcpus[0])

    def on_exit(self, vcpu: VcpuFd, exit_: VcpuExit) -> bool:
        ended = super().on_exit(vcpu, exit_)
        if vcpu.id == 0 and not ended:
            self.acknowledge(vcpu)
        return ended

    def acknowledge(self, vcpu: VcpuFd) -> None:
        """Give the processor the 8259s' interrupt if it can take it now, or ask KVM to say when."""
        if self.pic.pending() and vcpu.ready_for_interrupt_injection:
            vcpu.interrupt(self.pic.acknowledge())
            self.injected += 1
            self.late += self.sent > 0
        vcpu.request_interrupt_window = self.pic.pending()

    def on_rare_exit(self, vcpu: VcpuFd, exit_: VcpuExit) -> None:
        if isinstance(exit_, IoapicEoi):
            self.ended += 1
            self.ioapic.end_of_interrupt(exit_.vector)
        elif not isinstance(exit_, IrqWindowOpen) or isinstance(exit_, SystemEvent):
            super().on_rare_exit(vcpu, exit_)
