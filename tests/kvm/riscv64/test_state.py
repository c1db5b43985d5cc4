"""Snapshots on RISC-V: a guest goes on in another VM, and in another process, with its timer."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import Cap, Kvm, MmioWrite, MpState, StateError
from pyvmm_kvm.riscv64.platform import CONFIG_IDS, MODE_EMUL, Aia
from pyvmm_kvm.riscv64.registers import core, csr, fp_d, timer
from pyvmm_kvm.riscv64.state import VcpuState, VmState

from ..guests import MMIO, put, words

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..guests import Guest

pytestmark = pytest.mark.kvm
HANDLER = 0x3000
# lui t1,0x3; csrw stvec,t1; lui s1,0x2f; li s0,0; li t0,32; csrs sie,t0; rdtime a0; li a7,TIME; li a6,0; li t2,20000;
# add a0,a0,t2; ecall (set_timer); csrsi sstatus,2; again: wfi; j again
TICKING = words(
    "00003337 10531073 0002f4b7 00000413 02000293 1042a073 c0102573 544958b7 d458889b 00000813 000053b7 e203839b "
    "00750533 00000073 10016073 10500073 ffdff06f"
)
# the handler: addi s0,s0,1; the timer as before; sd s0,0(s1); sret
TICKED = words("00140413 c0102573 544958b7 d458889b 00000813 000053b7 e203839b 00750533 00000073 0084b023 10200073")


def number(exit_: object) -> int:
    assert isinstance(exit_, MmioWrite), exit_
    assert exit_.addr == MMIO
    return int.from_bytes(exit_.data, "little")


def test_a_vcpu_is_made_again(boot: Callable[..., Guest]) -> None:
    guest = boot("count")
    assert [number(guest.vcpu.run()) for _ in range(5)] == [1, 2, 3, 4, 5]
    guest.vcpu.set_one_reg(fp_d(9), 0x4059 << 48)
    guest.vcpu.set_one_reg(csr("sscratch"), 0x1234)
    saved = VcpuState.save(guest.vcpu)
    other = boot("count")
    assert VcpuState.from_bytes(bytes(saved)).restore(other.vcpu) == []
    assert number(other.vcpu.run()) == 6
    assert other.vcpu.get_one_reg(fp_d(9)) == 0x4059 << 48
    assert other.vcpu.get_one_reg(csr("sscratch")) == 0x1234
    # all that KVM lists, but time and the counter that this guest has moved on
    third = boot("count")
    VcpuState.from_bytes(bytes(saved)).restore(third.vcpu)
    moved = {timer("time"), timer("compare"), timer("state")}
    for register in set(third.vcpu.get_reg_list()) - moved:
        assert third.vcpu.get_one_reg(register) == guest.vcpu.get_one_reg(register), hex(register)


def test_a_stopped_vcpu_stays_stopped(boot: Callable[..., Guest]) -> None:
    guest = boot("count")
    guest.vcpu.set_mp_state(MpState.STOPPED)
    saved = bytes(VcpuState.save(guest.vcpu))
    other = boot("count")
    VcpuState.from_bytes(saved).restore(other.vcpu)
    assert other.vcpu.get_mp_state().mp_state == MpState.STOPPED
    for length in (0, 10, 20, 100, len(saved) - 1):
        with pytest.raises(StateError):
            VcpuState.from_bytes(saved[:length]).restore(boot("count").vcpu)


CHILD = """
import mmap, sys
from pathlib import Path
from pyvmm_kvm import Kvm, MmioWrite
from pyvmm_kvm.riscv64.state import VcpuState, VmState
folder = Path(sys.argv[1])
memory = mmap.mmap(-1, 0x10000)
memory[:] = (folder / "memory").read_bytes()
with Kvm() as kvm, kvm.create_vm() as vm:
    vm.set_user_memory_region(0, 0, memory)
    with vm.create_vcpu(0) as vcpu:
        refused = VcpuState.from_bytes((folder / "vcpu").read_bytes()).restore(vcpu)
        VmState.from_bytes((folder / "vm").read_bytes()).restore()
        print(refused, *(int.from_bytes(vcpu.run().data, "little") for _ in range(3)))
"""


def test_a_timer_goes_on_in_another_process(boot: Callable[..., Guest], tmp_path: Path) -> None:
    guest = boot(TICKING)
    put(guest.memory, HANDLER, TICKED)
    assert [number(guest.vcpu.run()) for _ in range(5)] == [1, 2, 3, 4, 5]
    (tmp_path / "vcpu").write_bytes(bytes(VcpuState.save(guest.vcpu)))
    (tmp_path / "vm").write_bytes(bytes(VmState.save()))
    (tmp_path / "memory").write_bytes(guest.memory[:])
    assert guest.vcpu.get_one_reg(core("s0")) == 5
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[] 6 7 8\n", "")


def test_an_aia_is_made_again(kvm: Kvm) -> None:
    if not kvm.check_extension(Cap.IRQCHIP):
        pytest.skip("this host's processors have no AIA")

    def machine() -> tuple[Aia, list[object]]:
        vm = kvm.create_vm()
        aia = Aia(vm, sources=32, ids=63, mode=MODE_EMUL)
        vcpus = [vm.create_vcpu(0)]
        aia.place(0xD000000, [0x28000000])
        aia.init()
        return aia, [*vcpus, vm]

    aia, opened = machine()
    assert aia.get_config(CONFIG_IDS) == 63
    for offset, value in ((0x4 + 4 * 4, 4), (0x3004 + 4 * 4, 9), (0x1E00, 1 << 5)):
        aia.set_aplic_reg(offset, value)
    aia.set_imsic_reg(0, 0x70, 1)
    aia.set_imsic_reg(0, 0xC0, 1 << 9)
    saved = VmState.save(aia, vcpus=1)
    other, more = machine()
    VmState.from_bytes(bytes(saved)).restore(other, vcpus=1)
    assert VmState.save(other, vcpus=1) == saved
    for fd in (aia, other, *opened, *more):
        fd.close()  # type: ignore[attr-defined]
