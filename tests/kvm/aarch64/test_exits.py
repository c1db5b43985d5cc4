"""Byte programs on arm64: every exit that KVM makes there, and what it says where it makes none."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest

from pyvmm_kvm import (
    ArmNisv,
    Cap,
    DeviceFd,
    Intr,
    Kvm,
    KvmError,
    MmioWrite,
    MpState,
    RunControl,
    SystemEvent,
    VcpuExit,
    VcpuFd,
    crash_report,
)
from pyvmm_kvm.aarch64.modes import setup_boot
from pyvmm_kvm.aarch64.platform import VgicV2, affinity
from pyvmm_kvm.aarch64.registers import MPIDR_EL1, PSCI_VERSION, TIMER_CNT, core, sys_reg
from pyvmm_kvm.aarch64.structs import VcpuInit
from pyvmm_kvm.aarch64.vm import IRQ_TYPE_PPI, IRQ_TYPE_SPI, irq_number

from ..checks import check_widths, number
from ..guests import ARM_AT_MMIO, ARM_END, ENTRY, MMIO, ended, put, words
from .machine import TICKING, Machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..guests import Guest

pytestmark = pytest.mark.kvm
VECTORS = 0x2000
# VBAR_EL1 = 0x2000
TO_VECTORS = words("d2840000 d518c000 d5033fdf")
# a synchronous exception: ESR_EL1 and FAR_EL1 are written to MMIO
REPORT = ARM_AT_MMIO + words("d5385200 f9000020 d5386000 f9000420") + ARM_END
# ldp x2,x3,[x1], which the processor does not describe to KVM
PAIR = words("a9400c22")


def test_memory_mapped_io_of_every_width(boot: Callable[..., Guest]) -> None:
    # mov x0,#-2; strb, strh, str w and str x of it; ldrb w2,[x1,#16]; ldr x3,[x1,#24]; str of both
    code = "92800020 39000020 79000420 b9000420 f9000420 39404022 f9400c23 f9001022 f9001423"
    check_widths(boot(ARM_AT_MMIO + words(code) + ARM_END))


def test_psci_switches_off_and_resets(boot: Callable[..., Guest]) -> None:
    off = boot("end").vcpu.run()
    assert isinstance(off, SystemEvent)
    assert off.type == SystemEvent.SHUTDOWN
    guest = boot(words("52800120 72b08000 d4000002 14000000"))  # SYSTEM_RESET
    reset = guest.vcpu.run()
    assert isinstance(reset, SystemEvent)
    assert reset.type == SystemEvent.RESET
    assert "SystemEvent(type=0x2" in guest.vcpu.last_exits[0]
    # the vCPU is a new processor again
    init = guest.vm.get_preferred_target()  # type: ignore[attr-defined]
    init.set_feature(VcpuInit.PSCI_0_2)
    guest.vcpu.vcpu_init(init)
    setup_boot(guest.vcpu, ENTRY)
    assert isinstance(guest.vcpu.run(), SystemEvent)
    assert guest.vcpu.get_one_reg(PSCI_VERSION) >= 1 << 16


def test_psci_starts_another_processor(boot: Callable[..., Guest]) -> None:
    # CPU_ON of processor 1 at 0x2000 with 77; str x0,[x1]; b .
    on = words("52800060 72b88000 d2800021 d2840002 d28009a3 d4000002") + ARM_AT_MMIO + words("f9000020 14000000")
    guest = boot(on, vcpus=2)
    second = ARM_AT_MMIO + words("f9000820 d53800a0 f9000c20 14000000")  # x0 and MPIDR_EL1
    put(guest.memory, 0x2000, second)
    guest.vcpus[1].set_mp_state(MpState.STOPPED)
    seen: dict[int, int] = {}

    def handler(vcpu: VcpuFd, exit_: VcpuExit) -> bool:
        if isinstance(exit_, MmioWrite):
            seen[exit_.addr - MMIO] = number(exit_)
        return len(seen) == 3

    with RunControl(guest.vcpus, handler) as control:
        control.start()
        control.join(timeout=20)
    assert seen[0] == 0, "PSCI's success"
    assert (seen[16], affinity(seen[24])) == (77, 1)


def test_what_the_processor_does_not_describe_is_refused_or_ours(boot: Callable[..., Guest]) -> None:
    guest = boot(ARM_AT_MMIO + PAIR + ARM_END)
    with pytest.raises(KvmError, match=r"enable Cap\.ARM_NISV_TO_USER") as caught:
        guest.vcpu.run()
    assert caught.value.errno == errno.ENOSYS
    assert f"pc {ENTRY + 8:016x}" in crash_report(guest.vcpu)

    guest = boot(ARM_AT_MMIO + PAIR + ARM_END)
    assert guest.vm.check_extension(Cap.ARM_NISV_TO_USER)
    guest.vm.enable_cap(Cap.ARM_NISV_TO_USER)
    exit_ = guest.vcpu.run()
    assert isinstance(exit_, ArmNisv)
    assert exit_.fault_ipa == MMIO
    # the VMM may do the work of the instruction itself and go on behind it
    guest.vcpu.set_one_reg(core("regs", 2), 0x11)
    guest.vcpu.set_one_reg(core("pc"), ENTRY + 12)
    assert ended(guest.vcpu.run())


def test_an_abort_is_given_to_the_guest(boot: Callable[..., Guest]) -> None:
    guest = boot(TO_VECTORS + ARM_AT_MMIO + PAIR + ARM_END)
    put(guest.memory, VECTORS + 0x200, REPORT)
    guest.vm.enable_cap(Cap.ARM_NISV_TO_USER)
    assert isinstance(guest.vcpu.run(), ArmNisv)
    assert guest.vm.check_extension(Cap.ARM_INJECT_EXT_DABT)
    events = guest.vcpu.get_vcpu_events()
    events.exception.ext_dabt_pending = 1
    guest.vcpu.set_vcpu_events(events)
    syndrome, address = (number(guest.vcpu.run()) & 0xFFFFFFFF for _ in range(2))
    assert syndrome >> 26 == 0x25, "a data abort without a change of level"
    assert syndrome & 0x3F == 0x10, "of an external kind"
    assert address == MMIO


def test_a_vcpu_is_no_processor_before_vcpu_init(kvm: Kvm) -> None:
    with kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        for call in (vcpu.run, vcpu.get_reg_list, lambda: vcpu.get_one_reg(core("pc"))):
            with pytest.raises(KvmError, match="call vcpu_init first") as caught:
                call()
            assert caught.value.errno == errno.ENOEXEC
        assert "registers cannot be read" in crash_report(vcpu)


def test_a_vcpu_with_vectors_is_settled_first(kvm: Kvm) -> None:
    if not kvm.check_extension(Cap.ARM_SVE):
        pytest.skip("this host's processors have no SVE")
    from pyvmm_kvm.aarch64.state import VcpuState

    vm: Any = kvm.create_vm()
    vcpu, other = vm.create_vcpu(0), vm.create_vcpu(1)
    init = vm.get_preferred_target()
    init.set_feature(VcpuInit.SVE)
    vcpu.vcpu_init(init)
    with pytest.raises(KvmError, match="call vcpu_finalize first"):
        vcpu.run()
    vcpu.vcpu_finalize(VcpuInit.SVE)
    from pyvmm_kvm.aarch64.registers import sve_z

    vcpu.set_one_reg(sve_z(3), 0x77)
    assert VcpuState.save(vcpu, init).restore(other) == []
    assert other.get_one_reg(sve_z(3)) & 0xFF == 0x77
    for fd in (vcpu, other, vm):
        fd.close()


def test_addresses_have_as_many_bits_as_are_asked_for(kvm: Kvm) -> None:
    limit = kvm.get_host_ipa_limit()  # type: ignore[attr-defined]
    assert 32 <= limit <= 52
    with mmap.mmap(-1, 0x1000) as memory, kvm.create_vm_with_ipa_size(32) as vm:
        vm.set_user_memory_region(0, (1 << 32) - 0x1000, memory)
        with pytest.raises(KvmError, match="create_vm_with_ipa_size says how many bits"):
            vm.set_user_memory_region(1, 1 << 32, memory)
        vm.set_user_memory_region(0, 0, None)
    for size in (31, limit + 1):
        with pytest.raises(KvmError, match=r"32 to get_host_ipa_limit\(\) bits"):
            kvm.create_vm_with_ipa_size(size)


def test_a_gic_that_the_host_lacks_says_what_to_take(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        with pytest.raises(KvmError, match="no in-kernel GIC"):
            vm.set_irq_line(irq_number(IRQ_TYPE_SPI, 40), True)
        with pytest.raises(KvmError, match="this host's KVM has no device of that type"):
            vm.create_device(DeviceFd.RISCV_AIA)
        try:
            VgicV2(vm, 0x8000000, 0x8010000).close()
        except KvmError as error:
            assert "a GICv2 needs a host" in error.cause  # noqa: PT017 - most hosts of today lack it
            with pytest.raises(KvmError, match=r"make an aarch64\.platform\.VgicV3 instead"):
                vm.create_irq_chip()


def test_a_gic_is_complete_before_the_first_run(kvm: Kvm) -> None:
    vm: Any = kvm.create_vm()
    from pyvmm_kvm.aarch64.platform import VgicV3

    gic = VgicV3(vm, 0x8000000, 0x80A0000, 1)
    vcpu = vm.create_vcpu(0)
    vcpu.vcpu_init(vm.get_preferred_target())
    with pytest.raises(KvmError, match=r"call its init\(\) when all vCPUs are created"):
        vcpu.run()
    for fd in (gic, vcpu, vm):
        fd.close()
    # some kernels are done with such a VM for good
    vm = kvm.create_vm()
    gic = VgicV3(vm, 0x8000000, 0x80A0000, 1)
    vcpu = vm.create_vcpu(0)
    gic.init()
    assert gic.get_nr_irqs() >= 64
    with pytest.raises(KvmError, match="create all vCPUs before its init"):
        vm.create_vcpu(1)
    for fd in (gic, vcpu, vm):
        fd.close()


def test_lines_and_eventfds_reach_the_gic(kvm: Kvm) -> None:
    guest = Machine(kvm)
    where = affinity(guest.vcpu.get_one_reg(MPIDR_EL1))
    guest.gic.set_dist_reg(0xC08, 2 << 16)  # interrupt 40 is an edge
    guest.vm.set_irq_line(irq_number(IRQ_TYPE_SPI, 41), True)
    guest.vm.set_irq_line(irq_number(IRQ_TYPE_PPI, 20), True)
    assert guest.gic.get_levels(32) == 1 << 9
    assert guest.gic.get_levels(0, where) == 1 << 20
    with pytest.raises(KvmError, match="not one that irq_number makes"):
        guest.vm.set_irq_line(irq_number(IRQ_TYPE_SPI, 1019), True)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    guest.vm.register_irqfd(event, 8)  # of the shared ones
    os.eventfd_write(event, 1)
    for _ in range(2000):
        if guest.gic.get_dist_reg(0x204):
            break
        time.sleep(0.001)
    assert guest.gic.get_dist_reg(0x204) == 1 << 8
    guest.vm.unregister_irqfd(event, 8)
    os.close(event)
    guest.close()


def test_a_waiting_guest_is_woken_by_its_timer_or_kicked(kvm: Kvm) -> None:
    ticking = Machine.ticking(kvm)
    assert [number(ticking.vcpu.run()) for _ in range(3)] == [1, 2, 3]
    ticking.close()
    # the same guest with its interrupts masked waits for ever
    masked = Machine(kvm, TICKING.replace(words("d50342ff"), words("d503201f")))
    masked.vcpu.set_timer_irq(27)
    with RunControl([masked.vcpu], lambda vcpu, exit_: isinstance(exit_, Intr)) as control:
        control.start()
        time.sleep(0.2)
        control.kick()
        control.join(timeout=10)
    assert control.ended_by is not None
    masked.close()


def test_without_a_gic_the_timer_is_on_the_run_page(boot: Callable[..., Guest]) -> None:
    guest = boot("count")
    guest.vcpu.set_one_reg(sys_reg(3, 3, 14, 3, 1), 1)  # CNTV_CTL_EL0: on; its value is 0, long past
    for _ in range(3):
        guest.vcpu.run()
    assert guest.vcpu.sync_regs().device_irq_level & 1, "KVM_ARM_DEV_EL1_VTIMER"


def test_a_performance_monitor_is_switched_on(kvm: Kvm) -> None:
    if not kvm.check_extension(Cap.ARM_PMU_V3):
        pytest.skip("this host's guests have no performance monitor")
    guest = Machine(kvm)
    init = guest.vm.get_preferred_target()
    init.set_feature(VcpuInit.PMU_V3)
    vm: Any = kvm.create_vm()
    vcpu = vm.create_vcpu(0)
    vcpu.vcpu_init(init)
    vcpu.init_pmu()
    assert vcpu.has_device_attr(0, 1)
    assert not guest.vcpu.has_device_attr(0, 1), "of another vCPU, which was made without one"
    for fd in (vcpu, vm):
        fd.close()
    guest.close()


def test_registers_by_their_names(boot: Callable[..., Guest]) -> None:
    vcpu = boot("end").vcpu
    for register, value in ((core("regs", 30), 1 << 63), (core("vregs", 31), 1 << 127), (core("fpcr"), 1 << 24)):
        vcpu.set_one_reg(register, value)
        assert vcpu.get_one_reg(register) == value
    assert vcpu.get_one_reg(core("pc")) == ENTRY
    assert affinity(vcpu.get_one_reg(MPIDR_EL1)) == 0
    before = vcpu.get_one_reg(TIMER_CNT)
    assert vcpu.get_one_reg(TIMER_CNT) >= before > 0
    known = vcpu.get_reg_list()
    assert {core("pc"), core("vregs", 0), MPIDR_EL1} <= set(known)
    for register in known:
        vcpu.get_one_reg(register)
    with pytest.raises(KvmError, match="KVM_GET_ONE_REG failed with"):
        vcpu.get_one_reg(core("pc") | 0x800)
    assert struct.calcsize("P") == 8
