"""Debian's arm64 kernel, as it is, in examples/arm64_vmm.py on hardware KVM."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import lab
import pytest
from guest import initramfs
from lab import image
from tests.lab import drivers, moves
from tests.vmm.virtio_guest import CHUNK, MIB, from_ext2, is_clean, make_ext2, pattern

if TYPE_CHECKING:
    from collections.abc import Callable

AARCH64 = lab.ARCHITECTURES["aarch64"]
DRIVERS = ("virtio_mmio", "virtio_pci", "virtio_blk", "virtio_rng", "virtio_net")
ROOT = Path(__file__).resolve().parents[2]
FOLDER = "/tmp/arm64"
MOVING = "tests/lab/vcpu_states.py"
QUIET = "console=ttyAMA0 panic=-1 quiet"


class Guests:
    """Starts guests in a host.

    Args:
        host: of arm64; it gets its own kernel's file, which it has started from, and two initramfs images.
    """

    def __init__(self, host: lab.Host) -> None:
        self.host = host
        self.host.put(image.base(AARCH64) / "vmlinuz", FOLDER)
        self.demo = self.put(initramfs.demo("aarch64"))
        self.devices = self.put(initramfs.virtio("aarch64", drivers.modules(AARCH64, DRIVERS)))

    def put(self, path: Path) -> str:
        """Copy a file there; returns its path."""
        self.host.put(path, FOLDER)
        return f"{FOLDER}/{path.name}"

    def boot(self, initrd: str, words: str, *options: str, program: str = "examples/arm64_vmm.py") -> lab.Completed:
        """Run a guest to its end."""
        command = ["python3", program, "--kernel", f"{FOLDER}/vmlinuz", "--initrd", initrd, *options]
        path = {"PYTHONPATH": "examples:."}
        return self.host.run([*command, "--cmdline", f"{QUIET} {words}"], env=path, timeout=300)


@pytest.fixture(scope="module")
def guests(host_of: Callable[..., lab.Host]) -> Guests:
    return Guests(host_of("aarch64"))


@pytest.mark.parametrize("cpus", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_linux_reaches_userspace_and_powers_off_by_psci(guests: Guests, cpus: int) -> None:
    done = guests.boot(guests.demo, "wait=0", "--cpus", str(cpus))
    assert done.status == 0, done.text + done.stderr.decode()
    assert "guest: Linux" in done.text
    assert f"-arm64, {cpus} CPU{'s' * (cpus > 1)}, 256 MiB of memory" in done.text
    assert b"arm64_vmm: the guest powered off" in done.stderr


@pytest.mark.slow
def test_a_restart_is_no_panic(guests: Guests) -> None:
    done = guests.boot(guests.demo, "wait=0 end=reboot")
    assert done.status == 0
    assert b"arm64_vmm: the guest rebooted" in done.stderr
    done = guests.boot(guests.demo, "wait=0 end=crash")
    assert done.status == 1
    assert b"arm64_vmm: the guest's kernel panicked: Attempted to kill init!" in done.stderr
    assert b"sp_el1" in done.stderr


@pytest.mark.parametrize("transport", ["mmio", pytest.param("pci", marks=pytest.mark.slow)])
def test_virtio_devices(guests: Guests, tmp_path: Path, transport: str) -> None:
    content, second = os.urandom(100_000), os.urandom(8 * MIB)
    make_ext2(tmp_path / "vda", content)
    (tmp_path / "vdb").write_bytes(second)
    disks = [guests.put(tmp_path / name) for name in ("vda", "vdb")]
    tap = f"tap-{transport}"
    guests.host.run(["ip", "tuntap", "add", tap, "mode", "tap"], check=True)
    options = ["--cpus", "2", "--transport", transport, "--rng", "--net", f"tap={tap}"]
    for disk in disks:
        options += ["--disk", disk]
    done = guests.boot(guests.devices, "do=features,disk,blocks,rng,interrupts", *options)
    assert done.status == 0, done.text + done.stderr.decode()
    assert "failed" not in done.text
    assert [line.split()[2] for line in done.text.splitlines() if line.startswith("virtio: type")] == [
        "0x0002", "0x0002", "0x0001", "0x0004",
    ]  # fmt: skip
    assert f"disk: read {len(content)} bytes, crc {zlib.crc32(content):08x}" in done.text
    for cpu in range(2):
        page = second[cpu * 4096 : (cpu + 1) * 4096]
        assert f"blocks: processor {cpu} read 4096 bytes, crc {zlib.crc32(page):08x}" in done.text
    assert "rng: from virtio_rng.0 64 bytes" in done.text
    lines = [line for line in done.text.splitlines() if line.startswith("interrupt: ")]
    assert all(("ITS-MSI" if transport == "pci" else "GICv3") in line for line in lines)
    arrived = {line.split()[-1]: [int(count) for count in line.split()[2:4]] for line in lines}
    if transport == "pci":
        # each processor has a queue and its interrupt
        assert arrived["virtio1-req.0"][0]
        assert arrived["virtio1-req.1"][1]
    else:
        assert arrived["virtio1"][0]
    for disk in disks:
        guests.host.get(disk, tmp_path / "after")
    assert from_ext2(tmp_path / "after/vda", "output") == pattern(MIB, 1)
    assert is_clean(tmp_path / "after/vda")
    after = (tmp_path / "after/vdb").read_bytes()
    assert after[2 * MIB : 3 * MIB] == bytes(MIB)
    for cpu in range(2):
        assert after[3 * MIB + cpu * CHUNK : 3 * MIB + (cpu + 1) * CHUNK] == pattern(CHUNK, 100 + cpu)


@pytest.mark.slow
@pytest.mark.parametrize("cpus", [1, 2])
def test_a_guest_that_waits_moves_into_another_vm(guests: Guests, cpus: int) -> None:
    moves.check_waiting(guests, MOVING, cpus)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["mmio", "pci"])
def test_a_guest_with_disks_moves_into_another_vm(guests: Guests, tmp_path: Path, transport: str) -> None:
    moves.check_disks(guests, MOVING, tmp_path, "--transport", transport)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "cure"),
    [
        (["--kernel", "{x86}"], "x86_64"),
        (["--kernel", "{riscv}"], "riscv64"),
        (["--kernel", "{text}"], ""),
        (["--kernel", "{missing}"], "No such file"),
        (["--memory", "16"], "give the guest more memory"),
        (["--memory", "28"], "give the guest more memory"),
        (["--initrd", "{missing}"], "No such file"),
        (["--initrd", "{kernel}", "--memory", "48"], "memory"),
        (["--cpus", "124"], "give 1 to 123"),
        (["--disk", "{missing}"], "truncate -s 1G"),
        (["--cmdline", "x" * 4000], "shorten it"),
        (["--entry", "linux64"], "unrecognized arguments"),
    ],
)
def test_a_wrong_wish_is_refused_in_one_line(guests: Guests, tmp_path: Path, options: list[str], cure: str) -> None:
    files = {
        "x86": b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\x3e\0\x01\0\0\0" + bytes(200),
        "riscv": bytes(16) + (1 << 20).to_bytes(8, "little") + bytes(24) + b"RISCV\0\0\0RSC\x05" + bytes(100_000),
        "text": b"#!/bin/sh\necho this is no kernel\n" * 100,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    paths = {name: guests.put(tmp_path / name) for name in files}
    paths |= {"missing": "/nowhere", "kernel": f"{FOLDER}/vmlinuz"}
    words = [option.format(**paths) for option in options]
    kernel = [] if "--kernel" in options else ["--kernel", paths["kernel"]]
    done = guests.host.run(["python3", "examples/arm64_vmm.py", *kernel, *words])
    *usage, message = done.stderr.decode().strip().splitlines()
    assert done.status == 2, done.stderr
    assert message.startswith(("arm64_vmm: ", "arm64_vmm.py: error: ")), done.stderr
    assert cure in message
    assert all(line.startswith(("usage:", " ")) for line in usage), done.stderr
    assert not done.stdout


def test_a_pc_is_refused_there(guests: Guests) -> None:
    done = guests.host.run(["python3", "examples/minimal_vmm.py", "--kernel", f"{FOLDER}/vmlinuz"])
    assert done.status == 2
    assert done.stderr.decode().splitlines() == [
        "minimal_vmm: its guests need KVM of x86_64, this is aarch64: see 'python -m lab'"
    ]


@pytest.mark.skipif(os.uname().machine == "aarch64", reason="it is the machine that this is for")
def test_another_host_is_refused_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "examples/arm64_vmm.py", "--kernel", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("arm64_vmm: its guests need KVM of aarch64, this is ")
    assert done.stderr.count("\n") == 1
