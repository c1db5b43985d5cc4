"""The same guests on a host whose harts have the AIA: interrupts by KVM's APLIC and IMSICs."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import pytest
from tests.lab import moves
from tests.lab.riscv64_guests import Guests
from tests.vmm.virtio_guest import MIB, make_ext2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import lab

pytestmark = pytest.mark.slow
MOVING = "tests/lab/riscv64_states.py"
# without guest interrupt files: those come with an IMSIC of the machine's own, and this emulator's console dislikes it
WITH_AIA = ("-cpu", "rv64,h=true,x-smaia=true,x-ssaia=true")


@pytest.fixture(scope="module")
def guests(host_of: Callable[..., lab.Host]) -> Guests:
    return Guests(host_of("riscv64", *WITH_AIA))


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_guest_moves_into_another_vm_and_takes_input_by_the_aplic(guests: Guests, cpus: int) -> None:
    moves.check_waiting(guests, MOVING, cpus, "--interrupts", "aia")


def test_a_guest_with_disks_moves_into_another_vm(guests: Guests, tmp_path: Path) -> None:
    moves.check_disks(guests, MOVING, tmp_path, "--interrupts", "aia")


def test_virtio_devices(guests: Guests, tmp_path: Path) -> None:
    content = b"through KVM's APLIC\n" * 5000
    make_ext2(tmp_path / "vda", content)
    (tmp_path / "vdb").write_bytes(bytes(8 * MIB))
    disks = [word for name in ("vda", "vdb") for word in ("--disk", guests.put(tmp_path / name))]
    done = guests.boot(guests.devices, "do=disk,blocks,rng,interrupts", *disks, "--rng", "--interrupts", "aia")
    assert done.status == 0, done.text + done.stderr.decode()
    assert "failed" not in done.text
    assert f"disk: read {len(content)} bytes, crc {zlib.crc32(content):08x}" in done.text
    lines = [line for line in done.text.splitlines() if line.startswith("interrupt: ")]
    assert len(lines) == 3
    assert all("APLIC" in line for line in lines), lines


def test_a_plic_does_as_well(guests: Guests) -> None:
    done = guests.boot(guests.demo, "wait=0")
    assert done.status == 0, done.text + done.stderr.decode()
    assert "guest: Linux" in done.text
