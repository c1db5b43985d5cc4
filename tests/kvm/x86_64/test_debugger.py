"""A debugger's view: steps, breakpoints, watchpoints, traces."""

from __future__ import annotations

import fcntl
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import (
    Again,
    Debug,
    ExitTrace,
    GuestDebug,
    Hlt,
    StateError,
    VcpuExit,
    read_trace,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .conftest import Guest

kvm_only = pytest.mark.kvm
STEPS = "b8 01 00 40 40 40 a3 00 20 f4"


@kvm_only
def test_single_steps(boot: Callable[..., Guest]) -> None:
    guest = boot(STEPS)
    with GuestDebug(guest.vcpu) as debug:
        assert list(debug.steps(4)) == [0x1003, 0x1004, 0x1005, 0x1006]


def stops_at(boot: Callable[..., Guest], code: str, dr0: int, dr7: int) -> bool:
    """Whether this host stops a guest at a debug register, asked by a system call of our own.

    QEMU 7.2 emulates an AMD processor whose guests run through all of them; KVM-PVM's emulator honours those of
    instructions only.
    """
    guest = boot(code)
    # KVM_SET_GUEST_DEBUG with struct kvm_guest_debug: KVM_GUESTDBG_ENABLE and _USE_HW_BP, then DR0 to DR7
    fcntl.ioctl(guest.vcpu, 0x4048AE9B, struct.pack("<II8Q", 1 | 1 << 17, 0, dr0, 0, 0, 0, 0, 0, 0, dr7))
    return isinstance(guest.vcpu.run(), Debug)


@kvm_only
def test_breakpoints(boot: Callable[..., Guest]) -> None:
    if not stops_at(boot, STEPS, 0x1005, 0x602):
        pytest.skip("this host's processor runs its guests through hardware breakpoints")
    guest = boot(STEPS)
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
def test_trace_is_read_back(boot: Callable[..., Guest], tmp_path: Path) -> None:
    # in al,0x20; mov al,0x41; out 0x10,al; mov [0xf000],ax; mov ax,[0xf002]; hlt, with ds at 0x20000
    guest = boot("e4 20 b0 41 e6 10 a3 00 f0 a1 02 f0 f4")
    sregs = guest.vcpu.get_sregs()
    sregs.ds.base = 0x20000
    guest.vcpu.set_sregs(sregs)
    path = str(tmp_path / "trace")
    with ExitTrace(path) as trace:
        for _ in range(5):
            trace.record(guest.vcpu, guest.vcpu.run())
        guest.vcpu.set_kvm_immediate_exit(1)
        trace.record(guest.vcpu, guest.vcpu.run())
        trace.record(guest.vcpu, Again())
    records = list(read_trace(path))
    assert [(vcpu, reason, text) for _, vcpu, reason, text in records] == [
        (0, 2, "IoIn(port=0x20, 1 bytes)"),
        (0, 2, "IoOut(port=0x10, data=<41>)"),
        (0, 6, "MmioWrite(addr=0x2f000, data=<41 00>)"),
        (0, 6, "MmioRead(addr=0x2f002, 2 bytes)"),
        (0, 5, "Hlt()"),
        (0, 10, "Intr()"),
        (0, -1, "Again()"),
    ]
    times = [when for when, _, _, _ in records]
    assert times == sorted(times)
    data = Path(path).read_bytes()
    assert len(data) == 8 + 7 * 14 + 4 + 3 + 10 + 10 + len("Hlt()Intr()Again()")
    for length in range(9, len(data)):
        Path(path).write_bytes(data[:length])
        try:
            assert len(list(read_trace(path))) < 7
        except StateError as error:
            assert "inside a record" in str(error)  # noqa: PT017 - a cut between two records is no error
    # a record whose body is shorter than what it must hold
    Path(path).write_bytes(data[:8] + struct.pack("<QHHH", 0, 0, 6, 3) + b"abc")
    with pytest.raises(StateError, match="without its address"):
        list(read_trace(path))
    Path(path).write_bytes(b"nonsense")
    with pytest.raises(StateError, match="not a trace"):
        list(read_trace(path))


def test_watchpoints_are_encoded_as_the_manual_says() -> None:
    """DR7 of Intel SDM volume 3, 17.2.4: enable bits 0-7, then type and length of each in four bits from 16 on."""
    calls: list[tuple[int, tuple[int, ...]]] = []

    class Fake:
        closed = False

        def set_guest_debug(self, control: int, debugreg: Iterable[int] = ()) -> None:
            calls.append((control, tuple(debugreg)))

        def run(self) -> VcpuExit:
            return Debug(1, 0x1000, 1 << 2, 0)

    with GuestDebug(Fake()) as debug:  # type: ignore[arg-type]
        debug.watch(0x1000)
        debug.watch(0x2000, 8, "write")
        third = debug.watch(0x3004, 4, "access")
        exit_ = debug.resume()
        assert isinstance(exit_, Debug)
        assert debug.hit(exit_) == [third]
        control, registers = calls[-1]
        assert control == 1 | 1 << 17
        assert registers[:4] == (0x1000, 0x2000, 0x3004, 0)
        assert registers[7] == 0x600 | 0b101010 | 0b0000 << 16 | 0b1001 << 20 | 0b1111 << 24
        debug.clear(0)
        debug.clear(1)
        debug.clear(third)
        debug.step()
        assert calls[-1] == (3, ())
    assert calls[-1] == (0, ())


@kvm_only
def test_a_watchpoint_stops_the_guest_where_the_processor_runs_it(boot: Callable[..., Guest]) -> None:
    # mov [0x3000],al; hlt
    code = "a2 00 30 f4"
    if not stops_at(boot, code, 0x3000, 0x602 | 1 << 16):
        pytest.skip("this host's processor, or KVM-PVM's emulator, runs its guests through hardware watchpoints")
    guest = boot(code)
    with GuestDebug(guest.vcpu) as debug:
        number = debug.watch(0x3000, 1, "write")
        exit_ = debug.resume()
        assert isinstance(exit_, Debug)
        assert debug.hit(exit_) == [number]
