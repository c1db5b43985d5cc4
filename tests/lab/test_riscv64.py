"""Debian's riscv64 kernel, as it is, in examples/riscv64_vmm.py on hardware KVM."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.lab import moves
from tests.lab.riscv64_guests import FOLDER, Guests
from tests.vmm.virtio_guest import CHUNK, MIB, from_ext2, is_clean, make_ext2, pattern

if TYPE_CHECKING:
    from collections.abc import Callable

    import lab

ROOT = Path(__file__).resolve().parents[2]
MOVING = "tests/lab/riscv64_states.py"


@pytest.fixture(scope="module")
def guests(host_of: Callable[..., lab.Host]) -> Guests:
    return Guests(host_of("riscv64"))


@pytest.mark.parametrize("cpus", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_linux_reaches_userspace_and_powers_off_by_sbi(guests: Guests, cpus: int) -> None:
    done = guests.boot(guests.demo, "wait=0", "--cpus", str(cpus))
    assert done.status == 0, done.text + done.stderr.decode()
    assert "guest: Linux" in done.text
    assert f"-riscv64, {cpus} CPU{'s' * (cpus > 1)}, 256 MiB of memory" in done.text
    assert b"riscv64_vmm: the guest powered off" in done.stderr


@pytest.mark.slow
def test_a_restart_is_no_panic(guests: Guests) -> None:
    done = guests.boot(guests.demo, "wait=0 end=reboot")
    assert done.status == 0
    assert b"riscv64_vmm: the guest rebooted" in done.stderr
    done = guests.boot(guests.demo, "wait=0 end=crash")
    assert done.status == 1
    assert b"riscv64_vmm: the guest's kernel panicked: Attempted to kill init!" in done.stderr
    assert b"SystemEvent(type=0x2" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("cpus", [1, 2])
def test_a_guest_that_waits_moves_into_another_vm(guests: Guests, cpus: int) -> None:
    moves.check_waiting(guests, MOVING, cpus)


@pytest.mark.slow
def test_a_guest_with_disks_moves_into_another_vm(guests: Guests, tmp_path: Path) -> None:
    moves.check_disks(guests, MOVING, tmp_path)


def test_virtio_devices(guests: Guests, tmp_path: Path) -> None:
    content, second = os.urandom(100_000), os.urandom(8 * MIB)
    make_ext2(tmp_path / "vda", content)
    (tmp_path / "vdb").write_bytes(second)
    disks = [guests.put(tmp_path / name) for name in ("vda", "vdb")]
    options = ["--cpus", "2", "--rng"]
    for disk in disks:
        options += ["--disk", disk]
    done = guests.boot(guests.devices, "do=features,disk,blocks,rng,interrupts", *options)
    assert done.status == 0, done.text + done.stderr.decode()
    assert "failed" not in done.text
    assert f"disk: read {len(content)} bytes, crc {zlib.crc32(content):08x}" in done.text
    for cpu in range(2):
        page = second[cpu * 4096 : (cpu + 1) * 4096]
        assert f"blocks: processor {cpu} read 4096 bytes, crc {zlib.crc32(page):08x}" in done.text
    assert "rng: from virtio_rng.0 64 bytes" in done.text
    lines = [line for line in done.text.splitlines() if line.startswith("interrupt: ")]
    assert len(lines) == 3
    assert all("SiFive PLIC" in line for line in lines)
    for disk in disks:
        guests.host.get(disk, tmp_path / "after")
    assert from_ext2(tmp_path / "after/vda", "output") == pattern(MIB, 1)
    assert is_clean(tmp_path / "after/vda")
    after = (tmp_path / "after/vdb").read_bytes()
    for cpu in range(2):
        assert after[3 * MIB + cpu * CHUNK : 3 * MIB + (cpu + 1) * CHUNK] == pattern(CHUNK, 100 + cpu)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "cure"),
    [
        (["--kernel", "{x86}"], "x86_64"),
        (["--kernel", "{text}"], ""),
        (["--kernel", "{missing}"], "No such file"),
        (["--memory", "16"], "give the guest more memory"),
        (["--memory", "28"], "give the guest more memory"),
        (["--initrd", "{missing}"], "No such file"),
        (["--cpus", "0"], "give 1 to 512"),
        (["--cpus", "513"], "give 1 to 512"),
        (["--disk", "{missing}"], "truncate -s 1G"),
        (["--disk", "{text}"] * 9, "8"),
        (["--transport", "pci"], "use --transport mmio"),
        (["--interrupts", "aia"], "this host has no AIA: use --interrupts plic"),
        (["--interrupts", "gic"], "invalid choice: 'gic'"),
        (["--cmdline", "x" * 4000], "shorten it"),
    ],
)
def test_a_wrong_wish_is_refused_in_one_line(guests: Guests, tmp_path: Path, options: list[str], cure: str) -> None:
    files = {
        "x86": b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\x3e\0\x01\0\0\0" + bytes(200),
        "text": b"#!/bin/sh\necho this is no kernel\n" * 100,
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    paths = {name: guests.put(tmp_path / name) for name in files}
    paths |= {"missing": "/nowhere"}
    words = [option.format(**paths) for option in options]
    kernel = [] if "--kernel" in options else ["--kernel", f"{FOLDER}/vmlinuz"]
    done = guests.host.run(["python3", "examples/riscv64_vmm.py", *kernel, *words])
    *usage, message = done.stderr.decode().strip().splitlines()
    assert done.status == 2, done.stderr
    assert message.startswith(("riscv64_vmm: ", "riscv64_vmm.py: error: ")), done.stderr
    assert cure in message
    assert all(line.startswith(("usage:", " ")) for line in usage), done.stderr
    assert not done.stdout


@pytest.mark.skipif(os.uname().machine == "riscv64", reason="it is the machine that this is for")
def test_another_host_is_refused_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "examples/riscv64_vmm.py", "--kernel", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("riscv64_vmm: its guests need KVM of riscv64, this is ")
    assert done.stderr.count("\n") == 1
