"""The calls that every VMM makes, around the exits: system, slots, run page, states in place, run control."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import threading
from typing import TYPE_CHECKING

import pytest

import pyvmm_kvm
from pyvmm_kvm import (
    Cap,
    ClosedError,
    Fpu,
    Intr,
    IoEventAddress,
    IoIn,
    IoOut,
    Kvm,
    KvmError,
    MsrError,
    RunControl,
    VcpuExit,
    VcpuFd,
    VcpuState,
    VmFd,
    VmState,
    crash_report,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Guest


@pytest.mark.kvm
def test_the_system_describes_itself(kvm: Kvm) -> None:
    assert kvm.get_api_version() == 12
    assert kvm.check_extension(Cap.USER_MEMORY)
    assert not kvm.check_extension(99999)
    assert 0 < kvm.get_nr_vcpus() <= kvm.get_max_vcpus() <= kvm.get_max_vcpu_id()
    assert kvm.get_nr_memslots() >= 32
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
    with kvm.create_vm() as vm, kvm.create_vmfd_from_rawfd(os.dup(vm.fileno())) as again:
        assert again.check_extension(Cap.IRQCHIP)
        assert again.run_size() == vm.run_size()


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
def test_doctor_in_process(capsys: pytest.CaptureFixture[str]) -> None:
    from pyvmm_kvm.__main__ import main

    assert main([]) == 0
    assert "USER_MEMORY" in capsys.readouterr().out
    assert main(["--json"]) == 0


@pytest.mark.kvm
def test_run_page_fields(boot: Callable[..., Guest]) -> None:
    guest = boot("eb fe")
    guest.vcpu.set_signal_mask([signal.SIGUSR1])
    guest.vcpu.set_signal_mask(None)
    guest.vcpu.request_interrupt_window = True
    assert guest.vcpu.request_interrupt_window
    guest.vcpu.request_interrupt_window = False
    guest.vcpu.set_kvm_immediate_exit(1)
    guest.vcpu.run()
    assert guest.vcpu.last_exits == ["KVM_RUN returned EINTR"]
    assert guest.vcpu.ready_for_interrupt_injection in (True, False)
    assert not guest.vcpu.if_flag
    assert len(guest.vcpu.get_kvm_run()) == guest.vm.run_size()
    assert "1 exits" in repr(guest.vcpu)
    assert "vCPU 0 after 1 exits" in crash_report(guest.vcpu)
    guest.vcpu.close()
    assert "cannot be read" in crash_report(guest.vcpu)
    assert guest.vcpu.last_exits == ["KVM_RUN returned EINTR"]
    assert "closed" in repr(guest.vcpu)
    with guest.vm.create_vcpu(7) as made, guest.vm.create_vcpu_from_rawfd(os.dup(made.fileno()), 7) as taken:
        assert taken.id == 7


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
def test_a_slot_is_deleted_and_read_only_ones_take_bytes(kvm: Kvm) -> None:
    import mmap

    memory = mmap.mmap(-1, 4096)
    with kvm.create_vm() as vm:
        slot = vm.set_user_memory_region(0, 0, memory)
        assert "[0x0, 0x1000)" in repr(slot)
        assert vm.set_user_memory_region(0, 0, None) is None
        memory.close()
        with pytest.raises(KvmError, match="multiples of the page size"):
            vm.set_user_memory_region(0, 0, bytearray(100))
        with pytest.raises(KvmError):
            vm.set_user_memory_region(0, 0, b"ro", pyvmm_kvm.MEM_READONLY)
        with pytest.raises((BufferError, TypeError)):
            vm.set_user_memory_region(0, 0, b"ro")

        class Region:
            def __init__(self) -> None:
                self.memory = mmap.mmap(-1, 4096)

            def __buffer__(self, flags: int) -> memoryview:
                return memoryview(self.memory)

        region = Region()
        assert vm.set_user_memory_region(1, 0x1000, region) is not None
    region.memory.close()


def test_errors_travel_and_names_compare() -> None:
    for error in (KvmError(17, "KVM_CREATE_VCPU"), ClosedError("VmFd", "KVM_RUN"), MsrError("KVM_SET_MSRS", 5, 1)):
        copy = pickle.loads(pickle.dumps(error))
        assert str(copy) == str(error)
    assert IoEventAddress.Pio(1) == IoEventAddress.Pio(1) != IoEventAddress.Mmio(1)
    assert len({IoEventAddress.Pio(1), IoEventAddress.Pio(1)}) == 1
    assert repr(IoEventAddress.Mmio(16)) == "IoEventAddress.Mmio(0x10)"
    with pytest.raises(TypeError, match="say IoEventAddress"):
        IoEventAddress(1)
    with pytest.raises(AttributeError):
        pyvmm_kvm.nothing  # noqa: B018 - asking is what is tested
    assert set(pyvmm_kvm.__all__) <= set(dir(pyvmm_kvm))
    for name in pyvmm_kvm.__all__:
        assert getattr(pyvmm_kvm, name) is not None
    assert Cap.name_of(0) == "IRQCHIP"
    fpu = Fpu()
    fpu.xmm[:] = bytes(range(256))
    assert fpu.xmm[255] == 255


@pytest.mark.kvm
def test_forgotten_descriptors_warn(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    with pytest.warns(ResourceWarning, match="unclosed <VmFd"):
        del vm


@pytest.mark.kvm
def test_on_end_and_states_of_run_control(boot: Callable[..., Guest]) -> None:
    guest = boot("e6 10 eb fc")
    ended = []
    control = RunControl([guest.vcpu], lambda vcpu, exit_: None, on_end=lambda: ended.append(1))
    assert control.state == "new"
    control.start(paused=True)
    control.pause(timeout=5)
    assert control.state == "paused"
    assert guest.vcpu.exits == 0
    control.resume()
    control.stop()
    control.pause()
    control.join(timeout=5)
    assert control.state == "stopped"
    assert ended == [1]
    assert control.vcpus == [guest.vcpu]


@pytest.mark.kvm
def test_a_handler_may_pause_its_own_vcpu(boot: Callable[..., Guest]) -> None:
    guest = boot("e6 10 eb fc")

    def handler(vcpu: VcpuFd, exit_: VcpuExit) -> None:
        control.pause()

    control = RunControl([guest.vcpu], handler)
    with control:
        control.start()
        while control.state != "paused":
            pass
        assert guest.vcpu.exits == 2
        assert isinstance(exit_type := guest.vcpu.last_exits[-1], str)
        assert exit_type == "KVM_RUN returned EINTR"
    assert Intr.reason == 10


@pytest.mark.kvm
def test_an_exception_leaves_with_by_the_with_block(boot: Callable[..., Guest]) -> None:
    guest = boot("e6 10 eb fc")

    def handler(vcpu: VcpuFd, exit_: VcpuExit) -> None:
        raise LookupError("inside")

    reached = threading.Event()

    def failing(vcpu: VcpuFd, exit_: VcpuExit) -> None:
        reached.set()
        handler(vcpu, exit_)

    def block() -> None:
        with RunControl([guest.vcpu], failing) as control:
            control.start()
            reached.wait(5)

    with pytest.raises(LookupError, match="inside"):
        block()


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
