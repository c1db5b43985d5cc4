"""Linux by every entry it has, and real firmware and boot programs, none of ours, on a real vCPU."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from guest import packages
from guest.host import GuestError
from tests.vmm.conftest import DemoGuest, Vmm
from tests.vmm.emulator import emulate
from tests.vmm.test_linux import INTRODUCTION

import minimal_vmm
from pyvmm_device import BusRange
from pyvmm_kvm import IoIn, IoOut, VcpuExit, VcpuFd
from pyvmm_kvm.exits.rare import InternalError
from pyvmm_loader import BootPlan

pytestmark = pytest.mark.guest

DEBUG_PORT = 0x402
PCI_CONFIG = 0xCF8


@pytest.mark.parametrize(
    ("image", "entry"),
    [
        pytest.param("bzImage", "linux16", marks=pytest.mark.slow),
        pytest.param("bzImage", "linux32", marks=pytest.mark.slow),
        pytest.param("bzImage", "linux64", marks=pytest.mark.slow),
        pytest.param("vmlinux", "pvh", marks=pytest.mark.slow),
        pytest.param("vmlinux", "linux64", marks=pytest.mark.slow),
    ],
)
def test_linux_reaches_userspace(image: str, entry: str, demo: DemoGuest, vmm: Vmm) -> None:
    # KVM-PVM emulates a bzImage's own decompressor: half a minute on an idle machine, many on a busy one
    options = (*demo.options(), "--kernel", str(demo.kernel.with_name(image)), "--entry", entry)
    done = vmm(*options, patience=500)
    assert INTRODUCTION.search(done.stdout), done.stdout + done.stderr
    assert done.returncode == 0


class Heard:
    """What the guest says, on the serial port or on a debug port."""

    def __init__(self) -> None:
        self.text = b""

    def write(self, data: bytes) -> None:
        self.text += data


class DebugPort:
    """QEMU's debug console: reads say that it is there, each byte written is a character."""

    def __init__(self, heard: Heard) -> None:
        self.heard = heard

    def read(self, offset: int, data: memoryview) -> None:
        data[0] = 0xE9

    def write(self, offset: int, data: memoryview) -> None:
        self.heard.write(bytes(data))


class Bench(minimal_vmm.Machine):
    """The example's machine with a ROM and a debug port, which ends when `wanted` was heard or time is over."""

    def __init__(
        self, patch: pytest.MonkeyPatch, arguments: argparse.Namespace, roms: list[tuple[int, int]], patience: float
    ) -> None:
        self.patch = patch
        self.roms = roms
        self.deadline = time.monotonic() + patience
        self.heard = Heard()
        self.ports: list[int] = []
        self.answers: dict[bytes, bytes] = {}
        self.wanted: Callable[[], bool] = lambda: False
        super().__init__(arguments)

    def ranges(self) -> list[tuple[int, int]]:
        return sorted([*super().ranges(), *self.roms])

    def add_devices(self) -> None:
        # the serial port takes the method when it is made; the test listens instead of a terminal
        self.patch.setattr("minimal_vmm.Console.write", lambda console, data: self.heard.write(bytes(data)))
        super().add_devices()
        self.io.register_pio(DebugPort(self.heard), [BusRange(DEBUG_PORT, 1)])

    def on_exit(self, vcpu: VcpuFd, exit_: VcpuExit) -> bool:
        if isinstance(exit_, (IoIn, IoOut)) and exit_.port not in self.ports:
            self.ports.append(exit_.port)
        return super().on_exit(vcpu, exit_)

    def on_rare_exit(self, vcpu: VcpuFd, exit_: VcpuExit) -> None:
        if not (isinstance(exit_, InternalError) and emulate(vcpu, exit_, self.memory)):
            super().on_rare_exit(vcpu, exit_)

    def check(self) -> None:
        for question, answer in list(self.answers.items()):
            if question in self.heard.text:
                del self.answers[question]
                self.serial.enqueue(answer)
        if self.wanted():
            self.finish(0, "heard")
        elif time.monotonic() > self.deadline:
            self.finish(1, "nothing more was heard in time")
        super().check()


def bench(
    monkeypatch: pytest.MonkeyPatch, image: Path, entry: str, patience: float, memory: int = 64, cmdline: str = ""
) -> Bench:
    words = ["minimal_vmm.py", "--kernel", str(image), "--memory", str(memory), "--cmdline", cmdline]
    monkeypatch.setattr(sys, "argv", words)
    arguments = minimal_vmm.parse()
    arguments.entry = entry
    with BootPlan(image, memory << 20, entry=entry) as plan:
        return Bench(monkeypatch, arguments, plan.roms, patience)


def listen(machine: Bench, wanted: Callable[[Bench], bool]) -> None:
    machine.wanted = lambda: wanted(machine)
    try:
        machine.run()
    finally:
        machine.close()
    assert wanted(machine), f"{machine.end}, ports {machine.ports}: {machine.heard.text.decode(errors='replace')}"


def package_file(package: str, path: str) -> Path:
    try:
        return packages.content(package) / path
    except GuestError as error:
        pytest.skip(str(error).splitlines()[0])


def test_seabios_says_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    image = package_file("seabios", "usr/share/seabios/bios-256k.bin")
    listen(bench(monkeypatch, image, "auto", 60), lambda machine: b"SeaBIOS (version 1." in machine.heard.text)


def test_ovmf_runs_from_flash_to_its_first_device(monkeypatch: pytest.MonkeyPatch) -> None:
    # Debian's OVMF is a release build, which has no debug output: from the reset vector through its security phase
    # in long mode to the first look for the chipset is what can be seen of it early.
    image = package_file("ovmf", "usr/share/OVMF/OVMF_CODE_4M.fd")
    listen(bench(monkeypatch, image, "auto", 60), lambda machine: PCI_CONFIG in machine.ports)


@pytest.mark.parametrize(("image", "entry"), [("memtest86+x64.bin", "linux64"), ("memtest86+ia32.bin", "linux32")])
def test_memtest_clears_its_screen_on_serial(image: str, entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Soon afterwards it computes by x87 instructions that KVM-PVM's emulator lacks.
    path = package_file("memtest86+", f"boot/{image}")
    machine = bench(monkeypatch, path, entry, 90, cmdline="console=ttyS0,115200")
    listen(machine, lambda machine: b"[2J" in machine.heard.text)


@pytest.mark.slow  # it unpacks itself instruction by instruction where the CPU has no unrestricted guest mode
def test_ipxe_by_its_16_bit_entry_to_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    image = package_file("ipxe", "boot/ipxe.lkrn")
    machine = bench(monkeypatch, image, "linux16", 500)
    machine.answers = {b"Press Ctrl-B for the iPXE command line": b"\x02"}
    listen(machine, lambda machine: b"iPXE>" in machine.heard.text)
