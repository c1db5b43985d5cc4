"""Byte programs as guests: each kind of exit that is on the hot path, and the threads that run vCPUs."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import (
    ClosedError,
    Hlt,
    Intr,
    IoEventAddress,
    IoIn,
    IoOut,
    Kvm,
    KvmError,
    MmioRead,
    MmioWrite,
    RunControl,
    Segment,
    Shutdown,
    VcpuExit,
    VcpuFd,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Guest

pytestmark = pytest.mark.kvm
LOOP = "eb fe"


def test_port_and_memory_exits_carry_live_data(boot: Callable[..., Guest]) -> None:
    # in al,0x10; out 0x11,al; mov ax,[0xf000 with ds=0x2000]; mov [..],ax; hlt
    guest = boot("e4 10 e6 11 b8 00 20 8e d8 a1 00 f0 a3 02 f0 f4")
    match guest.vcpu.run():
        case IoIn(port=0x10, data=data):
            data[0] = 0x5A
        case other:
            pytest.fail(repr(other))
    match guest.vcpu.run():
        case IoOut(0x11, data):
            assert bytes(data) == b"\x5a"
        case other:
            pytest.fail(repr(other))
    match guest.vcpu.run():
        case MmioRead(0x2F000, data):
            data[:] = b"\x34\x12"
        case other:
            pytest.fail(repr(other))
    match guest.vcpu.run():
        case MmioWrite(addr=0x2F002, data=data):
            assert bytes(data) == b"\x34\x12"
        case other:
            pytest.fail(repr(other))
    assert isinstance(guest.vcpu.run(), Hlt)
    assert guest.vcpu.last_exits[-3:] == ["MmioRead(0x2f000, 2 bytes)", "MmioWrite(0x2f002, <34 12>)", "Hlt()"]
    assert guest.vcpu.exits == 5


def test_string_output_arrives_in_one_exit(boot: Callable[..., Guest]) -> None:
    # mov si,0x1100; mov cx,12; mov dx,0x3f8; cld; rep outsb; hlt
    guest = boot("be 00 11 b9 0c 00 ba f8 03 fc f3 6e f4")
    guest.memory[0x1100:0x110C] = b"hello, world"
    text = b""
    while not isinstance(exit_ := guest.vcpu.run(), Hlt):
        assert isinstance(exit_, IoOut)
        assert exit_.size == 1
        text += bytes(exit_.data)
    assert text == b"hello, world"


def test_triple_fault_is_a_shutdown(boot: Callable[..., Guest]) -> None:
    # ud2 in protected mode with an empty interrupt table
    guest = boot("0f 0b")
    sregs = guest.vcpu.get_sregs()
    sregs.cr0 |= 1
    sregs.idt.limit = 0
    for segment in (sregs.cs, sregs.ds, sregs.es, sregs.ss):
        segment.update(Segment(limit=0xFFFFFFFF, selector=8, type=3, present=1, db=1, s=1, g=1))
    sregs.cs.type = 11
    guest.vcpu.set_sregs(sregs)
    assert isinstance(guest.vcpu.run(), Shutdown)


def test_immediate_exit_is_a_value(boot: Callable[..., Guest]) -> None:
    guest = boot(LOOP)
    guest.vcpu.set_kvm_immediate_exit(1)
    assert isinstance(guest.vcpu.run(), Intr)


def test_closed_vcpu_makes_no_system_call(boot: Callable[..., Guest]) -> None:
    guest = boot(LOOP)
    guest.vcpu.close()
    with pytest.raises(ClosedError, match="VcpuFd is closed"):
        guest.vcpu.run()
    with pytest.raises(ClosedError):
        guest.vcpu.get_regs()


def test_errors_name_the_ioctl_and_the_cause(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        vm.create_irq_chip()
        with pytest.raises(KvmError, match="KVM_CREATE_IRQCHIP failed with EEXIST") as caught:
            vm.create_irq_chip()
    assert caught.value.ioctl == "KVM_CREATE_IRQCHIP"
    assert "exists" in caught.value.cause


def test_ioeventfd_takes_the_write_inside_the_kernel(boot: Callable[..., Guest]) -> None:
    # mov dx,0x510; mov al,7; out dx,al; hlt
    guest = boot("ba 10 05 b0 07 ee f4")
    event = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        guest.vm.register_ioevent(event, IoEventAddress.Pio(0x510), datamatch=(7, 1))
        assert isinstance(guest.vcpu.run(), Hlt)
        assert os.eventfd_read(event) == 1
        guest.vm.unregister_ioevent(event, IoEventAddress.Pio(0x510), datamatch=(7, 1))
        with pytest.raises(KvmError, match="exactly this eventfd"):
            guest.vm.unregister_ioevent(event, IoEventAddress.Pio(0x510), datamatch=(7, 1))
    finally:
        os.close(event)


def test_pause_and_resume_many_times(boot: Callable[..., Guest]) -> None:
    guest = boot(LOOP)
    with RunControl([guest.vcpu], lambda vcpu, exit_: False) as control:
        control.start()
        for step in range(300):
            control.pause(timeout=5)
            assert control.state == "paused"
            assert guest.vcpu.get_regs().rip == 0x1000
            control.resume()
            time.sleep(step % 3 * 2e-4)
    assert control.state == "stopped"


def test_kick_reaches_the_handler_once(boot: Callable[..., Guest]) -> None:
    guest = boot(LOOP)
    seen = threading.Semaphore(0)
    kinds: list[type] = []

    def handler(vcpu: VcpuFd, exit_: VcpuExit) -> None:
        kinds.append(type(exit_))
        seen.release()

    with RunControl([guest.vcpu], handler) as control:
        control.start()
        control.pause(timeout=5)
        control.resume()
        for _ in range(100):
            control.kick()
            assert seen.acquire(timeout=5)
    assert set(kinds) == {Intr}


def test_stop_never_gets_lost_at_any_moment(boot: Callable[..., Guest]) -> None:
    guest = boot(LOOP)
    for delay in range(60):
        control = RunControl([guest.vcpu], lambda vcpu, exit_: False)
        control.start()
        if delay:
            time.sleep(delay * 2e-5)
        control.stop()
        control.join(timeout=5)


def test_handler_ends_everything(boot: Callable[..., Guest]) -> None:
    guest = boot("b0 41 e6 10 f4")
    with RunControl([guest.vcpu], lambda vcpu, exit_: isinstance(exit_, Hlt)) as control:
        control.start()
        control.join(timeout=5)
    assert control.ended_by is not None
    assert isinstance(control.ended_by[1], Hlt)


def test_exception_of_a_handler_is_raised_by_join_and_reported(boot: Callable[..., Guest]) -> None:
    guest = boot("b0 41 e6 10 f4")

    def handler(vcpu: VcpuFd, exit_: VcpuExit) -> None:
        raise LookupError("no device at that port")

    control = RunControl([guest.vcpu], handler)
    control.start()
    with pytest.raises(LookupError, match="no device"):
        control.join(timeout=5)
    report = control.report()
    assert "LookupError: no device at that port" in report
    assert "IoOut(0x10, <41>)" in report
    assert "mode real" in report


@pytest.mark.kvm
def test_a_row_of_kicks_is_remembered_as_one(boot: Callable[..., Guest]) -> None:
    guest = boot("ebfe")
    guest.vcpu.set_kvm_immediate_exit(1)
    for _ in range(3):
        guest.vcpu.run()
    assert guest.vcpu.last_exits == ["KVM_RUN returned EINTR"]
