"""A real Linux guest that finds its machine by ACPI and SMBIOS, in both of ACPI's kinds of hardware."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from guest import kernel
from guest.initramfs import compile_init
from tests.vmm.conftest import ROOT
from tests.vmm.virtio_guest import boot

from pyvmm_loader import Initramfs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.guest

PATIENCE = 900
SHOWN = [
    "/proc/interrupts", "/proc/bootconfig", "/sys/class/dmi/id/sys_vendor", "/sys/class/dmi/id/product_name",
    "/sys/class/dmi/id/product_serial", "/sys/bus/acpi/devices", "/sys/bus/platform/devices", "/sys/bus/pnp/devices",
    "/sys/firmware/acpi/tables", "/sys/devices/system/cpu/online", "/proc/iomem", "/sys/bus/pci/devices",
    "/sys/firmware/qemu_fw_cfg/rev", "/sys/firmware/qemu_fw_cfg/by_name/opt/org.example/greeting/raw",
]  # fmt: skip


@pytest.fixture(scope="module")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initramfs of ours, with a program that shows files."""
    folder = tmp_path_factory.mktemp("show")
    compile_init(ROOT / "guest" / "show.c", folder)
    archive = Initramfs()
    archive.directory("dev")
    archive.device("dev/console", 5, 1)
    archive.file("init", (folder / "init").read_bytes(), 0o755)
    path = folder / "show.cpio"
    path.write_bytes(bytes(archive))
    return path


def sections(text: str) -> Iterator[tuple[str, str]]:
    for part in text.split("== ")[1:]:
        name, _, content = part.partition("\n")
        yield name.strip(), content.replace("\r", "")


@pytest.mark.parametrize(("kind", "entry"), [("reduced", "pvh"), ("pc", "linux64")])
def test_guest_finds_its_machine_by_acpi(kind: str, entry: str, initrd: Path) -> None:
    cmdline = (
        "console=ttyS0 panic=-1 quiet bootconfig rcupdate.rcu_cpu_stall_suppress=1 button=/dev/input/event0 "
        f"show={','.join(SHOWN)}"
    )
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.vmm.tables_machine", kind, "--kernel", str(kernel.build("full").vmlinux),
            "--initrd", str(initrd), "--cpus", "2", "--entry", entry, "--cmdline", cmdline,
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'examples'}"},
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "the button was pressed" in done.stdout, said
    shown = dict(sections(done.stdout))
    assert shown["/sys/devices/system/cpu/online"].strip() == "0-1", "all processors come from the MADT"
    acpi = shown["/sys/bus/acpi/devices"].split()
    assert {"PNP0501:00", "PNP0B00:00", "LNRO0005:00", "ACPI0007:00", "ACPI0007:01"} <= set(acpi)
    # the serial port's interrupt is the one that _CRS names; with reduced hardware Linux numbers it anew
    assert re.search(r"^ +\d+: .*IO-APIC +4-edge +ttyS0", shown["/proc/interrupts"], re.MULTILINE), said
    if kind == "reduced":
        assert {"ACPI0013:00", "PNP0C0C:00"} <= set(acpi)
        assert re.search(r"IO-APIC +11-edge +ACPI:Ged", shown["/proc/interrupts"]), said
    else:
        assert re.search(r"IO-APIC +9-fasteoi +acpi", shown["/proc/interrupts"]), said
        assert "SPCR" in shown["/sys/firmware/acpi/tables"]
    assert "LNRO0005:00" in shown["/sys/bus/platform/devices"]
    assert "d0000000-d0000fff : LNRO0005:00" in shown["/proc/iomem"]
    assert "the virtio device was probed 1 times" in done.stderr
    assert re.search(r"000e1000-000e[0-9a-f]fff : ACPI Tables", shown["/proc/iomem"])
    assert shown["/sys/class/dmi/id/sys_vendor"].strip() == "Example & Sons"
    assert shown["/sys/class/dmi/id/product_name"].strip() == "Tables"
    assert shown["/sys/class/dmi/id/product_serial"].strip() == "S-1"
    assert shown["/proc/bootconfig"].strip() == 'tables.read = "yes"'
    # the traditional interface, and DMA, which Linux's driver reads files by
    assert shown["/sys/firmware/qemu_fw_cfg/rev"].strip() == "3", said
    assert shown["/sys/firmware/qemu_fw_cfg/by_name/opt/org.example/greeting/raw"].strip() == "hello from the host"
    # the device in slot 3 was ejected, which pressed the button, and the one in slot 5 was found and given memory
    assert shown["/sys/bus/pci/devices"].split() == ["0000:00:00.0", "0000:00:05.0"], said
    assert re.search(
        r"^c0000000-cfffffff : PCI Bus 0000:00\n +c[0-9a-f]{7}-c[0-9a-f]{7} : 0000:00:05.0", shown["/proc/iomem"], re.M
    )
    assert "the guest powered off through ACPI" in done.stderr


@pytest.mark.kernel_bound
@pytest.mark.parametrize("transport", ["mmio", "pci"])
def test_example_tells_of_virtio_by_acpi(transport: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    options = ["--tables", "acpi", "--transport", transport, "--disk", str(disk), "--rng"]
    guest = boot("do=rng,interrupts", options)
    assert guest.status == 0, guest.errors
    guest.said("rng: from virtio_rng.0 64 bytes")
    if transport == "mmio":
        guest.said(r"IO-APIC +6-edge +virtio1")
    else:
        guest.said(r"PCI-MSI \d+-edge +virtio0-req.0")
    guest.said("reboot: Power down")
