"""What split and packed queues share: sizes and addresses, being ready, and the state that is saved."""

from __future__ import annotations

from pyvmm_device.errors import DeviceStateError
from pyvmm_device.state import FLAG, Kind, Stateful, uint
from pyvmm_device.tally import ERROR, Tally
from pyvmm_memory import GuestMemoryError, Permissions
from pyvmm_virtio.errors import (
    InvalidAvailRingAlign,
    InvalidDescriptorIndex,
    InvalidDescTableAlign,
    InvalidMaxSize,
    InvalidRing,
    InvalidSize,
    InvalidUsedRingAlign,
    QueueConfigError,
    QueueNotReady,
    VirtqueueError,
)
from pyvmm_virtio.memory import is_translated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, ClassVar, Self

    from pyvmm_virtio.memory import DirtyMarker, GuestMemory
    from pyvmm_virtio.queue.chain import DescriptorChain

MAX_QUEUE_SIZE = 32768
U64_MAX = 0xFFFF_FFFF_FFFF_FFFF
U16_MAX = 0xFFFF
U32_MAX = 0xFFFF_FFFF
"""The most bytes that can be said to be written; a chain may have one more."""


def _pairs(first: int, second: int) -> Kind:
    """Return the kind of a dictionary of numbers by number, written as a list of pairs, in its order."""
    key, value = uint(first), uint(second)

    def load(pairs: object) -> dict[int, int]:
        if not isinstance(pairs, list) or len(pairs) > MAX_QUEUE_SIZE:
            raise ValueError("it is no list of pairs")
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise ValueError("it is no list of pairs")
        loaded = {key.load(pair[0]): value.load(pair[1]) for pair in pairs}
        if len(loaded) != len(pairs):
            raise ValueError("a chain is there twice")
        return loaded

    return Kind("pairs of numbers", lambda table: [list(pair) for pair in table.items()], load)


class BaseQueue(Stateful):
    """A queue whose format a subclass knows.

    A subclass has `make_views`, `check_head`, `publish`, what takes chains and what asks for notifications. It calls
    `require` or `attach` where `attached` is not the memory in hand, and `note_write` (or `mark_dirty`) for each store
    to the ring. The attributes from `attached` on are for it; a user has methods for what it may know of them.

    Views of the ring are of a memory at one of its generations. Memory whose generation never moves is known by its
    identity, which costs each access nothing; of other memory `attached` says None, so that `attach` is asked each
    time and compares the generations.

    Args:
        max_size: the most descriptors a driver may choose.
        index: the queue's number in its device, for errors.
        strict_order: whether a chain with a readable buffer after a writable one is refused. Drivers must not make
            such chains; `Reader` and `Writer` do not mind them.

    Attributes:
        index: the queue's number in its device.
        attached: the memory that the views are of, where that is enough to know that they are good, or None.
        mark_dirty: its method of this name, where it has one.
        ring_size: how many descriptors the ring has.
        desc_addr, avail_addr, used_addr: where its areas are.
        avail_position, used_position: where the next chain is taken and given back; in a packed ring with the wrap
            counter.
        num_added: how much was given back since the driver was asked whether it wants to hear of it.
        event_idx, in_order, indirect: whether these were negotiated.
        strict_order: the argument.
        in_flight: chains taken and not given back, oldest first: how many descriptors of the ring each has, in a packed
            ring; each head is there once, so they are never more than the ring has descriptors.

    Raises:
        InvalidMaxSize: not a size a queue can have.
    """

    __slots__ = (
        "_done",
        "_generation",
        "_max_size",
        "_memory",
        "_ready",
        "_views",
        "attached",
        "avail_addr",
        "avail_position",
        "desc_addr",
        "event_idx",
        "in_flight",
        "in_order",
        "index",
        "indirect",
        "mark_dirty",
        "num_added",
        "ring_size",
        "strict_order",
        "used_addr",
        "used_position",
    )

    STATE = {
        "index": uint(16),
        "max_size": uint(16),
        "size": uint(16),
        "ready": FLAG,
        "desc_table": uint(64),
        "avail_ring": uint(64),
        "used_ring": uint(64),
        "next_avail": uint(16),
        "next_used": uint(16),
        "num_added": uint(17),
        "event_idx": FLAG,
        "in_order": FLAG,
        "indirect": FLAG,
        "strict_order": FLAG,
        "in_flight": _pairs(16, 16),
        "done": _pairs(16, 32),
    }
    STATE_ATTRIBUTES = {
        "index": "index",
        "size": "ring_size",
        "desc_table": "desc_addr",
        "avail_ring": "avail_addr",
        "used_ring": "used_addr",
        "next_avail": "avail_position",
        "next_used": "used_position",
        "num_added": "num_added",
        "event_idx": "event_idx",
        "in_order": "in_order",
        "indirect": "indirect",
        "strict_order": "strict_order",
        "in_flight": "in_flight",
    }

    ignored: ClassVar[Tally] = Tally(__name__)
    """What was set that cannot be, of all queues together: a driver has new ones with each reset."""
    ring: ClassVar[str]
    avail_alignment: ClassVar[int]
    power_of_two: ClassVar[bool]

    def __init__(self, max_size: int, index: int = 0, *, strict_order: bool = False) -> None:
        if not self._is_size(max_size, MAX_QUEUE_SIZE):
            raise InvalidMaxSize(f"a {self.ring} queue of at most {max_size} descriptors: {self._sizes()}")
        self._max_size = max_size
        self.index = index
        self.strict_order = strict_order
        self.attached: GuestMemory | None = None
        self._memory: GuestMemory | None = None
        self._generation = 0
        self.mark_dirty: DirtyMarker | None = None
        self._views: list[memoryview] = []
        self.reset()

    def reset(self) -> None:
        """Make the queue not ready, of the largest size, and nowhere."""
        self.release()
        self._ready = False
        self.ring_size = self._max_size
        self.desc_addr = self.avail_addr = self.used_addr = 0
        self.event_idx = False
        self.in_order = False
        self.indirect = True
        self.avail_position = self.used_position = 0
        self.num_added = 0
        self.in_flight: dict[int, int] = {}
        # chains given back out of order, and their lengths
        self._done: dict[int, int] = {}

    # size and addresses

    def _is_size(self, size: int, most: int) -> bool:
        return 1 <= size <= most and not (self.power_of_two and size & (size - 1))

    def _sizes(self) -> str:
        return f"1 to {MAX_QUEUE_SIZE}{', a power of two' if self.power_of_two else ''}"

    def max_size(self) -> int:
        """Return the most descriptors a driver may choose."""
        return self._max_size

    def size(self) -> int:
        """Return how many descriptors the ring has."""
        return self.ring_size

    def try_set_size(self, size: int) -> None:
        """Choose how many descriptors the ring has; raises InvalidSize."""
        if not self._is_size(size, self._max_size):
            raise InvalidSize(f"a {self.ring} queue of {size} descriptors: at most {self._max_size}, {self._sizes()}")
        self.ring_size = size
        self.release()

    def set_size(self, size: int) -> None:
        """Choose how many descriptors the ring has; what cannot be is ignored and logged."""
        self._forgive(self.try_set_size, size)

    def desc_table(self) -> int:
        """Return the guest address of the descriptor area: the table, or the packed ring."""
        return self.desc_addr

    def avail_ring(self) -> int:
        """Return the guest address of the driver area: the available ring, or the driver's event suppression."""
        return self.avail_addr

    def used_ring(self) -> int:
        """Return the guest address of the device area: the used ring, or the device's event suppression."""
        return self.used_addr

    def try_set_desc_table_address(self, addr: int) -> None:
        """Say where the descriptor area is; raises InvalidDescTableAlign."""
        if addr % 16 or not 0 <= addr <= U64_MAX:
            raise InvalidDescTableAlign(f"a descriptor area at {addr:#x}: it is aligned to 16 bytes")
        self.desc_addr = addr
        self.release()

    def try_set_avail_ring_address(self, addr: int) -> None:
        """Say where the driver area is; raises InvalidAvailRingAlign."""
        if addr % self.avail_alignment or not 0 <= addr <= U64_MAX:
            raise InvalidAvailRingAlign(f"a driver area at {addr:#x}: it is aligned to {self.avail_alignment} bytes")
        self.avail_addr = addr
        self.release()

    def try_set_used_ring_address(self, addr: int) -> None:
        """Say where the device area is; raises InvalidUsedRingAlign."""
        if addr % 4 or not 0 <= addr <= U64_MAX:
            raise InvalidUsedRingAlign(f"a device area at {addr:#x}: it is aligned to 4 bytes")
        self.used_addr = addr
        self.release()

    def set_desc_table_address(self, low: int | None = None, high: int | None = None) -> None:
        """Say where the descriptor area is, in halves; an address it cannot have is ignored and logged."""
        self._forgive(self.try_set_desc_table_address, combine(self.desc_addr, low, high))

    def set_avail_ring_address(self, low: int | None = None, high: int | None = None) -> None:
        """Say where the driver area is, in halves; an address it cannot have is ignored and logged."""
        self._forgive(self.try_set_avail_ring_address, combine(self.avail_addr, low, high))

    def set_used_ring_address(self, low: int | None = None, high: int | None = None) -> None:
        """Say where the device area is, in halves; an address it cannot have is ignored and logged."""
        self._forgive(self.try_set_used_ring_address, combine(self.used_addr, low, high))

    def _forgive(self, setter: Callable[[int], None], value: int) -> None:
        try:
            setter(value)
        except QueueConfigError as error:
            message = "queue %d: ignored (others are only counted): %s"
            self.ignored.count(type(error).__name__, message, self.index, error, level=ERROR)

    # features and readiness

    def set_event_idx(self, enabled: bool) -> None:
        """Note whether EVENT_IDX was negotiated."""
        self.event_idx = enabled

    def event_idx_enabled(self) -> bool:
        """Say whether EVENT_IDX was negotiated."""
        return self.event_idx

    def set_in_order(self, enabled: bool) -> None:
        """Note whether IN_ORDER was negotiated: chains given back too early then wait for those before them."""
        self.in_order = enabled

    def set_indirect(self, allowed: bool) -> None:
        """Note whether INDIRECT_DESC was negotiated; allowed at first."""
        self.indirect = allowed

    def ready(self) -> bool:
        """Say whether the driver enabled the queue."""
        return self._ready

    def set_ready(self, ready: bool) -> None:
        """Enable the queue, or disable it."""
        self._ready = bool(ready)
        self.release()

    def release(self) -> None:
        """Let go of guest memory; the next use takes it again."""
        self.attached = self._memory = None
        for view in self._views:
            view.release()
        self._views = []

    def attach(self, memory: GuestMemory) -> bool:
        """Have views of the ring in this memory as it is; false where there is no ring, raises InvalidRing."""
        # before it is asked for views: whoever takes a mapping back meanwhile moves it
        generation = getattr(memory, "generation", 0)
        if memory is self._memory and generation == self._generation:
            return True
        self.release()
        if not self._ready or not self.avail_addr:
            return False
        try:
            self.make_views(memory)
        except InvalidRing:
            self.release()
            raise
        self.mark_dirty = getattr(memory, "mark_dirty", None)
        self._memory, self._generation = memory, generation
        self.attached = None if is_translated(memory) else memory
        return True

    if TYPE_CHECKING:

        def make_views(self, memory: GuestMemory) -> None:
            """Make all views of the ring with `make_view`."""
            ...

    def make_view(
        self, memory: GuestMemory, addr: int, length: int, format_: str, what: str, permissions: Permissions
    ) -> memoryview:
        """Return a view that lives until `release`; raises InvalidRing with `what` it would have been of."""
        try:
            view = memory.get_slice(addr, length, permissions)
        except (GuestMemoryError, OverflowError) as error:
            # Rings are small and aligned, so one that crosses into another region is no ring a driver would make.
            reason = f"the {what} of {length} bytes at {addr:#x} is not in one region of guest memory: {error}"
            raise InvalidRing(self.index, None, None, reason) from error
        self._views.append(view)
        if permissions & Permissions.Write and view.readonly:
            reason = f"the {what} of {length} bytes at {addr:#x} is in memory that cannot be written"
            raise InvalidRing(self.index, None, None, reason)
        if format_ != "B":
            view = view.cast(format_)  # type: ignore[call-overload]
            self._views.insert(0, view)
        return view

    def hold(self, views: Iterable[memoryview]) -> None:
        """Keep views that are let go of together with those of the ring."""
        self._views.extend(views)

    def held(self) -> list[memoryview]:
        """Return the views that are kept: another list after each `release`."""
        return self._views

    def require(self, memory: GuestMemory) -> None:
        """Have the views of the ring in this memory; raises QueueNotReady, InvalidRing."""
        if memory is not self.attached and not self.attach(memory):
            raise QueueNotReady(self.index, None, None, "the driver did not enable it")

    def note_write(self, addr: int, length: int) -> None:
        """Note a write to the ring, where somebody wants to know."""
        if self.mark_dirty is not None and self._memory.dirty_tracking:  # type: ignore[union-attr]
            self.mark_dirty(addr, length)

    def is_valid(self, memory: GuestMemory) -> bool:
        """Say whether the queue is ready and its parts lie in guest memory; log why not."""
        try:
            self.require(memory)
        except VirtqueueError as error:
            self.ignored.count(type(error).__name__, "%s (others are only counted)", error, level=ERROR)
            return False
        return True

    # chains

    if TYPE_CHECKING:

        def pop_descriptor_chain(self, memory: GuestMemory) -> DescriptorChain | None:
            """Take the next chain, or return None; the format says what is wrong with one."""
            ...

    def iter(self, memory: GuestMemory) -> Iterator[DescriptorChain]:
        """Take the chains that are there, at most as many as the queue has descriptors.

        Raises QueueNotReady, and what `pop_descriptor_chain` does.
        """
        self.require(memory)
        pop = self.pop_descriptor_chain
        for _ in range(self.ring_size):
            chain = pop(memory)
            if chain is None:
                return
            yield chain

    if TYPE_CHECKING:

        def publish(self, used: Sequence[tuple[int, int]]) -> None:
            """Write chains into the ring that were checked, as (head, length), the driver seeing all or none."""
            ...

        def check_head(self, head: int) -> None:
            """Raise InvalidDescriptorIndex where a chain of this head cannot be given back."""
            ...

    def add_used_batch(self, memory: GuestMemory, used: Iterable[tuple[int, int]]) -> None:
        """Give several chains back, as (head, length), so that the driver sees all of them or none.

        Raises what `add_used` does, and gives none back then.
        """
        self.require(memory)
        batch = list(used)
        if len(batch) > self.ring_size:
            raise InvalidDescriptorIndex(self.index, None, len(batch), "more chains than the queue has descriptors")
        for head, _ in batch:
            self.check_head(head)
        if self.in_flight and len(dict(batch)) != len(batch):
            raise InvalidDescriptorIndex(self.index, None, None, "a chain is given back twice")
        if self.in_order:
            batch = self._hold_back(batch)
        if batch:
            self.publish(batch)

    def _hold_back(self, batch: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Keep what is out of order, and return what is next: "in the same order in which they have been available"."""
        self._done.update(batch)
        ready: list[tuple[int, int]] = []
        for head in self.in_flight:
            if head not in self._done:
                break
            ready.append((head, self._done.pop(head)))
        return ready

    # positions and state

    def next_avail(self) -> int:
        """Return where the next chain is taken; the packed ring's wrap counter is bit 15."""
        return self.avail_position

    def set_next_avail(self, next_avail: int) -> None:
        """Go to a position, as a state says it."""
        self.avail_position = next_avail & U16_MAX
        self.release()  # with what is known of the position before

    def next_used(self) -> int:
        """Return where the next chain is given back; the packed ring's wrap counter is bit 15."""
        return self.used_position

    def set_next_used(self, next_used: int) -> None:
        """Go to a position, as a state says it."""
        self.used_position = next_used & U16_MAX

    def _before_save(self) -> None:
        self.num_added = min(self.num_added, 1 << 16)

    def _after_restore(self) -> None:
        self.release()

    def _check_fields(self, fields: dict[str, Any]) -> None:
        name = type(self).__name__
        size, most = fields["size"], fields["max_size"]
        if not self._is_size(most, MAX_QUEUE_SIZE) or not self._is_size(size, most):
            raise DeviceStateError(name, f"{size} of at most {most} descriptors: {self._sizes()}")
        if fields["desc_table"] % 16 or fields["avail_ring"] % self.avail_alignment or fields["used_ring"] % 4:
            raise DeviceStateError(name, "an address is not aligned")
        if len(fields["in_flight"]) > size:
            raise DeviceStateError(name, f"{len(fields['in_flight'])} chains are under way on a ring of {size}")
        if not set(fields["done"]) <= set(fields["in_flight"]):
            raise DeviceStateError(name, "a chain was given back that was never taken")

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Return a queue as it was when `state` was called. Raises DeviceStateError."""
        fields = cls(1).check_state(state)
        queue = cls(fields["max_size"], strict_order=fields["strict_order"])
        queue.restore(state)
        return queue

    def __repr__(self) -> str:
        state = "ready" if self._ready else "not ready"
        return (
            f"<{type(self).__name__} {self.index}: {self.ring_size} of at most {self._max_size} descriptors, {state}, "
            f"next available {self.avail_position:#x}, next used {self.used_position:#x}>"
        )


def combine(addr: int, low: int | None, high: int | None) -> int:
    """Replace the halves of an address that are given."""
    if low is not None:
        if low > 0xFFFF_FFFF and high is None:
            return low
        addr = addr & ~0xFFFF_FFFF | low & 0xFFFF_FFFF
    if high is not None:
        addr = addr & 0xFFFF_FFFF | (high & 0xFFFF_FFFF) << 32
    return addr
