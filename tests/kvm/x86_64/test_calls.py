"""The calls of x86 around the exits: processors, run page, states in place."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import (
    IoIn,
    IoOut,
    Kvm,
    KvmError,
    VcpuState,
    VmFd,
    VmState,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Guest


@pytest.mark.kvm
def test_the_system_describes_its_processors(kvm: Kvm) -> None:
    assert kvm.get_emulated_cpuid() is not None
    assert isinstance(kvm.get_mce_cap_supported(), int)
    features = kvm.get_msr_feature_index_list()
    assert set(kvm.get_msrs(features[:2])) == set(features[:2])
    assert "0x" in repr(kvm.get_msr_index_list())
    with pytest.raises(KvmError, match="at most 256"):
        kvm.get_supported_cpuid(257)
    with pytest.raises(KvmError) as caught:
        kvm.get_supported_cpuid(1)
    assert caught.value.errno == errno.E2BIG


@pytest.mark.kvm
def test_states_are_restored_in_place(boot: Callable[..., Guest], kvm: Kvm) -> None:
    def with_chips(vm: VmFd) -> None:
        vm.create_irq_chip()
        vm.create_pit2()

    guest = boot("40 e7 10 eb fb", prepare=with_chips)
    guest.vcpu.run()
    vcpu_state = VcpuState.save(kvm, guest.vm, guest.vcpu)
    vm_state = VmState.save(guest.vm)
    other = boot("40 e7 10 eb fb", prepare=with_chips)
    assert VcpuState.from_bytes(bytes(vcpu_state)).restore(other.vcpu) == []
    VmState.from_bytes(bytes(vm_state)).restore(other.vm)
    assert other.vcpu.get_regs() == guest.vcpu.get_regs()
    assert other.vm.get_irqchip(2) == guest.vm.get_irqchip(2)
    assert "regs 144" in repr(vcpu_state)
    # a register that no kernel knows is named, and the others are written nevertheless
    from pyvmm_kvm import Msrs

    vcpu_state.parts["msrs"] = bytes(Msrs({0xDEAD: 5, 0x174: 6}))
    third = boot("f4", prepare=with_chips)
    assert vcpu_state.restore(third.vcpu) == [0xDEAD]
    assert third.vcpu.get_msrs([0x174])[0x174] == 6


@pytest.mark.kvm
def test_run_page_fields(boot: Callable[..., Guest]) -> None:
    guest = boot("eb fe")
    guest.vcpu.request_interrupt_window = True
    assert guest.vcpu.request_interrupt_window
    guest.vcpu.request_interrupt_window = False
    guest.vcpu.set_kvm_immediate_exit(1)
    guest.vcpu.run()
    assert guest.vcpu.ready_for_interrupt_injection in (True, False)
    assert not guest.vcpu.if_flag


@pytest.mark.kvm
def test_string_input_has_one_exit_and_one_view(boot: Callable[..., Guest]) -> None:
    # mov di,0x2000; mov cx,4; mov dx,0x20; cld; rep insw; hlt
    guest = boot("bf 00 20 b9 04 00 ba 20 00 fc f3 6d f4")
    exit_ = guest.vcpu.run()
    assert isinstance(exit_, IoIn)
    size = len(exit_.data)
    assert exit_.size == 2
    exit_.data[:] = bytes(range(size))
    guest.vcpu.run()
    assert guest.memory[0x2000 : 0x2000 + size] == bytes(range(size))


@pytest.mark.kvm
def test_registers_without_a_system_call(boot: Callable[..., Guest]) -> None:
    # out 0x10,al; inc ax; out 0x10,al; hlt
    guest = boot("e6 10 40 e6 10 f4")
    vcpu = guest.vcpu
    vcpu.set_sync_valid_reg(vcpu.SYNC_REGS, vcpu.SYNC_SREGS)
    vcpu.run()
    regs, sregs, _ = vcpu.sync_regs()
    assert regs.rip in (0x1000, 0x1002)
    assert sregs.mode == "real"
    regs.rax = 0x41
    vcpu.set_sync_dirty_reg(vcpu.SYNC_REGS)
    exit_ = vcpu.run()
    assert isinstance(exit_, IoOut)
    assert bytes(exit_.data) == b"\x42"
    vcpu.clear_sync_dirty_reg(vcpu.SYNC_REGS)
    vcpu.clear_sync_valid_reg(vcpu.SYNC_REGS)
