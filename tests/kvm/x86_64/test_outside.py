"""A small VMM as somebody writes it who knows only the names: every one of them, used as it reads."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import pytest

import pyvmm_kvm
from pyvmm_kvm import (
    Cap,
    Debug,
    Hlt,
    InternalError,
    Intr,
    IoEventAddress,
    IoIn,
    IoOut,
    Kvm,
    MmioRead,
    MmioWrite,
    MsrFilterRange,
    Shutdown,
    X86Rdmsr,
    X86Wrmsr,
)

if TYPE_CHECKING:
    from pyvmm_kvm import VcpuExit

pytestmark = pytest.mark.kvm
CODE = (
    "e410 e611"  # in al,0x10; out 0x11,al
    "a100f0 a302f0"  # mov ax,[0xf000]; mov [0xf002],ax, with ds at 0x20000
    "ba2005 ee"  # out 0x520,al: an ioeventfd
    "66b974010000 0f32 0f30"  # mov ecx,0x174; rdmsr; wrmsr
    "f4"
)


def one_line(exit_: VcpuExit) -> str:
    """What a VMM's main loop looks like."""
    match exit_:
        case IoIn(port, data):
            data[0] = 0x5A
            return f"in {port:#x}"
        case IoOut(port, data):
            return f"out {port:#x} {bytes(data).hex()}"
        case MmioRead(addr, data):
            data[:] = b"\x34\x12"
            return f"read {addr:#x}"
        case MmioWrite(addr, data):
            return f"write {addr:#x} {bytes(data).hex()}"
        case X86Rdmsr(index=index) as read:
            read.data = 0x77
            return f"rdmsr {index:#x}"
        case X86Wrmsr(index=index, data=value):
            return f"wrmsr {index:#x} {value:#x}"
        case Hlt() | Shutdown():
            return "end"
        case Intr():
            return "kicked"
        case Debug(pc=pc):
            return f"debug {pc:#x}"
        case InternalError(suberror, data):
            return f"internal error {suberror} {data}"
        case other:
            return repr(other)


def test_every_name_does_what_it_says() -> None:
    memory = mmap.mmap(-1, 0x10000)
    code = bytes.fromhex(CODE)
    memory[0x1000 : 0x1000 + len(code)] = code
    event = os.eventfd(0, os.EFD_NONBLOCK)
    with Kvm(path="/dev/kvm") as kvm:
        assert kvm.get_api_version() == 12
        assert kvm.check_extension_raw(0) == 1
        cpuid = kvm.get_supported_cpuid(256)
        vm = kvm.create_vm()
        vm.set_user_memory_region(0, 0, memory, flags=1)
        vm.register_ioevent(event, IoEventAddress.Pio(0x520))
        vm.register_ioevent(event, IoEventAddress.Mmio(0xD0000000), datamatch=1)
        vm.enable_cap(Cap.X86_USER_SPACE_MSR, X86Rdmsr.FILTER)
        vm.set_msr_filter(True, [MsrFilterRange(3, 0x174, 1, b"\0")])
        vcpu = vm.create_vcpu(0)
        vcpu.set_cpuid2(cpuid)
        vcpu.set_msrs({0x175: 0x9000})
        assert vcpu.get_msrs([0x175])[0x175] == 0x9000
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
        regs.rip, regs.rflags = 0x1000, 2
        sregs.cs.base, sregs.cs.selector, sregs.ds.base = 0, 0, 0x20000
        vcpu.set_regs(regs)
        vcpu.set_sregs(sregs)
        vcpu.set_guest_debug(1 | 2)
        assert one_line(vcpu.run()) == "in 0x10"
        vcpu.set_guest_debug(0)
        seen = []
        while (line := one_line(vcpu.run())) != "end":
            seen.append(line)
            assert len(seen) < 20
        assert [line for line in seen if not line.startswith("debug")] == [
            "out 0x11 5a",
            "read 0x2f000",
            "write 0x2f002 3412",
            "rdmsr 0x174",
            "wrmsr 0x174 0x77",
        ]
        assert os.eventfd_read(event) == 1
        assert len(vm.get_dirty_log(0)) == 1
        vcpu.close()
        vm.close()
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.create_irq_chip()
        vm.register_irqfd(event, 4)
        with vm.create_vcpu(0) as vcpu:
            vcpu.set_kvm_immediate_exit(1)
            assert one_line(vcpu.run()) == "kicked"
    os.close(event)
    memory.close()


def test_exits_are_made_and_matched_by_position() -> None:
    view = memoryview(bytearray(b"\x07"))
    assert one_line(IoOut(0x3F8, view)) == "out 0x3f8 07"
    assert one_line(MmioWrite(0xD0000000, view)) == "write 0xd0000000 07"
    assert one_line(InternalError(1, (2, 3))) == "internal error 1 (2, 3)"
    assert one_line(Debug(1, 0x1000, 0, 0)) == "debug 0x1000"
    assert one_line(Shutdown()) == one_line(Hlt()) == "end"
    assert one_line(Intr()) == "kicked"
    read = X86Rdmsr(0x174, X86Rdmsr.FILTER)
    assert one_line(read) == "rdmsr 0x174"
    assert read.data == 0x77
    assert one_line(X86Wrmsr(0x174, X86Wrmsr.FILTER, 5)) == "wrmsr 0x174 0x5"
    for name in ("IoIn", "IoOut", "MmioRead", "MmioWrite", "Hlt", "Shutdown", "Intr", "Debug", "InternalError"):
        assert name in pyvmm_kvm.__all__
