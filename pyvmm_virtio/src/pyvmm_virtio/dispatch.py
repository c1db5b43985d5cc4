"""Who is served and how long, who comes next, and when the driver is interrupted: a device as an actor.

A device runs in *calls*. A notification of its driver (`Dispatcher.kick`), a callback of its own (`serve`), and what a
machine does to it (`call`, `ask`) are calls, and one is made after another, by whichever thread finds nobody *within*
(`mailbox`). No lock is held meanwhile: a back end, an interrupt and a driver may take their time, and nobody waits for
them; whoever brings a call while somebody is within leaves it to them. Within a call the device takes its turn of a
queue (`turn`). When a call has ended, the driver is asked for each queue in which something was given back whether it
wants an interrupt. When nothing waits any more, somebody sets out for the next turn that is owed: the same thread where
there is no event loop, else a callback of the loop, so that whatever else waits there comes first. A slice that is used
up is renewed by such a callback, too; until then a notification only says that its queue is owed a turn.

A *reset* begins at once: nobody is served any more, and a call that waits is dropped when it is its turn. It is over
when nobody is within, and no worker is `in_flight`. It is waited for a moment, and then left to whoever ends that: a
device that is `resetting` has a status that is not 0, which is what its driver waits for, and nobody else does.

What there is to know, and who changes it. Flags change under `lock`, the mailbox's, together with `open`. They are read
without it, on the way to being within; whoever is within by then looks at them again.

`active`        A driver drives the device. Set by `start` when the device has agreed; cleared by `reset`, and by `end`.
`needs_reset`   The driver did what only a reset heals. Set by `need_reset`, where a device's `fail` ends; cleared when
                a reset is over.
`paused`        Nobody is served until `resume` clears it. Set by `pause` at its end, and by `hold`.
`pausing`       `pause` waits for what was taken. Calls go on, for they finish requests, but no turn begins or goes on.
                Set and cleared by `pause`.
`open`          `active`, and not `paused`, `pausing` or `needs_reset`: turns begin, and go on.
`resetting`     A reset has begun and is not over. `resetting_queues` are queues of which the same is true.
`_restored`     What was on its way to the driver may have been lost with another process. Set by `hold`, for a state
                that is restored; `resume` tells the driver of everything, and clears it.
`interrupt`     The way to the driver: what `start` was given, until a reset is over.
`resets`        The number of resets: a call that waits since before one is nobody's any more.
`epochs`        For each queue the number of its resets, the device's included: a request that a worker thread finishes
                is nobody's any more once the number has changed.
`within`        The thread that makes a call. Changed as the mailbox says.
`completed`     Queues in which chains were given back of which the driver was not told. Filled and emptied within:
                filled by `complete`, `complete_batch` and `batches`; emptied when a call ends, and by resets.
`owed`          Queues that are owed a turn. Filled when a budget is used up, and by notifications while somebody is
                within or on the way; a queue leaves when its turn begins, or by a reset.
`room`          Bytes that are left of the slice. Spent within; renewed by `_arrive`.
`coming`       A callback waits in the loop for the next turn that is owed, or to renew the slice. Set by `upcoming`
                under the lock, cleared by `_arrive`.

A device is *served* when it is `active`, not `paused` and does not need a reset; it is *at rest* when nobody is within.
Then this holds, and `check_invariants` says so:

1.  Queues named in `completed`, `owed` and `resetting_queues` exist.
2.  `_restored` implies `paused`: nobody is served before the driver was told.
3.  At rest and served, `completed` is empty: no interrupt is forgotten. Not so while paused: a back end may answer
    then, and the driver hears of it from the calls that `resume` makes.
4.  At rest and `open`, a turn that is owed implies `coming`: no queue is forgotten. Not so otherwise, for `resume`
    looks at every queue, and a reset forgets them all.
5.  At rest no call waits: none is forgotten.
6.  `open` says what the flags say.
7.  `resetting` implies that it is not `active`: who sees the status 0 sees a device at rest.

All other pairs are possible. `paused` and `pausing`: what is paused is paused once more. `active` and `needs_reset`:
from the driver's fault to its reset. `needs_reset` alone: the device did not start. `active` and `paused`: a machine is
being saved. `coming` with nothing owed, or with nobody served: who is on the way finds nothing to do. `paused` with
somebody within: a back end holds a call for longer than `pause` waits; `quiesce` comes after it.
"""

from __future__ import annotations

from functools import partial
from time import monotonic

from pyvmm_virtio.calls import Calls
from pyvmm_virtio.errors import DeviceBusy
from pyvmm_virtio.interrupt import NoInterrupt
from pyvmm_virtio.mailbox import PATIENCE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyvmm_virtio.interrupt import VirtioInterrupt
    from pyvmm_virtio.memory import GuestMemory
    from pyvmm_virtio.queue.protocol import Queue
    from pyvmm_virtio.turn import Dispatched

    Activate = Callable[[GuestMemory, Sequence[Queue], VirtioInterrupt], object]


LOOKS = 100
"""How often it is looked whether the invariants hold, with a millisecond between."""


class Dispatcher(Calls):
    """Gives the queues of a device their turns; the file's head says how.

    In short, for who writes a device or a back end. Everything of a device (`activate`, `process_queue`, `quiesce`,
    `drop`, `reset`, `queue_reset`, `device_state`, `restore_device`, and what was given to `serve`, `call` and `ask`)
    runs within: never two at a time, and with no lock held. `chains`, `batches`, `take`, `owe`, `complete` and
    `complete_batch` are for within. From anywhere:

    - `serve(function, *arguments)`: while a driver is served, now or after what is under way; for back ends and timers.
    - `serve_now`: the same, but only if nobody is within; for a descriptor that would be readable again at once.
    - `finish(index, epoch, chain, length)`: give a chain back, unless its queue was reset.
    - `call(function, *arguments)`: whether anybody is served or not, now or later; for what a machine does.
    - `ask(function, *arguments)`: the same, and wait a moment for what it returns; DeviceBusy where that is too long.

    A worker that touches guest memory does so in the device's `in_flight`, and asks `is_current` there. A reset calls
    `drop` (what has not begun is given up), waits for `in_flight`, and calls `reset`; what takes longer than
    `PATIENCE` goes on by itself.

    Args:
        device: the device, which owns this.
        queues: how many queues it has.

    Attributes:
        active, paused, pausing, needs_reset, resetting, interrupt, resets, epochs: as the file's head says.
        bugs: how often there was an error that was the device's own; the first of each kind was logged.
        faults: the same by kind, and how often an interrupt was lost, as "interrupt".
    """

    __slots__ = ("_restored", "pausing", "resetting", "resetting_queues")

    def __init__(self, device: Dispatched, queues: int) -> None:
        super().__init__(device, queues)
        self.pausing = False
        self.resetting = False
        self.resetting_queues: set[int] = set()
        self._restored = False

    # beginnings and ends

    def start(self, interrupt: VirtioInterrupt, activate: Activate) -> None:
        """Begin to serve; raises what `activate` does, or DeviceBusy, and the device is not active then."""
        self.ask(self._start, interrupt, activate)

    def _start(self, interrupt: VirtioInterrupt, activate: Activate) -> None:
        if self.resetting:
            raise DeviceBusy("its reset is not over: a driver waits for the status 0 first")
        self.interrupt = interrupt
        activate(self.device.memory, self.device.queues, interrupt)
        self.set_flag("active", True)

    def need_reset(self) -> None:
        """Serve nobody until a reset, and tell the driver."""
        with self.lock:
            if self.needs_reset:
                return
            self.needs_reset = True
            self._settle()
        # 2.1.2: "If DRIVER_OK is set, after it sets DEVICE_NEEDS_RESET, the device MUST send a device configuration
        # change notification"
        self.tell_config()

    def reset(self, forget: Callable[[], object], renew: Callable[[], object]) -> bool:
        """Begin a reset, and wait a moment for its end; returns whether it is over, as `resetting` says later.

        When it is over, nothing of the device touches guest memory.

        Args:
            forget: lets the device forget its requests, called when no worker is at them.
            renew: makes new queues.
        """
        with self.lock:
            self.active = False
            self._settle()
            self.resets += 1
            self.epochs = [epoch + 1 for epoch in self.epochs]
            begun, self.resetting = self.resetting, True
            until = monotonic() + PATIENCE
        if not begun:
            self.make(PATIENCE, self._reset, None, self.resets, until, lambda: self._end_reset(forget, renew))
        return not self.resetting

    def reset_queue(self, index: int, forget: Callable[[int], object], prepare: Callable[[Queue], object]) -> bool:
        """Begin to reset one queue, otherwise as `reset`; `prepare` tells it again what was negotiated."""
        with self.lock:
            self.epochs[index] += 1
            begun = index in self.resetting_queues
            self.resetting_queues.add(index)
            resets, until = self.resets, monotonic() + PATIENCE
        if not begun:
            end = partial(self._end_queue_reset, index, resets, forget, prepare)
            self.make(PATIENCE, self._reset, index, resets, until, end)
        return index not in self.resetting_queues

    def _reset(self, index: int | None, resets: int, until: float, end: Callable[[], object]) -> None:
        """Drop what has not begun, and have the reset ended when no worker is at the rest."""
        device = self.device
        if index is not None:
            if resets != self.resets:
                return  # all of the device was reset meanwhile
            device.queues[index].set_ready(False)
        self.guard(device.drop, index)
        in_flight = device.in_flight
        if in_flight is None or in_flight.drain(max(0.0, until - monotonic())):
            end()
        else:
            in_flight.when_idle(lambda: self.call(end))

    def _end_reset(self, forget: Callable[[], object], renew: Callable[[], object]) -> None:
        self.guard(forget)
        renew()
        with self.lock:
            self.needs_reset = False
            self.interrupt = NoInterrupt()
            self.completed.clear()
            self.owed.clear()
            self.resetting_queues.clear()
            self.resetting = False
            self._settle()

    def _end_queue_reset(
        self, index: int, resets: int, forget: Callable[[int], object], prepare: Callable[[Queue], object]
    ) -> None:
        if resets != self.resets:
            return
        self.guard(forget, index)
        queue = self.device.queues[index]
        queue.reset()
        prepare(queue)
        with self.lock:
            self.completed.discard(index)
            self.owed.discard(index)
            self.resetting_queues.discard(index)

    def enable_queue(self, index: int) -> None:
        """Enable a queue that its driver has set up; a moment later where somebody is within for long."""
        self.make(PATIENCE, self._enable, self.device.queues, index)

    def _enable(self, queues: Sequence[Queue], index: int) -> None:
        if queues is self.device.queues:  # else they were reset meanwhile
            queues[index].set_ready(True)

    def end(self, close: Callable[[], object]) -> bool:
        """Serve nobody any more and have the device closed, when nobody is within; returns whether it is already."""
        with self.lock:
            self.active = False
            self._settle()
            self.resets += 1
            self.epochs = [epoch + 1 for epoch in self.epochs]
        return self.make(PATIENCE, close)

    def pause(self, quiesce: Callable[[], object]) -> None:
        """Have everything finished that was taken, and serve nobody until `resume`."""
        self.set_flag("pausing", True)
        try:
            if self.is_within():
                self._quiesce(quiesce)
            else:
                self.make(PATIENCE, self._quiesce, quiesce)
        finally:
            with self.lock:
                self.pausing = False
                self.paused = True
                self._settle()

    def _quiesce(self, quiesce: Callable[[], object]) -> None:
        """Come to rest, within; where a back end holds a call, after that."""
        try:
            quiesce()
        finally:
            if self.completed and self.is_served():
                self.notify_driver()
            for queue in self.device.queues:
                queue.release()

    def hold(self) -> None:
        """Be paused from the start, for a state that is restored."""
        with self.lock:
            self.paused = self._restored = True
            self._settle()

    def resume(self) -> None:
        """Serve again, and look at every queue."""
        queues = self.device.queues
        with self.lock:
            self.paused = False
            told = self._restored and self.active
            self._restored = False
            self._settle()
        if told:
            # what was on its way to the driver when the state was saved may have been lost with it
            for index, queue in enumerate(queues):
                if queue.ready():
                    self.tell(self.interrupt.signal_queue, index)
            self.tell(self.interrupt.signal_config)
        for index in range(len(queues)):
            self.kick(index)

    def set_flag(self, name: str, value: bool) -> None:
        """Set a flag, such as `active`, where a device knows by itself; nothing else follows from it."""
        with self.lock:
            setattr(self, name, value)
            self._restored = self._restored and self.paused
            self._settle()

    def _settle(self) -> None:
        """Say in `open` what the flags say; under the lock."""
        self.open = self.active and not (self.paused or self.pausing or self.needs_reset)

    # the invariants

    def check_invariants(self) -> None:
        """Raise AssertionError where something does not hold that the file's head promises."""
        from time import sleep

        # who comes and who leaves takes no lock, so while somebody does what is said here may be true of no moment
        for _ in range(LOOKS):
            try:
                self._check()
            except AssertionError as error:
                wrong = error
                sleep(0.001)
            else:
                return
        raise wrong

    def _check(self) -> None:
        with self.lock:
            count = len(self.device.queues)
            for name in ("completed", "owed", "resetting_queues"):
                named = getattr(self, name)
                assert all(0 <= index < count for index in named), f"1: {name} has {named} of {count} queues"
            assert self.paused or not self._restored, "2: restored, not told, and not paused"
            flags = self.active and not (self.paused or self.pausing or self.needs_reset)
            assert self.open == flags, f"6: open is {self.open}"
            assert not (self.resetting and self.active), "7: active within its reset"
            if self.within:
                return
            assert not self.calls, f"5: {len(self.calls)} calls wait, and nobody is within"
            if self.is_served():
                assert not self.completed, f"3: the driver was not told of queues {self.completed}"
            if self.open:
                assert self.coming or not self.owed, f"4: nobody comes to queues {self.owed}"
