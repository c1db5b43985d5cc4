"""Snapshots on arm64: a guest goes on in another VM and another process, with its GIC, its timer and its messages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import Kvm, KvmError, MpState, StateError
from pyvmm_kvm.aarch64.platform import affinity
from pyvmm_kvm.aarch64.registers import MPIDR_EL1, core, sys_reg
from pyvmm_kvm.aarch64.state import VcpuState, VmState
from pyvmm_kvm.aarch64.structs import VcpuInit

from ..checks import number
from .machine import Machine
from .messages import DEVICE, EVENT, LPI, PENDING, TRANSLATER, with_messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..guests import Guest

pytestmark = pytest.mark.kvm


def init_of(guest: Guest) -> VcpuInit:
    init: VcpuInit = guest.vm.get_preferred_target()  # type: ignore[attr-defined]
    init.set_feature(VcpuInit.PSCI_0_2)
    return init


def test_a_vcpu_is_made_again(boot: Callable[..., Guest]) -> None:
    guest = boot("count")
    assert [number(guest.vcpu.run()) for _ in range(5)] == [1, 2, 3, 4, 5]
    guest.vcpu.set_one_reg(core("vregs", 9), 0x1122 << 112 | 5)
    guest.vcpu.set_one_reg(sys_reg(3, 0, 13, 0, 4), 0x1234)  # TPIDR_EL1
    saved = VcpuState.save(guest.vcpu, init_of(guest))
    other = boot("count")
    assert VcpuState.from_bytes(bytes(saved)).restore(other.vcpu) == []
    assert number(other.vcpu.run()) == 6
    assert other.vcpu.get_one_reg(core("vregs", 9)) == 0x1122 << 112 | 5
    assert other.vcpu.get_one_reg(sys_reg(3, 0, 13, 0, 4)) == 0x1234
    for length in (0, 10, 20, 100, len(bytes(saved)) - 1):
        with pytest.raises(StateError):
            VcpuState.from_bytes(bytes(saved)[:length]).restore(boot("count").vcpu)


def test_stopped_vcpus_and_pending_aborts_are_kept(boot: Callable[..., Guest]) -> None:
    guest = boot("count")
    guest.vcpu.set_mp_state(MpState.STOPPED)
    events = guest.vcpu.get_vcpu_events()
    events.exception.serror_pending = 1
    guest.vcpu.set_vcpu_events(events)
    saved = VcpuState.save(guest.vcpu, init_of(guest))
    other = boot("count")
    assert VcpuState.from_bytes(bytes(saved)).restore(other.vcpu) == []
    assert other.vcpu.get_mp_state().mp_state == MpState.STOPPED
    assert other.vcpu.get_vcpu_events().exception.serror_pending == 1


def test_a_timer_goes_on_in_another_process(kvm: Kvm, tmp_path: Path) -> None:
    guest = Machine.ticking(kvm)
    assert [number(guest.vcpu.run()) for _ in range(5)] == [1, 2, 3, 4, 5]
    guest.save(tmp_path)
    guest.close()
    command = [sys.executable, "-m", "tests.kvm.aarch64.machine", str(tmp_path)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("6 7 8", "")


def test_a_controller_is_made_again_whole(kvm: Kvm, tmp_path: Path) -> None:
    """Interrupts that are enabled, pending, active, of a level, routed and ranked, on two vCPUs."""
    first = Machine(kvm, vcpus=2)
    gic = first.gic
    second_cpu = affinity(first.vcpus[1].get_one_reg(MPIDR_EL1))
    gic.set_dist_reg(0x0, 0x12)
    gic.set_dist_reg(0x84, 0xFFFFFFFF)  # IGROUPR1
    gic.set_dist_reg(0x104, 1 << 5 | 1 << 9)  # ISENABLER1
    gic.set_dist_reg(0x204, 1 << 6)  # ISPENDR1
    gic.set_dist_reg(0x304, 1 << 7)  # ISACTIVER1
    gic.set_dist_reg(0x424, 0xA0B0C0D0)  # IPRIORITYR9
    gic.set_dist_reg(0xC08, 2 << 10)  # ICFGR2: interrupt 37 is an edge
    gic.set_dist_reg(0x6000 + 8 * 41, second_cpu)
    gic.set_redist_reg(second_cpu, 0x10100, 1 << 27 | 1 << 3)
    gic.set_redist_reg(second_cpu, 0x10200, 1 << 3)
    gic.set_dist_reg(0xC10, 0)  # ICFGR4: interrupts 64 to 79 are levels
    gic.set_levels(64, 1 << 2)
    gic.set_cpu_sysreg(second_cpu, sys_reg(3, 0, 4, 6, 0), 0xA0)  # ICC_PMR_EL1
    first.save(tmp_path)
    again = Machine.restore(kvm, tmp_path, vcpus=2)
    assert VmState.save(again.gic, again.vcpus) == VmState.from_bytes((tmp_path / "vm").read_bytes())
    assert again.gic.get_dist_reg(0x6000 + 8 * 41) == second_cpu
    assert again.gic.get_dist_reg(0x204) == 1 << 6
    assert again.gic.get_redist_reg(second_cpu, 0x10200) == 1 << 3
    assert again.gic.get_levels(64) == 1 << 2
    # twice on the same one, whatever was set there before
    again.gic.set_dist_reg(0x108, 0xFF)
    again.gic.set_dist_reg(0x308, 0xFF)
    VmState.from_bytes((tmp_path / "vm").read_bytes()).restore(again.gic, again.vcpus)
    assert (again.gic.get_dist_reg(0x108), again.gic.get_dist_reg(0x308)) == (0, 0)
    with pytest.raises(StateError, match="96 interrupts and 1 vCPUs"):
        VmState.from_bytes((tmp_path / "vm").read_bytes()).restore(again.gic, again.vcpus[:1])
    first.close()
    again.close()


def test_messages_of_an_its_are_kept(kvm: Kvm, tmp_path: Path) -> None:
    guest = Machine(kvm, its=True)
    with_messages(guest)
    assert guest.vm.signal_msi(TRANSLATER, EVENT, DEVICE) == 1
    guest.gic.save_pending_tables()
    assert guest.memory[PENDING + LPI // 8] == 1 << LPI % 8
    guest.save(tmp_path)
    guest.close()
    again = Machine.restore(kvm, tmp_path, its=True)
    assert again.its is not None
    # the message that was pending is, and the map is there for the next
    again.memory[PENDING + LPI // 8] = 0
    again.gic.save_pending_tables()
    assert again.memory[PENDING + LPI // 8] == 1 << LPI % 8
    assert again.vm.signal_msi(TRANSLATER, EVENT, DEVICE) == 1
    assert again.vm.signal_msi(TRANSLATER, EVENT + 1, DEVICE) == 0, "nobody mapped it"
    assert again.its.get_reg(0x90) == again.its.get_reg(0x88) == 96
    assert VmState.save(again.gic, again.vcpus, again.its) == VmState.from_bytes((tmp_path / "vm").read_bytes())
    plain = Machine(kvm)
    with pytest.raises(StateError, match="one has an ITS"):
        VmState.from_bytes((tmp_path / "vm").read_bytes()).restore(plain.gic, plain.vcpus)
    plain.close()
    again.close()
    with pytest.raises(KvmError):
        again.its.save_tables()
