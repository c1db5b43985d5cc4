"""The turn of a queue: who is served and how long, who comes next, and when the driver is interrupted.

A device runs in *calls*. A notification of its driver (`Dispatcher.kick`) or a callback of its own (`serve`) takes the
lock and calls the device's code, unless nobody is served now. Calls nest, for that code may make further ones. Within
a call the device takes its *turn* of a queue (`chains`, `batches`): notifications of the driver are off, for it would
tell us of what we look at anyway; chains are taken; and the turn ends in one of three ways:

- the queue is empty: notifications are on again, and a last look says that nothing came in between (`is_empty`);
- its budget, a ring's worth of chains, is used up: it is owed another turn, notifications stay off until that, and
  every other queue that is owed one comes first;
- the device leaves early, as it has to wait for something: notifications are on again, and it comes back by itself.

When a call ends, the driver is asked for each queue in which something was given back whether it wants an interrupt.
When the last of nested calls ends, somebody sets out for the next turn that is owed: the same thread where there is no
event loop, else a callback of the loop, so that whatever else waits there comes first.

What there is to know, and who changes it. All of it changes under the lock:

`active`        A driver drives the device. Set by `start` when the device has agreed; cleared by `reset`, and by a
                device that closes.
`needs_reset`   The driver did what only a reset heals. Set by `need_reset`, where a device's `fail` ends; cleared by
                `reset`.
`paused`        Nobody is served until `resume` clears it. Set by `pause` at its end, and by `hold`.
`pausing`       `pause` waits for what was taken. Calls go on, for they finish requests, but no turn begins. Set and
                cleared by `pause`.
`_restored`     What was on its way to the driver may have been lost with another process. Set by `hold`, for a state
                that is restored; `resume` tells the driver of everything, and clears it.
`interrupt`     The way to the driver: what `start` was given, until `reset`.
`epochs`        For each queue the number of its resets: a request that a worker thread finishes is nobody's any more
                once the number has changed.
`_depth`        How many calls there are, one within another. Changed by `_call` alone.
`_completed`    Queues in which chains were given back of which the driver was not told. Filled by `complete`,
                `complete_batch` and `batches`; emptied by `_notify_driver` when a call ends, and by resets.
`_owed`         Queues that are owed a turn. Filled when a budget is used up; a queue leaves when its turn begins, or
                by a reset.
`_coming`       Somebody is on the way to the next turn that is owed: a callback waits in the loop, or a thread is
                between two turns. Set by `_set_out`; cleared by `_arrive`.

A device is *served* when it is `active`, not `paused` and does not need a reset; it is *at rest* when `_depth` is 0 and
nobody holds the lock. Then this holds, and `check_invariants` says so:

1.  Queues named in `_completed` and in `_owed` exist.
2.  `_restored` implies `paused`: nobody is served before the driver was told.
3.  At rest and served, `_completed` is empty: no interrupt is forgotten. Not so while paused: a back end may answer
    then, and the driver hears of it from the calls that `resume` makes.
4.  At rest, served and not `pausing`, a turn that is owed implies `_coming`: no queue is forgotten. Not so otherwise,
    for `resume` looks at every queue, and a reset forgets them all.
5.  `_depth` is positive only while the lock is held, so whoever takes the lock afresh finds 0.

All other pairs are possible. `paused` and `pausing`: what is paused is paused once more. `active` and `needs_reset`:
from the driver's fault to its reset. `needs_reset` alone: the device did not start. `active` and `paused`: a machine is
being saved. `_coming` with nothing owed, or with nobody served: who is on the way finds nothing to do.
"""

from __future__ import annotations

from pyvmm_memory import GuestMemoryError
from pyvmm_virtio.errors import VirtqueueError
from pyvmm_virtio.interrupt import NoInterrupt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import RLock
    from collections.abc import Callable, Iterator, Sequence
    from typing import Protocol

    from pyvmm_device import EventLoop
    from pyvmm_virtio.in_flight import InFlight
    from pyvmm_virtio.interrupt import VirtioInterrupt
    from pyvmm_virtio.memory import GuestMemory
    from pyvmm_virtio.queue.chain import DescriptorChain
    from pyvmm_virtio.queue.protocol import Queue

    Activate = Callable[[GuestMemory, Sequence[Queue], VirtioInterrupt], object]

    class Dispatched(Protocol):
        """What a dispatcher has to know of its device; it is looked up each time, for all of it may change."""

        queues: list[Queue]
        in_flight: InFlight | None
        loop: EventLoop | None

        @property
        def memory(self) -> GuestMemory:
            """Guest memory as it is now."""
            ...

        def process_queue(self, index: int) -> None:
            """Take a turn of a queue."""
            ...

        def fail(self, error: Exception) -> None:
            """Note an error of the driver; ends in `Dispatcher.need_reset`."""
            ...


class Dispatcher:
    """Gives the queues of a device their turns; the file's head says how.

    Args:
        device: the device, which owns this.
        lock: its lock, under which all of it runs.
        queues: how many queues it has.

    Attributes:
        active, paused, pausing, needs_reset, interrupt, epochs: as the file's head says.
        bugs: how often there was an error that was the device's own; each was logged.
    """

    __slots__ = (
        "_coming",
        "_completed",
        "_depth",
        "_device",
        "_owed",
        "_restored",
        "active",
        "bugs",
        "epochs",
        "interrupt",
        "lock",
        "needs_reset",
        "paused",
        "pausing",
    )

    def __init__(self, device: Dispatched, lock: RLock, queues: int) -> None:
        self._device = device
        self.lock = lock
        self.active = False
        self.needs_reset = False
        self.paused = False
        self.pausing = False
        self.interrupt: VirtioInterrupt = NoInterrupt()
        self.epochs = [0] * queues
        self.bugs = 0
        self._restored = False
        self._depth = 0
        self._completed: set[int] = set()
        self._owed: set[int] = set()
        self._coming = False

    # a turn: notifications off and on, and its budget

    def chains(self, index: int) -> Iterator[DescriptorChain]:
        """Take the chains of a queue one by one; see `VirtioDevice.chains`."""
        device = self._device
        queue, memory = device.queues[index], device.memory
        # while the device comes to rest nothing more is taken, by whatever callback: it would be under way after it
        if self.pausing or not queue.ready():
            return
        pop = queue.pop_descriptor_chain
        queue.disable_notification(memory)
        over = False
        try:
            for _ in range(queue.size()):
                chain = pop(memory)
                if chain is not None:
                    yield chain
                elif is_empty(queue, memory):
                    over = True
                    return
                # else one came meanwhile; it counts, or a driver that plays with its index could keep us here
            self._owed.add(index)
            over = True
        finally:
            if not over and self.active and queue.ready():
                queue.enable_notification(memory)

    def batches(self, index: int, take: Callable[[Queue, GuestMemory], tuple[int, bool]]) -> bool:
        """Take a turn in which something else takes chains and gives them back, many at a time.

        Args:
            index: of the queue.
            take: does what it can; returns how many chains that was, and whether it has come to one that is not for it.

        Returns:
            Whether that was the whole turn; where not, the rest of it is `chains`.
        """
        device = self._device
        queue, memory = device.queues[index], device.memory
        if self.pausing or not queue.ready():
            return True
        queue.disable_notification(memory)
        left = queue.size()
        while left > 0:
            count, stopped = take(queue, memory)
            if count:
                self._completed.add(index)
            if stopped:
                return False
            if is_empty(queue, memory):
                return True
            left -= count or 1  # a driver that plays with its index wins no time
        self._owed.add(index)
        return True

    def hush(self, index: int) -> None:
        """Turn the notifications of a queue off, for a device that takes what is there one by one, as it needs it."""
        queue = self._device.queues[index]
        if queue.ready():
            queue.disable_notification(self._device.memory)

    def take(self, index: int) -> DescriptorChain | None:
        """Take one chain of a queue that is hushed; where there is none, its notifications are on, and it is None."""
        queue, memory = self._device.queues[index], self._device.memory
        if self.pausing:
            return None
        chain = queue.pop_descriptor_chain(memory)
        if chain is None and queue.ready() and not is_empty(queue, memory):
            chain = queue.pop_descriptor_chain(memory)
        return chain

    # giving back

    def complete(self, index: int, chain: DescriptorChain | int, length: int) -> None:
        """Give a chain back; see `VirtioDevice.complete`."""
        device = self._device
        head = chain if isinstance(chain, int) else chain.head_index
        device.queues[index].add_used(device.memory, head, length)
        self._completed.add(index)

    def complete_batch(self, index: int, used: Sequence[tuple[int, int]]) -> None:
        """Give several chains back; see `VirtioDevice.complete_batch`."""
        device = self._device
        device.queues[index].add_used_batch(device.memory, used)
        self._completed.add(index)

    def is_current(self, index: int, epoch: int) -> bool:
        """Say whether a queue was not reset since its `epochs` entry was this."""
        return self.epochs[index] == epoch

    def finish(self, index: int, epoch: int, chain: DescriptorChain | int, length: int) -> bool:
        """Complete a request from a worker thread; see `VirtioDevice.finish`."""
        with self.lock:
            if not self.is_current(index, epoch):
                return False
            return self.serve(self.complete, index, chain, length)

    def _notify_driver(self) -> None:
        device = self._device
        while self._completed:
            index = self._completed.pop()
            try:
                if device.queues[index].needs_notification(device.memory):
                    self.interrupt.signal_queue(index)
            except (VirtqueueError, GuestMemoryError) as error:
                device.fail(error)

    # calls, and who comes next

    def serve(self, function: Callable[..., object], *arguments: object) -> bool:
        """Make a call; see `VirtioDevice.serve`."""
        with self.lock:
            went_well = self._call(function, *arguments)
            following = self._set_out(-1) if went_well and self._owed else -1
        self._go(following)
        return went_well

    def kick(self, index: int) -> None:
        """Take a notification of the driver; see `VirtioDevice.kick`."""
        if not 0 <= index < len(self._device.queues):
            return
        with self.lock:
            following = self._turn(index)
        if following >= 0:
            self._go(following)

    def _turn(self, index: int) -> int:
        """Call for the turn of a queue, under the lock; returns what `_set_out` does, or -1 where no turn is owed."""
        self._owed.discard(index)
        # `quiesce` waits without the lock: what was taken meanwhile would be under way when it has returned
        if self.pausing or not self._call(self._device.process_queue, index) or not self._owed:
            return -1
        return self._set_out(index)

    def _set_out(self, last: int) -> int:
        """Return which of the turns that are owed is next after that of `last`, or -1 where somebody else goes."""
        if self._depth or self._coming:
            return -1
        self._coming = True
        # those behind it come first, so that all have their turn
        return min((other for other in self._owed if other > last), default=min(self._owed))

    def _go(self, index: int) -> None:
        """Have the turn taken that `_set_out` said, and those after it; called without the lock."""
        loop = self._device.loop
        if index >= 0 and loop is not None:
            # whatever else waits there comes first, however busy a guest keeps this queue
            loop.call_soon(lambda: self._go(self._arrive(index)))
            return
        following = index
        while following >= 0:
            following = self._arrive(following)

    def _arrive(self, index: int) -> int:
        with self.lock:
            self._coming = False
            return self._turn(index)

    def _call(self, function: Callable[..., object], *arguments: object) -> bool:
        """Do what `serve` says, under the lock; who calls this sets out afterwards."""
        if not self.active or self.paused or self.needs_reset:
            return False
        self._depth += 1
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001 - a subclass has written it, and this is the thread of a vCPU
            self._note(error)
        finally:
            self._depth -= 1
            self._notify_driver()
        return not self.needs_reset

    def guard(self, function: Callable[..., object], *arguments: object) -> None:
        """Call what a subclass has written: nothing that goes wrong there may end the thread of a vCPU."""
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001 - as in `_call`
            self._note(error)

    def _note(self, error: Exception) -> None:
        """Take an error out of a subclass: the driver's, or else the device's own, which is shown."""
        if not isinstance(error, (VirtqueueError, GuestMemoryError)):
            import logging
            from traceback import format_exc

            self.bugs += 1
            # as text: somebody may keep the record, and the frames hold views of guest memory
            logging.getLogger(__name__).error("%r: an error of its own\n%s", self._device, format_exc())
        self._device.fail(error)

    # beginnings and ends

    def start(self, interrupt: VirtioInterrupt, activate: Activate) -> None:
        """Begin to serve; raises what `activate` does, and the device is not active then."""
        with self.lock:
            self.interrupt = interrupt
            activate(self._device.memory, self._device.queues, interrupt)
            self.active = True

    def need_reset(self) -> None:
        """Serve nobody until a reset, and tell the driver."""
        if self.needs_reset:
            return
        self.needs_reset = True
        if self.active:
            # 2.1.2: "If DRIVER_OK is set, after it sets DEVICE_NEEDS_RESET, the device MUST send a device
            # configuration change notification"
            self.interrupt.signal_config()

    def reset(self, forget: Callable[[], object], renew: Callable[[], object]) -> None:
        """Be reset; when this returns, nothing of the device touches guest memory.

        Args:
            forget: lets the device forget its requests, called without the lock when no worker is at them.
            renew: makes new queues, called under the lock.
        """
        with self.lock:
            self.active = False
            self.epochs = [epoch + 1 for epoch in self.epochs]
        self._drain()
        self.guard(forget)
        with self.lock:
            self.needs_reset = False
            self.interrupt = NoInterrupt()
            self._completed.clear()
            self._owed.clear()
            renew()

    def reset_queue(self, index: int, forget: Callable[[int], object], prepare: Callable[[Queue], object]) -> None:
        """Reset one queue, otherwise as `reset`; `prepare` tells it again what was negotiated."""
        with self.lock:
            self.epochs[index] += 1
            self._device.queues[index].set_ready(False)
        self._drain()
        self.guard(forget, index)
        with self.lock:
            self._completed.discard(index)
            self._owed.discard(index)
            queue = self._device.queues[index]
            queue.reset()
            prepare(queue)

    def _drain(self) -> None:
        if self._device.in_flight is not None:
            self._device.in_flight.drain()

    def pause(self, quiesce: Callable[[], object]) -> None:
        """Have everything finished that was taken, and serve nobody until `resume`."""
        with self.lock:
            self.pausing = True
        try:
            quiesce()
        finally:
            with self.lock:
                self.pausing = False
                self.paused = True
                for queue in self._device.queues:
                    queue.release()

    def hold(self) -> None:
        """Be paused from the start, for a state that is restored; called under the lock."""
        self.paused = self._restored = True

    def resume(self) -> None:
        """Serve again, and look at every queue."""
        with self.lock:
            queues = self._device.queues
            self.paused = False
            if self.active and self._restored:
                # what was on its way to the driver when the state was saved may have been lost with it
                for index, queue in enumerate(queues):
                    if queue.ready():
                        self.interrupt.signal_queue(index)
                self.interrupt.signal_config()
            self._restored = False
        for index in range(len(queues)):
            self.kick(index)

    def set_flag(self, name: str, value: bool) -> None:
        """Set `active`, `paused` or `needs_reset`, where a device knows by itself; nothing else follows from it."""
        setattr(self, name, value)
        self._restored = self._restored and self.paused

    # the invariants

    def check_invariants(self) -> None:
        """Raise AssertionError where something does not hold that the file's head promises."""
        fresh = not self.lock._is_owned()  # type: ignore[attr-defined] # of every RLock, as Condition uses it
        with self.lock:
            count = len(self._device.queues)
            for name in ("_completed", "_owed"):
                named = getattr(self, name)
                assert all(0 <= index < count for index in named), f"1: {name} has {named} of {count} queues"
            assert self.paused or not self._restored, "2: restored, not told, and not paused"
            assert self._depth >= 0, f"5: {self._depth} calls"
            assert not self._depth or not fresh, f"5: {self._depth} calls, and nobody held the lock"
            if self._depth or not self.active or self.paused or self.needs_reset:
                return
            assert not self._completed, f"3: the driver was not told of queues {self._completed}"
            assert self.pausing or self._coming or not self._owed, f"4: nobody comes to queues {self._owed}"


def is_empty(queue: Queue, memory: GuestMemory) -> bool:
    """Say whether a queue in which nothing was found is empty, and then turn its notifications on.

    One that came after the look, and before the driver could see that it should notify, would lie there for ever: so
    notifications are turned on first, and the queue tells whether it looks different then.
    """
    if not queue.enable_notification(memory):
        return True
    queue.disable_notification(memory)
    return False
