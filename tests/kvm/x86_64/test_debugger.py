"""A debugger's view: steps, breakpoints, watchpoints, traces; what pausing and importing cost."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import (
    Again,
    Debug,
    ExitTrace,
    GuestDebug,
    Hlt,
    RunControl,
    StateError,
    VcpuExit,
    VcpuFd,
    read_trace,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .conftest import Guest

kvm_only = pytest.mark.kvm


def is_emulated() -> bool:
    """Say whether this host is QEMU's, and not on KVM itself: its processor is emulated too."""
    vendor = Path("/sys/class/dmi/id/sys_vendor")
    clocks = Path("/sys/devices/system/clocksource/clocksource0/available_clocksource")
    return vendor.exists() and vendor.read_text() == "QEMU\n" and "kvm-clock" not in clocks.read_text()


STEPS = "b8 01 00 40 40 40 a3 00 20 f4"


@kvm_only
def test_single_steps_and_breakpoints(boot: Callable[..., Guest]) -> None:
    guest = boot(STEPS)
    with GuestDebug(guest.vcpu) as debug:
        assert list(debug.steps(4)) == [0x1003, 0x1004, 0x1005, 0x1006]
    if is_emulated():
        pytest.skip("this host is emulated, and its guests have no hardware breakpoints")
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
    if is_emulated():
        pytest.skip("this host is emulated, and its guests have no hardware breakpoints")
    # mov [0x3000],al; hlt
    guest = boot("a2 00 30 f4")
    with GuestDebug(guest.vcpu) as debug:
        number = debug.watch(0x3000, 1, "write")
        exit_ = debug.resume()
    if os.path.exists("/sys/module/kvm_pvm"):
        assert isinstance(exit_, Hlt)
    else:
        assert isinstance(exit_, Debug)
        assert debug.hit(exit_) == [number]
