"""vCPU threads: start, kick, pause, resume and stop them, with no wake-up lost.

A kick sets ``immediate_exit`` in the vCPU's run page and then signals its thread. The flag covers the moment between
our look at what is wanted and the entry into KVM_RUN, the signal the time within it. The thread clears the flag and
looks at what is wanted in this order, so a kick between the two is seen by the one or the other.
"""

from __future__ import annotations

import collections
import signal
import threading

from pyvmm_kvm.exits import Again, Intr
from pyvmm_kvm.vcpu import ignore_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pyvmm_kvm.exits import Exit
    from pyvmm_kvm.vcpu import VcpuFd

_RUN, _PAUSE, _STOP = range(3)
HISTORY = 16
"""How many exits are remembered for each vCPU."""


class VcpuThreads:
    """One thread for each vCPU of a machine.

    Args:
        vcpus: the vCPUs, each run by a thread of its own.
        handler: called in the vCPU's thread with the vCPU and each exit but `Intr` and `Again`; what it returns true
            for ends the whole set. An exception in it ends the set too, and `join` raises it again.
        on_end: called once, in the last thread to end.
        kick_signal: the signal that kicks, SIGRTMIN unless given; `start` gives it a handler that does nothing.
    """

    def __init__(
        self,
        vcpus: Iterable[VcpuFd],
        handler: Callable[[VcpuFd, Exit], object],
        on_end: Callable[[], object] | None = None,
        kick_signal: int = signal.SIGRTMIN,
    ) -> None:
        self.vcpus = list(vcpus)
        self.histories: list[collections.deque[tuple[Exit, bytes]]] = [
            collections.deque(maxlen=HISTORY) for _ in self.vcpus
        ]
        self._handler = handler
        self._on_end = on_end
        self._signal = kick_signal
        self._wanted = _STOP
        self._changed = threading.Condition()
        self._resting = 0
        self._alive = 0
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start one thread for each vCPU."""
        ignore_signal(self._signal)
        self._wanted = _RUN
        self._alive = len(self.vcpus)
        for index, vcpu in enumerate(self.vcpus):
            thread = threading.Thread(target=self._run, args=(index, vcpu), name=f"vcpu-{vcpu.id}", daemon=True)
            self._threads.append(thread)
        for thread in self._threads:
            thread.start()

    def kick(self) -> None:
        """Bring every vCPU out of KVM_RUN once; they go on by themselves unless something else is wanted."""
        with self._changed:
            self._kick()

    def _kick(self) -> None:
        for vcpu, thread in zip(self.vcpus, self._threads, strict=True):
            if thread.is_alive() and thread.ident != threading.get_ident():
                vcpu.set_kvm_immediate_exit(1)
                signal.pthread_kill(thread.ident or 0, self._signal)

    def pause(self) -> None:
        """Stop every vCPU between two instructions and return when all rest: then any thread may use them."""
        with self._changed:
            if self._wanted == _RUN:
                self._wanted = _PAUSE
                self._kick()
            self._changed.wait_for(lambda: self._resting == self._alive)

    def resume(self) -> None:
        """Let paused vCPUs go on."""
        with self._changed:
            if self._wanted == _PAUSE:
                self._wanted = _RUN
                self._changed.notify_all()

    def stop(self) -> None:
        """Ask every thread to end; `join` waits for them."""
        with self._changed:
            self._wanted = _STOP
            self._changed.notify_all()
            self._kick()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for all threads to end; true when they have.

        Raises:
            BaseException: the first exception that a handler or a vCPU raised.
        """
        for thread in self._threads:
            thread.join(timeout)
        if self._error is not None:
            raise self._error
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def history(self) -> Sequence[Sequence[str]]:
        """The last exits of each vCPU, oldest first, as text."""
        return [[describe(exit_, data) for exit_, data in list(exits)] for exits in self.histories]

    def _run(self, index: int, vcpu: VcpuFd) -> None:
        remember = self.histories[index].append
        handler = self._handler
        try:
            while True:
                if self._wanted != _RUN and not self._rest():
                    break
                exit_ = vcpu.run()
                kind = type(exit_)
                if kind is Intr:
                    vcpu.set_kvm_immediate_exit(0)
                    continue
                if kind is Again:
                    continue
                ended = handler(vcpu, exit_)
                # after the handler, so that a read shows what was answered
                remember((exit_, bytes(getattr(exit_, "data", b""))))
                if ended:
                    self.stop()
        except BaseException as error:  # noqa: BLE001 (raised again in join)
            with self._changed:
                self._error = self._error or error
            self.stop()
        finally:
            self._end()

    def _rest(self) -> bool:
        """Wait while paused; true when the vCPU is to run again."""
        with self._changed:
            self._resting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._wanted != _PAUSE)
            self._resting -= 1
            return self._wanted == _RUN

    def _end(self) -> None:
        with self._changed:
            self._alive -= 1
            last = not self._alive
            self._changed.notify_all()
        if last and self._on_end is not None:
            self._on_end()


def describe(exit_: Exit, data: bytes) -> str:
    """An exit and the data it had at the time, in words."""
    address = getattr(exit_, "port", getattr(exit_, "address", None))
    if address is None:
        return repr(exit_)
    return f"{type(exit_).__name__} {address:#x} = {data.hex(' ')}"
