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

What there is to know, and who changes it. Flags change under `lock`, the mailbox's, together with `open`:

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
`_coming`       A callback waits in the loop for the next turn that is owed, or to renew the slice. Set by `upcoming`
                under the lock, cleared by `_arrive`.

A device is *served* when it is `active`, not `paused` and does not need a reset; it is *at rest* when nobody is within.
Then this holds, and `check_invariants` says so:

1.  Queues named in `completed`, `owed` and `resetting_queues` exist.
2.  `_restored` implies `paused`: nobody is served before the driver was told.
3.  At rest and served, `completed` is empty: no interrupt is forgotten. Not so while paused: a back end may answer
    then, and the driver hears of it from the calls that `resume` makes.
4.  At rest and `open`, a turn that is owed implies `_coming`: no queue is forgotten. Not so otherwise, for `resume`
    looks at every queue, and a reset forgets them all.
5.  At rest no call waits: none is forgotten.
6.  `open` says what the flags say.
7.  `resetting` implies that it is not `active`: who sees the status 0 sees a device at rest.

All other pairs are possible. `paused` and `pausing`: what is paused is paused once more. `active` and `needs_reset`:
from the driver's fault to its reset. `needs_reset` alone: the device did not start. `active` and `paused`: a machine is
being saved. `_coming` with nothing owed, or with nobody served: who is on the way finds nothing to do. `paused` with
somebody within: a back end holds a call for longer than `pause` waits; `quiesce` comes after it.
"""

from __future__ import annotations

from _thread import get_ident
from functools import partial
from time import monotonic

from pyvmm_device.tally import ERROR, Tally
from pyvmm_memory import GuestMemoryError
from pyvmm_virtio.errors import DeviceBusy, VirtqueueError
from pyvmm_virtio.interrupt import NoInterrupt
from pyvmm_virtio.mailbox import PATIENCE
from pyvmm_virtio.turn import SLICE_BYTES, Turns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyvmm_virtio.interrupt import VirtioInterrupt
    from pyvmm_virtio.mailbox import Call
    from pyvmm_virtio.memory import GuestMemory
    from pyvmm_virtio.queue.chain import DescriptorChain
    from pyvmm_virtio.queue.protocol import Queue
    from pyvmm_virtio.turn import Dispatched

    Activate = Callable[[GuestMemory, Sequence[Queue], VirtioInterrupt], object]


class Dispatcher(Turns):
    """Gives the queues of a device their turns; the file's head says how.

    In short, for who writes a device or a back end. Everything of a device (`activate`, `process_queue`, `quiesce`,
    `drop`, `reset`, `queue_reset`, `device_state`, `restore_device`, and what was given to `serve`, `call` and `ask`)
    runs within: never two at a time, and with no lock held. `chains`, `batches`, `take`, `complete` and `complete_batch`
    are for within. From anywhere:

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

    __slots__ = (
        "_coming",
        "_last",
        "_restored",
        "active",
        "bugs",
        "epochs",
        "faults",
        "interrupt",
        "needs_reset",
        "paused",
        "pausing",
        "resets",
        "resetting",
        "resetting_queues",
    )

    def __init__(self, device: Dispatched, queues: int) -> None:
        super().__init__(device)
        self.active = False
        self.needs_reset = False
        self.paused = False
        self.pausing = False
        self.resetting = False
        self.resetting_queues: set[int] = set()
        self.interrupt: VirtioInterrupt = NoInterrupt()
        self.resets = 0
        self.epochs = [0] * queues
        self.bugs = 0
        self.faults = Tally(__name__)
        self._restored = False
        self._coming = False
        self._last = -1

    # calls, and who comes next

    def serve(self, function: Callable[..., object], *arguments: object) -> bool:
        """Make a call, now or after what is under way; see `VirtioDevice.serve`."""
        with self.lock:
            if not self.is_served():
                return False
            if self.within:
                self._calls.append((self._serve_later, (self.resets, function, arguments)))
                return True
            self.within = get_ident()
        return self._serve_within(function, arguments)

    def serve_now(self, function: Callable[..., object], *arguments: object) -> bool | None:
        """Make a call as `serve`, or return None at once where somebody is within."""
        with self.lock:
            if not self.is_served():
                return False
            if self.within:
                return None
            self.within = get_ident()
        return self._serve_within(function, arguments)

    def _serve_within(self, function: Callable[..., object], arguments: tuple[object, ...]) -> bool:
        try:
            return self._call(function, *arguments)
        finally:
            self.leave()

    def _serve_later(self, resets: int, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
        if resets == self.resets:
            self._call(function, *arguments)

    def kick(self, index: int) -> None:
        """Take a notification of the driver; see `VirtioDevice.kick`."""
        if not 0 <= index < len(self.device.queues):
            return
        with self.lock:
            if not self.open:
                return  # whatever ends that looks at every queue
            if self.within or self._coming:
                self.owed.add(index)
                return
            self.within = get_ident()
        try:
            self._turn(index)
        finally:
            self.leave()

    def finish(self, index: int, epoch: int, chain: DescriptorChain | int, length: int) -> bool:
        """Complete a request from a worker thread; see `VirtioDevice.finish`."""
        return self.is_current(index, epoch) and self.serve(self._finish, index, epoch, chain, length)

    def _finish(self, index: int, epoch: int, chain: DescriptorChain | int, length: int) -> None:
        if self.is_current(index, epoch):
            self.complete(index, chain, length)

    def is_current(self, index: int, epoch: int) -> bool:
        """Say whether a queue was not reset since its `epochs` entry was this."""
        return self.epochs[index] == epoch

    def is_served(self) -> bool:
        """Say whether a driver is served."""
        return self.active and not self.paused and not self.needs_reset

    def _turn(self, index: int) -> None:
        self._last = index
        self.owed.discard(index)
        if self.open:
            self._call(self.device.process_queue, index)

    def upcoming(self) -> Call | None:
        """Return how the next turn that is owed is come by."""
        loop = self.device.loop
        if loop is None:
            return (self._turn, (self._next_owed(),)) if self.owed and self.open else None
        if self._coming or not (self.owed and self.open or self.room <= 0):
            return None
        self._coming = True
        return loop.call_soon, (self._arrive,)

    def _next_owed(self) -> int:
        # those behind the last one come first, so that all have their turn
        return min((index for index in self.owed if index > self._last), default=min(self.owed))

    def _arrive(self) -> None:
        with self.lock:
            self._coming = False
            self.room = SLICE_BYTES
            # whoever is within looks at what is owed when it leaves, and sets out again
            if self.within or not self.owed or not self.open:
                return
            self.within = get_ident()
            index = self._next_owed()
        try:
            self._turn(index)
        finally:
            self.leave()

    def _call(self, function: Callable[..., object], *arguments: object) -> bool:
        """Do what `serve` says, within."""
        if not self.active or self.paused or self.needs_reset:
            return False
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001 - a subclass has written it, and this is the thread of a vCPU
            self._note(error)
        if self.completed:
            self._notify_driver()
        return not self.needs_reset

    def _notify_driver(self) -> None:
        device = self.device
        while self.completed:
            index = self.completed.pop()
            try:
                wanted = device.queues[index].needs_notification(device.memory)
            except Exception as error:  # noqa: BLE001 - as in `_call`
                self._note(error)
            else:
                if wanted:
                    self._tell(self.interrupt.signal_queue, index)

    def _tell(self, signal: Callable[..., object], *arguments: int) -> None:
        """Interrupt the driver; what is wrong with the way to it is counted, and the device goes on."""
        try:
            signal(*arguments)
        except Exception as error:  # noqa: BLE001 - a machine has written it, and the request is done
            message = "%r: an interrupt is lost (later ones are only counted): %r"
            self.faults.count("interrupt", message, self.device, repr(error), level=ERROR)

    def tell_config(self) -> None:
        """Tell the driver, where there is one, that the configuration or the status changed."""
        if self.active:
            self._tell(self.interrupt.signal_config)

    def guard(self, function: Callable[..., object], *arguments: object) -> None:
        """Call what a subclass has written: nothing that goes wrong there may end the thread of a vCPU."""
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001 - as in `_call`
            self._note(error)

    def failed(self, error: Exception) -> None:
        """Take what came out of a call that waited."""
        self._note(error)

    def _note(self, error: Exception) -> None:
        """Take an error out of a subclass: the driver's, or else the device's own, which is shown once."""
        if not isinstance(error, (VirtqueueError, GuestMemoryError)):
            self.bugs += 1
            kind = type(error).__name__
            text = "" if kind in self.faults else _trace(error)
            message = "%r: an error of its own (others of this kind are only counted)\n%s"
            self.faults.count(kind, message, self.device, text, level=ERROR)
        self.device.fail(error)

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
                self._notify_driver()
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
                    self._tell(self.interrupt.signal_queue, index)
            self._tell(self.interrupt.signal_config)
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
            assert not self._calls, f"5: {len(self._calls)} calls wait, and nobody is within"
            if self.is_served():
                assert not self.completed, f"3: the driver was not told of queues {self.completed}"
            if self.open:
                assert self._coming or not self.owed, f"4: nobody comes to queues {self.owed}"


def _trace(error: Exception) -> str:
    """Return how an error came about, as text: somebody may keep it, and the frames hold views of guest memory."""
    from traceback import format_exception

    return "".join(format_exception(error))
