"""Byte programs as guests, on any architecture: the exits that all have, and what the kernel answers in their place."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import struct
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import (
    MEM_LOG_DIRTY_PAGES,
    MEM_READONLY,
    Again,
    Cap,
    ExitTrace,
    Intr,
    IoEventAddress,
    Kvm,
    KvmError,
    MemoryFault,
    MmioRead,
    MmioWrite,
    Unknown,
    crash_report,
    read_trace,
)
from pyvmm_kvm._kvm import lib

from .checks import check_closed, check_doorbells, code_of
from .guests import ENTRY, MMIO, PROGRAMS, SIZE, START, ended, pc_of, put

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .guests import Guest

pytestmark = pytest.mark.kvm


# exits


def test_memory_mapped_exits_carry_their_data(boot: Callable[..., Guest]) -> None:
    guest = boot("copy")
    match guest.vcpu.run():
        case MmioRead(addr, data):
            assert (addr, len(data)) == (MMIO, 2)
            data[:] = b"\x34\x12"
        case other:
            pytest.fail(repr(other))
    match guest.vcpu.run():
        case MmioWrite(addr, data):
            assert (addr, bytes(data)) == (MMIO + 2, b"\x34\x12")
        case other:
            pytest.fail(repr(other))
    assert ended(guest.vcpu.run())
    assert guest.vcpu.last_exits[:2] == ["MmioRead(0x2f000, 2 bytes)", "MmioWrite(0x2f002, <34 12>)"]
    assert guest.vcpu.exits == 3


def test_the_same_event_is_the_same_object_where_nobody_keeps_it(boot: Callable[..., Guest]) -> None:
    guest = boot("count")
    seen = set()
    for count in range(1, 2001):
        exit_ = guest.vcpu.run()
        assert isinstance(exit_, MmioWrite)
        assert int.from_bytes(exit_.data, "little") == count % (1 << 8 * len(exit_.data))
        seen.add(id(exit_))
    # two of them take turns, for this loop holds the last one while it asks for the next
    assert len(seen) == 2


def test_immediate_exit_completes_pending_input_without_entering_the_guest(boot: Callable[..., Guest]) -> None:
    guest = boot("copy")
    exit_ = guest.vcpu.run()
    assert isinstance(exit_, MmioRead)
    before = pc_of(guest.vcpu)
    exit_.data[:] = b"\x77\x66"
    guest.vcpu.set_kvm_immediate_exit(1)
    assert isinstance(guest.vcpu.run(), Intr)
    # when the instruction was at its end is the kernel's matter, that it is now is not
    assert pc_of(guest.vcpu) in (before, before + 3, before + 4)
    guest.vcpu.set_kvm_immediate_exit(0)
    exit_ = guest.vcpu.run()
    assert isinstance(exit_, MmioWrite)
    assert bytes(exit_.data) == b"\x77\x66"


def test_a_memory_fault_comes_with_an_errno_and_only_then(kvm: Kvm) -> None:
    backing = os.memfd_create("guest")
    os.ftruncate(backing, 0x4000)
    memory = mmap.mmap(backing, 0x4000)
    code = PROGRAMS["load"]
    put(memory, ENTRY, code)
    with kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        vm.set_user_memory_region(0, 0, memory)
        START[os.uname().machine](kvm, vm, vcpu, ENTRY)
        # the page loses what backs it while the guest runs
        os.ftruncate(backing, 0x2000)
        try:
            exit_ = vcpu.run()
        except KvmError as error:
            # older kernels say only this much
            assert error.errno == errno.EFAULT  # noqa: PT017 - one of two right answers
        else:
            assert isinstance(exit_, (MemoryFault, MmioRead))
            if isinstance(exit_, MemoryFault):
                assert (exit_.gpa, exit_.size) == (0x2000, 4096)
        os.ftruncate(backing, 0x4000)
    os.close(backing)
    memory.close()


def test_an_old_memory_fault_is_not_reported_again(boot: Callable[..., Guest]) -> None:
    guest = boot("end")
    page = guest.vcpu.get_kvm_run()
    page[lib.PYVMM_RUN_EXIT_REASON : lib.PYVMM_RUN_EXIT_REASON + 4] = struct.pack("<I", MemoryFault.reason)
    guest.vcpu.set_kvm_immediate_exit(1)
    assert isinstance(guest.vcpu.run(), Intr)
    assert struct.unpack_from("<I", page, lib.PYVMM_RUN_EXIT_REASON)[0] != MemoryFault.reason


@pytest.mark.parametrize(
    ("reason", "payload", "expected"),
    [
        (2, struct.pack("<BBHIQ", 1, 4, 0x10, 1, 1 << 40), KvmError),
        (2, struct.pack("<BBHIQ", 2, 1, 0x10, 1, 4096), KvmError),
        (6, struct.pack("<Q8sIB", 1 << 60, b"abcdefgh", 4, 1), MmioWrite),
        (6, struct.pack("<Q8sIB", 1 << 60, b"abcdefgh", 4000, 0), MmioRead),
        (77, bytes(32), Unknown),
        (0x12345678, bytes(32), Unknown),
    ],
)
def test_nonsense_from_below_stays_inside_the_page(
    boot: Callable[..., Guest], reason: int, payload: bytes, expected: type
) -> None:
    vcpu = boot("end").vcpu
    start = lib.PYVMM_RUN_PAYLOAD
    vcpu.get_kvm_run()[start : start + len(payload)] = payload
    if expected is KvmError:
        assert code_of(lambda: vcpu._decode(reason << lib.PYVMM_LENGTH_SHIFT)) == errno.EINVAL
        return
    exit_ = vcpu._decode(reason << lib.PYVMM_LENGTH_SHIFT)
    assert isinstance(exit_, expected)
    if isinstance(exit_, (MmioWrite, MmioRead)):
        assert exit_.addr == 1 << 60
        assert len(exit_.data) <= 8
    if isinstance(exit_, Unknown):
        assert exit_.number == reason


# what the kernel answers in the place of an exit


def test_ioeventfd_matches_value_and_width(boot: Callable[..., Guest]) -> None:
    check_doorbells(boot("doorbell"), IoEventAddress.Mmio(MMIO), MmioWrite)


def test_ioeventfd_without_a_match_takes_every_width_at_an_address(boot: Callable[..., Guest]) -> None:
    guest = boot("doorbell")
    event = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        guest.vm.register_ioevent(event, IoEventAddress.Mmio(MMIO))
        assert ended(guest.vcpu.run())
        assert os.eventfd_read(event) == 3
        guest.vm.unregister_ioevent(event, IoEventAddress.Mmio(MMIO))
    finally:
        os.close(event)


def test_coalesced_writes_wait_in_the_ring(boot: Callable[..., Guest], kvm: Kvm) -> None:
    assert kvm.check_extension(Cap.COALESCED_MMIO)
    guest = boot("twice", prepare=lambda vm: vm.register_coalesced_mmio(MMIO, 0x100))
    assert len(guest.vcpu.get_kvm_run()) == kvm.get_vcpu_mmap_size() > mmap.PAGESIZE
    assert ended(guest.vcpu.run())
    read = [guest.vcpu.coalesced_mmio_read() for _ in range(3)]
    assert read == [(MMIO, b"\1", False), (MMIO, b"\2", False), None]
    guest.vm.unregister_coalesced_mmio(MMIO, 0x100)


def test_a_full_ring_exits_and_goes_on(boot: Callable[..., Guest]) -> None:
    guest = boot("count", prepare=lambda vm: vm.register_coalesced_mmio(MMIO, 0x100))
    exit_ = guest.vcpu.run()
    assert isinstance(exit_, MmioWrite)
    entries = []
    while entry := guest.vcpu.coalesced_mmio_read():
        entries.append(int.from_bytes(entry[1], "little"))
    capacity = (mmap.PAGESIZE - 8) // 24
    assert entries == list(range(1, len(entries) + 1))
    # one place stays free; kernels before 6.12 computed their room modulo 2 ** 32 first and stop earlier
    assert len(entries) in (capacity - 2, capacity - 1, (1 << 32) % capacity - 1)
    assert int.from_bytes(exit_.data, "little") == len(entries) + 1


# memory


def test_manual_protection_clears_only_what_is_asked(boot: Callable[..., Guest], kvm: Kvm) -> None:
    guest = boot("store")
    assert code_of(lambda: guest.vm.clear_dirty_log(0, 0, 16, bytearray(8))) == errno.ENOENT
    assert kvm.check_extension(Cap.MANUAL_DIRTY_LOG_PROTECT2)
    guest.vm.enable_cap(Cap.MANUAL_DIRTY_LOG_PROTECT2, 1)
    guest.vm.set_user_memory_region(0, 0, guest.memory, MEM_LOG_DIRTY_PAGES)
    assert ended(guest.vcpu.run())
    assert guest.memory[0x3000] == guest.memory[0x4000] == 0x5A
    wrote = 1 << 3 | 1 << 4
    assert guest.vm.get_dirty_log(0)[0] & wrote == wrote
    assert guest.vm.get_dirty_log(0)[0] & wrote == wrote, "reading must not clear under manual protection"
    guest.vm.clear_dirty_log(0, 0, 16, bytearray(struct.pack("<Q", 1 << 3)))
    assert guest.vm.get_dirty_log(0)[0] & wrote == 1 << 4
    for pages, bitmap in ((17, bytearray(8)), (16, bytearray(1))):
        error = code_of(lambda pages=pages, bitmap=bitmap: guest.vm.clear_dirty_log(0, 0, pages, bitmap))  # type: ignore[misc]
        assert error == errno.EINVAL


def test_dirty_logs_of_odd_sizes(kvm: Kvm) -> None:
    memory = mmap.mmap(-1, 65 * 4096)
    code = PROGRAMS["store"]
    put(memory, ENTRY, code)
    with kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        vm.set_user_memory_region(0, 0, memory, MEM_LOG_DIRTY_PAGES)
        START[os.uname().machine](kvm, vm, vcpu, ENTRY)
        exit_ = vcpu.run()
        # memory goes on where MMIO would begin, and this program needs none
        assert ended(exit_), exit_
        log = vm.get_dirty_log(0)
        assert (len(log), log.format) == (2, "Q")
        assert log[0] & 0b11000 == 0b11000
        assert log[1] == 0
        assert not any(vm.get_dirty_log(0)), "reading clears"
        vm.set_user_memory_region(1, 1 << 32, mmap.mmap(-1, 4096))
        assert code_of(lambda: vm.get_dirty_log(1)) == errno.ENOENT
        vm.set_user_memory_region(1, 0, None)
    memory.close()


def test_writes_to_read_only_memory_are_ours(boot: Callable[..., Guest], kvm: Kvm) -> None:
    assert kvm.check_extension(Cap.READONLY_MEM)
    guest = boot("store")
    # the program and all else as they were, but one page
    guest.vm.set_user_memory_region(0, 0, None)
    with mmap.mmap(-1, 0x1000) as rest:
        whole = mmap.mmap(-1, 0x3000)
        whole[:] = guest.memory[:0x3000]
        guest.vm.set_user_memory_region(1, 0, whole)
        guest.vm.set_user_memory_region(2, 0x3000, rest, MEM_READONLY)
        exit_ = guest.vcpu.run()
        assert isinstance(exit_, MmioWrite)
        assert (exit_.addr, bytes(exit_.data), rest[0]) == (0x3000, b"\x5a", 0)
        guest.vm.set_user_memory_region(2, 0, None)
        guest.vm.set_user_memory_region(1, 0, None)
        whole.close()


# values in the place of exceptions, and closed descriptors


def test_immediate_exit_is_a_value(boot: Callable[..., Guest]) -> None:
    guest = boot("loop")
    guest.vcpu.set_kvm_immediate_exit(1)
    assert isinstance(guest.vcpu.run(), Intr)


def test_a_row_of_kicks_is_remembered_as_one(boot: Callable[..., Guest]) -> None:
    guest = boot("loop")
    guest.vcpu.set_kvm_immediate_exit(1)
    for _ in range(3):
        guest.vcpu.run()
    assert guest.vcpu.last_exits == ["KVM_RUN returned EINTR"]


def test_run_page_fields(boot: Callable[..., Guest]) -> None:
    guest = boot("loop")
    guest.vcpu.set_signal_mask([signal.SIGUSR1])
    guest.vcpu.set_signal_mask(None)
    guest.vcpu.set_kvm_immediate_exit(1)
    guest.vcpu.run()
    assert guest.vcpu.last_exits == ["KVM_RUN returned EINTR"]
    assert len(guest.vcpu.get_kvm_run()) == guest.vm.run_size()
    assert "1 exits" in repr(guest.vcpu)
    report = crash_report(guest.vcpu)
    assert "vCPU 0 after 1 exits" in report
    assert f"{ENTRY:016x}" in report
    guest.vcpu.close()
    assert "cannot be read" in crash_report(guest.vcpu)
    assert guest.vcpu.last_exits == ["KVM_RUN returned EINTR"]
    assert "closed" in repr(guest.vcpu)
    with guest.vm.create_vcpu(7) as made, guest.vm.create_vcpu_from_rawfd(os.dup(made.fileno()), 7) as taken:
        assert taken.id == 7


@pytest.mark.parametrize("name", ["get_mp_state", "get_reg_list", "get_stats_fd", "run"])
def test_a_closed_vcpu_makes_no_system_call(boot: Callable[..., Guest], name: str) -> None:
    check_closed(boot("end"), name)


def test_trace_is_read_back(boot: Callable[..., Guest], tmp_path: Path) -> None:
    guest = boot("copy")
    path = str(tmp_path / "trace")
    with ExitTrace(path) as trace:
        for _ in range(3):
            trace.record(guest.vcpu, guest.vcpu.run())
        guest.vcpu.set_kvm_immediate_exit(1)
        trace.record(guest.vcpu, guest.vcpu.run())
        trace.record(guest.vcpu, Again())
    records = list(read_trace(path))
    texts = [text for _, _, _, text in records]
    assert texts[:2] == [f"MmioRead(addr={MMIO:#x}, 2 bytes)", f"MmioWrite(addr={MMIO + 2:#x}, data=<00 00>)"]
    assert texts[3:] == ["Intr()", "Again()"]
    times = [when for when, _, _, _ in records]
    assert times == sorted(times)


def test_statistics_have_names(boot: Callable[..., Guest]) -> None:
    guest = boot("copy")
    guest.vcpu.run()
    with guest.vcpu.get_stats_fd() as stats, guest.vm.get_stats_fd() as machine:
        assert stats.read()["exits"]
        assert "vcpu" in stats.id
        assert machine.descriptors
        assert "Statistic" in repr(stats.descriptors[0])


def test_memory_of_this_size_is_what_the_programs_know() -> None:
    assert MMIO > SIZE
