"""SeaBIOS and U-Boot, which nobody here wrote, on the devices: they find their way by CMOS, fw_cfg and PCI."""

import struct
from argparse import Namespace
from pathlib import Path

import pytest
from guest import packages
from guest.host import GuestError, install
from tests.vmm.device_machine import Recorder

from minimal_vmm import Machine, parse
from pyvmm_device import BusRange, FwCfg, PciFunction, PciRoot, Ram
from pyvmm_device.qemu.fw_cfg import PORT, SIZE
from pyvmm_loader import BootPlan
from pyvmm_memory import GuestMemoryMmap

pytestmark = pytest.mark.guest

IMAGE = Path("/usr/share/seabios/bios.bin")
MEMORY = 64 << 20
PATIENCE = 240
DEBUG_PORT = 0x402
CPUS, MAX_CPUS = 0x05, 0x0F


class DebugPort:
    """QEMU's debug console: a read says that it is there, each byte written is a character."""

    def __init__(self) -> None:
        self.said = b""

    def read(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = b"\xe9" * len(buffer)

    def write(self, offset: int, data: memoryview) -> None:
        self.said += bytes(data)


class Configuration(FwCfg):
    """fw_cfg that remembers what was selected."""

    def __init__(self, memory: GuestMemoryMmap) -> None:
        self.selected: list[int] = []
        super().__init__(memory)

    def select(self, selector: int) -> None:
        self.selected.append(selector)
        super().select(selector)


class Bios(Machine):
    """The example's machine with a ROM, the chipset's host bridge, fw_cfg and the debug port."""

    console: Recorder

    def __init__(self, arguments: Namespace, roms: list[tuple[int, int]]) -> None:
        self.roms = roms
        super().__init__(arguments)

    def ranges(self) -> list[tuple[int, int]]:
        return sorted([*super().ranges(), *self.roms])

    def make_console(self) -> Recorder:
        return Recorder()

    def add_devices(self) -> None:
        super().add_devices()
        self.debug = DebugPort()
        self.io.register_pio(self.debug, [BusRange(DEBUG_PORT, 1)])
        self.fw_cfg = Configuration(self.memory)
        one = struct.pack("<H", 1)
        self.fw_cfg.add_item(CPUS, one)
        self.fw_cfg.add_item(MAX_CPUS, one)
        self.fw_cfg.add_file("etc/e820", struct.pack("<QQI", 0, MEMORY, 1))
        self.fw_cfg.add_file("etc/show-boot-menu", struct.pack("<H", 0))
        self.fw_cfg.add_file("etc/boot-fail-wait", struct.pack("<i", -1))
        self.io.register_pio(self.fw_cfg, [BusRange(PORT, SIZE)])
        # an i440FX, by which SeaBIOS knows where it is; with the registers that make the BIOS area writable
        bridge = PciFunction(0x8086, 0x1237, 0x060000, revision=2, subsystem_vendor=0x1AF4, subsystem_id=0x1100)
        bridge.config.set(0x59, 7, 0, (1 << 56) - 1)
        bridge.config.set(0x72, 1, 0x02, 0xFF)
        self.root = PciRoot(self.io, host_bridge=bridge, on_reset=self.on_reset)
        self.card = PciFunction(0x1234, 0x0001, 0xFF0000, interrupt_pin=1)
        self.card.add_bar(0, 0x4000, Ram(0x4000))
        self.card.add_bar(1, 0x40, Ram(0x40), io=True)
        self.root.add(self.card, 4)

    def check(self) -> None:
        if b"No bootable device" in self.debug.said:
            self.finish(0, "there is nothing to boot")
        super().check()


class UBoot(Bios):
    """The same machine with somebody who presses a key to come to U-Boot's command line."""

    pressed = False

    def check(self) -> None:
        if not self.pressed and b"Hit any key" in self.console.said:
            self.pressed = True
            self.serial.enqueue(b"\r")
        if self.pressed and self.console.said.endswith(b"=> "):
            self.finish(0, "there is its prompt")
        super().check()


def run(kind: type[Bios], image: Path) -> Bios:
    """Run firmware to its end."""
    asked = parse(["--kernel", str(image), "--memory", str(MEMORY >> 20), "--cmdline", ""])
    with BootPlan(image, MEMORY) as plan:
        machine = kind(asked, plan.roms)
    machine.loop.call_later(PATIENCE, lambda: machine.finish(3, "this took too long"))
    try:
        machine.run()
    finally:
        machine.close()
    return machine


@pytest.fixture(scope="module")
def bios() -> Bios:
    """A machine whose firmware has run to its end."""
    install(["seabios"], "whose firmware is run as a guest")
    return run(Bios, IMAGE)


def test_seabios_has_nothing_to_boot(bios: Bios) -> None:
    assert bios.end == (0, "there is nothing to boot"), bios.debug.said.decode(errors="replace")
    assert bios.debug.said.startswith(b"SeaBIOS (version 1.")


def test_it_reads_its_configuration(bios: Bios) -> None:
    assert b"Found QEMU fw_cfg" in bios.debug.said
    assert b"QEMU fw_cfg DMA interface supported" in bios.debug.said
    assert b"qemu/e820: addr 0x0000000000000000 len 0x0000000004000000 [RAM]" in bios.debug.said
    read = {name for name, number in bios.fw_cfg.selectors.items() if number in bios.fw_cfg.selected}
    assert {"etc/e820", "etc/show-boot-menu", "etc/boot-fail-wait"} <= read


def test_it_places_what_it_finds_on_pci(bios: Bios) -> None:
    assert b"PCI: init bdf=00:04.0 id=1234:0001" in bios.debug.said
    memory, ports = bios.card.bars[0], bios.card.bars[1]
    assert memory.mapped is not None
    assert memory.mapped.size == 0x4000
    assert ports.mapped is not None
    assert ports.mapped.size == 0x40


@pytest.mark.parametrize("build", ["qemu-x86", "qemu-x86_64"])
def test_u_boot_comes_to_its_prompt(build: str) -> None:
    try:
        image = packages.content("u-boot-qemu") / "usr/lib/u-boot" / build / "u-boot.rom"
    except GuestError as error:
        pytest.skip(str(error).splitlines()[0])
    machine = run(UBoot, image)
    said = machine.console.text
    assert machine.end == (0, "there is its prompt"), said
    assert "U-Boot 20" in said
    assert "DRAM:  64 MiB" in said, "which the clock's memory says"
