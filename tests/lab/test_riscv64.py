"""Debian's riscv64 kernel, as it is, in examples/riscv64_vmm.py on hardware KVM."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from tests.lab import checks, foreign_guests

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.conftest import HostOf
    from tests.lab.foreign_guests import Guests


@pytest.fixture(scope="module")
def guests(host_of: HostOf) -> Guests:
    return foreign_guests.riscv64(host_of("riscv64"))


@pytest.mark.parametrize("cpus", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_linux_reaches_userspace_and_powers_off_by_sbi(guests: Guests, cpus: int) -> None:
    checks.check_userspace(guests, cpus)


@pytest.mark.slow
def test_a_restart_is_no_panic(guests: Guests) -> None:
    checks.check_restart(guests, "SystemEvent(type=0x2")


@pytest.mark.slow
@pytest.mark.parametrize("cpus", [1, 2])
def test_a_guest_that_waits_moves_into_another_vm(guests: Guests, cpus: int) -> None:
    checks.check_waiting_moves(guests, cpus)


@pytest.mark.slow
def test_a_guest_with_disks_moves_into_another_vm(guests: Guests, tmp_path: Path) -> None:
    checks.check_disks_move(guests, tmp_path)


def test_virtio_devices(guests: Guests, tmp_path: Path) -> None:
    done, _ = checks.check_devices(guests, tmp_path)
    lines = checks.interrupts(done)
    assert len(lines) == 3
    assert all("SiFive PLIC" in line for line in lines)


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
    checks.check_refusal(guests, tmp_path, options, cure)


@pytest.mark.skipif(os.uname().machine == "riscv64", reason="it is the machine that this is for")
def test_another_host_is_refused_in_one_line(tmp_path: Path) -> None:
    checks.check_another_host("riscv64", "riscv64", tmp_path)
