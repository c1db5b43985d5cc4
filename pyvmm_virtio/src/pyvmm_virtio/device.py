"""The base of every virtio device: features, configuration space, queues, and what happens when a guest misbehaves."""

from __future__ import annotations

from _thread import RLock

from pyvmm_memory import GuestMemoryError
from pyvmm_virtio.constants import features as f
from pyvmm_virtio.constants.ring import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from pyvmm_virtio.errors import VirtioUsageError, VirtqueueError
from pyvmm_virtio.interrupt import NoInterrupt
from pyvmm_virtio.features import RING_FEATURES, SharedMemory, mask, refusal
from pyvmm_virtio.queue.split import SplitQueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any, ClassVar

    from typing_extensions import Buffer

    from pyvmm_device import EventLoop
    from pyvmm_virtio.in_flight import InFlight
    from pyvmm_virtio.interrupt import VirtioInterrupt
    from pyvmm_virtio.memory import GuestMemory, MemorySource
    from pyvmm_virtio.queue.chain import DescriptorChain
    from pyvmm_virtio.queue.protocol import Queue


__all__ = ["RING_FEATURES", "SharedMemory", "VirtioDevice", "mask"]


class VirtioDevice:
    """A virtio device without its transport; a subclass says what it does with chains.

    A whole device:

    >>> class Zeros(VirtioDevice):
    ...     device_type = 4
    ...     queue_max_sizes = (256,)
    ...     def process_queue(self, index):
    ...         for chain in self.chains(index):
    ...             writer = chain.writer(self.memory)
    ...             self.complete(index, chain, writer.write(bytes(writer.available_bytes())))

    What a subclass may override: `activate`, `process_queue`, `reset`, `queue_reset`, `check_features`,
    `read_config`, `write_config`, `quiesce`, `device_state`, `restore_device`, and for the conformance checks and the
    fuzzer `sample_request(queue, chance)`, which returns a right request, made with a `random.Random`: the buffers that
    are read, and the sizes of those that are written. What it calls: `chains`, `complete`,
    `config_changed`, and from callbacks of its own `serve`. All of a device runs under its `lock`; worker threads hold
    it only in `finish`. A worker that touches guest memory does it so, that a reset can wait for it::

        epoch = self.epochs[index]               # in process_queue, for each request
        with self.in_flight:                     # in the worker; `InFlight()` is made in __init__
            if self.is_current(index, epoch):
                count = os.preadv(fd, views, offset)
        self.finish(index, epoch, chain, count)  # nothing happens if the queue was reset meanwhile

    Args:
        features: what the device type offers, as a mask of bits (`mask`).
        config: the configuration space as it is at first.
        queue_max_sizes: the queues' largest sizes, where the class does not say.
        ring_features: what the queues and the transport offer.
        loop: the event loop, where the device has one.

    Attributes:
        device_features: everything that is offered.
        driver_features: what the driver accepted, once it did.
        config: the configuration space, little-endian.
        config_generation: changes with each change by the device.
        queues: as the driver set them up.
        active: whether a driver drives it.
        needs_reset: whether the driver did something wrong that only a reset heals.
        errors: how often each kind of error was the driver's.
        last_error: the last of them.
        bugs: how often there was an error that was the device's own; each was logged.
        epochs: for each queue, a number that changes with each reset of it.
        in_flight: counts workers that touch guest memory, where there are workers.
        loop: where a queue that does not end is taken up again after others; without one it is done at once.
    """

    device_type: ClassVar[int] = 0
    queue_max_sizes: Sequence[int] = ()
    shared_memory: Sequence[SharedMemory] = ()
    early_config: ClassVar[range] = range(0)
    """The part of the configuration space that may be written before a driver says that it is there."""
    feature_dependencies: ClassVar[Mapping[int, Sequence[int]]] = {}
    """For each feature that needs others, which; a driver that accepts it without them is refused."""

    def __init__(
        self,
        *,
        features: int = 0,
        config: Buffer = b"",
        queue_max_sizes: Sequence[int] | None = None,
        ring_features: int = RING_FEATURES,
        loop: EventLoop | None = None,
    ) -> None:
        if queue_max_sizes is not None:
            self.queue_max_sizes = queue_max_sizes
        self.lock = RLock()
        self.device_features = features | ring_features
        self.driver_features = 0
        self.config = bytearray(config)
        self.config_generation = 0
        self.active = False
        self.paused = False
        self._pausing = False
        self.needs_reset = False
        self.errors: dict[str, int] = {}
        self.last_error: Exception | None = None
        self.bugs = 0
        self.in_flight: InFlight | None = None
        self.loop: EventLoop | None = loop
        self.interrupt: VirtioInterrupt = NoInterrupt()
        self.queues: list[Queue] = [SplitQueue(size, index) for index, size in enumerate(self.queue_max_sizes)]
        self.epochs = [0] * len(self.queues)
        self._memory: GuestMemory | None = None
        self._snapshot: Callable[[], GuestMemory] | None = None
        self._completed: set[int] = set()
        self._again: set[int] = set()
        self._calls = 0  # of `_call`, one within the other
        self._restored = False
        self._config_was_read = True

    # what subclasses do

    def activate(self, memory: GuestMemory, queues: Sequence[Queue], interrupt: VirtioInterrupt) -> None:
        """Begin: the driver is ready, and `driver_features` hold. An exception leaves the device inactive."""

    def process_queue(self, index: int) -> None:
        """Look at a queue: its driver has, or may have, offered something."""

    def reset(self) -> None:
        """Forget every request: the driver is gone. Called without the lock, when `in_flight` is empty."""

    def queue_reset(self, index: int) -> None:
        """Forget the requests of one queue; otherwise as `reset`."""

    def check_features(self, features: int) -> str | None:
        """Return why these features are no combination to work with, or None."""
        for feature, needed in self.feature_dependencies.items():
            if features >> feature & 1 and not all(features >> bit & 1 for bit in needed):
                return f"feature {feature} needs {', '.join(map(str, needed))}"
        return None

    def read_config(self, offset: int, buffer: memoryview) -> None:
        """Read the configuration space; beyond its end there are zeros."""
        data = self.config[offset : offset + len(buffer)]
        buffer[:] = data.ljust(len(buffer), b"\0")

    def write_config(self, offset: int, data: memoryview) -> None:
        """Take what the driver writes to the configuration space. By default nothing of it can be written."""

    def quiesce(self) -> None:
        """Finish every request that was taken, so that all of the state is in `state`."""

    def device_state(self) -> dict[str, Any]:
        """Return what the subclass adds to the state."""
        return {}

    def restore_device(self, state: Mapping[str, Any]) -> None:
        """Become what `device_state` said, before `activate` where the device was active. Raises DeviceStateError."""

    # what subclasses call

    @property
    def memory(self) -> GuestMemory:
        """Guest memory as it is now; raises VirtioUsageError before a transport gave one."""
        memory = self._memory if self._snapshot is None else self._snapshot()
        if memory is None:
            raise VirtioUsageError(f"{self!r} has no memory: give it to a transport first")
        return memory

    def negotiated(self, feature: int) -> bool:
        """Whether the driver accepted a feature, by its number."""
        return bool(self.driver_features >> feature & 1)

    def chains(self, index: int) -> Iterator[DescriptorChain]:
        """Take the chains of a queue one by one, with notifications off meanwhile.

        Ends when there is none; after a ring's worth of them it ends too, and `process_queue` is called again after
        others had their turn. Who leaves the loop early comes back by itself for what is left: the driver does not
        notify of that again, and need not notify of more.
        """
        queue, memory = self.queues[index], self.memory
        pop = queue.pop_descriptor_chain
        # while the device comes to rest nothing more is taken, by whatever callback: it would be under way after it
        if self._pausing or not queue.ready():
            return
        queue.disable_notification(memory)
        done = False
        try:
            for _ in range(queue.size()):
                chain = pop(memory)
                if chain is not None:
                    yield chain
                elif queue.enable_notification(memory):
                    # one came meanwhile; it takes a turn, or a driver that plays with its index could keep us here
                    queue.disable_notification(memory)
                else:
                    done = True
                    return
            self._again.add(index)
            done = True
        finally:
            if not done and self.active and queue.ready():
                queue.enable_notification(memory)

    def complete(self, index: int, chain: DescriptorChain | int, length: int) -> None:
        """Give a chain (or a head) back with the count of bytes written; the driver is notified once for many.

        The notification goes out when `process_queue`, or what `serve` was given, returns.
        """
        head = chain if isinstance(chain, int) else chain.head_index
        self.queues[index].add_used(self.memory, head, length)
        self._completed.add(index)

    def complete_batch(self, index: int, used: Sequence[tuple[int, int]]) -> None:
        """Give several chains back as (head, length): the driver sees all of them or none."""
        self.queues[index].add_used_batch(self.memory, used)
        self._completed.add(index)

    def is_current(self, index: int, epoch: int) -> bool:
        """Whether a queue was not reset since its `epochs` entry was this."""
        return self.epochs[index] == epoch

    def finish(self, index: int, epoch: int, chain: DescriptorChain | int, length: int) -> bool:
        """Complete a request from a worker thread; false, and nothing happened, if its queue was reset meanwhile."""
        with self.lock:
            if not self.is_current(index, epoch):
                return False
            return self.serve(self.complete, index, chain, length)

    def config_changed(self) -> None:
        """Tell the driver that `config` was changed; do both under `lock`, or let `update_config` do it."""
        with self.lock:
            # 4.1.4.3.1 asks for another generation only where the driver has read something since, and counting no
            # further keeps PCI's 8 bits from coming round within one read of the driver
            if self._config_was_read:
                self.config_generation = (self.config_generation + 1) & 0xFFFFFFFF
                self._config_was_read = False
            if self.active:
                self.interrupt.signal_config()

    def update_config(self, offset: int, data: bytes) -> None:
        """Change a part of the configuration space and tell the driver."""
        with self.lock:
            if offset + len(data) > len(self.config):
                raise VirtioUsageError(f"{len(data)} bytes at {offset} of {len(self.config)} bytes of configuration")
            self.config[offset : offset + len(data)] = data
            self.config_changed()

    def serve(self, function: Callable[..., object], *arguments: object) -> bool:
        """Call something under the lock that takes or completes chains; errors of the driver end in `fail`.

        Every callback of a device (a file descriptor is readable, a timer has run out) goes through here. Returns
        whether it was called and went well: not while the device is inactive, paused, or waits for its reset.
        """
        with self.lock:
            went_well = self._call(function, *arguments)
            unfinished = min(self._again, default=-1) if not self._calls else -1
        if unfinished >= 0:
            self._take_up(unfinished)
        return went_well

    def _call(self, function: Callable[..., object], *arguments: object) -> bool:
        """Do what `serve` says, under the lock; who calls this looks at `_again` when the last of `_calls` is over."""
        if not self.active or self.paused or self.needs_reset:
            return False
        self._calls += 1
        try:
            self._guard(function, *arguments)
        finally:
            self._calls -= 1
            self._notify_driver()
        return not self.needs_reset

    def _guard(self, function: Callable[..., object], *arguments: object) -> None:
        """Call what a subclass has written: nothing that goes wrong there may end the thread of a vCPU."""
        try:
            function(*arguments)
        except (VirtqueueError, GuestMemoryError) as error:
            self.fail(error)
        except Exception as error:  # noqa: BLE001 (a bug in a device: it is shown)
            from traceback import format_exc

            self.bugs += 1
            # as text: somebody may keep the record, and the frames hold views of guest memory
            self._log().error("%r: an error of its own\n%s", self, format_exc())
            self.fail(error)

    def _take_up(self, index: int) -> None:
        """Look at a queue once more that had its turn and did not end."""
        if self.loop is None:
            self.kick(index)
        else:
            # whatever else waits there comes first, however busy a guest keeps this queue
            self.loop.call_soon(lambda: self.kick(index))

    def _notify_driver(self) -> None:
        while self._completed:
            index = self._completed.pop()
            try:
                if self.queues[index].needs_notification(self.memory):
                    self.interrupt.signal_queue(index)
            except (VirtqueueError, GuestMemoryError) as error:
                self.fail(error)

    def fail(self, error: Exception) -> None:
        """Note what the driver did wrong, set DEVICE_NEEDS_RESET and tell the driver; logged once for each kind."""
        kind = type(error).__name__
        self.errors[kind] = self.errors.get(kind, 0) + 1
        # without the frames it came through, which hold views of guest memory
        self.last_error = error.with_traceback(None)
        error.__cause__ = error.__context__ = None
        if self.errors[kind] == 1:
            self._log().warning("%r needs a reset (others of this kind are only counted): %s", self, error)
        if not self.needs_reset:
            self.needs_reset = True
            if self.active:
                # 2.1.2: "If DRIVER_OK is set, after it sets DEVICE_NEEDS_RESET, the device MUST send a device
                # configuration change notification"
                self.interrupt.signal_config()

    def _log(self) -> Any:  # noqa: ANN401 (logging is imported when there is something to say)
        import logging

        return logging.getLogger(__name__)

    # what transports and machines call

    def attach(self, memory: MemorySource) -> None:
        """Be given guest memory, or a cell that holds the current one."""
        snapshot: Callable[[], GuestMemory] | None = getattr(memory, "memory", None)
        self._snapshot = snapshot
        self._memory = None if snapshot is not None else memory  # type: ignore[assignment] # told apart by the method

    def negotiate(self, features: int) -> str | None:
        """Settle on what the driver accepts. Returns why that cannot be, or None.

        Queues become packed ones, or split ones, here.
        """
        reason = refusal(self, features)
        if reason is not None:
            return reason
        with self.lock:
            self.driver_features = features
            self._make_queues(packed=self.negotiated(f.VIRTIO_F_RING_PACKED))
            for queue in self.queues:
                self._prepare(queue)
        return None

    def _make_queues(self, *, packed: bool) -> None:
        for queue in self.queues:
            queue.release()
        kind: Callable[[int, int], Queue] = SplitQueue
        if packed:
            from pyvmm_virtio.queue.packed import PackedQueue

            kind = PackedQueue
        self.queues = [kind(size, index) for index, size in enumerate(self.queue_max_sizes)]

    def _prepare(self, queue: Queue) -> None:
        queue.set_event_idx(self.negotiated(VIRTIO_RING_F_EVENT_IDX))
        queue.set_indirect(self.negotiated(VIRTIO_RING_F_INDIRECT_DESC))
        queue.set_in_order(self.negotiated(f.VIRTIO_F_IN_ORDER))

    def start(self, interrupt: VirtioInterrupt) -> None:
        """Begin to serve: the driver has set DRIVER_OK. Raises what `activate` does, and is not active then."""
        with self.lock:
            self.interrupt = interrupt
            self.activate(self.memory, self.queues, interrupt)
            self.active = True

    def kick(self, index: int) -> None:
        """Take a notification of the driver for a queue, in any thread; a wrong index is nobody's queue."""
        if not 0 <= index < len(self.queues):
            return
        while True:
            with self.lock:
                self._again.discard(index)
                # `quiesce` waits without the lock: what was taken meanwhile would be under way when it has returned
                if self._pausing or not self._call(self.process_queue, index) or self._calls or not self._again:
                    return
                # those behind it come first, so that all have their turn
                index = min((other for other in self._again if other > index), default=min(self._again))
            if self.loop is not None:
                self._take_up(index)
                return

    def driver_read_config(self, offset: int, buffer: memoryview) -> None:
        """Take a driver's read of the configuration space."""
        with self.lock:
            self._config_was_read = True
            self._guard(self.read_config, offset, buffer)

    def driver_write_config(self, offset: int, data: memoryview) -> None:
        """Take a driver's write to the configuration space; what is wrong with it ends in `fail`."""
        with self.lock:
            self._guard(self.write_config, offset, data)

    def driver_reset(self) -> None:
        """Be as before a driver came. When this returns, nothing of the device touches guest memory."""
        with self.lock:
            self.active = False
            self.epochs = [epoch + 1 for epoch in self.epochs]
        if self.in_flight is not None:
            self.in_flight.drain()
        self._guard(self.reset)
        with self.lock:
            self.needs_reset = False
            self.driver_features = 0
            self.interrupt = NoInterrupt()
            self._completed.clear()
            self._again.clear()
            self._make_queues(packed=False)

    def driver_queue_reset(self, index: int) -> None:
        """Reset one queue. When this returns, nothing of the device touches its buffers."""
        with self.lock:
            self.epochs[index] += 1
            self.queues[index].set_ready(False)
        if self.in_flight is not None:
            self.in_flight.drain()
        self._guard(self.queue_reset, index)
        with self.lock:
            self._completed.discard(index)
            self.queues[index].reset()
            self._prepare(self.queues[index])

    def pause(self) -> None:
        """Finish what was taken and take nothing more until `resume`."""
        with self.lock:
            self._pausing = True
        try:
            self.quiesce()
        finally:
            with self.lock:
                self._pausing = False
                self.paused = True
                for queue in self.queues:
                    queue.release()

    def resume(self) -> None:
        """Take up work again; what the driver offered meanwhile is looked at now."""
        with self.lock:
            self.paused = False
            if self.active and self._restored:
                # what was on its way to the driver when the state was saved may have been lost with it
                for index, queue in enumerate(self.queues):
                    if queue.ready():
                        self.interrupt.signal_queue(index)
                self.interrupt.signal_config()
            self._restored = False
        for index in range(len(self.queues)):
            self.kick(index)

    # state

    def state(self) -> dict[str, Any]:
        """Return everything a driver could notice. The device is paused (`pause`), or nothing it took is under way."""
        from pyvmm_virtio.state import save

        with self.lock:
            return save(self)

    def restore(self, state: Mapping[str, Any], interrupt: VirtioInterrupt) -> None:
        """Become what a state says, paused; `resume` then looks at every queue and notifies the driver of each.

        Raises:
            DeviceStateError: it is not a state of this kind of device, or of one that offers something else. Nothing
                changed, unless it was `restore_device` that refused.
        """
        from pyvmm_virtio.state import check

        fields = check(self, state)
        self.driver_reset()
        with self.lock:
            self.paused = self._restored = True
            self.restore_device(fields["own"])
            self.queues = fields["queues"]
            self.driver_features = fields["features"]
            self.needs_reset = fields["needs_reset"]
            self.config[:] = fields["config"]
            self.config_generation = fields["config_generation"]
            if fields["active"]:
                self.start(interrupt)

    def __repr__(self) -> str:
        state = "needs a reset" if self.needs_reset else "active" if self.active else "inactive"
        return f"<{type(self).__name__} {state}, {len(self.queues)} queues>"
