"""The layer above the ioctls: modes, page tables, debugging, CPUID policies, LAPIC, SMP, MSR exits, logs."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import (
    MEM_LOG_DIRTY_PAGES,
    Cap,
    CpuId,
    CpuIdEntry,
    CpuidPolicy,
    Debug,
    DeviceFd,
    ExitTrace,
    GuestDebug,
    Hlt,
    InternalError,
    IoOut,
    IrqRoute,
    IrqRouting,
    Kvm,
    KvmError,
    LapicState,
    MpState,
    MsrError,
    MsrFilterRange,
    Msrs,
    Regs,
    RunControl,
    Sregs,
    StateError,
    VcpuExit,
    VcpuFd,
    VmFd,
    X86Rdmsr,
    X86Wrmsr,
    code_segment,
    data_segment,
    descriptor,
    mappings,
    read_trace,
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
    read = lambda address, length: memory[address : address + length]  # noqa: E731
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


def test_page_tables_must_fit() -> None:
    with pytest.raises(ValueError, match="page tables"):
        setup_long_mode(None, bytearray(4096), 0, tables=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="512"):
        setup_long_mode(None, bytearray(4096), 0, gib=513)  # type: ignore[arg-type]


def test_walks_old_formats() -> None:
    memory = bytearray(0x8000)

    def put(address: int, value: int, width: int) -> None:
        memory[address : address + width] = value.to_bytes(width, "little")

    def read(address: int, length: int) -> bytes:
        return bytes(memory[address : address + length])

    none = Sregs()
    assert walk(none, read, 0x1234) is not None
    old = Sregs(cr0=1 << 31 | 1, cr3=0x1000)
    put(0x1000, 0x2003, 4)
    put(0x2000 + 4 * 5, 0x7001, 4)
    put(0x1004, 0x00400083 | 1 << 13, 4)
    found = walk(old, read, 0x5123)
    assert found is not None
    assert (found.physical, found.writable) == (0x7123, False)
    large = walk(old, read, 0x400123)
    assert large is not None
    assert large.physical == (1 << 32 | 0x400123)
    pae = Sregs(cr0=1 << 31 | 1, cr4=1 << 5, cr3=0x3000)
    put(0x3000, 0x4001, 8)
    put(0x4000, 0x200083, 8)
    found = walk(pae, read, 0x1234)
    assert found is not None
    assert (found.physical, found.writable) == (0x201234, True)
    assert Sregs(cr0=1 << 31 | 1, cr4=1 << 5 | 1 << 12, efer=1 << 10).paging == "5-level"


@kvm_only
def test_single_steps_and_breakpoints(boot: Callable[..., Guest]) -> None:
    guest = boot(STEPS)
    with GuestDebug(guest.vcpu) as debug:
        assert list(debug.steps(4)) == [0x1003, 0x1004, 0x1005, 0x1006]
    guest.point(0x1000)
    with GuestDebug(guest.vcpu) as debug:
        number = debug.watch(0x1005)
        exit_ = debug.resume()
        assert isinstance(exit_, Debug)
        assert exit_.pc == 0x1005
        assert debug.hit(exit_) == [number]
        debug.clear(number)
        assert isinstance(debug.resume(), Hlt)


def test_breakpoints_are_checked() -> None:
    debug = GuestDebug(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not one of"):
        debug.watch(0, 4, "execute")
    with pytest.raises(ValueError, match="multiple of 4"):
        debug.watch(2, 4, "write")
    for address in range(4):
        debug.watch(address)
    with pytest.raises(ValueError, match="all are taken"):
        debug.watch(9)


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


def test_msr_filter_ranges_are_checked() -> None:
    with pytest.raises(ValueError, match="bitmap"):
        MsrFilterRange(1, 0, 9, b"\0")
    with pytest.raises(ValueError, match="reads"):
        MsrFilterRange(0, 0, 1, b"\0")
    denied = MsrFilterRange.denying(0x100, [0x103], 8)
    assert [denied.allows(index) for index in (0x102, 0x103)] == [True, False]
    with pytest.raises(ValueError, match="not in the range"):
        denied.allows(0x99)


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
def test_coalesced_writes_wait_in_the_ring(boot: Callable[..., Guest]) -> None:
    guest = boot("b8 00 20 8e d8 a2 00 f0 f4", prepare=lambda vm: vm.register_coalesced_mmio(0x2F000, 0x100))
    assert isinstance(guest.vcpu.run(), Hlt)
    assert guest.vcpu.coalesced_mmio_read() == (0x2F000, b"\0", False)
    assert guest.vcpu.coalesced_mmio_read() is None
    guest.vm.unregister_coalesced_mmio(0x2F000, 0x100)


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
def test_statistics_have_names(boot: Callable[..., Guest]) -> None:
    guest = boot("f4")
    guest.vcpu.run()
    with guest.vcpu.get_stats_fd() as stats, guest.vm.get_stats_fd() as machine:
        assert stats.read()["exits"]
        assert "vcpu" in stats.id
        assert machine.descriptors
        assert "Statistic" in repr(stats.descriptors[0])


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
def test_memory_stays_alive_as_long_as_the_vm(kvm: Kvm) -> None:
    memory = mmap.mmap(-1, 4096)
    vm = kvm.create_vm()
    vm.set_user_memory_region(0, 0, memory)
    assert vm.memory_slots[0].memory is memory
    with pytest.raises(BufferError):
        memory.close()
    vcpu = vm.create_vcpu(0)
    vm.close()
    with pytest.raises(BufferError):
        memory.close()
    vcpu.close()
    memory.close()


def test_cpuid_tables_and_policies() -> None:
    host = CpuId([CpuIdEntry(0, eax=7), CpuIdEntry(1, ecx=1 << 23, edx=1 << 4), CpuIdEntry(7, 0, 1, ebx=1 << 7)])
    policy = CpuidPolicy(host)
    assert policy.features() == ["popcnt", "smep", "tsc"]
    assert policy.without("smep").with_("nx").features() == ["nx", "popcnt", "tsc"]
    assert policy.template("x86-64-v1").features() == ["nx", "tsc"]
    table = policy.vendor("AuthenticAMD").table(3, 4)
    assert table.leaf(1).ebx >> 24 == 3
    assert table.leaf(0).ebx.to_bytes(4, "little") == b"Auth"
    assert list(policy.drop_leaves([7]).table().functions()) == [0, 1, 0x80000001]
    assert host.leaf(7).ebx == 1 << 7
    for broken in (b"", bytes([9, 0, 0, 0, 0, 0, 0, 0]), b"\xff" * 8):
        with pytest.raises(StateError):
            CpuId.from_bytes(broken)
    with pytest.raises(KeyError):
        host.leaf(9)
    with pytest.raises(ValueError, match="no CPUID feature"):
        policy.without("flying")
    with pytest.raises(ValueError, match="12 characters"):
        policy.vendor("me")
    with pytest.raises(StateError):
        bytes(CpuId(CpuIdEntry(number) for number in range(257)))
    assert "CpuIdEntry(0x0" in repr(host[0])


def test_structures_behave() -> None:
    regs = Regs(rax=1, rip=2)
    assert Regs.from_bytes(bytes(regs)) == regs == regs.copy()
    assert Regs.from_bytes(b"\x05").rax == 5
    assert "rip=0x2" in repr(regs)
    assert "rip 0000000000000002" in str(regs)
    with pytest.raises(TypeError, match="no field 'eax'"):
        Regs(eax=1)
    with pytest.raises(TypeError, match="none of the fields"):
        regs.update(object())
    sregs = Sregs()
    sregs.cs = code_segment(bits=64)
    assert sregs.cs.l == 1
    assert sregs.cs == code_segment(bits=64)
    sregs.interrupt_bitmap[1] = 7
    assert list(sregs.interrupt_bitmap) == [0, 7, 0, 0]
    assert sregs.interrupt_bitmap == [0, 7, 0, 0]
    assert descriptor(data_segment()) == 0xCF93000000FFFF
    lapic = LapicState()
    with pytest.raises(ValueError, match="multiples"):
        lapic.get_reg(4)


def test_routes_and_msrs_round_trip() -> None:
    table = IrqRouting([IrqRoute.hv_sint(1, 2, 3), IrqRoute.xen_evtchn(4, 5, 6), IrqRoute.msi(7, 1 << 33, 9, 10)])
    assert IrqRouting.from_bytes(bytes(table)) == table
    assert "msi" in repr(table)
    for broken in (b"", b"\xff" * 8, bytes(IrqRouting([IrqRoute.irqchip(0, 0, 0)]))[:-1]):
        with pytest.raises(StateError):
            IrqRouting.from_bytes(broken)
    msrs = Msrs({1: 2, 3: 4})
    msrs.retain(lambda index, value: index == 3)
    assert Msrs.from_bytes(bytes(msrs)) == {3: 4}
    assert repr(msrs) == "Msrs({0x3: 0x4})"
    for broken in (b"", b"\x02" + bytes(7)):
        with pytest.raises(StateError):
            Msrs.from_bytes(broken)


@kvm_only
def test_trace_is_read_back(boot: Callable[..., Guest], tmp_path: Path) -> None:
    guest = boot("b0 41 e6 10 f4")
    path = str(tmp_path / "trace")
    with ExitTrace(path) as trace:
        for _ in range(2):
            trace.record(guest.vcpu, guest.vcpu.run())
    records = list(read_trace(path))
    assert [(vcpu, reason, text) for _, vcpu, reason, text in records] == [
        (0, 2, "IoOut(port=0x10, data=<41>)"),
        (0, 5, "Hlt()"),
    ]
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[:-1])
    with pytest.raises(StateError, match="inside a record"):
        list(read_trace(path))
    Path(path).write_bytes(b"nonsense")
    with pytest.raises(StateError, match="not a trace"):
        list(read_trace(path))


@kvm_only
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_doctor_prints(arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pyvmm_kvm", *arguments], capture_output=True, text=True, check=False, timeout=30
    )
    assert result.returncode == 0, result.stderr
    if arguments:
        facts = json.loads(result.stdout)
        assert facts["kvm"]["api_version"] == 12
        assert facts["kvm"]["capabilities"]["USER_MEMORY"] == 1
    else:
        assert "api version: 12" in result.stdout


def test_doctor_works_without_a_device(tmp_path: Path) -> None:
    from pyvmm_kvm.__main__ import collect, main

    facts = collect(str(tmp_path / "none"))
    assert "no such device" in str(facts["problem"])
    assert main(["--device", str(tmp_path / "none")]) == 1


def test_importing_is_cheap() -> None:
    script = (
        "import sys; before = set(sys.modules); from pyvmm_kvm import Kvm, VmFd, VcpuFd, IoOut;"
        "print(*sorted(set(sys.modules) - before))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    costly = {"dataclasses", "pathlib", "logging", "typing", "re", "argparse", "enum", "threading", "json", "inspect"}
    site = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert not costly & set(result.stdout.split()) - set(site.stdout.split())


@kvm_only
def test_pause_times_out_with_the_name_of_the_vcpu(boot: Callable[..., Guest]) -> None:
    guest = boot("e6 10 eb fc")

    def handler(vcpu: VcpuFd, exit_: VcpuExit) -> None:
        time.sleep(0.3)

    with RunControl([guest.vcpu], handler) as control:
        with pytest.raises(RuntimeError, match="before pause"):
            control.pause()
        control.start()
        with pytest.raises(RuntimeError, match="already"):
            control.start()
        time.sleep(0.05)
        with pytest.raises(TimeoutError, match=r"vCPUs \[0\] did not pause"):
            control.pause(timeout=0.01)
        control.resume()
        with pytest.raises(TimeoutError, match="still run"):
            control.join(timeout=0.01)
