"""The turn of a queue: what a device takes in one go, and how it gives back what it took.

Within a call a device takes its *turn* of a queue (`chains`, `batches`): notifications of the driver are off, for it
would tell us of what we look at anyway; chains are taken; and the turn ends in one of four ways:

- the queue is empty: notifications are on again, and a last look says that nothing came in between (`is_empty`);
- its budget is used up, a ring's worth of chains, or the bytes of a *slice*: it is owed another turn, notifications
  stay off until that, and every other queue that is owed one comes first;
- the device leaves early, as it has to wait for something: notifications are on again, and it comes back by itself;
- nobody is served any more (`open`): the driver's reset has begun, or a pause.

A slice is what a device with an event loop does before the loop looks at whatever else waits there: `SLICE_BYTES`, for
all of its queues together. `room` is what is left of it. Chains are charged when they are taken, by the bytes of their
buffers and by `DESCRIPTOR_BYTES` for each descriptor, for it is work to look at one, however short its buffer is. The
chain that takes more than is left is the last one, however large it is: a device that would move all of it at once
cuts it into pieces. Without a loop nobody else waits, and only chains are counted: the caller's own thread pays.

A chain that was taken is the device's until it is given back, which the queue keeps account of: never more are under
way than the ring has descriptors.
"""

from __future__ import annotations

from pyvmm_virtio.mailbox import Mailbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Protocol

    from pyvmm_device import EventLoop
    from pyvmm_virtio.in_flight import InFlight
    from pyvmm_virtio.memory import GuestMemory
    from pyvmm_virtio.queue.chain import DescriptorChain
    from pyvmm_virtio.queue.protocol import Queue

    Take = Callable[[Queue, GuestMemory, int], tuple[int, int, bool]]

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

        def drop(self, index: int | None) -> None:
            """Drop what was taken and has not begun."""
            ...

        def fail(self, error: Exception) -> None:
            """Note an error of the driver; ends in `Dispatcher.need_reset`."""
            ...


SLICE_BYTES = 1 << 20
"""What a device with an event loop moves before others have their turn: a millisecond or less."""
DESCRIPTOR_BYTES = 1024
"""What a descriptor counts for beside its buffer: in the time that it takes, about so many bytes are moved."""
UNBOUNDED = 1 << 62
"""The room in a slice where there is no loop: more bytes than a ring's worth of chains has."""


class Turns(Mailbox):
    """Takes chains of a device's queues and gives them back; the file's head says how.

    All of it is called within a call of the device, but `finish` of `Dispatcher`, by any thread.

    Attributes:
        open: whether turns begin, and go on.
        room: what is left of the slice, in bytes; a device that moves what no chain says, or not all of what it says,
            may change it.
        completed: queues in which chains were given back of which the driver was not told.
        owed: queues that are owed a turn.
    """

    __slots__ = ("completed", "device", "open", "owed", "room")

    def __init__(self, device: Dispatched) -> None:
        super().__init__()
        self.device = device
        self.open = False
        self.room = SLICE_BYTES
        self.completed: set[int] = set()
        self.owed: set[int] = set()

    def chains(self, index: int) -> Iterator[DescriptorChain]:
        """Take the chains of a queue one by one; see `VirtioDevice.chains`."""
        device = self.device
        queue, memory = device.queues[index], device.memory
        # while the device comes to rest nothing more is taken, by whatever call: it would be under way after it
        if not self.open or not queue.ready():
            return
        pop = queue.pop_descriptor_chain
        queue.disable_notification(memory)
        bounded = device.loop is not None
        over = False
        try:
            for _ in range(queue.size()):
                chain = pop(memory)
                if chain is not None:
                    if bounded:
                        self.room -= chain.length + DESCRIPTOR_BYTES * len(chain.raw)
                    yield chain
                    if not self.open:
                        return
                    if bounded and self.room <= 0:
                        break
                elif is_empty(queue, memory):
                    over = True
                    return
                # else one came meanwhile; it counts, or a driver that plays with its index could keep us here
            self.owe(index)
            over = True
        finally:
            if not over and self.is_served() and queue.ready():
                queue.enable_notification(memory)

    def batches(self, index: int, take: Take) -> bool:
        """Take a turn in which something else takes chains and gives them back, many at a time.

        Args:
            index: of the queue.
            take: called with the queue, memory, and how many bytes it may move; does what it can; returns how many
                chains that was, how many bytes, and whether it has come to a chain that is not for it.

        Returns:
            Whether that was the whole turn; where not, the rest of it is `chains`.
        """
        device = self.device
        queue, memory = device.queues[index], device.memory
        if not self.open or not queue.ready():
            return True
        queue.disable_notification(memory)
        bounded = device.loop is not None
        left = queue.size()
        while left > 0 and self.open and (self.room > 0 or not bounded):
            count, moved, stopped = take(queue, memory, self.room if bounded else UNBOUNDED)
            if count:
                self.completed.add(index)
            if bounded:
                self.room -= moved + DESCRIPTOR_BYTES * count
            if stopped:
                return False
            if is_empty(queue, memory):
                return True
            left -= count or 1  # a driver that plays with its index wins no time
        self.owe(index)
        return True

    def hush(self, index: int) -> None:
        """Turn the notifications of a queue off, for a device that takes what is there one by one, as it needs it."""
        queue = self.device.queues[index]
        if queue.ready():
            queue.disable_notification(self.device.memory)

    def take(self, index: int) -> DescriptorChain | None:
        """Take one chain of a queue that is hushed; where there is none, its notifications are on, and it is None."""
        queue, memory = self.device.queues[index], self.device.memory
        if not self.open:
            return None
        chain = queue.pop_descriptor_chain(memory)
        if chain is None and queue.ready() and not is_empty(queue, memory):
            chain = queue.pop_descriptor_chain(memory)
        return chain

    def owe(self, index: int) -> None:
        """Have a queue looked at again, after all others; for a device that stops with something left to do."""
        with self.lock:
            self.owed.add(index)
            self.more = True

    def has_room(self) -> bool:
        """Say whether anything is left of the slice; without a loop there always is."""
        return self.room > 0 or self.device.loop is None

    def complete(self, index: int, chain: DescriptorChain | int, length: int) -> None:
        """Give a chain back; see `VirtioDevice.complete`."""
        device = self.device
        head = chain if isinstance(chain, int) else chain.head_index
        device.queues[index].add_used(device.memory, head, length)
        self.completed.add(index)

    def complete_batch(self, index: int, used: Sequence[tuple[int, int]]) -> None:
        """Give several chains back; see `VirtioDevice.complete_batch`."""
        device = self.device
        device.queues[index].add_used_batch(device.memory, used)
        self.completed.add(index)

    def is_served(self) -> bool:
        """Say whether a driver is served; a subclass knows."""
        return self.open


def is_empty(queue: Queue, memory: GuestMemory) -> bool:
    """Say whether a queue in which nothing was found is empty, and then turn its notifications on.

    One that came after the look, and before the driver could see that it should notify, would lie there for ever: so
    notifications are turned on first, and the queue tells whether it looks different then.
    """
    if not queue.enable_notification(memory):
        return True
    queue.disable_notification(memory)
    return False
