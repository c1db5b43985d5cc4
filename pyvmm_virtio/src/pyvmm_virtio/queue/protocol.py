"""What every virtqueue offers the device that serves it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any, Protocol, Self

    from pyvmm_virtio.memory import GuestMemory
    from pyvmm_virtio.queue.chain import DescriptorChain

    class Queue(Protocol):
        """A virtqueue of either format. Methods are not thread-safe: the device's lock is around them.

        The ``set_`` methods take what a driver writes: they ignore, with a log message, what cannot be. Their ``try_``
        twins raise `QueueConfigError`. Addresses come in halves of 32 bits; a whole one fits in `low` too.
        """

        @property
        def index(self) -> int:
            """The queue's number in its device."""
            ...

        def max_size(self) -> int:
            """The most descriptors a driver may choose."""
            ...

        def size(self) -> int:
            """How many descriptors the ring has."""
            ...

        def set_size(self, size: int) -> None:
            """Choose how many descriptors the ring has."""
            ...

        def try_set_size(self, size: int) -> None:
            """Choose it, or raise InvalidSize."""
            ...

        def ready(self) -> bool:
            """Whether the driver enabled the queue."""
            ...

        def set_ready(self, ready: bool) -> None:
            """Enable the queue, or disable it."""
            ...

        def desc_table(self) -> int:
            """The guest address of the descriptor area."""
            ...

        def avail_ring(self) -> int:
            """The guest address of the driver area."""
            ...

        def used_ring(self) -> int:
            """The guest address of the device area."""
            ...

        def set_desc_table_address(self, low: int | None = None, high: int | None = None) -> None:
            """Say where the descriptor area is."""
            ...

        def set_avail_ring_address(self, low: int | None = None, high: int | None = None) -> None:
            """Say where the driver area is."""
            ...

        def set_used_ring_address(self, low: int | None = None, high: int | None = None) -> None:
            """Say where the device area is."""
            ...

        def set_event_idx(self, enabled: bool) -> None:
            """Note whether EVENT_IDX was negotiated."""
            ...

        def event_idx_enabled(self) -> bool:
            """Whether EVENT_IDX was negotiated."""
            ...

        def set_in_order(self, enabled: bool) -> None:
            """Note whether IN_ORDER was negotiated."""
            ...

        def set_indirect(self, allowed: bool) -> None:
            """Note whether INDIRECT_DESC was negotiated."""
            ...

        def is_valid(self, memory: GuestMemory) -> bool:
            """Whether the queue is ready and its parts lie in guest memory."""
            ...

        def reset(self) -> None:
            """Be as new."""
            ...

        def release(self) -> None:
            """Let go of guest memory; the next use takes it again."""
            ...

        def next_avail(self) -> int:
            """Where the next chain is taken."""
            ...

        def set_next_avail(self, next_avail: int) -> None:
            """Take the next chain there."""
            ...

        def next_used(self) -> int:
            """Where the next chain is given back."""
            ...

        def set_next_used(self, next_used: int) -> None:
            """Give the next chain back there."""
            ...

        def pop_descriptor_chain(self, memory: GuestMemory) -> DescriptorChain | None:
            """Take the next chain, or None; raises `VirtqueueError` where it is wrong."""
            ...

        def iter(self, memory: GuestMemory) -> Iterator[DescriptorChain]:
            """Take the chains that are there, a ring's worth at most."""
            ...

        def go_to_previous_position(self) -> None:
            """Put the chain that was taken last back into the ring."""
            ...

        def add_used(self, memory: GuestMemory, head: int, length: int) -> None:
            """Give a chain back, with how many bytes were written into it."""
            ...

        def add_used_batch(self, memory: GuestMemory, used: Iterable[tuple[int, int]]) -> None:
            """Give several back, so that the driver sees all of them or none."""
            ...

        def needs_notification(self, memory: GuestMemory) -> bool:
            """Whether the driver wants to hear of what was given back since this was asked last."""
            ...

        def enable_notification(self, memory: GuestMemory) -> bool:
            """Ask to be notified of new chains; true where some came already."""
            ...

        def disable_notification(self, memory: GuestMemory) -> None:
            """Ask not to be notified."""
            ...

        def state(self) -> dict[str, Any]:
            """Everything about the queue that is not in guest memory, as JSON can carry it."""
            ...

        @classmethod
        def from_state(cls, state: Mapping[str, Any]) -> Self:
            """A queue as it was."""
            ...
