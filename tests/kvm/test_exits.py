"""Every exit class decodes a payload built by hand, and what the VMM writes lands in it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import (
    Hypercall,
    Hyperv,
    InternalError,
    MemoryFault,
    RiscvSbi,
    SystemEvent,
    Unknown,
    X86Rdmsr,
    X86Wrmsr,
    Xen,
)
from pyvmm_kvm.exits.rare import BY_REASON, DEBUG_BY_ARCH
from pyvmm_kvm.report import describe_exits

from .guests import MACHINE

if TYPE_CHECKING:
    from pyvmm_kvm.exits.base import RareExit


def payload(format_: str, *values: int) -> memoryview:
    return memoryview(bytearray(struct.pack(format_, *values).ljust(256, b"\0")))


EVERY = dict.fromkeys([*BY_REASON.values(), *DEBUG_BY_ARCH.values()])


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_class_survives_any_payload(kind: type[RareExit]) -> None:
    for filler in (0, 0xFF, 0x5A):
        exit_ = kind.decode(memoryview(bytearray([filler]) * 256))
        assert repr(exit_).startswith(kind.__name__)
        for name in kind.__match_args__:
            assert getattr(exit_, name) is not None


def test_internal_error_names_the_instruction() -> None:
    block = struct.pack("<IIQ", 1, 3, 1) + bytes([2, 0x0F, 0x0B]).ljust(16, b"\0")
    exit_ = InternalError.decode(memoryview(bytearray(block.ljust(256, b"\0"))))
    assert exit_.instruction == b"\x0f\x0b"
    assert "EMULATION" in repr(exit_)
    # a count beyond the array is the kernel's business, not a reason to read further
    assert len(InternalError.decode(payload("<II", 3, 4_000_000)).data) == 16


def test_answers_go_to_the_run_page() -> None:
    page = payload("<B7xIIQ", 0, 4, 0x174, 99)
    rdmsr = X86Rdmsr.decode(page)
    rdmsr.data = 0x1234
    rdmsr.error = 1
    assert struct.unpack_from("<B15xQ", page) == (1, 0x1234)
    wrmsr = X86Wrmsr.decode(page)
    assert (wrmsr.index, wrmsr.why, wrmsr.data) == (0x174, X86Wrmsr.FILTER, 0x1234)
    match wrmsr:
        case X86Wrmsr(0x174, _, value):
            assert value == 0x1234
    call = Hypercall.decode(payload("<8Q", 7, 1, 2, 3, 4, 5, 6, 0))
    call.ret = 5
    assert (call.nr, call.args, call.ret) == (7, (1, 2, 3, 4, 5, 6), 5)
    xen = Xen.decode(payload("<I4xIIQQ6Q", 1, 1, 3, 17, 0, 1, 2, 3, 4, 5, 6))
    xen.result = 8
    assert (xen.cpl, xen.input, xen.params[5], xen.result) == (3, 17, 6, 8)
    sbi = RiscvSbi.decode(payload("<10Q", *range(10)))
    sbi.ret0, sbi.ret1 = 1, 2
    assert (sbi.extension_id, sbi.args, sbi.ret0, sbi.ret1) == (0, (2, 3, 4, 5, 6, 7), 1, 2)


def test_others_read_their_fields() -> None:
    assert SystemEvent.decode(payload("<IIQ", 2, 1, 7)).data == (7,)
    assert Hyperv.decode(payload("<I4xQQQQ", 2, 0x5D, 0, 1, 2)).values == (0x5D, 1, 2)
    assert MemoryFault.decode(payload("<QQQ", 8, 0x1000, 4096)).gpa == 0x1000
    assert Unknown(0, struct.pack("<Q", 33).ljust(256, b"\0")).hardware_exit_reason == 33
    with pytest.raises(ValueError, match="shorter"):
        MemoryFault(1)


def test_a_debug_exit_is_decoded_as_the_architectures_own() -> None:
    kind = DEBUG_BY_ARCH[MACHINE]
    assert BY_REASON[kind.reason] is kind
    assert {other.reason for other in DEBUG_BY_ARCH.values()} == {4}
    stale = memoryview(bytearray(range(256)))
    assert repr(DEBUG_BY_ARCH["riscv64"].decode(stale)) == "RiscvDebug()", "KVM says nothing more there"
    assert repr(DEBUG_BY_ARCH["aarch64"].decode(stale)).startswith("ArmDebug(hsr=0x3020100, ")

    class Record:
        reason, result, words = 4, 0, (1, 2, 3, 4)

    class State:
        exits, ring = 1, (Record,)

    payload = memoryview(bytearray(struct.pack("<4Q", *Record.words).ljust(256, b"\0")))
    assert describe_exits(State()) == [repr(kind.decode(payload))]
