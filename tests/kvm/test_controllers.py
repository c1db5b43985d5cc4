"""Interrupt controllers of arm64 and RISC-V without such a host: attributes, and snapshots of made-up devices."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import StateError
from pyvmm_kvm.aarch64 import platform as arm_platform
from pyvmm_kvm.aarch64 import registers as arm
from pyvmm_kvm.aarch64.state import VmState as ArmVmState
from pyvmm_kvm.device import DeviceFd
from pyvmm_kvm.riscv64 import platform as riscv_platform
from pyvmm_kvm.riscv64.state import VmState as RiscvVmState

from .made_up import MadeUpVcpu, MadeUpVm

if TYPE_CHECKING:
    from collections.abc import Callable


def test_interrupt_controllers_are_attributes() -> None:
    vm = MadeUpVm()
    gic = arm_platform.VgicV3(vm, 0x8000000, 0x80A0000, 2)  # type: ignore[arg-type]
    gic.set_nr_irqs(128)
    gic.init()
    assert vm.device.values[0, 2] == struct.pack("<Q", 0x8000000)
    assert vm.device.values[0, 5] == struct.pack("<Q", 0x80A0000 | 2 << 52)
    assert vm.device.values[3, 0] == struct.pack("<I", 128)
    assert (4, 0) in vm.device.values
    gic.set_dist_reg(0x104, 7)
    assert gic.get_dist_reg(0x104) == 7
    where = arm_platform.affinity(0x0000_0001_8100_0203)
    assert where == 0x01_00_02_03
    gic.set_redist_reg(where, 0x14, 2)
    assert gic.get_redist_reg(where, 0x14) == 2
    assert vm.device.values[5, where << 32 | 0x14] == struct.pack("<I", 2)
    icc_pmr = arm.sys_reg(3, 0, 4, 6, 0)
    gic.set_cpu_sysreg(where, icc_pmr, 0xF0)
    assert gic.get_cpu_sysreg(where, icc_pmr) == 0xF0
    assert vm.device.values[6, where << 32 | 0xC230] == struct.pack("<Q", 0xF0)
    gic.save_pending_tables()
    assert (4, 3) in vm.device.values
    gic.close()
    assert vm.device.closed
    its = arm_platform.VgicIts(vm, 0x8080000)  # type: ignore[arg-type]
    its.save_tables()
    its.restore_tables()
    its.reset()
    its.set_reg(0x100, 1 << 63)
    assert its.get_reg(0x100) == 1 << 63
    arm_platform.VgicV2(vm, 0x8000000, 0x8010000)  # type: ignore[arg-type]
    assert vm.device.values[0, 1] == struct.pack("<Q", 0x8010000)
    assert vm.kinds == [DeviceFd.ARM_VGIC_V3, DeviceFd.ARM_VGIC_ITS, DeviceFd.ARM_VGIC_V2]
    with pytest.raises(ValueError, match="64 KiB"):
        arm_platform.redist_region(0x1000, 1)

    vm = MadeUpVm()
    aia = riscv_platform.Aia(vm, sources=32)  # type: ignore[arg-type]
    aia.place(0xD000000, [0x28000000, 0x28001000])
    aia.init()
    assert aia.get_config(riscv_platform.CONFIG_SRCS) == 32
    assert (0, riscv_platform.CONFIG_MODE) not in vm.device.values, "KVM chooses what the host can"
    assert [vm.device.values[1, number] for number in (0, 1, 2)] == [
        struct.pack("<Q", address) for address in (0xD000000, 0x28000000, 0x28001000)
    ]
    aia.set_aplic_reg(4, 6)
    aia.set_imsic_reg(1, 0x70, 1)
    assert (aia.get_aplic_reg(4), aia.get_imsic_reg(1, 0x70)) == (6, 1)
    assert vm.device.values[4, 0x1070] == struct.pack("<Q", 1)
    aia.close()
    riscv_platform.Aia(vm, mode=riscv_platform.MODE_HWACCEL)  # type: ignore[arg-type]
    assert vm.device.values[0, riscv_platform.CONFIG_MODE] == struct.pack("<I", 1)
    assert vm.kinds == [DeviceFd.RISCV_AIA] * 2


def gic_of(vm: MadeUpVm, interrupts: int, vcpus: list[MadeUpVcpu]) -> arm_platform.VgicV3:
    """A controller whose every register that a snapshot asks for has a value of its own."""
    gic = arm_platform.VgicV3(vm, 0x8000000, 0x80A0000, len(vcpus))  # type: ignore[arg-type]
    gic.set_nr_irqs(interrupts)
    vm.device.default = lambda group, attr: (group << 24 ^ attr * 2654435761) & 0xFFFFFFFF
    for vcpu in vcpus:
        where = arm_platform.affinity(vcpu.registers[arm.MPIDR_EL1])
        # 5 bits of priority: one register of active ones in each group
        gic.set_cpu_sysreg(where, arm.sys_reg(3, 0, 12, 12, 4), 4 << 8)
    return gic


def test_arm_controllers_are_saved_and_restored_in_order() -> None:
    vcpus = [MadeUpVcpu({arm.MPIDR_EL1: 1 << 31 | number}) for number in range(2)]
    vm, its_vm = MadeUpVm(), MadeUpVm()
    gic = gic_of(vm, 64, vcpus)
    its = arm_platform.VgicIts(its_vm, 0x8080000)  # type: ignore[arg-type]
    its_vm.device.default = lambda group, attr: 1 << 63 | attr
    saved = ArmVmState.save(gic, vcpus, its)
    assert {(4, 1)} <= set(its_vm.device.values), "the tables go to memory before it is saved"
    assert (4, 3) in vm.device.values
    data = bytes(saved)

    other, other_its = MadeUpVm(), MadeUpVm()
    target = gic_of(other, 64, vcpus)
    translation = arm_platform.VgicIts(other_its, 0x8080000)  # type: ignore[arg-type]
    other.device.default = lambda group, attr: 0
    other.device.log.clear()
    other_its.device.log.clear()
    ArmVmState.from_bytes(data).restore(target, vcpus, translation)
    order = [(group, attr & 0xFFFFFFFF) for group, attr in other.device.log]
    assert order[:3] == [(1, 0x8), (1, 0x0), (1, 0x10)], "the revision comes first"
    written = {key for key in other.device.log if key[0] in (1, 5, 6, 7)}
    assert {(1, 0x104), (1, 0x204), (1, 0x304), (1, 0x420), (1, 0xC08), (1, 0x6100), (1, 0x6104), (7, 32)} <= written
    for cpu in (0, 1):
        assert {(5, cpu << 32 | offset) for offset in (0x70, 0x78, 0x10100, 0x10200, 0x1041C, 0x10C04)} <= written
        # with 5 bits of priority there is AP0R0 and no AP0R1
        assert (6, cpu << 32 | 0xC644) in written
        assert (6, cpu << 32 | 0xC645) not in written
    clears = {(1, 0x184), (1, 0x384), (5, 0x10180), (5, 0x10380), (5, 1 << 32 | 0x10180), (5, 1 << 32 | 0x10380)}
    for key in written - clears:
        assert other.device.values[key] == vm.device.get_device_attr(*key, size=len(other.device.values[key])), key
    assert order.index((1, 0x184)) < order.index((1, 0x204)) < order.index((1, 0x104)), "pending before enabled"
    # Documentation/virt/kvm/devices/arm-vgic-its.rst, "ITS Restore Sequence"
    steps = [attr for group, attr in other_its.device.log if group == 8]
    assert steps[0] == 0x4
    assert steps.index(0x80) < min(map(steps.index, (0x88, 0x90, 0x100)))
    assert steps[-1] == 0x0
    assert other_its.device.log[-2:] == [(4, 2), (8, 0)]

    # what is as it was saved stays unwritten, or KVM would have other bits there
    other.device.log.clear()
    ArmVmState.from_bytes(data).restore(target, vcpus, translation)
    assert not {(5, 0x70), (5, 0x74), (5, 0x78)} & set(other.device.log)


def test_arm_controllers_of_another_kind_are_refused() -> None:
    vcpus = [MadeUpVcpu({arm.MPIDR_EL1: 1 << 31})]
    gic = gic_of(MadeUpVm(), 64, vcpus)
    saved = ArmVmState.save(gic, vcpus)
    its_vm = MadeUpVm()
    its = arm_platform.VgicIts(its_vm, 0x8080000)  # type: ignore[arg-type]
    calls: tuple[tuple[str, Callable[[], None]], ...] = (
        ("96 interrupts and 1 vCPUs", lambda: saved.restore(gic_of(MadeUpVm(), 96, vcpus), vcpus)),
        ("64 interrupts and 2 vCPUs", lambda: saved.restore(gic, vcpus * 2)),
        ("one has an ITS", lambda: saved.restore(gic, vcpus, its)),
    )
    for words, call in calls:
        with pytest.raises(StateError, match=words):
            call()
    for part in ("dist", "redist", "icc"):
        vm = MadeUpVm()
        target = gic_of(vm, 64, vcpus)
        vm.device.log.clear()
        with pytest.raises(StateError, match=f"part {part!r} has"):
            ArmVmState({**saved.parts, part: saved.parts[part][:-1]}).restore(target, vcpus)
        assert vm.device.log == [], "nothing was changed"
    with pytest.raises(StateError, match="lacks gic"):
        ArmVmState({})
    # an ITS that the guest never set up has no tables to read
    its_vm.device.default = lambda group, attr: 0
    empty = ArmVmState.save(gic, vcpus, its)
    its_vm.device.log.clear()
    empty.restore(gic, vcpus, its)
    assert (4, 2) not in its_vm.device.log


def test_riscv_controllers_are_saved_and_restored_in_order() -> None:
    assert RiscvVmState.from_bytes(bytes(RiscvVmState.save())).parts == {}
    RiscvVmState.save().restore()
    vm = MadeUpVm()
    aia = riscv_platform.Aia(vm, sources=33, ids=127)  # type: ignore[arg-type]
    assert (0, riscv_platform.CONFIG_MODE) not in vm.device.values, "KVM knows the best mode of this host"
    vm.device.default = lambda group, attr: (group << 24 ^ attr * 2654435761) & 0xFFFFFFFF
    saved = RiscvVmState.save(aia, vcpus=2)

    other = MadeUpVm()
    target = riscv_platform.Aia(other, sources=33, ids=127, mode=riscv_platform.MODE_EMUL)  # type: ignore[arg-type]
    other.device.log.clear()
    RiscvVmState.from_bytes(bytes(saved)).restore(target, vcpus=2)
    written = [key for key in other.device.log if key not in ((3, 0x1F00), (3, 0x1F04))]
    assert other.device.log[-1] == (3, 0), "the domain delivers when all else is there"
    assert {(3, 0x4 + 4 * 32), (3, 0x3004), (3, 0x1C04), (3, 0x1E04)} <= set(written)
    # two words of 64 identities, at even numbers
    assert [attr for group, attr in written if group == 4][:6] == [0x72, 0x80, 0x82, 0xC0, 0xC2, 0x70]
    assert (4, 0x1070) in written
    for key in written:
        assert other.device.values[key] == vm.device.get_device_attr(*key, size=len(other.device.values[key]))

    wrong = riscv_platform.Aia(MadeUpVm(), sources=64, ids=127)  # type: ignore[arg-type]
    calls: tuple[tuple[str, Callable[[], None]], ...] = (
        ("64 sources", lambda: saved.restore(wrong, vcpus=2)),
        ("3 vCPUs", lambda: saved.restore(target, vcpus=3)),
        ("one has an AIA", lambda: saved.restore()),
        ("one has an AIA", lambda: RiscvVmState.save().restore(aia)),
        ("33 sources", lambda: RiscvVmState({**saved.parts, "imsic": b"1"}).restore(target, vcpus=2)),
    )
    for words, call in calls:
        with pytest.raises(StateError, match=words):
            call()
    messages = riscv_platform.Aia(MadeUpVm(), sources=0, ids=63)  # type: ignore[arg-type]
    messages.device.default = vm.device.default  # type: ignore[attr-defined]
    RiscvVmState.save(messages, vcpus=1).restore(messages, vcpus=1)
