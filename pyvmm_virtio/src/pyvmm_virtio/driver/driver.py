"""A driver: it negotiates, sets queues up, and sends requests, one at a time or many deep."""

from __future__ import annotations

import time
from threading import Condition

from pyvmm_virtio.constants import features as f
from pyvmm_virtio.constants.ring import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from pyvmm_virtio.driver.registers import wait_while
from pyvmm_virtio.driver.rings import WRITE, PackedRing, RingFull, SplitRing
from pyvmm_virtio.errors import VirtioError, VirtioUsageError
from pyvmm_virtio.transport import status as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Self

    from pyvmm_virtio.driver.arena import Arena
    from pyvmm_virtio.driver.registers import Port
    from pyvmm_virtio.driver.rings import Ring
    from pyvmm_virtio.transport import VirtioMmio, VirtioPci

RING_BITS = (
    f.VIRTIO_F_VERSION_1,
    f.VIRTIO_F_ACCESS_PLATFORM,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    f.VIRTIO_F_RING_PACKED,
    f.VIRTIO_F_IN_ORDER,
    f.VIRTIO_F_RING_RESET,
    f.VIRTIO_F_NOTIFICATION_DATA,
)
"""What a driver of any type knows."""


NOBODY = 0xFF
"""What is read where nobody answers."""


class DriverError(VirtioError):
    """The device refused what the driver wanted, did not answer in time, or needs a reset."""


class Request:
    """A chain on its way: what was sent, and what comes back.

    Attributes:
        queue: its queue.
        done: whether the device gave it back.
        length: how many bytes the device says it wrote.
        buffers: the chain's buffers as (address, length, flags).
        owned: addresses of the pieces of the arena that `release` gives back.
    """

    __slots__ = ("_arena", "buffers", "done", "length", "owned", "queue")

    def __init__(self, arena: Arena, queue: int, buffers: list[tuple[int, int, int]], owned: list[int]) -> None:
        self._arena = arena
        self.owned = owned
        self.queue = queue
        self.buffers = buffers
        self.done = False
        self.length = 0

    def written(self, count: int | None = None) -> bytes:
        """Return the first bytes of the writable buffers, by default as many as the device says it wrote."""
        left = self.length if count is None else count
        parts: list[bytes] = []
        for addr, length, flags in self.buffers:
            if flags & WRITE and left:
                with self._arena.memory.get_slice(addr, min(left, length)) as view:
                    parts.append(bytes(view))
                left -= min(left, length)
        return b"".join(parts)

    def release(self) -> None:
        """Give the buffers back; `written` is void then."""
        for addr in self.owned:
            self._arena.free(addr)
        self.owned = []

    def __repr__(self) -> str:
        state = f"done, {self.length} bytes" if self.done else "on its way"
        return f"<Request of queue {self.queue}: {len(self.buffers)} buffers, {state}>"


class Driver:
    """A driver of a device of any type; made by `drive`.

    Args:
        port: the way to the device's registers.
        arena: guest memory for rings and buffers.
        known: the feature bits that the driver accepts where they are offered; others are not taken.
        queue_size: how many descriptors, at most; None takes the device's.
        pump: called while waiting for the device, where somebody has to run its event loop.

    Raises:
        DriverError: the device refuses these features, or does not start.
    """

    known_features: int = 0
    """Of the device type, what this driver makes use of."""
    transport: VirtioMmio | VirtioPci
    """The device's side, set by `drive` for whoever wants to look behind the registers; the driver does not."""

    def __init__(
        self,
        port: Port,
        arena: Arena,
        known: int,
        *,
        queue_size: int | None = None,
        pump: Callable[[], object] | None = None,
    ) -> None:
        self.port = port
        self.arena = arena
        self.memory = arena.memory
        self.pump = pump
        self.interrupts = 0
        self.vectors: dict[int, int] = {}
        self.config_changes = 0
        self._ask = False
        self.queues: list[Ring] = []
        self.known = known | self.known_features
        self._queue_size = queue_size
        self._requests: list[dict[int, Request]] = []
        self._changed = Condition()
        self._closers: list[Callable[[], object]] = []
        self.features = 0

    # starting and ending

    def start(self) -> Self:
        """Negotiate and set up every queue (3.1.1)."""
        self.reset_device()
        self.port.set_status(s.ACKNOWLEDGE)
        self.port.set_status(s.ACKNOWLEDGE | s.DRIVER)
        self.features = self.port.device_features() & self.known
        self.port.set_driver_features(self.features)
        self.port.set_status(s.ACKNOWLEDGE | s.DRIVER | s.FEATURES_OK)
        if not self.port.status() & s.FEATURES_OK:
            self.port.set_status(self.port.status() | s.FAILED)
            raise DriverError(f"the device refuses the features {self.features:#x}")
        index = 0
        while size := self.port.queue_max(index):
            self.add_queue(index, min(size, self._queue_size or size))
            index += 1
        self.port.set_status(s.ACKNOWLEDGE | s.DRIVER | s.FEATURES_OK | s.DRIVER_OK)
        if not self.port.status() & s.DRIVER_OK:
            raise DriverError("the device does not start")
        self.after_start()
        return self

    def know(self, features: int) -> None:
        """Accept these features and no others, where they are offered, at the next start."""
        self.known = features

    def after_start(self) -> None:
        """Do what a driver of a type does first, such as offering buffers to receive in."""

    def has(self, feature: int) -> bool:
        """Say whether a feature was negotiated, by its number."""
        return bool(self.features >> feature & 1)

    def add_queue(self, index: int, size: int) -> None:
        """Set up a queue of a size, in place of the one of this number where there is one."""
        kind = PackedRing if self.has(f.VIRTIO_F_RING_PACKED) else SplitRing
        if kind is SplitRing:
            size = 1 << size.bit_length() - 1
        ring = kind(
            self.arena,
            size,
            event_idx=self.has(VIRTIO_RING_F_EVENT_IDX),
            indirect=self.has(VIRTIO_RING_F_INDIRECT_DESC),
            in_order=self.has(f.VIRTIO_F_IN_ORDER),
        )
        self.port.setup_queue(index, size, ring.desc, ring.driver_area, ring.device_area)
        if index < len(self.queues):
            self.queues[index].close()
            self.queues[index], self._requests[index] = ring, {}
        else:
            self.queues.append(ring)
            self._requests.append({})

    def reset(self) -> Self:
        """Reset the device and begin anew; requests on their way are lost."""
        self.reset_device()
        self.forget()
        return self.start()

    def reset_device(self) -> None:
        """Reset the device, and wait for the status 0: until then it may touch the driver's memory (2.4.2)."""
        self.port.set_status(0)
        # who has no registers any more, as after a power-on reset of its bus, is done, too
        if not wait_while(lambda: self.port.status() not in (0, NOBODY), self.pump):
            raise DriverError("the reset does not come to its end: a back end of the device holds a request")

    def forget(self) -> None:
        """Give all queues and requests up: the device was reset, and is done with them."""
        for ring, requests in zip(self.queues, self._requests, strict=True):
            ring.close()
            for request in requests.values():
                request.release()
        self.queues, self._requests = [], []

    def reset_queue(self, index: int) -> list[Request]:
        """Reset one queue and set it up again; returns the requests that are lost."""
        if not self.has(f.VIRTIO_F_RING_RESET):
            raise DriverError("RING_RESET was not negotiated")
        self.port.reset_queue(index)
        if self.port.queue_enabled(index):
            raise DriverError(f"queue {index} is still enabled after its reset")
        lost = list(self._requests[index].values())
        self.add_queue(index, self.queues[index].size)
        return lost

    def close(self) -> None:
        """Reset the device and give memory back; idempotent."""
        if self.queues:
            self.reset_device()
        self.forget()
        while self._closers:
            self._closers.pop()()

    def on_close(self, closer: Callable[[], object]) -> None:
        """Call something at the end."""
        self._closers.append(closer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # requests

    def submit(
        self, queue: int, readable: Iterable[bytes] = (), writable: Iterable[int] = (), *, kick: bool = True
    ) -> Request:
        """Offer a chain.

        Args:
            queue: to which queue.
            readable: what the device reads, a buffer for each.
            writable: sizes of what it may write.
            kick: whether to notify the device, if it wants to know.

        Raises:
            RingFull: the ring is full: `poll`, then try again.
            VirtioUsageError: there is nothing to read and nothing to write.
        """
        owned: list[int] = []
        buffers: list[tuple[int, int, int]] = []
        for data in readable:
            owned.append(self.arena.put(data))
            buffers.append((owned[-1], len(data), 0))
        for size in writable:
            owned.append(self.arena.alloc(size))
            buffers.append((owned[-1], size, WRITE))
        return self.submit_buffers(queue, buffers, owned, kick=kick)

    def submit_buffers(
        self, queue: int, buffers: list[tuple[int, int, int]], owned: Sequence[int] = (), *, kick: bool = True
    ) -> Request:
        """Offer a chain of buffers that are in guest memory already, as (address, length, VRING_DESC_F_WRITE or 0)."""
        if not buffers:
            raise VirtioUsageError("a chain has at least one buffer: give something to read, or room to write")
        request = Request(self.arena, queue, buffers, list(owned))
        try:
            head = self.queues[queue].add(buffers)
        except RingFull:
            request.release()
            raise
        self._requests[queue][head] = request
        if kick:
            self.kick(queue)
        return request

    def kick(self, queue: int, *, always: bool = False) -> bool:
        """Notify the device of new chains, if it wants to know or `always`; returns whether it was notified."""
        ring = self.queues[queue]
        if not ring.should_kick() and not always:
            return False
        if self.has(f.VIRTIO_F_NOTIFICATION_DATA):
            self.port.notify(queue, queue | ring.notification_data() << 16, 4)
        else:
            self.port.notify(queue, queue, 2)
        return True

    def poll(self, queue: int | None = None) -> list[Request]:
        """Take what the device gave back, of one queue or of all."""
        if self._ask:
            self._take_events()
        done: list[Request] = []
        for index in range(len(self.queues)) if queue is None else (queue,):
            for head, length in self.queues[index].used():
                request = self._requests[index].pop(head)
                request.done, request.length = True, length
                self.completed(request)
                done.append(request)
        return done

    def completed(self, request: Request) -> None:
        """See each request that the device gave back; a driver of a type may do something with it."""

    def wait(self, request: Request, timeout: float = 10.0) -> Request:
        """Wait until the device gave a request back.

        Raises:
            DriverError: it did not in `timeout` seconds, or needs a reset.
        """
        self.wait_until(lambda: request.done, timeout)
        return request

    def wait_until(self, condition: Callable[[], bool], timeout: float = 10.0) -> None:
        """Poll, and between that sleep until the device interrupts, until something holds; raises as `wait`."""
        end = 0.0
        while True:
            seen = self.interrupts
            self.poll()
            if condition():
                return
            now = time.monotonic()
            end = end or now + timeout
            if self.port.status() & s.NEEDS_RESET:
                raise DriverError("the device needs a reset")
            if now > end:
                raise DriverError(f"the device did not answer in {timeout} s")
            if self.pump is not None:
                self.pump()
                continue
            with self._changed:
                if self.interrupts == seen:
                    self._changed.wait(min(0.05, end - now + 0.001))

    def request(self, queue: int, *readable: bytes, into: int = 0) -> bytes:
        """Send something, wait, and return what the device wrote into a buffer of `into` bytes."""
        request = self.wait(self.submit(queue, readable, (into,) if into else ()))
        try:
            return request.written()
        finally:
            request.release()

    # interrupts

    def note_interrupt(self, vector: int | None = None) -> None:
        """Take an interrupt, in any thread: with its vector, or without, and then the device is asked for the reason.

        A device interrupts in the middle of its work, so it is asked later, in `poll`, as a guest's processor would.
        """
        if vector is None:
            self._ask = True
        else:
            self.vectors[vector] = self.vectors.get(vector, 0) + 1
            self.config_changes += vector == 0
        with self._changed:
            self.interrupts += 1
            self._changed.notify_all()

    def _take_events(self) -> None:
        self._ask = False
        while events := self.port.take_events():
            self.config_changes += bool(events & 2)

    # configuration

    def config(self, offset: int, size: int) -> bytes:
        """Read a part of the configuration space, as often as it takes to get one version of it (2.5.2)."""
        while True:
            generation = self.port.generation()
            base = self.port.config_address() + offset
            data = bytes(self.port.load(base + at, 1) for at in range(size))
            if self.port.generation() == generation:
                return data

    def config_value(self, offset: int, size: int) -> int:
        """Read a number of the configuration space."""
        return int.from_bytes(self.config(offset, size), "little")

    def set_config(self, offset: int, value: int, size: int) -> None:
        """Write a number to the configuration space."""
        self.port.store(self.port.config_address() + offset, value, size)

    @property
    def needs_reset(self) -> bool:
        """Whether the device says so."""
        return bool(self.port.status() & s.NEEDS_RESET)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of type {self.port.device_type}, features {self.features:#x}>"
