"""The same guests on a host whose harts have the AIA: interrupts by KVM's APLIC and IMSICs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.lab import checks, foreign_guests

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.conftest import HostOf
    from tests.lab.foreign_guests import Guests

pytestmark = pytest.mark.slow
# without guest interrupt files: those come with an IMSIC of the machine's own, and this emulator's console dislikes it
WITH_AIA = ("-cpu", "rv64,h=true,x-smaia=true,x-ssaia=true")


@pytest.fixture(scope="module")
def guests(host_of: HostOf) -> Guests:
    return foreign_guests.riscv64(host_of("riscv64", *WITH_AIA))


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_guest_moves_into_another_vm_and_takes_input_by_the_aplic(guests: Guests, cpus: int) -> None:
    checks.check_waiting_moves(guests, cpus, "--interrupts", "aia")


def test_a_guest_with_disks_moves_into_another_vm(guests: Guests, tmp_path: Path) -> None:
    checks.check_disks_move(guests, tmp_path, "--interrupts", "aia")


def test_virtio_devices(guests: Guests, tmp_path: Path) -> None:
    disks = checks.Disks(guests, tmp_path, b"through KVM's APLIC\n" * 5000)
    words = [*disks.options, "--rng", "--interrupts", "aia"]
    done = guests.boot(guests.devices, "do=disk,blocks,rng,interrupts", *words)
    assert done.status == 0, done.text + done.stderr.decode()
    assert "failed" not in done.text
    disks.check_read(done.text)
    lines = checks.interrupts(done)
    assert len(lines) == 3
    assert all("APLIC" in line for line in lines), lines


def test_a_plic_does_as_well(guests: Guests) -> None:
    done = guests.boot(guests.demo, "wait=0")
    assert done.status == 0, done.text + done.stderr.decode()
    assert "guest: Linux" in done.text
