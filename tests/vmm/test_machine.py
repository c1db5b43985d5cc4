"""The example with guests of a few instructions: memory, ends, bad input, and nothing left behind."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from guest.byte_program import TEN_INSTRUCTIONS
from tests.vmm.conftest import Vmm

from pyvmm_kvm import Kvm, KvmError
from pyvmm_memory import GuestMemoryMmap

pytestmark = pytest.mark.kvm

# In long mode on the loader's page tables, which map 4 GiB: maps 2 MiB more at 4 GiB, writes and reads back 8 bytes
# below the hole (says L), at 4 GiB (says H) and in the hole (says X); "-" where they do not come back.
TOUCH_BOTH_SIDES = bytes.fromhex(
    "48c7042520a0000003002000"  # movq $0x200003, 0xa020       PDPT[4] = a directory at 0x200000
    "c704250000200083000000"  # movl $0x83, 0x200000           its first entry = 4 GiB, 2 MiB large
    "c704250400200001000000"  # movl $1, 0x200004
    "b84c000000bbf8ffffbf"  # mov $'L', %eax; mov $0xbffffff8, %ebx
    "48b98877665544332211e82d000000"  # mov $0x1122334455667788, %rcx; call probe
    "b84800000048bb0000000001000000e819000000"  # mov $'H', %eax; mov $0x100000000, %rbx; call probe
    "b858000000bb000000d0e80a000000"  # mov $'X', %eax; mov $0xd0000000, %ebx; call probe
    "66ba6400b0feeef4ebfd"  # out $0xfe to port 0x64; hlt
    "48890b48390b7402b02d66baf803eec3"  # probe: mov %rcx, (%rbx); cmp; mov $'-', %al if it differs; out to 0x3f8; ret
)


def test_reboot_by_the_keyboard_controller(program: Callable[[bytes], str], vmm: Vmm) -> None:
    done = vmm("--kernel", program(TEN_INSTRUCTIONS), "--memory", "16")
    assert (done.returncode, done.stdout) == (0, "!\n"), done.stderr


def test_triple_fault_is_reported(program: Callable[[bytes], str], vmm: Vmm) -> None:
    # lidt of the empty table at 0, then an undefined instruction
    done = vmm("--kernel", program(bytes.fromhex("0f011d000000000f0b")), "--memory", "16")
    assert done.returncode == 1, done.stderr
    assert "minimal_vmm: triple fault on vCPU 0" in done.stderr
    # an AMD host has reset the registers by then, and the report says so
    assert "mode protected" in done.stderr or "registers are those of a reset" in done.stderr
    assert "last exits" in done.stderr


def test_halt_with_interrupts_off_is_a_power_off(program: Callable[[bytes], str], vmm: Vmm) -> None:
    done = vmm("--kernel", program(bytes.fromhex("faf4")), "--memory", "16")
    assert done.returncode == 0
    assert "the guest powered off" in done.stderr


def test_five_gib_lie_on_both_sides_of_the_hole(program: Callable[[bytes], str], vmm: Vmm) -> None:
    done = vmm("--kernel", program(TOUCH_BOTH_SIDES), "--memory", "5G", "--entry", "linux64", "--plan")
    assert (done.returncode, done.stdout) == (0, "LH-"), done.stderr
    assert "RAM 0x0..0xc0000000" in done.stderr
    assert "RAM 0x100000000..0x180000000" in done.stderr


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        (["--kernel", "/nonexistent"], "/nonexistent"),
        (["--kernel", "{empty}"], "empty"),
        (["--kernel", "{text}"], "text"),
        (["--kernel", "{arm64}"], "arm64"),
        (["--kernel", "{truncated}"], "truncated"),
        (["--kernel", "{program}", "--memory", "0"], "memory"),
        (["--kernel", "{program}", "--memory", "much"], "memory"),
        (["--kernel", "{program}", "--memory", "65535G"], "memory"),
        (["--kernel", "{program}", "--memory", "1"], "memory"),
        (["--kernel", "{program}", "--memory", "16", "--initrd", "{big}"], "initrd"),
        (["--kernel", "{program}", "--cpus", "0"], "cpus"),
        (["--kernel", "{program}", "--cpus", "300"], "cpus"),
        (["--kernel", "{program}", "--cmdline", "x" * 5000], "command line"),
        (["--kernel", "{program}", "--entry", "linux16"], "linux16"),
        ([], "--kernel"),
    ],
)
def test_bad_input_is_one_line_and_status_two(
    options: list[str], cure: str, program: Callable[[bytes], str], vmm: Vmm, tmp_path: Path
) -> None:
    files = {
        "empty": b"",
        "text": b"#!/bin/sh\necho this is no kernel\n" * 100,
        "arm64": bytes(56) + b"ARM\x64" + bytes(100_000),
        "truncated": Path(program(TEN_INSTRUCTIONS)).read_bytes()[:80],
        "big": bytes(20 << 20),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    paths = {name: str(tmp_path / name) for name in files} | {"program": program(TEN_INSTRUCTIONS)}
    done = vmm(*(option.format(**paths) if option.startswith("{") else option for option in options))
    *usage, message = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert message.startswith(("minimal_vmm: ", "minimal_vmm.py: error: ")), done.stderr
    assert cure in message
    assert all(line.startswith(("usage:", " ")) for line in usage), done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(("mode", "cause"), [(None, "No such file"), (0o000, "Permission denied")])
def test_kvm_that_does_not_open(mode: int | None, cause: str, tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    if mode is not None:
        device.touch()
        device.chmod(mode)
        if os.access(device, os.R_OK):
            pytest.skip("root may open anything")
    with pytest.raises(KvmError, match=cause):
        Kvm(str(device))


def test_two_hundred_machines_leave_nothing_behind() -> None:
    def build() -> None:
        with GuestMemoryMmap.from_ranges([(0, 64 << 20)]) as memory, Kvm() as kvm, kvm.create_vm() as vm:
            vm.create_irq_chip()
            for slot, region in enumerate(memory):
                vm.set_user_memory_region(slot, region.start, region.buffer)
            with vm.create_vcpu(0) as vcpu:
                vcpu.get_regs()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    for _ in range(20):
        build()
    descriptors, before = len(os.listdir("/proc/self/fd")), resident()
    for _ in range(200):
        build()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert resident() - before < 1 << 20
