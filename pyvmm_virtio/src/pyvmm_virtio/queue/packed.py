"""The packed virtqueue: one ring of descriptors that driver and device write in turns.

Source: VIRTIO 1.3, 2.8.
"""

from __future__ import annotations

from struct import Struct

from pyvmm_device.errors import DeviceStateError
from pyvmm_memory import Permissions
from pyvmm_virtio.constants.ring import (
    VRING_DESC_F_INDIRECT,
    VRING_DESC_F_NEXT,
    VRING_DESC_F_WRITE,
    VRING_PACKED_DESC_F_AVAIL,
    VRING_PACKED_DESC_F_USED,
    VRING_PACKED_EVENT_F_WRAP_CTR,
    VRING_PACKED_EVENT_FLAG_DESC,
    VRING_PACKED_EVENT_FLAG_DISABLE,
    VRING_PACKED_EVENT_FLAG_ENABLE,
)
from pyvmm_virtio.errors import (
    ChainInFlight,
    InvalidChain,
    InvalidDescriptorIndex,
    InvalidIndirectDescriptor,
    VirtioUsageError,
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
# the buffer id stands where a split descriptor has its flags
_layout = Struct("<QIHH")
_unpack, _unpack_all = _layout.unpack_from, _layout.iter_unpack
AVAIL = 1 << VRING_PACKED_DESC_F_AVAIL
USED = 1 << VRING_PACKED_DESC_F_USED
USED_MARKS = AVAIL | USED
WRAP = 1 << VRING_PACKED_EVENT_F_WRAP_CTR
EVENT_OFFSET, EVENT_FLAGS = 0, 1
LINKED = VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT
KEPT_FLAGS = LINKED | VRING_DESC_F_WRITE


class PackedQueue(BaseQueue):
    """A packed virtqueue, the device's side; arguments and errors are those of `BaseQueue`.

    The descriptor area is the ring (16 bytes for each descriptor), the driver area is the driver's event suppression
    (4 bytes), the device area is ours (4 bytes). Positions carry their wrap counter in bit 15. A chain's `head_index`
    is its buffer id, which its driver chooses, and its descriptors' `next` as well.
    """

    __slots__ = ("_cells", "_device_event", "_driver_event", "_ring", "_taken", "_words")

    ring = "packed"
    avail_alignment = 4
    power_of_two = False

    def reset(self) -> None:
        """Make the queue not ready, of the largest size, nowhere, and both wrap counters 1."""
        super().reset()
        self.avail_position = self.used_position = WRAP
        # how many descriptors of the ring the chains in flight cover
        self._taken = 0

    def make_views(self, memory: GuestMemory) -> None:
        """Make the ring's, of bytes, of 16 bits and of 32, and those of both event suppressions."""
        self._ring = self.make_view(memory, self.desc_addr, 16 * self.ring_size, "B", "descriptor ring", BOTH)
        self._cells = self.make_view(memory, self.desc_addr, 16 * self.ring_size, "H", "descriptor ring", BOTH)
        self._words = self.make_view(memory, self.desc_addr, 16 * self.ring_size, "I", "descriptor ring", BOTH)
        self._driver_event = self.make_view(memory, self.avail_addr, 4, "H", "driver's event suppression", READ)
        self._device_event = self.make_view(memory, self.used_addr, 4, "H", "device's event suppression", BOTH)

    def _forward(self, position: int, count: int) -> int:
        """Return a position some descriptors on; the wrap counter changes at the end of the ring."""
        index = (position & ~WRAP) + count
        return (
            index | position & WRAP if index < self.ring_size else (index - self.ring_size) | (position & WRAP) ^ WRAP
        )

    # taking chains

    def _available(self) -> bool:
        """Say whether the next descriptor is the device's: AVAIL equals the wrap counter, and USED does not (2.8.1)."""
        position = self.avail_position
        flags = self._cells[(position & ~WRAP) * 8 + 7]
        return flags & (AVAIL | USED) == (AVAIL if position & WRAP else USED)

    def pop_descriptor_chain(self, memory: GuestMemory) -> DescriptorChain | None:
        """Take the next chain; return None where there is none or the queue is not ready.

        Raises `VirtqueueError` of the kind that says what is wrong. What follows a wrong chain in the ring cannot be
        told, so nothing was taken, and the next call finds the same.
        """
        if memory is not self.attached and not self.attach(memory):
            return None
        position = self.avail_position
        index = position & ~WRAP
        if self._cells[index * 8 + 7] & USED_MARKS != (AVAIL if position & WRAP else USED):
            return None
        if IS_WEAK:
            # 2.8.21.1.1: between the load of the flags and the rest; partner: the release before the driver's store of
            # them, in PackedRing.add
            acquire()
        addr, length, buffer_id, flags = _unpack(self._ring, index << 4)
        chain = [(addr, length, flags & KEPT_FLAGS, buffer_id)]
        count = 1
        if flags & LINKED:
            count, buffer_id, length = self._walk(memory, index, chain)
        size, in_flight = self.ring_size, self.in_flight
        if buffer_id in in_flight:
            raise ChainInFlight(self.index, buffer_id, index, "the buffer id is that of a chain not given back yet")
        if count + self._taken > size:
            raise InvalidChain(self.index, buffer_id, index, "the chain covers descriptors that were not given back")
        in_flight[buffer_id] = count
        self._taken += count
        self.avail_position = position + count if index + count < size else self._forward(position, count)
        return DescriptorChain(buffer_id, chain, self.index, length)

    def _walk(self, memory: GuestMemory, index: int, chain: list[RawDescriptor]) -> tuple[int, int, int]:
        """Follow a chain of more than one descriptor from its first on, whose place in the ring is `index`.

        Return how many descriptors of the ring it has, its buffer id, and the bytes of its buffers.
        """
        ring, size = self._ring, self.ring_size
        append = chain.append
        _, total, flags, buffer_id = chain[0]
        count = 1
        while flags & VRING_DESC_F_NEXT:
            if count >= size:
                raise InvalidChain(self.index, None, index, f"the chain has more than {size} descriptors")
            if flags & VRING_DESC_F_INDIRECT:
                # 2.8.19: "MUST NOT write direct descriptors with VIRTQ_DESC_F_INDIRECT set in a scatter-gather list"
                raise InvalidIndirectDescriptor(self.index, None, index, "an indirect descriptor has a link too")
            index = index + 1 if index + 1 < size else 0
            addr, length, buffer_id, flags = _unpack(ring, index << 4)
            append((addr, length, flags & KEPT_FLAGS, buffer_id))
            count += 1
            total += length
        if flags & VRING_DESC_F_INDIRECT:
            if count > 1:
                raise InvalidIndirectDescriptor(self.index, buffer_id, index, "an indirect descriptor ends a chain")
            total = self._follow(memory, buffer_id, index, chain)
        if total > MAX_CHAIN_BYTES or self.strict_order:
            check_buffers(self, buffer_id, chain, total)
        return count, buffer_id, total

    def _follow(self, memory: GuestMemory, head: int, index: int, chain: list[RawDescriptor]) -> int:
        """Replace the only descriptor, an indirect one at `index`, by those of its table; return their bytes."""
        addr, length, _, _ = chain.pop()
        total = 0
        # released at once: an error that somebody keeps would keep it alive, and the memory open
        with open_table(self, memory, (head, index), addr, length) as table:
            if length > 16 * self.ring_size:
                # 2.8.19: "A driver MUST NOT create a descriptor chain longer than allowed by the device"
                reason = f"the indirect table has {length >> 4} of {self.ring_size} descriptors"
                raise InvalidChain(self.index, head, index, reason)
            for index, (addr, length, _, flags) in enumerate(_unpack_all(table)):
                if flags & VRING_DESC_F_INDIRECT:
                    raise InvalidIndirectDescriptor(self.index, head, index, "an indirect descriptor is in a table")
                # 2.8.7: WRITE "is the only valid flag ... Others are reserved and are ignored by the device"
                chain.append((addr, length, flags & VRING_DESC_F_WRITE, head))
                total += length
        return total

    def go_to_previous_position(self) -> None:
        """Put the chain that was taken last, and not given back, into the ring again, as if it had not been taken."""
        if not self.in_flight:
            raise VirtioUsageError("no chain was taken from this queue that is not given back already")
        _, count = self.in_flight.popitem()
        self._taken -= count
        index = (self.avail_position & ~WRAP) - count
        wrap = self.avail_position & WRAP
        self.avail_position = index | wrap if index >= 0 else (index + self.ring_size) | wrap ^ WRAP

    # giving chains back

    def check_head(self, head: int) -> None:
        """Raise InvalidDescriptorIndex where no chain of this buffer id is in flight."""
        if head not in self.in_flight:
            raise InvalidDescriptorIndex(self.index, head, None, "there is no chain of this buffer id to give back")

    def add_used(self, memory: GuestMemory, head: int, length: int) -> None:
        """Give a chain back.

        Args:
            memory: guest memory.
            head: the chain's `head_index`, its buffer id.
            length: how many bytes were written into it, from its first writable byte on.

        Raises:
            InvalidDescriptorIndex: no such chain was taken; nothing was written.
            QueueNotReady: the queue is not enabled.
            InvalidRing: it does not lie in this memory.
        """
        if self.in_order or memory is not self.attached or head not in self.in_flight:
            self.add_used_batch(memory, ((head, length),))
            return
        count = self.in_flight.pop(head)
        position = self.used_position
        index = position & ~WRAP
        self._words[index * 4 + 2] = length if length <= U32_MAX else U32_MAX
        self._cells[index * 8 + 6] = head
        if IS_WEAK:
            # 2.8.21.1: the descriptor is before the flags that show it; partner: the acquire in PackedRing.used
            release()
        self._cells[index * 8 + 7] = (USED_MARKS if position & WRAP else 0) | (VRING_DESC_F_WRITE if length else 0)
        if self.mark_dirty is not None and memory.dirty_tracking:  # type: ignore[attr-defined] # who marks also has this
            self.mark_dirty(self.desc_addr + 16 * index, 16)
        self.used_position = position + count if index + count < self.ring_size else self._forward(position, count)
        self._taken -= count
        self.num_added += count

    def publish(self, used: Sequence[tuple[int, int]]) -> None:
        """Write the descriptors and their flags, those of the first one last."""
        words, cells = self._words, self._cells
        position = self.used_position
        first: tuple[int, int] | None = None
        added = 0
        for head, length in used:
            count = self.in_flight.pop(head)
            index, wrap = position & ~WRAP, position & WRAP
            words[index * 4 + 2] = length if length <= U32_MAX else U32_MAX
            cells[index * 8 + 6] = head
            # 2.8.1: AVAIL and USED both equal the wrap counter; 2.8.3: WRITE says that `length` holds
            flags = (USED_MARKS if wrap else 0) | (VRING_DESC_F_WRITE if length else 0)
            if first is None:
                first = (index * 8 + 7, flags)
            else:
                cells[index * 8 + 7] = flags
            self.note_write(self.desc_addr + 16 * index, 16)
            position = self._forward(position, count)
            added += count
        self._taken -= added
        if first is not None:
            if IS_WEAK:
                release()  # 2.8.21.1, as in add_used; partner: the acquire in PackedRing.used
            # 2.8.9: the first one last, so that "the driver will never observe a partial request"
            cells[first[0]] = first[1]
        self.used_position = position
        self.num_added = min(self.num_added + added, 1 << 16)

    # notifications

    def needs_notification(self, memory: GuestMemory) -> bool:
        """Say whether the driver wants to hear of the chains given back since this was asked last.

        With EVENT_IDX the driver may say after which descriptor, by its offset and wrap counter (2.8.10).
        """
        if memory is not self.attached:
            self.require(memory)
        # 2.8.21.2: the used descriptor must be seen before we look whether anybody waits for it; partner: the fence
        # between the driver's event suppression and its last look, in PackedRing.used
        full()
        added, self.num_added = self.num_added, 0
        flags = self._driver_event[EVENT_FLAGS] & 3
        if flags == VRING_PACKED_EVENT_FLAG_DISABLE:
            return False
        if flags != VRING_PACKED_EVENT_FLAG_DESC or not self.event_idx:
            return True
        event = self._driver_event[EVENT_OFFSET]
        offset = event & ~WRAP
        # an offset of the turn before lies a whole ring back
        if (event ^ self.used_position) & WRAP:
            offset -= self.ring_size
        return ((self.used_position & ~WRAP) - offset - 1) & U16_MAX < added

    def enable_notification(self, memory: GuestMemory) -> bool:
        """Ask to be notified of new chains; return true where some came already, and must be looked for again."""
        if memory is not self.attached:
            self.require(memory)
        if self.event_idx:
            self._device_event[EVENT_OFFSET] = self.avail_position
            if IS_WEAK:
                # the offset is seen before the flags that refer to it; partner: the look at both in
                # PackedRing.should_kick, which Linux takes with one load
                release()
            self._device_event[EVENT_FLAGS] = VRING_PACKED_EVENT_FLAG_DESC
        else:
            self._device_event[EVENT_FLAGS] = VRING_PACKED_EVENT_FLAG_ENABLE
        self.note_write(self.used_addr, 4)
        # 2.8.21.2: what we ask for must be seen before we look once more, or both sides sleep; partner: the fence
        # between the driver's store of the flags and its look at what we ask for, in PackedRing.should_kick
        full()
        return self._available()

    def disable_notification(self, memory: GuestMemory) -> None:
        """Ask not to be notified."""
        if memory is not self.attached:
            self.require(memory)
        self._device_event[EVENT_FLAGS] = VRING_PACKED_EVENT_FLAG_DISABLE
        self.note_write(self.used_addr, 4)

    def _check_fields(self, fields: dict[str, Any]) -> None:
        super()._check_fields(fields)
        if any(fields[name] & ~WRAP >= fields["size"] for name in ("next_avail", "next_used")):
            raise DeviceStateError(type(self).__name__, "a position lies beyond the ring")
        if sum(fields["in_flight"].values()) > fields["size"] or not all(fields["in_flight"].values()):
            raise DeviceStateError(type(self).__name__, "its chains do not fit in the ring")

    def _after_restore(self) -> None:
        super()._after_restore()
        self._taken = sum(self.in_flight.values())
