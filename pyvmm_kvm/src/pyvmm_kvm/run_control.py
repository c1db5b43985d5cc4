"""Threads for vCPUs: start, kick, pause, resume, stop and join, without a wake-up that could get lost.

Each thread loops `run()` and hands the exit to one handler. To get a vCPU out of the guest, `immediate_exit` is set
and its thread is signalled. The signal is blocked in the thread and only KVM unblocks it, inside KVM_RUN
(KVM_SET_SIGNAL_MASK), so no handler is installed, no other system call is disturbed, and a signal that arrives too
early stays pending and ends the next KVM_RUN at once. The thread clears both *before* it looks at what is asked of it;
whoever asks writes the request before kicking. In either order one of the two sees the other.

The lock guards what is noted here, and nothing else is called under it: the handler, `on_end` and the vCPUs' own
methods are called without it.
"""

from __future__ import annotations

import threading
from contextlib import suppress

from pyvmm_kvm._kvm import lib
from pyvmm_kvm.errors import KvmError
from pyvmm_kvm.exits.hot import Again, Intr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

    from pyvmm_kvm.exits.hot import VcpuExit
    from pyvmm_kvm.vcpu import VcpuFd

    Handler = Callable[[VcpuFd, VcpuExit], object]

_RUN, _PAUSE, _STOP = "run", "pause", "stop"
_IMMEDIATE_EXIT = lib.PYVMM_RUN_IMMEDIATE_EXIT
_SIGNALS = 63  # as native/functions.c gives them


class _Worker:
    """One vCPU and its thread."""

    __slots__ = ("alive", "kicked", "parked", "posix_thread", "run_page", "thread", "vcpu")

    def __init__(self, vcpu: VcpuFd) -> None:
        self.vcpu = vcpu
        self.run_page = vcpu.get_kvm_run()
        self.thread: threading.Thread | None = None
        self.posix_thread = 0
        self.alive = False
        self.parked = False
        self.kicked = False


class RunControl:
    """Runs a set of vCPUs, one thread each.

    Args:
        vcpus: those to run, at least one and each once; nobody else may run them meanwhile.
        handler: called as `handler(vcpu, exit)` in the vCPU's thread for every exit except the ones this class makes
            itself. A true result ends all vCPUs; an exception does too, and `join()` raises it again.
        on_end: called once, in the last thread to end, such as to wake an event loop.
        name: what the threads are called, with the vCPU's id behind it.

    Raises:
        ValueError: there is no vCPU, whose end `join` could wait for, or one is there twice, or closed.
        TypeError: the handler cannot be called.

    Example::

        with RunControl([vcpu], handler) as control:
            control.start()
            control.join()

    """

    __slots__ = (
        "__weakref__",
        "_changed",
        "_handler",
        "_name",
        "_on_end",
        "_running",
        "_started",
        "_target",
        "_workers",
        "ended_by",
        "errors",
    )

    def __init__(
        self,
        vcpus: Iterable[VcpuFd],
        handler: Handler,
        *,
        on_end: Callable[[], object] | None = None,
        name: str = "vcpu",
    ) -> None:
        self._workers = [_Worker(vcpu) for vcpu in vcpus]
        if not self._workers:
            raise ValueError("RunControl needs at least one vCPU: with none there is no end to join()")
        if closed := [worker.vcpu for worker in self._workers if worker.vcpu.closed]:
            raise ValueError(f"{closed[0]!r} is closed")
        if len({id(worker.vcpu) for worker in self._workers}) < len(self._workers):
            raise ValueError("a vCPU is there twice, and two threads cannot run it")
        if not callable(handler):
            raise TypeError(f"the handler is called with each exit, and {handler!r} cannot be")
        if on_end is not None and not callable(on_end):
            raise TypeError(f"on_end is called at the end, and {on_end!r} cannot be")
        self._handler = handler
        self._on_end = on_end
        self._name = name
        self._changed = threading.Condition()
        self._target = _RUN
        self._started = False
        self._running = 0
        self.errors: list[tuple[VcpuFd, BaseException]] = []
        self.ended_by: tuple[VcpuFd, VcpuExit] | None = None

    @property
    def vcpus(self) -> list[VcpuFd]:
        """The vCPUs, in the order given."""
        return [worker.vcpu for worker in self._workers]

    @property
    def state(self) -> str:
        """One of "new", "running", "pausing", "paused", "stopping" and "stopped"."""
        with self._changed:
            if not self._started:
                return "new"
            if not self._running:
                return "stopped"
            if self._target == _PAUSE:
                return "paused" if self._all_parked() else "pausing"
            return "running" if self._target == _RUN else "stopping"

    def start(self, *, paused: bool = False) -> None:
        """Start the threads, once; with `paused` they wait for `resume()` before entering the guest."""
        with self._changed:
            if self._started:
                raise RuntimeError("these vCPUs were started already: make a new RunControl to run them again")
            self._started = True
            self._running = len(self._workers)
            if paused:
                self._target = _PAUSE
        begun = 0
        try:
            for worker in self._workers:
                worker.thread = threading.Thread(
                    target=self._main, args=(worker,), name=f"{self._name}{worker.vcpu.id}", daemon=True
                )
                worker.thread.start()
                begun += 1
        except BaseException:
            # those that have begun end, and nobody waits for the others
            with self._changed:
                self._running -= len(self._workers) - begun
                for worker in self._workers[begun:]:
                    worker.thread = None
            self.stop()
            raise

    def kick(self, vcpu: VcpuFd | None = None) -> None:
        """Get one vCPU, or all, out of the guest once; the handler is called with `Intr`.

        `ValueError` for one that is not run here.
        """
        if vcpu is not None and not any(worker.vcpu is vcpu for worker in self._workers):
            raise ValueError(f"{vcpu!r} is none of the vCPUs that are run here")
        with self._changed:
            for worker in self._workers:
                if vcpu is None or worker.vcpu is vcpu:
                    worker.kicked = True
                    self._wake(worker)

    def pause(self, timeout: float | None = None) -> None:
        """Stop all vCPUs between instructions, pending I/O finished, and wait until they have stopped.

        Called by a handler it only asks, since its own vCPU cannot stop inside it. `TimeoutError` after `timeout`
        seconds: a handler does not return; the request stays.
        """
        with self._changed:
            if not self._started:
                raise RuntimeError("start() comes before pause(); start(paused=True) does both")
            if self._target == _STOP:
                return
            self._target = _PAUSE
            self._wake_all()
            if self._is_own_thread():
                return
            if not self._changed.wait_for(lambda: self._target != _PAUSE or self._all_parked(), timeout):
                busy = [worker.vcpu.id for worker in self._workers if worker.alive and not worker.parked]
                raise TimeoutError(f"vCPUs {busy} did not pause within {timeout} s: their handler does not return")

    def resume(self) -> None:
        """Let paused vCPUs go on."""
        with self._changed:
            if self._target == _PAUSE:
                self._target = _RUN
                self._changed.notify_all()

    def stop(self) -> None:
        """Ask all vCPUs to end, whatever they do; anybody may call it, a handler too. `join()` waits for the end."""
        with self._changed:
            self._target = _STOP
            self._wake_all()
            self._changed.notify_all()

    def join(self, timeout: float | None = None) -> None:
        """Wait until all threads have ended, and raise the first exception that one of them met.

        `TimeoutError` after `timeout` seconds, `RuntimeError` before `start` and in one of the threads, which would
        wait for itself. More exceptions, with their vCPUs, are in `errors`.
        """
        if self._is_own_thread():
            raise RuntimeError("a handler cannot join() its own thread: return true, or stop() and join() elsewhere")
        with self._changed:
            if not self._started:
                raise RuntimeError("start() comes before join()")
            if not self._changed.wait_for(lambda: not self._running, timeout):
                raise TimeoutError(f"{self._running} vCPUs still run after {timeout} s")
        for worker in self._workers:
            if worker.thread is not None:
                worker.thread.join()
        if self.errors:
            raise self.errors[0][1]

    def report(self) -> str:
        """Return the registers and last exits of every stopped vCPU, those with an error first."""
        from pyvmm_kvm.crash import crash_report

        failed = {vcpu.id: error for vcpu, error in self.errors}
        ordered = sorted(self.vcpus, key=lambda vcpu: vcpu.id not in failed)
        return "\n\n".join(crash_report(vcpu, failed.get(vcpu.id)) for vcpu in ordered)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if not self._started or self._is_own_thread():
            return
        try:
            self.join()
        except BaseException:
            # the exception that is on its way already matters more than a second copy of it
            if error is None:
                raise

    def _all_parked(self) -> bool:
        return sum(worker.parked for worker in self._workers) == self._running

    def _is_own_thread(self) -> bool:
        return any(worker.thread is threading.current_thread() for worker in self._workers)

    def _wake_all(self) -> None:
        for worker in self._workers:
            self._wake(worker)

    def _wake(self, worker: _Worker) -> None:
        """Get it out of the guest. The lock is held, or the thread could end between the test and the signal."""
        if worker.alive:
            worker.run_page[_IMMEDIATE_EXIT] = 1
            lib.pyvmm_kick(worker.posix_thread)

    def _main(self, worker: _Worker) -> None:
        vcpu = worker.vcpu
        try:
            if (blocked := lib.pyvmm_kick_enter()) < 0:
                raise KvmError(-blocked, "KVM_SET_SIGNAL_MASK")
            vcpu.set_signal_mask(number for number in range(1, _SIGNALS + 1) if blocked >> number - 1 & 1)
            with self._changed:
                worker.posix_thread = lib.pyvmm_thread_self()
                worker.alive = True
            if self._may_go_on(worker):
                self._loop(worker)
        except BaseException as error:  # noqa: BLE001 - join() raises it in the caller's thread
            with self._changed:
                self.errors.append((vcpu, error))
        finally:
            self._end(worker)

    def _end(self, worker: _Worker) -> None:
        vcpu = worker.vcpu
        with self._changed:
            # after this nobody signals the thread, so what is pending now is all there will be
            worker.alive = False
            self._target = _STOP
            self._wake_all()
            last = self._running == 1
        lib.pyvmm_kick_consume()
        try:
            with suppress(KvmError):
                # somebody closed it, or runs it already
                vcpu.set_kvm_immediate_exit(0)
                vcpu.set_signal_mask(None)
            if last and self._on_end is not None:
                self._on_end()
        except BaseException as error:  # noqa: BLE001 - join() raises it
            self.errors.append((vcpu, error))
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _loop(self, worker: _Worker) -> None:
        vcpu, handler = worker.vcpu, self._handler
        run = vcpu.run
        while True:
            exit_ = run()
            kind = type(exit_)
            if kind is Intr or kind is Again:
                lib.pyvmm_kick_consume()
                vcpu.set_kvm_immediate_exit(0)
                if not self._may_go_on(worker):
                    return
                if not worker.kicked:
                    continue
                worker.kicked = False
            if handler(vcpu, exit_):
                with self._changed:
                    if self.ended_by is None:
                        self.ended_by = vcpu, exit_
                return

    def _may_go_on(self, worker: _Worker) -> bool:
        """Wait while a pause is asked for; False when it is time to end."""
        if self._target == _RUN:
            return True
        with self._changed:
            if self._target == _PAUSE:
                worker.parked = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._target != _PAUSE)
                worker.parked = False
            return self._target == _RUN
