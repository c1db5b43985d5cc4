"""The split virtqueue: a table of descriptors, a ring of heads from the driver, and one of heads given back.

Source: VIRTIO 1.3, 2.7.
"""

from __future__ import annotations

from struct import Struct

from pyvmm_memory import Permissions
from pyvmm_virtio.constants.ring import (
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_USED_F_NO_NOTIFY,
)
from pyvmm_virtio.errors import InvalidAvailRingIndex, InvalidChain, InvalidDescriptorIndex, InvalidIndirectDescriptor
from pyvmm_virtio.queue.base import U16_MAX, U32_MAX, BaseQueue
from pyvmm_virtio.queue.chain import DescriptorChain
from pyvmm_virtio.queue.indirect import MAX_CHAIN_BYTES, check_buffers, open_table
from pyvmm_virtio.queue.ordering import IS_WEAK, acquire, full, release

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pyvmm_virtio.memory import GuestMemory
    from pyvmm_virtio.queue.chain import RawDescriptor

READ, BOTH = Permissions.Read, Permissions.ReadWrite
_layout = Struct("<QIHH")
_unpack, _unpack_all = _layout.unpack_from, _layout.iter_unpack
LINKED = VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT
AVAIL_FLAGS, AVAIL_INDEX, AVAIL_RING = 0, 1, 2
USED_FLAGS, USED_INDEX = 0, 1


class SplitQueue(BaseQueue):
    """A split virtqueue, the device's side; arguments and errors are those of `BaseQueue`.

    The descriptor area is the descriptor table (16 bytes for each), the driver area is the available ring (6 bytes and
    2 for each), the device area is the used ring (6 bytes and 8 for each).
    """

    __slots__ = ("_avail", "_table", "_used", "_used_elements")

    ring = "split"
    avail_alignment = 2
    power_of_two = True

    def _make_views(self, memory: GuestMemory) -> None:
        size = self._size
        self._table = self._view(memory, self._desc_table, 16 * size, "B", "descriptor table", READ)
        self._avail = self._view(memory, self._avail_ring, 6 + 2 * size, "H", "available ring", READ)
        self._used = self._view(memory, self._used_ring, 6 + 8 * size, "H", "used ring", BOTH)
        self._used_elements = self._view(memory, self._used_ring, 4 + 8 * size, "I", "used ring", BOTH)

    # taking chains

    def avail_idx(self, memory: GuestMemory) -> int:
        """The driver's index: how many chains it has offered, modulo 2**16. Raises QueueNotReady, InvalidRing."""
        self._need(memory)
        index: int = self._avail[AVAIL_INDEX]
        acquire()
        return index

    def used_idx(self, memory: GuestMemory) -> int:
        """Our index as the driver sees it: how many chains were given back. Raises QueueNotReady, InvalidRing."""
        self._need(memory)
        index: int = self._used[USED_INDEX]
        return index

    def pop_descriptor_chain(self, memory: GuestMemory) -> DescriptorChain | None:
        """Take the next chain, or None where there is none or the queue is not ready.

        Raises `VirtqueueError` of the kind that says what is wrong with the ring or the chain; a chain that is wrong
        was taken, and can be given back by the error's ``head``.
        """
        if memory is not self._memory and not self._attach(memory):
            return None
        avail = self._avail
        next_avail = self._next_avail
        index = avail[AVAIL_INDEX]
        if index == next_avail:
            return None
        size = self._size
        if (index - next_avail) & U16_MAX > size:
            reason = f"the available index is {index}, {(index - next_avail) & U16_MAX} beyond the last of {size}"
            raise InvalidAvailRingIndex(self._index, None, index, reason)
        if IS_WEAK:
            # 2.7.13.3.1: the driver's barrier before its index store needs one here, between that load and the rest
            acquire()
        head = avail[AVAIL_RING + (next_avail & size - 1)]
        self._next_avail = (next_avail + 1) & U16_MAX
        if head >= size:
            raise InvalidDescriptorIndex(self._index, head, head, f"the head is beyond the {size} descriptors")
        if self._in_order:
            if head in self._in_flight:
                raise InvalidChain(self._index, head, head, "the chain is offered again before it was given back")
            self._in_flight[head] = 1
        raw = _unpack(self._table, head << 4)
        if raw[2] & LINKED:
            return DescriptorChain(head, self._walk(memory, head, raw), self._index)
        return DescriptorChain(head, [raw], self._index)

    def _walk(self, memory: GuestMemory, head: int, raw: RawDescriptor) -> list[RawDescriptor]:
        """Follow a chain of more than one descriptor from its first on."""
        table, size = self._table, self._size
        chain = [raw]
        append = chain.append
        _, total, flags, index = raw
        left = size
        while flags & LINKED == VRING_DESC_F_NEXT:
            left -= 1
            if index >= size:
                raise InvalidDescriptorIndex(self._index, head, index, f"the link leads beyond the {size} descriptors")
            if not left:
                raise InvalidChain(self._index, head, index, f"the chain has more than {size} descriptors, or loops")
            raw = _unpack(table, index << 4)
            append(raw)
            _, length, flags, index = raw
            total += length
        if flags & VRING_DESC_F_INDIRECT:
            total += self._follow(memory, head, chain)
        if total > MAX_CHAIN_BYTES or self._strict_order:
            check_buffers(self, head, chain, total)
        return chain

    def _follow(self, memory: GuestMemory, head: int, chain: list[RawDescriptor]) -> int:
        """Replace the last descriptor, which is indirect, by those of its table; return the bytes they add."""
        addr, length, flags, _ = chain.pop()
        index = chain[-1][3] if chain else head
        if flags & VRING_DESC_F_NEXT:
            # 2.7.5.3.1: "A driver MUST NOT set both VIRTQ_DESC_F_INDIRECT and VIRTQ_DESC_F_NEXT"
            raise InvalidIndirectDescriptor(self._index, head, index, "an indirect descriptor has a link too")
        added: int = -length
        # released at once: an error that somebody keeps would keep it alive, and the memory open
        with open_table(self, memory, (head, index), addr, length) as table:
            count = length >> 4
            # at once, where that is faster, unless there are more than a chain may have
            copies = list(_unpack_all(table)) if 4 < count <= self._size else None
            index = 0
            for _ in range(self._size - len(chain)):
                raw = copies[index] if copies is not None else _unpack(table, index << 4)
                _, length, flags, following = raw
                if flags & VRING_DESC_F_INDIRECT:
                    raise InvalidIndirectDescriptor(self._index, head, index, "an indirect descriptor is in a table")
                chain.append(raw)
                added += length
                if not flags & VRING_DESC_F_NEXT:
                    return added
                index = following
                if index >= count:
                    reason = f"the link leads beyond the {count} descriptors of the indirect table"
                    raise InvalidDescriptorIndex(self._index, head, index, reason)
        # 2.7.5.3.1: "MUST NOT create a descriptor chain longer than the Queue Size of the device"
        raise InvalidChain(self._index, head, index, f"the chain has more than {self._size} descriptors, or loops")

    def go_to_previous_position(self) -> None:
        """Put the chain that was taken last back into the ring, as if it had not been taken."""
        self._next_avail = (self._next_avail - 1) & U16_MAX
        if self._in_flight:
            self._in_flight.popitem()

    # giving chains back

    def _check_head(self, head: int) -> None:
        if not 0 <= head < self._size or (self._in_order and head not in self._in_flight):
            raise InvalidDescriptorIndex(self._index, head, head, "there is no such chain to give back")

    def add_used(self, memory: GuestMemory, head: int, length: int) -> None:
        """Give a chain back.

        Args:
            memory: guest memory.
            head: the chain's `head_index`.
            length: how many bytes were written into it, from its first writable byte on.

        Raises:
            InvalidDescriptorIndex: there is no such head; nothing was written.
            QueueNotReady: the queue is not enabled.
            InvalidRing: it does not lie in this memory.
        """
        if not 0 <= head < self._size or self._in_order:
            self.add_used_batch(memory, ((head, length),))
            return
        if memory is not self._memory:
            self._need(memory)
        next_used = self._next_used
        slot = next_used & self._size - 1
        elements = self._used_elements
        elements[2 * slot + 1] = head
        elements[2 * slot + 2] = length if length <= U32_MAX else U32_MAX
        if IS_WEAK:
            release()  # 2.7.14: the element is written before the index that shows it
        self._next_used = self._used[USED_INDEX] = (next_used + 1) & U16_MAX
        self._num_added += 1
        if self._mark is not None and memory.dirty_tracking:  # type: ignore[attr-defined] # who marks also has this
            self._mark(self._used_ring + 4 + 8 * slot, 8)
            self._mark(self._used_ring, 4)

    def _publish(self, used: Sequence[tuple[int, int]]) -> None:
        elements, mask = self._used_elements, self._size - 1
        next_used = self._next_used
        for head, length in used:
            slot = next_used & mask
            elements[2 * slot + 1] = head
            elements[2 * slot + 2] = length if length <= U32_MAX else U32_MAX
            self._dirty(self._used_ring + 4 + 8 * slot, 8)
            next_used += 1
            self._in_flight.pop(head, None)
        if IS_WEAK:
            release()  # 2.7.14: the elements are written before the index that shows them
        self._next_used = self._used[USED_INDEX] = next_used & U16_MAX
        self._num_added = min(self._num_added + len(used), 1 << 16)
        self._dirty(self._used_ring, 4)

    # what a compiled data plane needs

    def is_plain(self) -> bool:
        """Whether chains are taken and given back without an account of their order."""
        return not self._in_order and not self._strict_order

    def indirect_allowed(self) -> bool:
        """Whether a chain may be in an indirect table."""
        return self._indirect

    def host_addresses(self, memory: GuestMemory) -> tuple[int, int, int]:
        """Where the descriptor table, the available and the used ring are in this process, until `release`.

        Raises QueueNotReady, InvalidRing.
        """
        self._need(memory)
        table, avail, used = (
            region.mapping.as_ptr() + addr - region.start
            for addr in (self._desc_table, self._avail_ring, self._used_ring)
            if (region := memory.find_region(addr)) is not None  # type: ignore[attr-defined] # a GuestMemoryMmap
        )
        return table, avail, used

    def hold(self, views: Iterable[memoryview]) -> None:
        """Keep views that are let go of together with those of the ring."""
        self._views.extend(views)

    def held(self) -> list[memoryview]:
        """The views that are kept: another list after each `release`."""
        return self._views

    def advance(self, count: int) -> None:
        """Note that so many chains were taken, and the same given back in their order, by somebody else."""
        self._next_avail = (self._next_avail + count) & U16_MAX
        self._next_used = (self._next_used + count) & U16_MAX
        self._num_added = min(self._num_added + count, 1 << 16)

    # notifications

    def needs_notification(self, memory: GuestMemory) -> bool:
        """Whether the driver wants to hear of the chains given back since this was asked last.

        With EVENT_IDX the driver says after which one: ``used_event``. It does when that index lies among those passed
        since the last time, whatever wrapped in between. Without, the driver has one flag for all.
        """
        if memory is not self._memory:
            self._need(memory)
        # 2.7.13.4.1 and 2.7.14: the index must be seen before we look whether anybody waits for it
        full()
        added, self._num_added = self._num_added, 0
        if not self._event_idx:
            # 2.7.7.2: "If flags is 1, the device SHOULD NOT send a notification"
            return not self._avail[AVAIL_FLAGS] & VRING_AVAIL_F_NO_INTERRUPT
        used_event = self._avail[AVAIL_RING + self._size]
        return (self._next_used - used_event - 1) & U16_MAX < added

    def enable_notification(self, memory: GuestMemory) -> bool:
        """Ask to be notified of new chains; true where some came already, and must be looked for again."""
        if memory is not self._memory:
            self._need(memory)
        if self._event_idx:
            at = USED_INDEX + 1 + 4 * self._size
            self._used[at] = self._next_avail
            self._dirty(self._used_ring + 2 * at, 2)
        else:
            self._used[USED_FLAGS] = 0
            self._dirty(self._used_ring, 2)
        # 2.7.10: what we ask for must be seen before we look once more, or both sides sleep
        full()
        return self._avail[AVAIL_INDEX] != self._next_avail

    def disable_notification(self, memory: GuestMemory) -> None:
        """Ask not to be notified; with EVENT_IDX that is so until it is asked for again."""
        if memory is not self._memory:
            self._need(memory)
        if not self._event_idx:
            self._used[USED_FLAGS] = VRING_USED_F_NO_NOTIFY
            self._dirty(self._used_ring, 2)
