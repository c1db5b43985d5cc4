"""The threads that run vCPUs, on any architecture: started, paused, kicked, stopped, with errors and without."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import Intr, RunControl, VcpuExit, VcpuFd

from .guests import ENTRY, ended, pc_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .guests import Guest

pytestmark = pytest.mark.kvm


def test_closing_while_another_thread_runs_is_refused(boot: Callable[..., Guest]) -> None:
    guest = boot("loop")
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


def test_pause_and_resume_many_times(boot: Callable[..., Guest]) -> None:
    guest = boot("loop")
    with RunControl([guest.vcpu], lambda vcpu, exit_: False) as control:
        control.start()
        for step in range(300):
            control.pause(timeout=5)
            assert control.state == "paused"
            assert pc_of(guest.vcpu) == ENTRY
            control.resume()
            time.sleep(step % 3 * 2e-4)
    assert control.state == "stopped"


def test_kick_reaches_the_handler_once(boot: Callable[..., Guest]) -> None:
    guest = boot("loop")
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
    guest = boot("loop")
    for delay in range(60):
        control = RunControl([guest.vcpu], lambda vcpu, exit_: False)
        control.start()
        if delay:
            time.sleep(delay * 2e-5)
        control.stop()
        control.join(timeout=5)


def test_handler_ends_everything(boot: Callable[..., Guest]) -> None:
    guest = boot("copy")
    with RunControl([guest.vcpu], lambda vcpu, exit_: ended(exit_)) as control:
        control.start()
        control.join(timeout=5)
    assert control.ended_by is not None
    assert ended(control.ended_by[1])


def test_exception_of_a_handler_is_raised_by_join_and_reported(boot: Callable[..., Guest]) -> None:
    guest = boot("copy")

    def handler(vcpu: VcpuFd, exit_: VcpuExit) -> None:
        raise LookupError("no device at that address")

    control = RunControl([guest.vcpu], handler)
    control.start()
    with pytest.raises(LookupError, match="no device"):
        control.join(timeout=5)
    report = control.report()
    assert "LookupError: no device at that address" in report
    assert "MmioRead(0x2f000, 2 bytes)" in report


def test_on_end_and_states_of_run_control(boot: Callable[..., Guest]) -> None:
    guest = boot("count")
    ended_: list[int] = []
    control = RunControl([guest.vcpu], lambda vcpu, exit_: None, on_end=lambda: ended_.append(1))
    assert control.state == "new"
    control.start(paused=True)
    control.pause(timeout=5)
    assert control.state == "paused"
    assert guest.vcpu.exits == 0
    control.resume()
    control.stop()
    control.pause()
    control.join(timeout=5)
    assert control.state == "stopped"
    assert ended_ == [1]
    assert control.vcpus == [guest.vcpu]


def test_a_handler_may_pause_its_own_vcpu(boot: Callable[..., Guest]) -> None:
    guest = boot("count")

    def handler(vcpu: VcpuFd, exit_: VcpuExit) -> None:
        control.pause()

    control = RunControl([guest.vcpu], handler)
    with control:
        control.start()
        while control.state != "paused":
            pass
        assert guest.vcpu.exits == 2
        assert guest.vcpu.last_exits[-1] == "KVM_RUN returned EINTR"
    assert Intr.reason == 10


def test_an_exception_leaves_with_by_the_with_block(boot: Callable[..., Guest]) -> None:
    guest = boot("count")
    reached = threading.Event()

    def failing(vcpu: VcpuFd, exit_: VcpuExit) -> None:
        reached.set()
        raise LookupError("inside")

    def block() -> None:
        with RunControl([guest.vcpu], failing) as control:
            control.start()
            reached.wait(5)

    with pytest.raises(LookupError, match="inside"):
        block()


def test_pause_times_out_with_the_name_of_the_vcpu(boot: Callable[..., Guest]) -> None:
    guest = boot("count")

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


def test_two_vcpus_run_at_once(boot: Callable[..., Guest]) -> None:
    guest = boot("count", vcpus=2)
    seen: dict[int, int] = {}

    def handler(vcpu: VcpuFd, exit_: VcpuExit) -> bool:
        seen[vcpu.id] = seen.get(vcpu.id, 0) + 1
        return min(seen.get(0, 0), seen.get(1, 0)) >= 3

    with RunControl(guest.vcpus, handler) as control:
        control.start()
        control.join(timeout=10)
    assert min(seen.values()) >= 3
