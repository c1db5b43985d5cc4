"""SeaBIOS boots from a virtio disk by PCI, with its own driver, and gives the boot sector its sectors."""

from __future__ import annotations

import subprocess

import pytest
from guest.host import install
from tests.vmm.test_device_bios import IMAGE, MEMORY, PATIENCE, Bios

from minimal_vmm import parse
from pyvmm_loader import BootPlan
from virtio_machine import VirtioMachine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.guest

SECTOR = 512
BOOT_SECTOR = """
.code16
.globl _start
_start:
    cli
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7c00, %sp
    sti
    mov $0x0201, %ax        # read one sector, the second, behind this one
    mov $0x0002, %cx
    xor %dh, %dh
    mov $0x7e00, %bx
    int $0x13
    jc failed
    mov $0x0301, %ax        # write it to the fourth
    mov $0x0004, %cx
    xor %dh, %dh
    int $0x13
    jc failed
    mov $0x7e00, %si
1:  lodsb
    test %al, %al
    jz done
    mov $0x3f8, %dx
    out %al, %dx
    jmp 1b
failed:
    mov $'!', %al
    mov $0x3f8, %dx
    out %al, %dx
done:
    mov $0xfe, %al          # reset the machine, by the keyboard controller
    out %al, $0x64
2:  hlt
    jmp 2b
.org 510
.word 0xaa55
"""


class BiosWithDisk(Bios):
    """SeaBIOS's machine, with what the command line asks for on its PCI bus."""

    def add_devices(self) -> None:
        super().add_devices()
        self.virtio = VirtioMachine(self, self.root)

    def add_virtio(self) -> None:
        self.keyboard = self.serial


def assemble(source: str, folder: Path) -> bytes:
    install(["gcc"], "which assembles a boot sector")
    (folder / "boot.s").write_text(source)
    subprocess.run(["gcc", "-m32", "-c", "-o", folder / "boot.o", folder / "boot.s"], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", folder / "boot.o", folder / "boot"], check=True)
    return (folder / "boot").read_bytes()


def test_seabios_boots_from_a_virtio_disk(tmp_path: Path) -> None:
    install(["seabios"], "whose firmware is run as a guest")
    disk = tmp_path / "disk"
    text = b"a boot sector from a virtio disk"
    disk.write_bytes((assemble(BOOT_SECTOR, tmp_path) + text).ljust(8 << 20, b"\0"))
    options = ["--disk", str(disk), "--transport", "pci"]
    asked = parse(["--kernel", str(IMAGE), "--memory", str(MEMORY >> 20), "--cmdline", "", *options])
    with BootPlan(IMAGE, MEMORY) as plan:
        machine = BiosWithDisk(asked, plan.roms)
    machine.loop.call_later(PATIENCE, lambda: machine.finish(3, "this took too long"))
    try:
        machine.run()
    finally:
        machine.close()
    said = machine.debug.said.decode(errors="replace")
    assert machine.end == (0, "the guest rebooted"), said
    assert "found virtio-blk at" in said
    assert "Booting from Hard Disk" in said
    assert text in machine.console.said
    content = disk.read_bytes()
    assert content[3 * SECTOR : 4 * SECTOR] == text.ljust(SECTOR, b"\0")
