"""Byte programs as guests: ports, strings of them, the triple fault."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import (
    Hlt,
    IoEventAddress,
    IoIn,
    IoOut,
    KvmError,
    MmioRead,
    MmioWrite,
    Segment,
    Shutdown,
    crash_report,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Guest

pytestmark = pytest.mark.kvm


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
    report = crash_report(guest.vcpu)
    # an AMD host has reset the vCPU by now, and the report says whose registers it shows
    lost = guest.vcpu.get_regs().rip == 0xFFF0
    assert ("what the guest had in them is lost" in report) == lost
    assert lost or f"rip {0x1000:016x}" in report


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
