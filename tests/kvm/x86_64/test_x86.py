"""The layer above the ioctls in guests: modes, page tables, SMP, MSR exits, dirty pages, statistics, lifetimes."""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import (
    MEM_LOG_DIRTY_PAGES,
    Cap,
    CpuidPolicy,
    DeviceFd,
    DirtyRingFull,
    Hlt,
    InternalError,
    IoOut,
    IrqRoute,
    IrqRouting,
    Kvm,
    KvmError,
    MmioWrite,
    MpState,
    MsrError,
    MsrFilterRange,
    RunControl,
    VcpuExit,
    VcpuFd,
    VcpuState,
    VmFd,
    X86Rdmsr,
    X86Wrmsr,
    mappings,
    setup_long_mode,
    setup_protected_mode,
    setup_real_mode,
    walk,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .conftest import Guest

kvm_only = pytest.mark.kvm
STEPS = "b8 01 00 40 40 40 a3 00 20 f4"


@pytest.fixture
def big(kvm: Kvm) -> Iterator[tuple[VmFd, VcpuFd, mmap.mmap]]:
    memory = mmap.mmap(-1, 2 << 20)
    with kvm.create_vm() as vm:
        vm.set_user_memory_region(0, 0, memory)
        with vm.create_vcpu(0) as vcpu:
            vcpu.set_cpuid2(kvm.get_supported_cpuid())
            yield vm, vcpu, memory
    memory.close()


@kvm_only
def test_long_mode_runs_and_walks(big: tuple[VmFd, VcpuFd, mmap.mmap]) -> None:
    _, vcpu, memory = big
    # mov rax,0x1122334455667788; out 0x10,al; hlt
    memory[0x1000:0x100D] = bytes.fromhex("48b88877665544332211e610f4")
    setup_long_mode(vcpu, memory, 0x1000, gib=2)
    sregs = vcpu.get_sregs()
    assert (sregs.mode, sregs.paging) == ("long", "4-level")
    exit_ = vcpu.run()
    assert isinstance(exit_, IoOut)
    assert bytes(exit_.data) == b"\x88"
    assert isinstance(vcpu.run(), Hlt)
    assert vcpu.get_regs().rax == 0x1122334455667788
    read = lambda address, length: memory[address : address + length]  # noqa: E731 - it is short and stands where it is used
    found = walk(sregs, read, 0x201234)
    assert found is not None
    assert (found.physical, found.size, found.writable, found.user) == (0x201234, 2 << 20, True, False)
    assert vcpu.translate_gva(0x201234) == found.physical
    assert walk(sregs, read, 3 << 30) is None
    assert vcpu.translate_gva(3 << 30) is None
    pages = list(mappings(sregs, read, 0, 8 << 20))
    assert [page.linear for page in pages] == [0, 2 << 20, 4 << 20, 6 << 20]
    assert "rwxs" in repr(pages[0])


@kvm_only
def test_protected_and_real_mode(big: tuple[VmFd, VcpuFd, mmap.mmap]) -> None:
    _, vcpu, memory = big
    memory[0x12345:0x12346] = b"\xf4"
    setup_real_mode(vcpu, 0x12345)
    assert vcpu.get_sregs().mode == "real"
    assert isinstance(vcpu.run(), Hlt)
    setup_protected_mode(vcpu, 0x12345)
    assert vcpu.get_sregs().mode == "protected"
    assert isinstance(vcpu.run(), Hlt)


@kvm_only
def test_second_vcpu_starts_by_init_and_sipi(kvm: Kvm) -> None:
    memory = mmap.mmap(-1, 2 << 20)
    # the boot processor in long mode writes INIT and SIPI (vector 4) into its LAPIC, then halts
    program = bytes.fromhex("bb0003e0fe c703 00c50c00 c703 04c60c00 ebfe".replace(" ", ""))
    memory[0x1000 : 0x1000 + len(program)] = program
    # the other one: mov al,0x42; out 0x10,al; hlt
    memory[0x4000:0x4005] = bytes.fromhex("b042e610f4")
    with kvm.create_vm() as vm:
        vm.create_irq_chip()
        vm.set_user_memory_region(0, 0, memory)
        with vm.create_vcpu(0) as first, vm.create_vcpu(1) as second:
            policy = CpuidPolicy(kvm.get_supported_cpuid())
            for vcpu in (first, second):
                vcpu.set_cpuid2(policy.table(vcpu.id, 2))
            assert second.get_mp_state().mp_state == MpState.UNINITIALIZED
            setup_long_mode(first, memory, 0x1000)
            lapic = first.get_lapic()
            lapic.set_reg(0xF0, 0x1FF)
            first.set_lapic(lapic)
            seen = []

            def handler(vcpu: VcpuFd, exit_: VcpuExit) -> bool:
                seen.append((vcpu.id, repr(exit_)))
                return True

            with RunControl([first, second], handler) as control:
                control.start()
                control.join(timeout=20)
            assert seen == [(1, "IoOut(port=0x10, data=<42>)")]
    memory.close()


@kvm_only
def test_filtered_msrs_come_to_user_space(boot: Callable[..., Guest]) -> None:
    # mov ecx,0x174; rdmsr; wrmsr; out 0x10,al; hlt in real mode
    guest = boot("66 b9 74 01 00 00 0f 32 0f 30 e6 10 f4")
    guest.vm.enable_cap(Cap.X86_USER_SPACE_MSR, X86Rdmsr.FILTER)
    guest.vm.set_msr_filter(True, [MsrFilterRange(3, 0x174, 1, b"\0")])
    exit_ = guest.vcpu.run()
    assert isinstance(exit_, X86Rdmsr)
    assert (exit_.index, exit_.why) == (0x174, X86Rdmsr.FILTER)
    exit_.data = 0x77
    exit_ = guest.vcpu.run()
    assert isinstance(exit_, X86Wrmsr)
    assert exit_.data == 0x77
    exit_ = guest.vcpu.run()
    assert isinstance(exit_, IoOut)
    assert bytes(exit_.data) == b"\x77"
    guest.vm.set_msr_filter(True)
    with pytest.raises(KvmError, match="at least one range"):
        guest.vm.set_msr_filter(False)
    with pytest.raises(KvmError, match="17 ranges"):
        guest.vm.set_msr_filter(True, [MsrFilterRange(1, 0, 1, b"\1")] * 17)


@kvm_only
def test_short_msr_lists_name_the_culprit(boot: Callable[..., Guest]) -> None:
    guest = boot("f4")
    with pytest.raises(MsrError) as caught:
        guest.vcpu.set_msrs({0x174: 1, 0xDEAD: 2})
    assert (caught.value.index, caught.value.done) == (0xDEAD, 1)
    assert guest.vcpu.get_msrs([0x174]) == {0x174: 1}


@kvm_only
def test_dirty_log_is_sized_from_the_slot(boot: Callable[..., Guest]) -> None:
    guest = boot("a2 00 30 f4")
    guest.vm.set_user_memory_region(0, 0, guest.memory, MEM_LOG_DIRTY_PAGES)
    assert isinstance(guest.vcpu.run(), Hlt)
    log = guest.vm.get_dirty_log(0)
    assert len(log) == 1
    assert log[0] >> 3 & 1
    with pytest.raises(KvmError, match="slot 9 is not registered"):
        guest.vm.get_dirty_log(9)


@kvm_only
def test_dirty_ring_reports_pages(kvm: Kvm) -> None:
    memory = mmap.mmap(-1, 0x10000)
    memory[0x1000:0x1004] = bytes.fromhex("a20030f4")
    with kvm.create_vm() as vm:
        vm.enable_cap(Cap.DIRTY_LOG_RING_ACQ_REL, 4096 * 16)
        vm.set_user_memory_region(0, 0, memory, MEM_LOG_DIRTY_PAGES)
        with vm.create_vcpu(0) as vcpu, vcpu.dirty_ring(4096 * 16) as ring:
            assert len(ring) == 4096
            setup_real_mode(vcpu, 0x1000)
            assert isinstance(vcpu.run(), Hlt)
            assert (0, 3) in ring.harvest()
            assert ring.harvest() == []
            assert vm.reset_dirty_rings() >= 1
    memory.close()


@kvm_only
def test_unknown_instruction_is_an_internal_error_with_its_bytes(boot: Callable[..., Guest]) -> None:
    # popcnt eax,eax: KVM's emulator lacks it; hardware runs it
    guest = boot("f3 0f b8 c0 f4")
    exit_ = guest.vcpu.run()
    if isinstance(exit_, Hlt):
        pytest.skip("this host runs the instruction in hardware")
    assert isinstance(exit_, InternalError)
    assert exit_.suberror == 1
    assert exit_.instruction[:3] == b"\xf3\x0f\xb8" or not exit_.flags


@kvm_only
def test_every_register_set_round_trips(boot: Callable[..., Guest]) -> None:
    def with_chips(vm: VmFd) -> None:
        vm.set_tss_address(0xFFFBD000)
        vm.set_identity_map_address(0xFFFBC000)
        vm.set_boot_cpu_id(0)
        vm.create_irq_chip()
        vm.create_pit2()

    guest = boot("f4", prepare=with_chips)
    vcpu, vm = guest.vcpu, guest.vm
    for name in ("regs", "sregs", "sregs2", "fpu", "lapic", "vcpu_events", "debug_regs", "xcrs", "xsave", "mp_state"):
        before = getattr(vcpu, f"get_{name}")()
        getattr(vcpu, f"set_{name}")(before)
        after = getattr(vcpu, f"get_{name}")()
        if name != "lapic":
            assert before == after, name
    for number in range(3):
        chip = vm.get_irqchip(number)
        chip.pic = chip.pic
        chip.ioapic = chip.ioapic
        vm.set_irqchip(chip)
        assert vm.get_irqchip(number) == chip
    vm.set_pit2(vm.get_pit2())
    vm.reinject_control(True)
    vm.set_clock(vm.get_clock())
    vm.set_gsi_routing(IrqRouting.legacy())
    vm.set_irq_line(4, True)
    assert isinstance(vm.irq_line_status(4, False), int)
    assert isinstance(vm.signal_msi(0xFEE00000, 0x4041), int)
    vcpu.nmi()
    assert vcpu.get_tsc_khz() > 0
    assert vcpu.registers.count("\n") > 10
    assert vcpu.get_cpuid2().leaf(0).eax


@kvm_only
def test_irqfd_needs_an_irqchip_and_refuses_twice(boot: Callable[..., Guest]) -> None:
    guest = boot("f4", prepare=lambda vm: vm.create_irq_chip())
    event, resample = os.eventfd(0), os.eventfd(0)
    try:
        guest.vm.register_irqfd(event, 5)
        with pytest.raises(KvmError, match="registered already"):
            guest.vm.register_irqfd(event, 6)
        guest.vm.unregister_irqfd(event, 5)
        guest.vm.register_irqfd_with_resample(event, resample, 5)
        guest.vm.unregister_irqfd(event, 5)
    finally:
        os.close(event)
        os.close(resample)


@kvm_only
def test_devices_are_made_or_refused(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        with vm.create_device(DeviceFd.VFIO) or pytest.fail("no device") as device:
            assert not device.has_device_attr(99, 0)
            with pytest.raises(KvmError):
                device.set_device_attr(99, 0, bytes(8))
            with pytest.raises(KvmError):
                device.get_device_attr(99, 0)
        with pytest.raises(KvmError):
            vm.create_device(DeviceFd.ARM_VGIC_V3)


@kvm_only
def test_the_split_irqchip_tells_our_ioapic_about_the_end_of_an_interrupt(boot: Callable[..., Guest]) -> None:
    # sti; jmp $
    guest = boot("fb eb fe", prepare=lambda vm: vm.enable_cap(Cap.SPLIT_IRQCHIP, 24))
    # the handler: mov dword es:[0xb0],0 ends the interrupt; out 0x55,al
    guest.memory[0x1100:0x110C] = bytes.fromhex("2666c706b00000000000e655")
    guest.memory[0x41 * 4 : 0x41 * 4 + 4] = bytes.fromhex("00110000")
    level = 0xC041
    guest.vm.set_gsi_routing(IrqRouting([IrqRoute.msi(5, 0xFEE00000, level)]))
    sregs = guest.vcpu.get_sregs()
    sregs.es.base = 0xFEE00000
    guest.vcpu.set_sregs(sregs)
    regs = guest.vcpu.get_regs()
    regs.rsp = 0x8000
    guest.vcpu.set_regs(regs)
    lapic = guest.vcpu.get_lapic()
    lapic.set_reg(0xF0, 0x1FF)
    guest.vcpu.set_lapic(lapic)
    assert guest.vm.signal_msi(0xFEE00000, level) == 1
    exits = [repr(guest.vcpu.run()) for _ in range(2)]
    assert sorted(exits) == ["IoOut(port=0x55, data=<00>)", "IoapicEoi(vector=0x41)"]


@kvm_only
def test_a_full_dirty_ring_stops_the_guest_until_it_is_harvested(kvm: Kvm) -> None:
    size = 4096
    memory = mmap.mmap(-1, 4 << 20)
    # mov edi,0x10000; again: mov [rdi],al; add edi,0x1000; mov ecx,64; loop $; jmp again
    # (the delay: KVM-PVM looks at its ring only once in some hundred instructions and overruns it)
    program = bytes.fromhex("bf00000100 8807 81c700100000 b940000000 e2fe ebef")
    memory[0x1000 : 0x1000 + len(program)] = program
    seen: list[int] = []
    with kvm.create_vm() as vm:
        vm.enable_cap(Cap.DIRTY_LOG_RING_ACQ_REL, size)
        vm.set_user_memory_region(0, 0, memory, MEM_LOG_DIRTY_PAGES)
        with vm.create_vcpu(0) as vcpu, vcpu.dirty_ring(size) as ring:
            vcpu.set_cpuid2(kvm.get_supported_cpuid())
            setup_long_mode(vcpu, memory, 0x1000, gib=1)
            while isinstance(exit_ := vcpu.run(), DirtyRingFull):
                # what is not harvested yet keeps the ring full
                assert isinstance(vcpu.run(), DirtyRingFull)
                pages = ring.harvest(limit=100)
                assert len(pages) == 100
                pages += ring.harvest()
                assert len(pages) <= len(ring) == 256
                seen += [page for slot, page in pages if slot == 0]
                assert vm.reset_dirty_rings() == len(pages)
            # it ran off its memory
            assert isinstance(exit_, MmioWrite)
            seen += [page for _, page in ring.harvest()]
    assert set(range(0x10, 0x400)) <= set(seen)
    memory.close()


@kvm_only
def test_a_saved_guest_keeps_its_clock_rate_or_is_refused(boot: Callable[..., Guest], kvm: Kvm) -> None:
    guest = boot("f4")
    state = VcpuState.save(kvm, guest.vm, guest.vcpu)
    khz = guest.vcpu.get_tsc_khz()
    state.parts["tsc_khz"] = struct.pack("<I", khz + khz // 10_000)
    state.restore(boot("f4").vcpu)
    state.parts["tsc_khz"] = struct.pack("<I", khz // 2)
    other = boot("f4").vcpu
    if kvm.check_extension(Cap.TSC_CONTROL):
        state.restore(other)
        assert other.get_tsc_khz() == khz // 2
    else:
        with pytest.raises(KvmError, match="KVM_SET_TSC_KHZ"):
            state.restore(other)


@kvm_only
def test_the_counters_offset_is_signed(boot: Callable[..., Guest]) -> None:
    vcpu = boot("f4").vcpu
    vcpu.set_tsc_offset(-5)
    # KVM-PVM runs guests at the host's counter and drops the offset
    assert vcpu.get_tsc_offset() == (0 if os.path.exists("/sys/module/kvm_pvm") else -5)


@kvm_only
def test_an_ioapic_pin_and_a_lapic_register_are_programmed_from_outside(boot: Callable[..., Guest]) -> None:
    guest = boot("f4", prepare=lambda vm: vm.create_irq_chip())
    chip = guest.vm.get_irqchip(2)
    ioapic = chip.ioapic
    assert ioapic.base_address == 0xFEC00000
    # pin 9: vector 0x59, level, open
    ioapic.redirtbl[9] = 0x8059
    chip.ioapic = ioapic
    guest.vm.set_irqchip(chip)
    assert guest.vm.get_irqchip(2).ioapic.redirtbl[9] == 0x8059
    lapic = guest.vcpu.get_lapic()
    lapic.set_reg(0xF0, 0x1FF)
    guest.vcpu.set_lapic(lapic)
    guest.vm.set_irq_line(9, True)
    # IRR: 32 vectors in each register, from 0x200 on
    assert guest.vcpu.get_lapic().get_reg(0x220) >> (0x59 - 0x40) & 1
