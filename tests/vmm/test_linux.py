"""A real Linux guest under the example VMM."""

import re

import pytest
from tests.vmm.conftest import DemoGuest, Vmm

pytestmark = [pytest.mark.guest, pytest.mark.kernel_bound]

INTRODUCTION = re.compile(r"^guest: Linux 6\.\S+, (\d+) CPUs?, (\d+) MiB of memory", re.MULTILINE)


@pytest.mark.parametrize(("cpus", "memory", "entry"), [(1, 64, "pvh"), (2, 512, "linux64")])
def test_guest_sees_the_machine_it_was_given(demo: DemoGuest, vmm: Vmm, cpus: int, memory: int, entry: str) -> None:
    done = vmm(*demo.options(), "--cpus", str(cpus), "--memory", str(memory), "--entry", entry)
    said = INTRODUCTION.search(done.stdout)
    assert said, done.stdout + done.stderr
    assert int(said[1]) == cpus
    assert int(said[2]) == pytest.approx(memory, rel=0.03)
    assert done.returncode == 0
    assert "the guest powered off" in done.stderr


def test_reboot_is_an_orderly_end(demo: DemoGuest, vmm: Vmm) -> None:
    done = vmm(*demo.options("wait=0 end=reboot"))
    assert INTRODUCTION.search(done.stdout)
    assert done.returncode == 0
    assert "the guest rebooted" in done.stderr


def test_panic_is_reported(demo: DemoGuest, vmm: Vmm) -> None:
    done = vmm(*demo.options("wait=0 end=crash"))
    assert done.returncode == 1
    assert "the guest's kernel panicked: Attempted to kill init!" in done.stderr
    assert "rip" in done.stderr
    assert "last exits" in done.stderr


def test_panic_without_reboot_is_noticed(demo: DemoGuest, vmm: Vmm) -> None:
    done = vmm(*demo.options("wait=0 end=crash panic=0"))
    assert done.returncode == 1
    assert "the guest's kernel panicked: Attempted to kill init!" in done.stderr


@pytest.mark.slow
def test_five_gib_of_memory(demo: DemoGuest, vmm: Vmm) -> None:
    done = vmm(*demo.options(), "--memory", "5G")
    said = INTRODUCTION.search(done.stdout)
    assert said, done.stdout + done.stderr
    assert int(said[2]) == pytest.approx(5 << 10, rel=0.03)


def test_bzimage(demo: DemoGuest, vmm: Vmm) -> None:
    image = str(demo.kernel.with_name("bzImage"))
    done = vmm(*demo.options(), "--kernel", image)
    assert INTRODUCTION.search(done.stdout), done.stdout + done.stderr
    assert done.returncode == 0
