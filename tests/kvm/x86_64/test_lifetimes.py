"""What is easy to get wrong about KVM, continued: sizes, order of creation, filters, lifetimes, closed descriptors."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import os
import struct
import time
import weakref
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import (
    MEM_LOG_DIRTY_PAGES,
    Cap,
    ClosedError,
    CpuId,
    CpuIdEntry,
    Hlt,
    Intr,
    IoOut,
    Kvm,
    KvmError,
    MsrFilterRange,
    Regs,
    VcpuFd,
    VmFd,
    setup_real_mode,
)

from .test_semantics import code_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Guest

pytestmark = pytest.mark.kvm


# 9. a dirty log is sized from the slot


def test_dirty_logs_of_odd_sizes(kvm: Kvm) -> None:
    pages = 65
    memory = mmap.mmap(-1, pages * 4096)
    # mov [0x3000],al; hlt
    memory[0x1000:0x1004] = bytes.fromhex("a20030f4")
    with kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        vm.set_user_memory_region(0, 0, memory, MEM_LOG_DIRTY_PAGES)
        setup_real_mode(vcpu, 0x1000)
        assert isinstance(vcpu.run(), Hlt)
        log = vm.get_dirty_log(0)
        assert (len(log), log.format) == (2, "Q")
        assert log[0] >> 3 & 1
        assert log[1] == 0
        assert not any(vm.get_dirty_log(0)), "reading clears"
        vm.set_user_memory_region(1, 1 << 32, mmap.mmap(-1, 4096))
        assert code_of(lambda: vm.get_dirty_log(1)) == errno.ENOENT
        vm.set_user_memory_region(1, 0, None)
    memory.close()


# 10. the order of things


def test_the_order_of_creation_is_enforced_with_its_cure(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        try:
            vm.create_pit2()
        except KvmError as error:
            assert "create_irq_chip" in str(error)  # noqa: PT017 - Linux 6.1 refuses nothing here
    with kvm.create_vm() as vm, vm.create_vcpu(0):
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


# 11. MSR filters: what they deny comes to us only with the capability, and unhandled accesses fault


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
    exit_.error = 1  # type: ignore[attr-defined]
    answer = guest.vcpu.run()
    assert isinstance(answer, IoOut)
    assert answer.port == 0x66


# 12. capabilities of the system and of a VM


def test_capabilities_of_system_and_vm_are_asked_separately(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        for cap in (Cap.USER_MEMORY, Cap.IRQCHIP, 4711):
            assert isinstance(kvm.check_extension_raw(cap), int)
            assert isinstance(vm.check_extension_raw(cap), int)
        assert kvm.check_extension_raw(4711) == 0
        assert kvm.check_extension_int(Cap.NR_MEMSLOTS) == vm.check_extension_int(Cap.NR_MEMSLOTS)


# 13. memory: page-aligned, deleted by size 0, alive as long as the VM


def test_memory_is_referenced_by_the_vm_and_by_its_vcpus(kvm: Kvm) -> None:
    class Memory(mmap.mmap):
        pass

    memory = Memory(-1, 0x2000)
    alive = weakref.ref(memory)
    vm = kvm.create_vm()
    vm.set_user_memory_region(0, 0, memory)
    vcpu = vm.create_vcpu(0)
    del memory
    gc.collect()
    assert alive() is not None
    vm.close()
    assert alive() is not None, "the kernel's VM lives as long as a vCPU does"
    vcpu.close()
    gc.collect()
    assert alive() is None


def test_slots_refuse_what_the_kernel_cannot_map(kvm: Kvm) -> None:
    with kvm.create_vm() as vm, mmap.mmap(-1, 0x2000) as memory:
        assert code_of(lambda: vm.set_user_memory_region(0, 0x100, memory)) == errno.EINVAL
        assert code_of(lambda: vm.set_user_memory_region(0, 0, bytearray(100))) == errno.EINVAL
        vm.set_user_memory_region(0, 0, memory)
        assert code_of(lambda: vm.set_user_memory_region(1, 0x1000, memory)) == errno.EEXIST
        with mmap.mmap(-1, 0x1000) as smaller:
            assert code_of(lambda: vm.set_user_memory_region(0, 0, smaller)) == errno.EINVAL
        # an existing slot may move
        vm.set_user_memory_region(0, 0x10000, memory)
        assert vm.memory_slots[0].guest_phys_addr == 0x10000
        vm.set_user_memory_region(0, 0, b"")
        assert vm.memory_slots == {}


# 14. saved blocks of other kernels load


def test_blocks_of_another_length_load() -> None:
    whole = bytes(Regs(rax=1, rflags=2))
    assert Regs.from_bytes(whole[:8]) == Regs(rax=1)
    assert Regs.from_bytes(whole + b"more") == Regs(rax=1, rflags=2)


# beyond: a closed descriptor makes no system call


@pytest.mark.parametrize("name", ["get_regs", "get_sregs", "get_lapic", "nmi", "get_mp_state", "run"])
def test_a_closed_vcpu_makes_no_system_call(boot: Callable[..., Guest], name: str) -> None:
    guest = boot("f4")
    number = guest.vcpu.fileno()
    guest.vcpu.close()
    # whoever gets the number next must not feel our calls
    other = os.eventfd(0, os.EFD_NONBLOCK)
    if other != number:
        os.dup2(other, number)
    try:
        with pytest.raises(ClosedError) as caught:
            getattr(guest.vcpu, name)()
        assert caught.value.errno == errno.EBADF
        assert isinstance(caught.value, (ValueError, OSError))
        guest.vcpu.close()
        os.eventfd_write(number, 1)
        assert os.eventfd_read(other) == 1
    finally:
        for fd in {other, number}:
            os.close(fd)


def test_closed_systems_and_vms_refuse(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    vm.close()
    calls: tuple[Callable[[], object], ...] = (
        vm.fileno,
        vm.create_irq_chip,
        lambda: vm.create_vcpu(0),
        lambda: vm.set_user_memory_region(0, 0, None),
        lambda: vm.get_clock(),
        lambda: vm.check_extension(0),
    )
    for call in calls:
        with pytest.raises(ClosedError, match="VmFd is closed"):
            call()
    other = Kvm()
    other.close()
    with pytest.raises(ClosedError, match="Kvm is closed"):
        other.create_vm()
    assert VmFd(-1, 0).closed
    assert VcpuFd.__mro__[1].__module__.endswith("x86_64.vcpu")


def test_closing_while_another_thread_runs_is_refused(boot: Callable[..., Guest]) -> None:
    import threading

    guest = boot("eb fe")
    entered = threading.Event()

    def enter() -> None:
        entered.set()
        while not isinstance(guest.vcpu.run(), Intr):
            pass

    thread = threading.Thread(target=enter)
    thread.start()
    entered.wait()
    while not guest.vcpu._state.running:
        time.sleep(0.001)
    with pytest.raises(RuntimeError, match="running in another thread"):
        guest.vcpu.close()
    assert not guest.vcpu.closed
    guest.vcpu.set_kvm_immediate_exit(1)
    libc = ctypes.CDLL(None)
    while thread.is_alive():
        # a signal that nobody handles but that ends KVM_RUN
        libc.pthread_kill(ctypes.c_ulong(thread.ident or 0), 28)
        thread.join(0.01)
    guest.vcpu.close()


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
