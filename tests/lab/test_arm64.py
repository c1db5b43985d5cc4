"""Debian's arm64 kernel, as it is, in examples/arm64_vmm.py on hardware KVM."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from tests.lab import checks, foreign_guests
from tests.vmm.virtio_guest import MIB

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.conftest import HostOf
    from tests.lab.foreign_guests import Guests


@pytest.fixture(scope="module")
def guests(host_of: HostOf) -> Guests:
    return foreign_guests.arm64(host_of("aarch64"))


@pytest.mark.parametrize("cpus", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_linux_reaches_userspace_and_powers_off_by_psci(guests: Guests, cpus: int) -> None:
    checks.check_userspace(guests, cpus)


@pytest.mark.slow
def test_a_restart_is_no_panic(guests: Guests) -> None:
    checks.check_restart(guests, "sp_el1")


@pytest.mark.parametrize("transport", ["mmio", pytest.param("pci", marks=pytest.mark.slow)])
def test_virtio_devices(guests: Guests, tmp_path: Path, transport: str) -> None:
    tap = f"tap-{transport}"
    guests.host.run(["ip", "tuntap", "add", tap, "mode", "tap"], check=True)
    done, second = checks.check_devices(guests, tmp_path, "--transport", transport, "--net", f"tap={tap}")
    assert [line.split()[2] for line in done.text.splitlines() if line.startswith("virtio: type")] == [
        "0x0002", "0x0002", "0x0001", "0x0004",
    ]  # fmt: skip
    lines = checks.interrupts(done)
    assert all(("ITS-MSI" if transport == "pci" else "GICv3") in line for line in lines)
    arrived = {line.split()[-1]: [int(count) for count in line.split()[2:4]] for line in lines}
    if transport == "pci":
        # each processor has a queue and its interrupt
        assert arrived["virtio1-req.0"][0]
        assert arrived["virtio1-req.1"][1]
    else:
        assert arrived["virtio1"][0]
    assert second[2 * MIB : 3 * MIB] == bytes(MIB)


@pytest.mark.slow
@pytest.mark.parametrize("cpus", [1, 2])
def test_a_guest_that_waits_moves_into_another_vm(guests: Guests, cpus: int) -> None:
    checks.check_waiting_moves(guests, cpus)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["mmio", "pci"])
def test_a_guest_with_disks_moves_into_another_vm(guests: Guests, tmp_path: Path, transport: str) -> None:
    checks.check_disks_move(guests, tmp_path, "--transport", transport)


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
    checks.check_refusal(guests, tmp_path, options, cure)


def test_a_pc_is_refused_there(guests: Guests) -> None:
    done = guests.host.run(["python3", "examples/minimal_vmm.py", "--kernel", guests.kernel])
    assert done.status == 2
    assert done.stderr.decode().splitlines() == [
        "minimal_vmm: its guests need KVM of x86_64, this is aarch64: see 'python -m lab'"
    ]


@pytest.mark.skipif(os.uname().machine == "aarch64", reason="it is the machine that this is for")
def test_another_host_is_refused_in_one_line(tmp_path: Path) -> None:
    checks.check_another_host("arm64", "aarch64", tmp_path)
