"""What is easy to get wrong about KVM, continued: sizes, order of creation, filters, lifetimes, closed descriptors."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import (
    Cap,
    CpuId,
    CpuIdEntry,
    Hlt,
    IoOut,
    Kvm,
    KvmError,
    MsrFilterRange,
    Regs,
)

from ..checks import check_closed, code_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Guest

pytestmark = pytest.mark.kvm


# the order of things


def test_the_order_of_creation_is_enforced_with_its_cure(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        # Linux 6.1 makes a PIT without a PIC
        try:
            vm.create_pit2()
        except KvmError as error:
            assert "create_irq_chip" in error.cause  # noqa: PT017 - one of two right answers
        with vm.create_vcpu(0):
            with pytest.raises(KvmError, match=r"before the first vCPU|create the irqchip first"):
                vm.create_irq_chip()
            with pytest.raises(KvmError, match="before the first vCPU"):
                vm.set_identity_map_address(0xFFFBC000)
            with pytest.raises(KvmError, match="exists"):
                vm.create_vcpu(0)
            with pytest.raises(KvmError, match="max_vcpu_id"):
                vm.create_vcpu(kvm.get_max_vcpu_id())
    with kvm.create_vm() as vm:
        vm.create_irq_chip()
        with pytest.raises(KvmError, match="exists"):
            vm.create_irq_chip()
        vm.create_pit2()
        with pytest.raises(KvmError, match="a PIT exists"):
            vm.create_pit2()


def test_the_split_irqchip_leaves_the_ioapic_to_us(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        vm.enable_cap(Cap.SPLIT_IRQCHIP, 24)
        assert code_of(lambda: vm.get_irqchip(2)) == errno.ENXIO
        with vm.create_vcpu(0) as vcpu:
            assert vcpu.get_lapic().get_reg(0x30) & 0xFF


# MSR filters: what they deny comes to us only with the capability, and unhandled accesses fault


def test_an_msr_access_that_nobody_handles_faults_in_the_guest(boot: Callable[..., Guest]) -> None:
    # mov ecx,0x174; rdmsr; hlt. The handler of #GP: out 0x66,al
    guest = boot("66 b9 74 01 00 00 0f 32 f4")
    guest.memory[0x1100:0x1102] = bytes.fromhex("e666")
    guest.memory[13 * 4 : 13 * 4 + 4] = struct.pack("<HH", 0x1100, 0)
    regs = guest.vcpu.get_regs()
    regs.rsp = 0x8000
    guest.vcpu.set_regs(regs)
    guest.vm.enable_cap(Cap.X86_USER_SPACE_MSR, 4)
    guest.vm.set_msr_filter(False, [MsrFilterRange(3, 0x175, 1, b"\1")])
    exit_ = guest.vcpu.run()
    assert type(exit_).__name__ == "X86Rdmsr"
    exit_.error = 1
    answer = guest.vcpu.run()
    assert isinstance(answer, IoOut)
    assert answer.port == 0x66


# saved blocks of other kernels load


def test_blocks_of_another_length_load() -> None:
    whole = bytes(Regs(rax=1, rflags=2))
    assert Regs.from_bytes(whole[:8]) == Regs(rax=1)
    assert Regs.from_bytes(whole + b"more") == Regs(rax=1, rflags=2)


# beyond: a closed descriptor makes no system call


@pytest.mark.parametrize("name", ["get_regs", "get_sregs", "get_lapic", "nmi", "get_mp_state", "run"])
def test_a_closed_vcpu_makes_no_system_call(boot: Callable[..., Guest], name: str) -> None:
    check_closed(boot("f4"), name)


def test_a_cpuid_table_survives_the_kernel(boot: Callable[..., Guest], kvm: Kvm) -> None:
    vcpu = boot("f4").vcpu
    table = kvm.get_supported_cpuid()
    table.retain(lambda entry: entry.function < 0x40000000)
    table.append(CpuIdEntry(0x4000_00AA, eax=0x1234))
    vcpu.set_cpuid2(table)
    assert vcpu.get_cpuid2().leaf(0x4000_00AA).eax == 0x1234
    assert isinstance(vcpu.get_cpuid2(), CpuId)


def test_the_task_priority_goes_through_the_run_page(boot: Callable[..., Guest]) -> None:
    guest = boot("f4 f4")
    guest.vcpu.cr8 = 5
    assert isinstance(guest.vcpu.run(), Hlt)
    assert guest.vcpu.get_sregs().cr8 == guest.vcpu.cr8 == 5
    # enabled, and the boot processor
    assert guest.vcpu.apic_base == guest.vcpu.get_sregs().apic_base
