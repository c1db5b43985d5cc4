"""The rarer calls of x86: each has its effect here, or the exact refusal of a kernel without the feature.

What this kernel may lack as a whole (Xen, Hyper-V, SEV, nested guests) is checked byte for byte against linux/kvm.h.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import (
    MEM_GUEST_MEMFD,
    Cap,
    CpuId,
    CpuIdEntry,
    Hlt,
    IoOut,
    IrqWindowOpen,
    Kvm,
    KvmError,
    MpState,
    VcpuFd,
    VmFd,
    setup_real_mode,
)
from pyvmm_kvm.x86_64 import registers

from ..recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Guest

kvm_only = pytest.mark.kvm


# what a kernel says of a call of a vCPU that it does not know at all, depending on its version
UNKNOWN = (errno.ENOTTY, errno.EINVAL)


def refused(number: int | tuple[int, ...], call: Callable[[], object]) -> KvmError:
    """The call fails with this errno, or one of these, and says which ioctl it was."""
    with pytest.raises(KvmError) as caught:
        call()
    assert caught.value.errno in (number if isinstance(number, tuple) else (number,)), caught.value
    assert caught.value.ioctl.startswith("KVM_")
    return caught.value


@kvm_only
def test_the_guest_runs_from_a_guest_memfd(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        if not vm.check_extension(Cap.GUEST_MEMFD):
            refused(errno.ENOTTY, lambda: vm.create_guest_memfd(4096))
            pytest.skip("this kernel has no guest_memfd")
        refused(errno.EINVAL, lambda: vm.create_guest_memfd(4095))
        if vm.check_extension_raw(Cap.GUEST_MEMFD_FLAGS) & 3 != 3:
            pytest.skip("this kernel's guest_memfd cannot be mapped by the host")
        private = vm.create_guest_memfd(0x4000, 3)
        window = mmap.mmap(private, 0x4000)
        # mov al,0x5a; mov [0x2000],al; out 0x10,al; hlt
        window[0x1000:0x1008] = bytes.fromhex("b05aa20020e610f4")
        slot = vm.set_user_memory_region(3, 0, window, guest_memfd=private)
        assert slot is not None
        assert slot.flags == MEM_GUEST_MEMFD
        # the same part of it cannot lie at two addresses
        refused(errno.EINVAL, lambda: vm.set_user_memory_region2(4, 0x10000, window, 0, private))
        os.close(private)
        with vm.create_vcpu(0) as vcpu:
            setup_real_mode(vcpu, 0x1000)
            exit_ = vcpu.run()
            assert isinstance(exit_, IoOut)
            assert bytes(exit_.data) == b"\x5a"
            assert window[0x2000] == 0x5A
            assert isinstance(vcpu.run(), Hlt)
        vm.set_user_memory_region(3, 0, None)
        refused(errno.EINVAL, lambda: vm.set_user_memory_region2(3, 0, window, 0, 0))
        assert vm.memory_slots == {}
    window.close()


@kvm_only
def test_external_interrupts_are_injected_by_hand(boot: Callable[..., Guest]) -> None:
    # sti; jmp $
    guest = boot("fb eb fe")
    # the handler of vector 0x20: out 0x55,al; iret
    guest.memory[0x1100:0x1103] = bytes.fromhex("e655cf")
    guest.memory[0x80:0x84] = struct.pack("<HH", 0x1100, 0)
    regs = guest.vcpu.get_regs()
    regs.rsp = 0x8000
    guest.vcpu.set_regs(regs)
    refused(errno.EINVAL, lambda: guest.vcpu.interrupt(0x120))
    guest.vcpu.request_interrupt_window = True
    assert isinstance(guest.vcpu.run(), IrqWindowOpen)
    assert guest.vcpu.ready_for_interrupt_injection
    assert guest.vcpu.if_flag
    guest.vcpu.request_interrupt_window = False
    guest.vcpu.interrupt(0x20)
    exit_ = guest.vcpu.run()
    assert isinstance(exit_, IoOut)
    assert exit_.port == 0x55
    with_chip = boot("f4", prepare=lambda vm: vm.create_irq_chip())
    refused(errno.ENXIO, lambda: with_chip.vcpu.interrupt(0x20))


@kvm_only
def test_interrupt_lines_reach_the_pic(boot: Callable[..., Guest]) -> None:
    bare = boot("f4")
    for call in (lambda: bare.vm.set_irq_line(4, True), lambda: bare.vm.irq_line_status(4, True)):
        refused(errno.ENXIO, call)
    refused(errno.ENXIO, lambda: bare.vm.get_irqchip(0))
    refused(errno.EINVAL, bare.vcpu.get_lapic)
    guest = boot("f4", prepare=lambda vm: vm.create_irq_chip())
    chip = guest.vm.get_irqchip(0)
    pic = chip.pic
    pic.imr, pic.irq_base = 0, 0x20
    chip.pic = pic
    guest.vm.set_irqchip(chip)
    guest.vm.set_irq_line(4, True)
    assert guest.vm.get_irqchip(0).pic.irr >> 4 & 1
    guest.vm.set_irq_line(4, False)
    assert guest.vm.irq_line_status(5, True) >= 0
    assert guest.vm.get_irqchip(0).pic.irr >> 5 & 1
    refused(errno.EINVAL, lambda: guest.vm.get_irqchip(3))


@kvm_only
def test_machine_checks_land_in_their_bank(boot: Callable[..., Guest], kvm: Kvm) -> None:
    guest = boot("f4")
    offered = kvm.get_mce_cap_supported()
    refused(errno.EINVAL, lambda: guest.vcpu.setup_mce(33))
    guest.vcpu.setup_mce(offered & ~0xFF | 4)
    valid, misc_valid, addr_valid = 1 << 63, 1 << 59, 1 << 58
    guest.vcpu.set_mce(2, valid | misc_valid | addr_valid | 0x9F, addr=0x1234000, misc=0x86)
    bank = guest.vcpu.get_msrs([0x401 + 4 * 2, 0x402 + 4 * 2, 0x403 + 4 * 2])
    assert list(bank.values()) == [valid | misc_valid | addr_valid | 0x9F, 0x1234000, 0x86]
    refused(errno.EINVAL, lambda: guest.vcpu.set_mce(4, valid))


@kvm_only
def test_kvmclock_tells_the_guest_that_it_was_stopped(boot: Callable[..., Guest]) -> None:
    guest = boot("f4 f4")
    refused(errno.EINVAL, guest.vcpu.kvmclock_ctrl)
    # MSR_KVM_SYSTEM_TIME_NEW: the clock page at 0x2000
    guest.vcpu.set_msrs({0x4B564D01: 0x2000 | 1})
    assert isinstance(guest.vcpu.run(), Hlt)
    guest.vcpu.kvmclock_ctrl()
    assert isinstance(guest.vcpu.run(), Hlt)
    # struct pvclock_vcpu_time_info.flags, PVCLOCK_GUEST_STOPPED
    assert guest.memory[0x2000 + 29] & 2


@kvm_only
def test_one_register_is_the_msr_of_that_number(boot: Callable[..., Guest], kvm: Kvm) -> None:
    vcpu = boot("f4").vcpu
    sysenter_cs = registers.msr(0x174)
    if not kvm.check_extension(Cap.ONE_REG):
        refused(UNKNOWN, lambda: vcpu.get_one_reg(sysenter_cs))
        pytest.skip("this kernel has no registers by number on x86")
    vcpu.set_one_reg(sysenter_cs, 0x1238)
    assert vcpu.get_one_reg(sysenter_cs) == vcpu.get_msrs([0x174])[0x174] == 0x1238
    refused(errno.EINVAL, lambda: vcpu.get_one_reg(registers.msr(0xDEAD)))
    refused(errno.EINVAL, lambda: vcpu.set_one_reg(registers.kvm(9), 1))
    # MSRs are not listed (kvm/api.rst, KVM_GET_REG_LIST); what is, can be read
    for register in vcpu.get_reg_list():
        vcpu.get_one_reg(register)


@kvm_only
def test_tsc_frequency_and_offset(boot: Callable[..., Guest], kvm: Kvm) -> None:
    guest = boot("f4")
    host = guest.vcpu.get_tsc_khz()
    assert host > 100_000
    guest.vcpu.set_tsc_khz(0)
    assert guest.vcpu.get_tsc_khz() == host == guest.vm.get_tsc_khz()
    if not kvm.check_extension(Cap.TSC_CONTROL):
        refused(errno.EINVAL, lambda: guest.vcpu.set_tsc_khz(host // 2))
    if not guest.vm.check_extension(Cap.VM_TSC_CONTROL):
        # older kernels take the number nevertheless, for vCPUs to come, and refuse it for each of them
        try:
            guest.vm.set_tsc_khz(host // 2)
        except KvmError as error:
            assert error.errno == errno.EINVAL  # noqa: PT017 - one of two right answers
    # group KVM_VCPU_TSC_CTRL, attribute KVM_VCPU_TSC_OFFSET
    assert guest.vcpu.has_device_attr(0, 0)
    assert not guest.vcpu.has_device_attr(0, 9)
    guest.vcpu.set_device_attr(0, 0, bytearray(struct.pack("<Q", 1 << 50)))
    # KVM-PVM runs guests at the host's counter and drops the offset
    kept = 0 if os.path.exists("/sys/module/kvm_pvm") else 1 << 50
    assert guest.vcpu.get_device_attr(0, 0) == struct.pack("<Q", kept)
    assert not guest.vm.has_device_attr(99, 0)
    refused(errno.ENXIO, lambda: guest.vcpu.get_device_attr(0, 9))


@kvm_only
def test_system_attributes_describe_extended_state(kvm: Kvm) -> None:
    assert kvm.has_device_attr(0, 0) == kvm.check_extension(Cap.SYS_ATTRIBUTES)
    if kvm.has_device_attr(0, 0):
        # KVM_X86_XCOMP_GUEST_SUPP: x87 and SSE are always among them where there is XSAVE
        expected = 3 if " xsave " in Path("/proc/cpuinfo").read_text() else 0
        assert kvm.get_device_attr(0, 0)[0] & 3 == expected
    assert not kvm.has_device_attr(0, 77)


@kvm_only
def test_limits_and_filters(boot: Callable[..., Guest]) -> None:
    guest = boot("f4")
    guest.vm.set_nr_mmu_pages(64)
    refused(errno.EINVAL, lambda: guest.vm.set_nr_mmu_pages(1))
    guest.vm.set_pmu_event_filter(0, [0xC0, 0xC2], fixed_counters=1)
    refused(errno.EINVAL, lambda: guest.vm.set_pmu_event_filter(7, [0xC0]))
    refused(errno.E2BIG, lambda: guest.vm.set_pmu_event_filter(0, range(301)))
    refused(errno.ENXIO, lambda: guest.vm.reinject_control(False))
    refused(errno.EINVAL, lambda: guest.vcpu.enable_cap(9999))
    refused(errno.EBUSY, lambda: guest.vm.set_boot_cpu_id(0))
    assert guest.vcpu.get_mp_state().mp_state == MpState.RUNNABLE


@kvm_only
def test_smi_is_pending_or_the_kernel_lacks_it(boot: Callable[..., Guest], kvm: Kvm) -> None:
    vcpu = boot("f4").vcpu
    if kvm.check_extension(Cap.X86_SMM):
        vcpu.smi()
        assert vcpu.get_vcpu_events().smi.pending
    else:
        refused(errno.ENOTTY, vcpu.smi)


@kvm_only
def test_tpr_shadow_needs_the_in_kernel_lapic(boot: Callable[..., Guest]) -> None:
    bare = boot("f4")
    refused(errno.EINVAL, lambda: bare.vcpu.set_vapic_addr(0x2000))
    guest = boot("f4", prepare=lambda vm: vm.create_irq_chip())
    guest.vcpu.set_vapic_addr(0x2000)
    guest.vcpu.set_tpr_access_reporting(True)
    guest.vcpu.set_tpr_access_reporting(False)


FEATURES: list[tuple[int, int | tuple[int, ...], Callable[[VmFd, VcpuFd], object]]] = [
    (Cap.MEMORY_ATTRIBUTES, errno.ENOTTY, lambda vm, vcpu: vm.set_memory_attributes(0, 4096, 1 << 3)),
    (Cap.XEN_HVM, errno.ENOTTY, lambda vm, vcpu: vm.xen_hvm_config(0)),
    (Cap.XEN_HVM, errno.ENOTTY, lambda vm, vcpu: vm.xen_hvm_get_attr(4)),
    (Cap.XEN_HVM, errno.ENOTTY, lambda vm, vcpu: vm.xen_hvm_set_attr(4, b"\x04\0\0\0")),
    (Cap.XEN_HVM, errno.ENOTTY, lambda vm, vcpu: vm.xen_hvm_evtchn_send(1, 0)),
    (Cap.XEN_HVM, errno.EINVAL, lambda vm, vcpu: vcpu.xen_get_attr(0)),
    (Cap.XEN_HVM, errno.EINVAL, lambda vm, vcpu: vcpu.xen_set_attr(0, bytes(8))),
    (Cap.HYPERV_EVENTFD, errno.ENOTTY, lambda vm, vcpu: vm.hyperv_eventfd(1, 0, remove=True)),
    (Cap.HYPERV_CPUID, errno.EINVAL, lambda vm, vcpu: vcpu.get_supported_hv_cpuid()),
    (Cap.HYPERV_SYNIC, errno.EINVAL, lambda vm, vcpu: vcpu.enable_cap(Cap.HYPERV_SYNIC)),
    (Cap.NESTED_STATE, errno.EINVAL, lambda vm, vcpu: vcpu.get_nested_state(4096)),
    (Cap.NESTED_STATE, errno.EINVAL, lambda vm, vcpu: vcpu.set_nested_state(bytes(128))),
    (Cap.PRE_FAULT_MEMORY, (errno.EOPNOTSUPP, *UNKNOWN), lambda vm, vcpu: vcpu.pre_fault_memory(0, 4096)),
]


@kvm_only
@pytest.mark.parametrize(("cap", "number", "call"), FEATURES)
def test_a_missing_feature_has_one_errno(
    boot: Callable[..., Guest], cap: int, number: int | tuple[int, ...], call: Callable[[VmFd, VcpuFd], object]
) -> None:
    guest = boot("f4")
    if guest.vm.check_extension(cap):
        pytest.skip(f"this kernel has {Cap.name_of(cap)}: the bytes of the call are checked below")
    refused(number, lambda: call(guest.vm, guest.vcpu))


@kvm_only
def test_blocks_have_the_headers_layout(boot: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches the kernel of calls that this one may not have, field by field as linux/kvm.h lays them out."""
    guest = boot("f4")
    recorder = Recorder()
    with monkeypatch.context() as patched:
        recorder.install(patched, VmFd, VcpuFd)
        vm, vcpu = guest.vm, guest.vcpu
        vm.set_memory_attributes(0x1000, 0x2000, 8)
        vm.register_enc_memory_region(0x3000, 0x4000)
        vm.unregister_enc_memory_region(0x3000, 0x4000)
        vm.hyperv_eventfd(5, 6, remove=True)
        vm.xen_hvm_config(2, 0x40000200)
        vm.xen_hvm_set_attr(4, b"\x09\0\0\0")
        vm.xen_hvm_evtchn_send(7, 8, 9)
        vcpu.xen_set_attr(0, struct.pack("<Q", 0x5000))
        assert vm.encrypt_op_sev(3, 0x77, -1) == 0
        assert vcpu.pre_fault_memory(0x6000, 0x1000) == 0x1000

        def fill(_name: str, argument: memoryview) -> int:
            argument[8] = 0x42
            return 0

        recorder.answer = fill
        assert vm.xen_hvm_get_attr(4)[0] == 0x42
        assert vcpu.xen_get_attr(1)[0] == 0x42
    sent = dict(recorder.calls)
    assert sent["KVM_SET_MEMORY_ATTRIBUTES"] == struct.pack("<4Q", 0x1000, 0x2000, 8, 0)
    assert sent["KVM_MEMORY_ENCRYPT_REG_REGION"] == struct.pack("<2Q", 0x3000, 0x4000)
    assert sent["KVM_MEMORY_ENCRYPT_UNREG_REGION"] == struct.pack("<2Q", 0x3000, 0x4000)
    assert sent["KVM_HYPERV_EVENTFD"] == struct.pack("<IiI12x", 5, 6, 1)
    assert sent["KVM_XEN_HVM_CONFIG"] == struct.pack("<II48x", 2, 0x40000200)
    assert sent["KVM_XEN_HVM_SET_ATTR"] == struct.pack("<H6xI60x", 4, 9)
    assert sent["KVM_XEN_HVM_EVTCHN_SEND"] == struct.pack("<3I", 7, 8, 9)
    assert sent["KVM_XEN_VCPU_SET_ATTR"] == struct.pack("<H6xQ56x", 0, 0x5000)
    assert sent["KVM_XEN_HVM_GET_ATTR"][:2] == b"\4\0"
    assert sent["KVM_XEN_VCPU_GET_ATTR"][:2] == b"\1\0"
    assert sent["KVM_MEMORY_ENCRYPT_OP"] == struct.pack("<I4xQII", 3, 0x77, 0, 0xFFFFFFFF)
    assert sent["KVM_PRE_FAULT_MEMORY"] == struct.pack("<3Q40x", 0x6000, 0x1000, 0)


@kvm_only
def test_buffers_are_given_whole_and_read_back(boot: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls with blocks of no fixed size: nested state, SEV commands, Hyper-V leaves."""
    guest = boot("f4")
    seen: list[tuple[str, bytes]] = []
    table = bytes(CpuId([CpuIdEntry(0x40000000, eax=0x40000082)]))

    def answer(fd: object, name: str, argument: object) -> int:
        from pyvmm_kvm._kvm import ffi

        view = memoryview(ffi.buffer(argument)).cast("B")
        seen.append((name, bytes(view)))
        if name == "KVM_GET_NESTED_STATE":
            # the kernel writes how much it used
            view[4:8] = struct.pack("<I", used)
        if name == "KVM_GET_SUPPORTED_HV_CPUID":
            view[: len(table)] = table
        return 0

    monkeypatch.setattr(VcpuFd, "ioctl", answer)
    monkeypatch.setattr(VmFd, "ioctl", answer)
    used = 128
    assert guest.vcpu.get_nested_state(4224) is None
    assert seen[-1][1] == struct.pack("<HHI", 0, 0, 4224) + bytes(4216)
    used = 4224
    state = guest.vcpu.get_nested_state(4224)
    assert state is not None
    assert len(state) == 4224
    guest.vcpu.set_nested_state(state)
    assert seen[-1] == ("KVM_SET_NESTED_STATE", bytes(state))
    block = bytearray(range(64))
    guest.vm.encrypt_op(block)
    assert seen[-1] == ("KVM_MEMORY_ENCRYPT_OP", bytes(range(64)))
    assert guest.vcpu.get_supported_hv_cpuid(4).leaf(0x40000000).eax == 0x40000082
    monkeypatch.undo()
