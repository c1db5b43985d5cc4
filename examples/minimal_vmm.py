#!/usr/bin/env python3
"""A virtual machine monitor that boots Linux, short enough to read in one sitting.

The packages supply the parts; this file wires them together and owns every decision: what the machine looks like,
what happens on each exit, when the machine has ended. Read it from `main` downwards:

    main       the command line in, the exit status out
    Machine    memory, KVM, devices, kernel; what to do on an exit; how a machine ends

What the guest prints and the person types is in `terminal.py` beside it; disks, networks and their like are in
`virtio_devices.py`, and how they meet KVM in `virtio_machine.py`. A machine of your own is a subclass of `Machine` that
overrides one of its `add_` steps; `arm64_vmm.py` is one that is no PC.

Some modules are imported where they are first needed: a guest of ten instructions says its first byte sooner.
"""

from __future__ import annotations

import os
import sys

from pyvmm_device import I8042, BusRange, Cmos, EventFdInterrupt, EventLoop, IoManager, OutputBuffer, Serial
from pyvmm_kvm import Intr, IoIn, IoOut, Kvm, MmioRead, MmioWrite, RunControl, Shutdown
from pyvmm_loader import BootPlan, LoaderError, reads_acpi, split_ram
from pyvmm_memory import GuestMemoryMmap
from terminal import Console, Terminal
from virtio_options import add_virtio_options, virtio_wanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

    from pyvmm_device import EdgeInterrupt, Pl011
    from pyvmm_kvm import VcpuExit, VcpuFd
    from pyvmm_loader import AcpiTables
    from virtio_devices import TerminalPort
    from virtio_machine import VirtioMachine

COM1, COM1_IRQ = 0x3F8, 4
CMOS, CMOS_IRQ = 0x70, 8
I8042_PORTS = 0x60
ACPI_SLEEP = 0x600
TSS_ADDRESS = 0xFFFBD000
"""Three pages that KVM borrows on Intel processors, in the hole below 4 GiB, away from everything."""
ENTRIES = ("auto", "linux64", "linux32", "linux16", "pvh", "multiboot")
MAX_CPUS = 254
"""An 8-bit APIC id names no more, beside the IOAPIC and the broadcast."""
HALT_CHECK_SECONDS = 0.2
SHOWN_LATER = 1 << 20
"""So many bytes may wait for a terminal that stands still before the guest's output is dropped."""
DEFAULT_CMDLINE = "console=ttyS0 panic=-1 reboot=k"


class UsageError(Exception):
    """What was asked for cannot be done: the message says why, and what to do."""


class Machine:
    """A PC without a screen: RAM, processors, interrupt controllers and timer in KVM, and one serial port."""

    name = "minimal_vmm"
    host = "x86_64"  # whose KVM makes such machines
    max_cpus = MAX_CPUS
    serial: Serial | Pl011

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.end: tuple[int, str] | None = None  # the exit status and the reason, once there is one
        self.owned: list[Any] = []  # closed in reverse order
        self.halted: set[int] = set()
        try:
            self.build(arguments)
        except BaseException:
            self.close()
            raise

    def build(self, arguments: argparse.Namespace) -> None:
        """Make everything, a step at a time; nothing runs yet."""
        self.arguments = arguments
        if os.uname().machine != self.host:
            raise UsageError(f"its guests need KVM of {self.host}, this is {os.uname().machine}: see 'python -m lab'")
        self.kvm = self.own(Kvm())
        most = min(self.max_cpus, self.kvm.get_max_vcpus())
        if arguments.cpus > most:
            raise UsageError(f"{arguments.cpus} vCPUs: this VMM and this host allow 1 to {most}; use --cpus")
        self.memory = self.own(GuestMemoryMmap.from_ranges(self.ranges()))
        self.vm = self.own(self.kvm.create_vm())
        for slot, region in enumerate(self.memory):
            self.vm.set_user_memory_region(slot, region.start, region.buffer)
        self.loop = self.own(EventLoop())
        self.output = self.own(OutputBuffer(1, self.loop, SHOWN_LATER))
        self.io = IoManager()
        self.add_interrupt_controllers()
        self.add_devices()
        self.add_virtio()
        with self.plan() as plan:
            if arguments.plan:
                print(plan, file=sys.stderr)
            plan.apply(self.memory)
            self.add_processors(plan)

    def ranges(self) -> list[tuple[int, int]]:
        """Where memory is, as (start, size) pairs."""
        return split_ram(self.arguments.memory)

    def add_interrupt_controllers(self) -> None:
        """Add the PC's interrupt controllers and its timer, all in KVM."""
        self.vm.set_tss_address(TSS_ADDRESS)
        self.vm.create_irq_chip()
        self.vm.create_pit2()

    def add_devices(self) -> None:
        """One serial port, and what resets the machine and tells the time."""
        self.console = self.make_console()
        self.serial = Serial(self.interrupt(COM1_IRQ), self.console)
        self.io.register_pio(self.serial, [BusRange(COM1, 8)])
        self.io.register_pio(I8042(self.on_reset), [BusRange(I8042_PORTS, 5)])
        cmos = Cmos(self.interrupt(CMOS_IRQ), self.loop)
        cmos.set_memory_size(*[size for _, size in split_ram(self.arguments.memory)])
        self.io.register_pio(cmos, [BusRange(CMOS, 2)])

    def add_virtio(self) -> None:
        """Disks, networks, a second console and random numbers, where the command line asks for some."""
        self.keyboard: Serial | Pl011 | TerminalPort = self.serial
        self.virtio: VirtioMachine | None = None
        if not virtio_wanted(self.arguments):
            return
        from pyvmm_virtio.errors import VirtioUsageError

        try:
            self.virtio = self.make_virtio()
        except (VirtioUsageError, ValueError) as error:
            raise UsageError(str(error)) from error
        self.keyboard = self.virtio.terminal or self.keyboard

    def make_virtio(self) -> VirtioMachine:
        """Make the devices that the command line asks for, where this machine has room for them."""
        from virtio_machine import VirtioMachine

        return VirtioMachine(self)

    def make_console(self) -> Console:
        """Where the first serial port's output goes."""
        return Console(self.output)

    def interrupt(self, gsi: int) -> EdgeInterrupt:
        """Return an edge interrupt that KVM delivers without a detour through here."""
        interrupt: EventFdInterrupt = self.own(EventFdInterrupt())
        self.vm.register_irqfd(interrupt.fileno(), gsi)
        return interrupt

    def plan(self) -> BootPlan:
        """Return what the kernel finds in memory, and where, before the first instruction."""
        asked = self.arguments
        kernel, dashes, init = asked.cmdline.partition(" -- ")
        by_acpi = reads_acpi(asked.kernel) if asked.tables == "auto" else asked.tables == "acpi"
        acpi = self.acpi_tables() if by_acpi else None
        words = self.virtio.words() if self.virtio and not acpi else []
        cmdline = " ".join([kernel, *words]) + dashes + init
        return BootPlan(
            asked.kernel, asked.memory, cmdline, asked.initrd, asked.cpus, asked.entry, arch="x86_64", acpi=acpi
        )

    def acpi_tables(self) -> AcpiTables:
        """Describe the machine by ACPI, and give it the registers that turn it off."""
        from pyvmm_device import AcpiSleep
        from pyvmm_loader.acpi import AcpiTables, GenericAddress, Reset, SleepRegisters
        from pyvmm_loader.acpi.devices.isa import rtc, serial_port

        off = AcpiSleep(lambda _: self.finish(0, "the guest powered off"))
        self.io.register_pio(off, [BusRange(ACPI_SLEEP, 2)])
        devices, pci = self.virtio.described() if self.virtio else ([], None)
        return AcpiTables(
            self.arguments.cpus,
            devices=[serial_port(1, COM1, COM1_IRQ), rtc(), *devices],
            pci=pci,
            sleep=SleepRegisters(GenericAddress(ACPI_SLEEP), GenericAddress(ACPI_SLEEP + 1)),
            reset=Reset(GenericAddress(I8042_PORTS + 4), 0xFE),
        )

    def add_processors(self, plan: BootPlan) -> None:
        """Let the first start at the kernel's entry; the others wait for it to send INIT and SIPI."""
        from pyvmm_kvm import CpuidPolicy

        policy = CpuidPolicy.host(self.kvm)
        vcpus = [self.own(self.vm.create_vcpu(number)) for number in range(self.arguments.cpus)]
        for vcpu in vcpus:
            vcpu.set_cpuid2(policy.table(vcpu.id, len(vcpus)))
        regs, sregs = vcpus[0].get_regs(), vcpus[0].get_sregs()
        plan.registers.copy_to(regs, sregs)
        vcpus[0].set_sregs(sregs)
        vcpus[0].set_regs(regs)
        self.control = RunControl(vcpus, self.on_exit)

    def own(self, thing: Any) -> Any:  # noqa: ANN401 - whatever has a close
        """Remember to close something, and return it."""
        self.owned.append(thing)
        return thing

    def run(self) -> tuple[int, str]:
        """Run until the machine has ended; returns the exit status and the reason."""
        self.control.start()
        self.loop.call_later(HALT_CHECK_SECONDS, self.check)
        try:
            self.loop.run()
        finally:
            self.control.stop()
            self.control.join()
        return self.end or (1, "every vCPU thread ended")

    def on_exit(self, vcpu: VcpuFd, exit_: VcpuExit) -> bool:
        """Do what the guest asks for, in the vCPU's thread; true when the machine has ended."""
        match exit_:
            case IoOut(port, data):
                self.io.pio_write(port, data, exit_.size)
            case IoIn(port, data):
                self.io.pio_read(port, data, exit_.size)
            case MmioWrite(addr, data):
                self.io.mmio_write(addr, data)
            case MmioRead(addr, data):
                self.io.mmio_read(addr, data)
            case Intr():
                self.look_for_halt(vcpu)
            case Shutdown():
                self.finish(1, f"triple fault on vCPU {vcpu.id}")
            case _:
                self.on_rare_exit(vcpu, exit_)
        return self.end is not None

    def on_rare_exit(self, vcpu: VcpuFd, exit_: VcpuExit) -> None:
        """Take what a guest of this machine does at most once."""
        from pyvmm_kvm import SystemEvent

        match exit_:
            case SystemEvent(SystemEvent.SHUTDOWN):
                self.finish(0, "the guest powered off")
            case SystemEvent(SystemEvent.RESET):
                self.on_reset()
            case _:
                self.finish(1, f"vCPU {vcpu.id} cannot go on: {exit_!r}")

    def on_reset(self) -> None:
        """End the machine: the guest reset it, which is how it reboots, and also what it does after a panic."""
        if self.console.panic:
            self.finish(1, f"the guest's kernel panicked: {self.console.panic}")
        else:
            self.finish(0, "the guest rebooted")

    def look_for_halt(self, vcpu: VcpuFd) -> None:
        """See whether every processor sleeps for good: how a kernel without power control powers off."""
        (self.halted.add if self.is_halted(vcpu) else self.halted.discard)(vcpu.id)
        if len(self.halted) == len(self.control.vcpus):
            self.finish(0, "the guest powered off")

    def is_halted(self, vcpu: VcpuFd) -> bool:
        """Say whether a processor sleeps with interrupts off, or was never started."""
        interrupts_on = vcpu.get_regs().rflags & 1 << 9
        state = vcpu.get_mp_state()
        return state.mp_state == state.UNINITIALIZED or (state.mp_state == state.HALTED and not interrupts_on)

    def check(self) -> None:
        """Look in from time to time: at a guest that halted, panicked and spins, or lost its threads."""
        if self.console.panic and self.console.spins:
            self.finish(1, f"the guest's kernel panicked: {self.console.panic}")
        elif self.control.state == "stopped":
            self.loop.stop()
        else:
            self.control.kick()
            self.loop.call_later(HALT_CHECK_SECONDS, self.check)

    def finish(self, status: int, reason: str) -> None:
        """End the machine; the first to say why is believed."""
        self.end = self.end or (status, reason)
        self.loop.stop()

    def close(self) -> None:
        """Release everything, the newest first."""
        while self.owned:
            self.owned.pop().close()


def size(text: str) -> int:
    """Read a size: a number of MiB, or one with a unit."""
    import argparse

    units = {"K": 10, "M": 20, "G": 30}
    unit = units.get(text[-1:].upper(), 0)
    number = text[:-1] if unit else text
    if not number.isascii() or not number.isdigit() or not 0 < int(number) << (unit or 20) <= 1 << 42:
        raise argparse.ArgumentTypeError(f"{text!r} is no memory size: give MiB, or a number with K, M or G")
    return int(number) << (unit or 20)


def cpus(text: str, most: int = MAX_CPUS) -> int:
    """Read a number of processors."""
    import argparse

    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} vCPUs are not possible: give 1 to {most}")
    return int(text)


def make_parser(kind: type[Machine], kernels: str, cmdline: str) -> argparse.ArgumentParser:
    """Make what reads the command line: the options of any machine. `kernels` says what it boots."""
    import argparse
    from functools import partial

    parser = argparse.ArgumentParser(
        # a width of our own, because asking the terminal for its imports half of the standard library
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=100),
        description="Boot a Linux kernel on KVM, with a serial console on this terminal.",
        epilog="Ctrl-A x leaves, Ctrl-A h helps. The status is 0 when the guest powered off or rebooted, 1 when it "
        "crashed, 2 when what was asked for cannot be done. Example: "
        "%(prog)s --kernel vmlinux --initrd initramfs.cpio --memory 512 --cpus 2",
    )
    most = kind.max_cpus
    add = parser.add_argument
    add("--kernel", required=True, metavar="FILE", help=kernels)
    add("--initrd", metavar="FILE", help="an initramfs, compressed in a way the kernel knows")
    add("--cmdline", default=cmdline, metavar="TEXT", help="the kernel's command line (%(default)s)")
    add("--memory", type=size, default="256", metavar="SIZE", help="MiB, or with a unit: 2G (%(default)s MiB)")
    add("--cpus", type=partial(cpus, most=most), default="1", metavar="N", help=f"vCPUs, 1 to {most} (%(default)s)")
    add("--plan", action="store_true", help="print what lies where in guest memory before the first instruction")
    add_virtio_options(parser)
    return parser


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line, or other words; leaves with status 2 where it makes no sense."""
    parser = make_parser(Machine, "a bzImage (such as /boot/vmlinuz-*) or an ELF vmlinux", DEFAULT_CMDLINE)
    add = parser.add_argument
    add("--entry", choices=ENTRIES, default="auto", help="the boot protocol (%(default)s)")
    add("--tables", choices=("auto", "mptable", "acpi"), default="auto", help="how the guest finds it (%(default)s)")
    return parser.parse_args(words)


def main(kind: type[Machine] = Machine, read: Callable[[], argparse.Namespace] = parse) -> int:
    """Boot what the command line says, as `read` reads it, in a machine of this kind; returns the exit status."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to restore yet
    arguments = read()
    try:
        machine = kind(arguments)
    except (UsageError, LoaderError, OSError) as error:
        print(f"{kind.name}: {error}", file=sys.stderr)
        return 2
    # not by an exception, which could come between any two steps of starting and stopping
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: machine.finish(128 + number, f"ended by signal {number}"))
    report = ""
    try:
        with Terminal(machine.loop, machine.keyboard, lambda: machine.finish(0, "left with Ctrl-A x")):
            status, reason = machine.run()
        if status == 1:
            report = machine.control.report()
    except OSError as error:
        status, reason, report = 1, str(error), machine.control.report()
    finally:
        machine.close()
    print(f"\n{kind.name}: {reason}", file=sys.stderr)
    if report:
        print(report, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
