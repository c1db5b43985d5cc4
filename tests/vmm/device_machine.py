"""The example's machine with all the devices whose Linux drivers are tested, and a console that remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvm_interrupts import KvmInterrupts
from minimal_vmm import Machine, parse
from pyvmm_device import BusRange, PciBridge, PcieRootPort, PciFunction, PciRoot, Pvpanic, Ram, Serial
from terminal import Console

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable
    from pathlib import Path

COM2, COM2_IRQ = 0x2F8, 3
PCI_GSIS = (10, 11, 16, 17)
MEMORY_BAR, PORT_BAR, WIDE_BAR, MSIX_BAR = 0, 1, 2, 4


class Recorder(Console):
    """Keeps what the guest prints, and calls back at lines that somebody waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.said = bytearray()
        self.awaited: dict[bytes, Callable[[], object]] = {}

    def write(self, data: bytes) -> None:
        self.said += data
        self.line += data
        if data == b"\n":
            for text in [text for text in self.awaited if text in self.line]:
                self.awaited.pop(text)()
            self.read_line(bytes(self.line))
            self.line.clear()

    @property
    def text(self) -> str:
        return self.said.decode(errors="replace").replace("\r\n", "\n")


class DeviceMachine(Machine):
    """A PC with two serial ports and a PCI root with functions behind and beside a bridge."""

    console: Recorder

    def make_console(self) -> Recorder:
        return Recorder()

    def add_devices(self) -> None:
        super().add_devices()
        self.interrupts = self.own(KvmInterrupts(self.vm, self.loop))
        self.second = Serial(self.interrupt(COM2_IRQ), Recorder())
        self.io.register_pio(self.second, [BusRange(COM2, 8)])
        self.add_pci()

    def add_pci(self) -> None:
        self.root = PciRoot(self.io, [self.interrupts.level(gsi) for gsi in PCI_GSIS])
        self.sample = sample_function(self)
        self.root.add(self.sample, 1)
        self.root.add(PciFunction(0x1234, 0x0002, 0xFF0000, subsystem_vendor=0x1234, subsystem_id=9), 1, 3)
        self.bridge = PciBridge(self.io)
        self.behind = PciFunction(0x1234, 0x0003, 0xFF0000, interrupt_pin=2)
        self.behind.add_bar(0, 0x2000, Ram(0x2000))
        assert self.bridge.secondary is not None
        self.bridge.secondary.add(self.behind, 7)
        self.root.add(self.bridge, 2)
        self.ejected: list[list[PciFunction]] = []
        self.port = PcieRootPort(self.io, 5, self.interrupts.group(1), self.ejected.append)
        self.root.add(self.port, 3)
        self.events: list[int] = []
        self.root.add(Pvpanic(self.events.append).pci_function(), 4)

    def patiently(self, seconds: float) -> tuple[int, str]:
        """Run to the end, but not for ever."""
        timer = self.loop.call_later(seconds, lambda: self.finish(3, "this took too long"))
        try:
            return self.run()
        finally:
            timer.cancel()


def sample_function(machine: DeviceMachine) -> PciFunction:
    """A function with a BAR of every kind, both kinds of messages, and capabilities of its own."""
    function = PciFunction(
        0x1234, 0x0001, 0xFF0000, revision=4, subsystem_vendor=0x1234, subsystem_id=8, interrupt_pin=1
    )
    function.add_bar(MEMORY_BAR, 0x4000, Ram(0x4000))
    function.add_bar(PORT_BAR, 0x40, Ram(0x40), io=True)
    function.add_bar(WIDE_BAR, 0x100000, Ram(0x100000), wide=True, prefetchable=True)
    function.add_msi(machine.interrupts.group(4))
    function.add_msix(machine.interrupts.group(3), MSIX_BAR)
    function.config.add_capability(0x09, b"\x08hello")
    function.add_rom(b"\x55\xaa\x08" + bytes(2045))
    return function


def options(kernel: Path | str, initrd: Path, words: str, *, cpus: int = 1, memory: int = 96) -> Namespace:
    """What the example's command line would be."""
    cmdline = f"console=ttyS0 panic=-1 reboot=k quiet {words}"
    # the example's ACPI tables do not name the devices that these machines add
    machine = ["--memory", str(memory), "--cpus", str(cpus), "--tables", "mptable"]
    return parse(["--kernel", str(kernel), "--initrd", str(initrd), "--cmdline", cmdline, *machine])
