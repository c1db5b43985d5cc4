"""Machines that a guest finds its way in by tables: the example's machine with ACPI, SMBIOS and what they name.

Run as a program, as the tests do: `python -m tests.vmm.tables_machine reduced|pc --kernel ...`.
"""

from __future__ import annotations

import signal
import sys
from functools import partial
from typing import TYPE_CHECKING

from kvm_interrupts import KvmInterrupts
from minimal_vmm import COM1_IRQ, Machine, parse
from pyvmm_device import (
    AcpiGpe,
    AcpiPm,
    AcpiSleep,
    BusRange,
    FwCfg,
    PciFunction,
    PciHotplug,
    PciRoot,
    Ram,
    Sci,
)
from pyvmm_device.register_device import Register, RegisterDevice
from pyvmm_kvm.x86_64.structs import LapicState
from pyvmm_loader import BootPlan, split_ram
from pyvmm_loader.acpi.devices.isa import rtc, serial_port
from pyvmm_loader.acpi.devices.pci import PciHost
from pyvmm_loader.acpi.devices.pci_hotplug import PORT, SIZE, PciHotplugSlots
from pyvmm_loader.acpi.devices.power_button import power_button, pressed
from pyvmm_loader.acpi.devices.qemu import FW_CFG_PORT, FW_CFG_SIZE, fw_cfg
from pyvmm_loader.acpi.devices.virtio_mmio import virtio_mmio
from pyvmm_loader.acpi.fadt import PmBlock, Reset, SleepRegisters
from pyvmm_loader.acpi.fixed import spcr
from pyvmm_loader.acpi.table import GenericAddress
from pyvmm_loader.acpi.tables import S5, AcpiTables
from pyvmm_loader.initrd.bootconfig import append_bootconfig
from pyvmm_loader.smbios import Smbios
from pyvmm_loader.x86_64.clean_state import boot_lapic, boot_msrs

if TYPE_CHECKING:
    from collections.abc import Callable

POWER = 0x600
GPE0, HOTPLUG_EVENT = 0x620, 1
SCI_GSI, BUTTON_GSI, VIRTIO_GSI, HOTPLUG_GSI = 9, 11, 12, 13
ECAM, PCI_MEMORY, LEAVING, COMING = 0xE8000000, 0xC0000000, 3, 5
VIRTIO = 0xD0000000
WAITS = b"press the button"


class VirtioPlaceholder(RegisterDevice):
    """The registers of a virtio device with id 0: there, and no device."""

    magic = Register(0x00, reset=0x74726976, writable=0)
    version = Register(0x04, reset=2, writable=0)
    device = Register(0x08, writable=0)
    vendor = Register(0x0C, writable=0)
    probed = 0

    @magic.on_read
    def _probe(self) -> int:
        VirtioPlaceholder.probed += 1
        return 0x74726976


def function() -> PciFunction:
    """A PCI device that no driver knows, with a page of memory."""
    made = PciFunction(0x1AF4, 0x1110, 0xFF0000)
    made.add_bar(0, 0x1000, Ram(0x1000))
    return made


class TablesMachine(Machine):
    """The example's PC, told to the guest by ACPI and SMBIOS."""

    kind = "reduced"

    def add_devices(self) -> None:
        super().add_devices()
        if self.kind == "pc":
            self.sci = Sci(self.own(KvmInterrupts(self.vm, self.loop)).level(SCI_GSI))
            self.pm = AcpiPm(self.sci, self.loop, self.on_sleep)
            self.io.register_pio(self.pm, [BusRange(POWER, 12)])
            self.press = self.pm.press
        else:
            self.io.register_pio(AcpiSleep(self.on_sleep), [BusRange(POWER, 2)])
            self.press = self.interrupt(BUTTON_GSI).trigger
        self.io.register_mmio(VirtioPlaceholder(), [BusRange(VIRTIO, 0x1000)])
        firmware = FwCfg(self.memory)
        firmware.add_file("opt/org.example/greeting", b"hello from the host")
        self.io.register_pio(firmware, [BusRange(FW_CFG_PORT, FW_CFG_SIZE)])
        self.add_pci()
        read_line = self.console.read_line

        def watch(line: bytes) -> None:
            read_line(line)
            if WAITS in line:
                self.hotplug.insert(function(), COMING)
                self.hotplug.request_eject(LEAVING)

        self.console.read_line = watch  # type: ignore[method-assign]  # the one guest here is watched for one line

    def add_pci(self) -> None:
        """Bus 0 behind ports or, with reduced hardware, behind memory only, and one device in it."""
        if self.kind == "pc":
            root = PciRoot(self.io)
            events = AcpiGpe(self.sci)
            self.io.register_pio(events, [BusRange(GPE0, 4)])
            notify: Callable[[], None] = partial(events.trigger, HOTPLUG_EVENT)
        else:
            root = PciRoot(self.io, ecam=ECAM, ports=False)
            notify = self.interrupt(HOTPLUG_GSI).trigger
        root.add(function(), LEAVING)
        # a guest that has let go of a device is switched off
        self.hotplug = PciHotplug(root.bus, notify, lambda _: self.press())
        self.io.register_pio(self.hotplug, [BusRange(PORT, SIZE)])

    def on_sleep(self, kind: int) -> None:
        """Power off, which is the only sleep that the tables offer."""
        if kind == S5:
            self.finish(0, "the guest powered off through ACPI")

    def add_processors(self, plan: BootPlan) -> None:
        """Leave MSRs and local APIC as firmware does."""
        super().add_processors(plan)
        for vcpu in self.control.vcpus:
            vcpu.set_msrs(boot_msrs())
            lapic = boot_lapic(bytes(vcpu.get_lapic()), bootstrap=vcpu.id == 0)
            vcpu.set_lapic(LapicState.from_bytes(lapic))

    def plan(self) -> BootPlan:
        asked = self.arguments
        devices = [serial_port(1, irq=COM1_IRQ), rtc(), virtio_mmio(0, VIRTIO, VIRTIO_GSI), fw_cfg()]
        slots = PciHotplugSlots(range(1, 8))
        ecam = None if self.kind == "pc" else ECAM
        host = PciHost(ecam=ecam, mmio32=(PCI_MEMORY, 0x10000000), io=(0x1000, 0x1000), irqs=range(16, 20))
        reset = Reset(GenericAddress(0x64), 0xFE)
        if self.kind == "pc":
            acpi = AcpiTables(
                asked.cpus, devices=devices, pm=PmBlock(POWER, POWER + 4, POWER + 8, GPE0), reset=reset,
                tables=[spcr()], pci=host, hotplug=slots, gpe={HOTPLUG_EVENT: [slots.event()]},
            )  # fmt: skip
        else:
            devices.append(power_button())
            sleep = SleepRegisters(GenericAddress(POWER), GenericAddress(POWER + 1))
            acpi = AcpiTables(
                asked.cpus, devices=devices, sleep=sleep, reset=reset, pci=host, hotplug=slots,
                events={BUTTON_GSI: [pressed()], HOTPLUG_GSI: [slots.event()]},
            )  # fmt: skip
        smbios = Smbios(
            manufacturer="Example & Sons", product="Tables", serial="S-1", vcpus=asked.cpus,
            memory=split_ram(asked.memory), uuid="12345678-9abc-def0-1234-56789abcdef0",
        )  # fmt: skip
        with open(asked.initrd, "rb") as file:
            initrd = append_bootconfig(file.read(), 'tables.read = "yes"\n')
        return BootPlan(
            asked.kernel, asked.memory, asked.cmdline, initrd, asked.cpus, asked.entry, acpi=acpi, smbios=smbios
        )


def main() -> int:
    TablesMachine.kind = sys.argv.pop(1)
    machine = TablesMachine(parse())
    signal.signal(signal.SIGTERM, lambda *_: machine.finish(1, "ended from outside"))
    try:
        status, reason = machine.run()
        if status:
            sys.stderr.write(machine.control.report())
    finally:
        machine.close()
    sys.stderr.write(f"{reason}; the virtio device was probed {VirtioPlaceholder.probed} times\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
