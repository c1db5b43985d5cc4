"""The base of every virtio device: features, configuration space, queues, and what happens when a guest misbehaves."""

from __future__ import annotations

from pyvmm_device.locks import DeferringLock
from pyvmm_device.tally import Tally
from pyvmm_virtio.constants import features as f
from pyvmm_virtio.constants.ring import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from pyvmm_virtio.dispatch import Dispatcher
from pyvmm_virtio.errors import DeviceBusy, VirtioUsageError
from pyvmm_virtio.features import RING_FEATURES, refusal
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
    from pyvmm_virtio.shared_memory import SharedMemory


class VirtioDevice:
    """A virtio device without its transport; a subclass says what it does with chains.

    A whole device:

    >>> class Zeros(VirtioDevice):
    ...     device_type = 4
    ...     queue_max_sizes = (256,)
    ...     def process_queue(self, index):
    ...         for chain in self.chains(index):
    ...             writer = chain.writer(self.memory)
    ...             self.complete(index, chain, writer.write(bytes(min(writer.available_bytes(), 4096))))

    What a subclass may override: `activate`, `process_queue`, `drop`, `reset`, `queue_reset`, `check_features`,
    `read_config`, `write_config`, `quiesce`, `device_state`, `restore_device`, and for the conformance checks and the
    fuzzer `sample_request(queue, chance)`, which returns a right request, made with a `random.Random`: the buffers that
    are read, and the sizes of those that are written. What it calls: `chains`, `complete`,
    `config_changed`, and from callbacks of its own `serve`.

    All of a device runs in calls that are made one after another, in whatever thread brings one, and without a lock
    (`dispatch`): what it calls may take its time, and nobody waits for it. The `lock` is for the bytes of the
    configuration alone, which a driver reads and writes at any time (`read_config`, `write_config`): nothing is called
    out under it, that is for ``self.lock.after``. A worker that touches guest memory does it so, that a reset is not
    over before it is done::

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
        dispatch: gives the queues their turns; where a device takes chains in a way of its own, it has more for that.
        lock: of the configuration space; nothing is called out under it.
        device_features: everything that is offered.
        driver_features: what the driver accepted, once it did.
        config: the configuration space, little-endian.
        config_generation: changes with each change by the device.
        queues: as the driver set them up.
        errors: how often each kind of error was the driver's.
        last_error: the last of them.
        in_flight: counts workers that touch guest memory, where there are workers.
        loop: where a queue that does not end is taken up again after others; without one it is done at once.
    """

    device_type: ClassVar[int] = 0
    queue_max_sizes: Sequence[int] = ()
    shared_memory: Sequence[SharedMemory] = ()
    early_config: ClassVar[range] = range(0)
    """The part of the configuration space that may be written before a driver says that it is there."""
    fixed_config: ClassVar[Sequence[range]] = ()
    """The parts of it that stay what they are, in a saved state as well."""
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
        self.lock = DeferringLock()
        self.device_features = features | ring_features
        self.driver_features = 0
        self.config = bytearray(config)
        self.config_generation = 0
        self.errors = Tally(__name__)
        self.last_error: Exception | None = None
        self.in_flight: InFlight | None = None
        self.loop: EventLoop | None = loop
        self.queues = make_queues(self.queue_max_sizes)
        self.dispatch = Dispatcher(self, len(self.queues))
        self._memory: GuestMemory | None = None
        self._snapshot: Callable[[], GuestMemory] | None = None
        self._config_was_read = True

    # what subclasses do

    def activate(self, memory: GuestMemory, queues: Sequence[Queue], interrupt: VirtioInterrupt) -> None:
        """Begin: the driver is ready, and `driver_features` hold. An exception leaves the device inactive."""

    def process_queue(self, index: int) -> None:
        """Look at a queue: its driver has, or may have, offered something."""

    def drop(self, index: int | None) -> None:
        """Drop what was taken of a queue, or of all for None, and has not begun: its driver resets it.

        Called before `in_flight` is waited for: what holds it gets no further than it must.
        """

    def reset(self) -> None:
        """Forget every request: the driver is gone. Called when `in_flight` is empty."""

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
        """Finish every request that was taken within a second, or keep it, so that all of the state is in `state`."""

    def device_state(self) -> dict[str, Any]:
        """Return what the subclass adds to the state."""
        return {}

    def restore_device(self, state: Mapping[str, Any]) -> None:
        """Become what `device_state` said, before `activate` where the device was active. Raises DeviceStateError.

        A subclass that has ``check_device_state(state, features)`` as well is asked by it before anything is reset: it
        looks at the state of a driver that negotiated `features`, changes nothing, and raises DeviceStateError. What
        is refused only here has cost the driver its device. One that has ``contradiction(fields)`` is asked by it what
        is wrong with a state whose parts are right, or None: `fields` are those of the state by name, with "queues"
        made anew.
        """

    # whether it is served, and by whom

    @property
    def active(self) -> bool:
        """Whether a driver drives it."""
        return self.dispatch.active

    @active.setter
    def active(self, active: bool) -> None:
        self.dispatch.set_flag("active", active)

    @property
    def paused(self) -> bool:
        """Whether nobody is served until `resume`."""
        return self.dispatch.paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self.dispatch.set_flag("paused", paused)

    @property
    def needs_reset(self) -> bool:
        """Whether the driver did something wrong that only a reset heals."""
        return self.dispatch.needs_reset

    @needs_reset.setter
    def needs_reset(self, needs_reset: bool) -> None:
        self.dispatch.set_flag("needs_reset", needs_reset)

    @property
    def interrupt(self) -> VirtioInterrupt:
        """The way to the driver, where there is one."""
        return self.dispatch.interrupt

    @property
    def epochs(self) -> list[int]:
        """For each queue, a number that changes with each reset of it."""
        return self.dispatch.epochs

    @property
    def bugs(self) -> int:
        """How often there was an error that was the device's own; the first of each kind was logged."""
        return self.dispatch.bugs

    @property
    def resetting(self) -> bool:
        """Whether a reset has begun and is not over, as a back end still holds a request: its status is not 0."""
        return self.dispatch.resetting

    # what subclasses call

    @property
    def memory(self) -> GuestMemory:
        """Guest memory as it is now; raises VirtioUsageError before a transport gave one."""
        memory = self._memory if self._snapshot is None else self._snapshot()
        if memory is None:
            raise VirtioUsageError(f"{self!r} has no memory: give it to a transport first")
        return memory

    def negotiated(self, feature: int) -> bool:
        """Say whether the driver accepted a feature, by its number."""
        return bool(self.driver_features >> feature & 1)

    def chains(self, index: int) -> Iterator[DescriptorChain]:
        """Take the chains of a queue one by one, with notifications off meanwhile.

        Ends when there is none; after a ring's worth of them it ends too, and `process_queue` is called again after
        others had their turn. Who leaves the loop early comes back by itself for what is left: the driver does not
        notify of that again, and need not notify of more.
        """
        return self.dispatch.chains(index)

    def complete(self, index: int, chain: DescriptorChain | int, length: int) -> None:
        """Give a chain (or a head) back with the count of bytes written; the driver is notified once for many.

        The notification goes out when `process_queue`, or what `serve` was given, returns.
        """
        self.dispatch.complete(index, chain, length)

    def complete_batch(self, index: int, used: Sequence[tuple[int, int]]) -> None:
        """Give several chains back as (head, length): the driver sees all of them or none."""
        self.dispatch.complete_batch(index, used)

    def is_current(self, index: int, epoch: int) -> bool:
        """Say whether a queue was not reset since its `epochs` entry was this."""
        return self.dispatch.is_current(index, epoch)

    def finish(self, index: int, epoch: int, chain: DescriptorChain | int, length: int) -> bool:
        """Complete a request from a worker thread; false, and nothing happened, if its queue was reset meanwhile."""
        return self.dispatch.finish(index, epoch, chain, length)

    def config_changed(self) -> None:
        """Tell the driver that `config` was changed; do both under `lock`, or let `update_config` do it."""
        with self.lock:
            self.lock.after(self.dispatch.tell_config)
            # 4.1.4.3.1 asks for another generation only where the driver has read something since, and counting no
            # further keeps PCI's 8 bits from coming round within one read of the driver
            if self._config_was_read:
                self.config_generation = (self.config_generation + 1) & 0xFFFFFFFF
                self._config_was_read = False

    def update_config(self, offset: int, data: bytes) -> None:
        """Change a part of the configuration space and tell the driver."""
        with self.lock:
            if offset < 0 or offset + len(data) > len(self.config):
                raise VirtioUsageError(f"{len(data)} bytes at {offset} of {len(self.config)} bytes of configuration")
            self.config[offset : offset + len(data)] = data
            self.config_changed()

    def serve(self, function: Callable[..., object], *arguments: object) -> bool:
        """Call something that takes or completes chains; errors of the driver end in `fail`.

        Every callback of a device (a file descriptor is readable, a timer has run out) goes through here, from any
        thread. It is called now, or when what is under way is done. Returns whether it will be called, or was and went
        well: not while the device is inactive, paused, or waits for its reset.
        """
        return self.dispatch.serve(function, *arguments)

    def fail(self, error: Exception) -> None:
        """Note what the driver did wrong, set DEVICE_NEEDS_RESET and tell the driver; logged once for each kind."""
        # without the frames it came through, which hold views of guest memory
        self.last_error = error.with_traceback(None)
        error.__cause__ = error.__context__ = None
        message = "%r needs a reset (others of this kind are only counted): %s"
        self.errors.count(type(error).__name__, message, self, error)
        self.dispatch.need_reset()

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
        reason = refusal(self.device_features, features) or self.check_features(features)
        if reason is not None:
            return reason
        try:
            self.dispatch.ask(_settle_on, self, features)
        except DeviceBusy as error:
            return str(error)
        return None

    def start(self, interrupt: VirtioInterrupt) -> None:
        """Begin to serve: the driver has set DRIVER_OK.

        Raises what `activate` does, or DeviceBusy, and is not active then.
        """
        self.dispatch.start(interrupt, self.activate)

    def kick(self, index: int) -> None:
        """Take a notification of the driver for a queue, in any thread; a wrong index is nobody's queue."""
        self.dispatch.kick(index)

    def driver_read_config(self, offset: int, buffer: memoryview) -> None:
        """Take a driver's read of the configuration space."""
        self._config_was_read = True
        self.dispatch.guard(self.read_config, offset, buffer)

    def driver_write_config(self, offset: int, data: memoryview) -> None:
        """Take a driver's write to the configuration space; what is wrong with it ends in `fail`."""
        self.dispatch.guard(self.write_config, offset, data)

    def driver_reset(self) -> None:
        """Be as before a driver came: when this returns, or once it is not `resetting` any more, and nobody waits.

        Then nothing of the device touches guest memory.
        """
        self.dispatch.reset(self.reset, self._renew)

    def _renew(self) -> None:
        self.driver_features = 0
        self.queues = make_queues(self.queue_max_sizes, instead_of=self.queues)

    def driver_queue_reset(self, index: int) -> None:
        """Reset one queue, otherwise as `driver_reset`; over once ``dispatch.resetting_queues`` has it no more."""
        self.dispatch.reset_queue(index, self.queue_reset, lambda queue: prepare(queue, self.driver_features))

    def enable_queue(self, index: int) -> None:
        """Enable a queue that its driver has set up."""
        self.dispatch.enable_queue(index)

    def pause(self) -> None:
        """Finish or keep what was taken, within a second, and take nothing more until `resume`."""
        self.dispatch.pause(self.quiesce)

    def resume(self) -> None:
        """Take up work again; what the driver offered meanwhile is looked at now."""
        self.dispatch.resume()

    # state

    def state(self) -> dict[str, Any]:
        """Return everything a driver could notice. The device is paused (`pause`), or nothing it took is under way.

        Raises DeviceBusy where a back end holds a call of the device.
        """
        from pyvmm_virtio.state import save

        return self.dispatch.ask(save, self)

    def restore(self, state: Mapping[str, Any], interrupt: VirtioInterrupt) -> None:
        """Become what a state says, paused; `resume` then looks at every queue and notifies the driver of each.

        Raises:
            DeviceStateError: it is not a state of this kind of device, or of one that offers something else. Nothing
                changed, unless it was `restore_device` that refused.
            DeviceBusy: a back end holds a request of the device.
        """
        from pyvmm_virtio.state import check

        fields = check(self, state)
        self.driver_reset()
        if self.resetting:
            raise DeviceBusy(f"{self!r}: a back end holds a request from before: restore it when that has ended")
        self.dispatch.ask(_become, self, fields, interrupt)

    def __repr__(self) -> str:
        state = "needs a reset" if self.needs_reset else "active" if self.active else "inactive"
        return f"<{type(self).__name__} {state}, {len(self.queues)} queues>"


def _settle_on(device: VirtioDevice, features: int) -> None:
    device.driver_features = features
    packed = device.negotiated(f.VIRTIO_F_RING_PACKED)
    device.queues = make_queues(device.queue_max_sizes, packed=packed, instead_of=device.queues)
    for queue in device.queues:
        prepare(queue, features)


def _become(device: VirtioDevice, fields: Mapping[str, Any], interrupt: VirtioInterrupt) -> None:
    """Become what a state says."""
    device.dispatch.hold()
    device.restore_device(fields["own"])
    device.queues = fields["queues"]
    device.driver_features = fields["features"]
    device.needs_reset = fields["needs_reset"]
    with device.lock:
        device.config[:] = fields["config"]
        device.config_generation = fields["config_generation"]
    if fields["active"]:
        device.start(interrupt)


def make_queues(sizes: Sequence[int], *, packed: bool = False, instead_of: Sequence[Queue] = ()) -> list[Queue]:
    """Return queues of a device, given their largest sizes; others, which they replace, let go of guest memory."""
    for queue in instead_of:
        queue.release()
    kind: Callable[[int, int], Queue] = SplitQueue
    if packed:
        from pyvmm_virtio.queue.packed import PackedQueue

        kind = PackedQueue
    return [kind(size, index) for index, size in enumerate(sizes)]


def prepare(queue: Queue, features: int) -> None:
    """Tell a queue what was negotiated."""
    queue.set_event_idx(bool(features >> VIRTIO_RING_F_EVENT_IDX & 1))
    queue.set_indirect(bool(features >> VIRTIO_RING_F_INDIRECT_DESC & 1))
    queue.set_in_order(bool(features >> f.VIRTIO_F_IN_ORDER & 1))
