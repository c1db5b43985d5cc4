"""The split virtqueue: a table of descriptors, a ring of heads from the driver, and one of heads given back.

Source: VIRTIO 1.3, 2.7.
"""

from __future__ import annotations

from struct import Struct

from pyvmm_device.errors import DeviceStateError
from pyvmm_memory import Permissions
from pyvmm_virtio.constants.ring import (
    VRING_AVAIL_F_NO_INTERRUPT,
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_USED_F_NO_NOTIFY,
)
from pyvmm_virtio.errors import (
    ChainInFlight,
    InvalidAvailRingIndex,
    InvalidChain,
    InvalidDescriptorIndex,
    InvalidIndirectDescriptor,
)
from pyvmm_virtio.queue.base import U16_MAX, U32_MAX, BaseQueue
from pyvmm_virtio.queue.chain import DescriptorChain
from pyvmm_virtio.queue.indirect import MAX_CHAIN_BYTES, check_buffers, open_table
from pyvmm_virtio.queue.ordering import IS_WEAK, acquire, full, release

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

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

    # `_offered` is the driver's index as it was read last: until `avail_position` comes to it, there are chains, and
    # nobody looks again. `_mask` makes a position a place in the ring.
    __slots__ = ("_avail", "_mask", "_offered", "_table", "_used", "_used_elements")

    ring = "split"
    avail_alignment = 2
    power_of_two = True

    def make_views(self, memory: GuestMemory) -> None:
        """Make the table's, the available ring's and the used ring's, the last of 16 bits and of 32."""
        size = self.ring_size
        self._mask = size - 1
        self._offered = self.avail_position
        self._table = self.make_view(memory, self.desc_addr, 16 * size, "B", "descriptor table", READ)
        self._avail = self.make_view(memory, self.avail_addr, 6 + 2 * size, "H", "available ring", READ)
        self._used = self.make_view(memory, self.used_addr, 6 + 8 * size, "H", "used ring", BOTH)
        self._used_elements = self.make_view(memory, self.used_addr, 4 + 8 * size, "I", "used ring", BOTH)

    # taking chains

    def avail_idx(self, memory: GuestMemory) -> int:
        """Return the driver's index: how many chains it offered, modulo 2**16.

        Raises QueueNotReady, InvalidRing.
        """
        self.require(memory)
        index: int = self._avail[AVAIL_INDEX]
        acquire()  # partner: the release in the driver's SplitRing.add
        return index

    def used_idx(self, memory: GuestMemory) -> int:
        """Return our index as the driver sees it: how many chains were given back.

        Raises QueueNotReady, InvalidRing.
        """
        self.require(memory)
        index: int = self._used[USED_INDEX]
        return index

    def pop_descriptor_chain(self, memory: GuestMemory) -> DescriptorChain | None:
        """Take the next chain; return None where there is none or the queue is not ready.

        Raises `VirtqueueError` of the kind that says what is wrong with the ring or the chain; a chain that is wrong
        was taken, and can be given back by the error's ``head``.
        """
        if memory is not self.attached and not self.attach(memory):
            return None
        avail = self._avail
        next_avail = self.avail_position
        if next_avail == self._offered and not self._look():
            return None
        head = avail[AVAIL_RING + (next_avail & self._mask)]
        self.avail_position = (next_avail + 1) & U16_MAX
        size = self.ring_size
        if head >= size:
            raise InvalidDescriptorIndex(self.index, head, head, f"the head is beyond the {size} descriptors")
        in_flight = self.in_flight
        if head in in_flight:
            # 2.7.13: what was made available is the device's until it is in the used ring; so there are never more
            # chains under way than the ring has descriptors
            raise ChainInFlight(self.index, head, head, "the chain is offered again before it was given back")
        in_flight[head] = 1
        raw = _unpack(self._table, head << 4)
        if raw[2] & LINKED:
            return self._walk(memory, head, raw)
        return DescriptorChain(head, [raw], self.index, raw[1])

    def _look(self) -> bool:
        """Look how far the driver is; false where it is no further than the chains that were taken."""
        index, next_avail, size = self._avail[AVAIL_INDEX], self.avail_position, self.ring_size
        if (index - next_avail) & U16_MAX > size:
            reason = f"the available index is {index}, {(index - next_avail) & U16_MAX} beyond the last of {size}"
            raise InvalidAvailRingIndex(self.index, None, index, reason)
        if IS_WEAK:
            # 2.7.13.3.1: between the load of the index and the rest; partner: the release before the driver's store of
            # it, in SplitRing.add
            acquire()
        self._offered = index
        return bool(index != next_avail)

    def _walk(self, memory: GuestMemory, head: int, raw: RawDescriptor) -> DescriptorChain:
        """Follow a chain of more than one descriptor from its first on."""
        table, size = self._table, self.ring_size
        chain = [raw]
        append = chain.append
        _, total, flags, index = raw
        left = size
        while flags & LINKED == VRING_DESC_F_NEXT:
            left -= 1
            if index >= size:
                raise InvalidDescriptorIndex(self.index, head, index, f"the link leads beyond the {size} descriptors")
            if not left:
                raise InvalidChain(self.index, head, index, f"the chain has more than {size} descriptors, or loops")
            raw = _unpack(table, index << 4)
            append(raw)
            _, length, flags, index = raw
            total += length
        if flags & VRING_DESC_F_INDIRECT:
            total += self._follow(memory, head, chain)
        if total > MAX_CHAIN_BYTES or self.strict_order:
            check_buffers(self, head, chain, total)
        return DescriptorChain(head, chain, self.index, total)

    def _follow(self, memory: GuestMemory, head: int, chain: list[RawDescriptor]) -> int:
        """Replace the last descriptor, which is indirect, by those of its table; return the bytes they add."""
        addr, length, flags, _ = chain.pop()
        index = chain[-1][3] if chain else head
        if flags & VRING_DESC_F_NEXT:
            # 2.7.5.3.1: "A driver MUST NOT set both VIRTQ_DESC_F_INDIRECT and VIRTQ_DESC_F_NEXT"
            raise InvalidIndirectDescriptor(self.index, head, index, "an indirect descriptor has a link too")
        added: int = -length
        # released at once: an error that somebody keeps would keep it alive, and the memory open
        with open_table(self, memory, (head, index), addr, length) as table:
            count = length >> 4
            # at once, where that is faster, unless there are more than a chain may have
            copies = list(_unpack_all(table)) if 4 < count <= self.ring_size else None
            index = 0
            for _ in range(self.ring_size - len(chain)):
                raw = copies[index] if copies is not None else _unpack(table, index << 4)
                _, length, flags, following = raw
                if flags & VRING_DESC_F_INDIRECT:
                    raise InvalidIndirectDescriptor(self.index, head, index, "an indirect descriptor is in a table")
                chain.append(raw)
                added += length
                if not flags & VRING_DESC_F_NEXT:
                    return added
                index = following
                if index >= count:
                    reason = f"the link leads beyond the {count} descriptors of the indirect table"
                    raise InvalidDescriptorIndex(self.index, head, index, reason)
        # 2.7.5.3.1: "MUST NOT create a descriptor chain longer than the Queue Size of the device"
        raise InvalidChain(self.index, head, index, f"the chain has more than {self.ring_size} descriptors, or loops")

    def go_to_previous_position(self) -> None:
        """Put the chain that was taken last back into the ring, as if it had not been taken."""
        self.avail_position = (self.avail_position - 1) & U16_MAX
        if self.in_flight:
            self.in_flight.popitem()

    # giving chains back

    def check_head(self, head: int) -> None:
        """Raise InvalidDescriptorIndex where no chain of this head can be in flight."""
        if not 0 <= head < self.ring_size or (self.in_order and head not in self.in_flight):
            raise InvalidDescriptorIndex(self.index, head, head, "there is no such chain to give back")

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
        if memory is not self.attached:
            self.require(memory)
        if self.in_order:
            self.add_used_batch(memory, ((head, length),))
            return
        try:
            # one that was taken is one of the ring's
            del self.in_flight[head]
        except KeyError:
            self.add_used_batch(memory, ((head, length),))
            return
        next_used = self.used_position
        slot = next_used & self._mask
        elements, at = self._used_elements, 2 * slot + 1
        elements[at] = head
        elements[at + 1] = length if length <= U32_MAX else U32_MAX
        if IS_WEAK:
            release()  # 2.7.14: the element is before the index that shows it; partner: the acquire in SplitRing.used
        self.used_position = self._used[USED_INDEX] = (next_used + 1) & U16_MAX
        self.num_added += 1
        if self.mark_dirty is not None and memory.dirty_tracking:  # type: ignore[attr-defined] # who marks also has this
            self.mark_dirty(self.used_addr + 4 + 8 * slot, 8)
            self.mark_dirty(self.used_addr, 4)

    def publish(self, used: Sequence[tuple[int, int]]) -> None:
        """Write the elements, then the index that shows them."""
        elements, mask, forget = self._used_elements, self.ring_size - 1, self.in_flight.pop
        next_used = self.used_position
        for head, length in used:
            slot = next_used & mask
            elements[2 * slot + 1] = head
            elements[2 * slot + 2] = length if length <= U32_MAX else U32_MAX
            self.note_write(self.used_addr + 4 + 8 * slot, 8)
            next_used += 1
            forget(head, None)
        if IS_WEAK:
            release()  # 2.7.14, as in add_used; partner: the acquire in SplitRing.used
        self.used_position = self._used[USED_INDEX] = next_used & U16_MAX
        self.num_added = min(self.num_added + len(used), 1 << 16)
        self.note_write(self.used_addr, 4)

    # what a compiled data plane needs

    def is_plain(self) -> bool:
        """Say whether chains are taken and given back without an account of their order."""
        return not self.in_order and not self.strict_order

    def heads_in_flight(self) -> bytes:
        """Return a byte for each descriptor, 1 where it is the head of a chain that is under way; none if none is."""
        if not self.in_flight:
            return b""
        heads = bytearray(self.ring_size)
        for head in self.in_flight:
            heads[head] = 1
        return bytes(heads)

    def indirect_allowed(self) -> bool:
        """Say whether a chain may be in an indirect table."""
        return self.indirect

    def host_addresses(self, memory: GuestMemory) -> tuple[int, int, int]:
        """Return where the descriptor table, the available and the used ring are in this process, until `release`.

        Raises QueueNotReady, InvalidRing.
        """
        self.require(memory)
        table, avail, used = (
            region.mapping.as_ptr() + addr - region.start
            for addr in (self.desc_addr, self.avail_addr, self.used_addr)
            if (region := memory.find_region(addr)) is not None  # type: ignore[attr-defined] # a GuestMemoryMmap
        )
        return table, avail, used

    def advance(self, count: int) -> None:
        """Note that so many chains were taken, and the same given back in their order, by somebody else."""
        self._offered = self.avail_position = (self.avail_position + count) & U16_MAX
        self.used_position = (self.used_position + count) & U16_MAX
        self.num_added = min(self.num_added + count, 1 << 16)

    # notifications

    def needs_notification(self, memory: GuestMemory) -> bool:
        """Say whether the driver wants to hear of the chains given back since this was asked last.

        With EVENT_IDX the driver says after which one: ``used_event``. It does when that index lies among those passed
        since the last time, whatever wrapped in between. Without, the driver has one flag for all.
        """
        if memory is not self.attached:
            self.require(memory)
        # 2.7.13.4.1 and 2.7.14: the index must be seen before we look whether anybody waits for it; partner: the fence
        # between the driver's store of used_event and its last look, in SplitRing.used
        full()
        added, self.num_added = self.num_added, 0
        if not self.event_idx:
            # 2.7.7.2: "If flags is 1, the device SHOULD NOT send a notification"
            return not self._avail[AVAIL_FLAGS] & VRING_AVAIL_F_NO_INTERRUPT
        used_event = self._avail[AVAIL_RING + self.ring_size]
        return (self.used_position - used_event - 1) & U16_MAX < added

    def enable_notification(self, memory: GuestMemory) -> bool:
        """Ask to be notified of new chains; return true where some came already, and must be looked for again."""
        if memory is not self.attached:
            self.require(memory)
        if self.event_idx:
            at = USED_INDEX + 1 + 4 * self.ring_size
            self._used[at] = self.avail_position
            self.note_write(self.used_addr + 2 * at, 2)
        else:
            self._used[USED_FLAGS] = 0
            self.note_write(self.used_addr, 2)
        # 2.7.10: what we ask for must be seen before we look once more, or both sides sleep; partner: the fence between
        # the driver's store of the index and its look at what we ask for, in SplitRing.should_kick
        full()
        return self._avail[AVAIL_INDEX] != self.avail_position

    def disable_notification(self, memory: GuestMemory) -> None:
        """Ask not to be notified; with EVENT_IDX that is so until it is asked for again."""
        if memory is not self.attached:
            self.require(memory)
        if not self.event_idx:
            self._used[USED_FLAGS] = VRING_USED_F_NO_NOTIFY
            self.note_write(self.used_addr, 2)

    def _check_fields(self, fields: dict[str, Any]) -> None:
        super()._check_fields(fields)
        if any(head >= fields["size"] for head in fields["in_flight"]):
            raise DeviceStateError(type(self).__name__, "a chain is under way whose head is beyond the ring")
