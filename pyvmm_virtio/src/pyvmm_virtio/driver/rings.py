"""The driver's side of both ring formats.

Source: VIRTIO 1.3, 2.7.13, 2.7.14, 2.8.21 and 2.8.22.
"""

from __future__ import annotations

from struct import Struct

from pyvmm_virtio.constants import ring as r
from pyvmm_virtio.queue.ordering import acquire, full, release

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm_virtio.driver.arena import Arena

    Buffer = tuple[int, int, int]
    """Address, length, and VRING_DESC_F_WRITE or 0."""

NEXT, WRITE, INDIRECT = r.VRING_DESC_F_NEXT, r.VRING_DESC_F_WRITE, r.VRING_DESC_F_INDIRECT
_pack = Struct("<QIHH").pack
U16 = 0xFFFF


class RingFull(Exception):
    """There are not enough free descriptors: collect what was used, then try again."""

    def __init__(self) -> None:
        super().__init__("the ring has too few free descriptors for this chain: poll, then try again")


class Ring:
    """What a driver does with a ring, whatever its format.

    Args:
        arena: where to get memory.
        size: how many descriptors.
        event_idx: whether EVENT_IDX was negotiated.
        indirect: whether to use indirect tables for chains of several buffers.
        in_order: whether IN_ORDER was negotiated.
    """

    desc = driver_area = device_area = 0

    def __init__(self, arena: Arena, size: int, *, event_idx: bool, indirect: bool, in_order: bool) -> None:
        self.arena = arena
        self.size = size
        self.event_idx = event_idx
        self.indirect = indirect
        self.in_order = in_order
        self.tables: dict[int, int] = {}
        self.pending = 0
        self._views: list[memoryview] = []

    def _view(self, addr: int, length: int, format_: str = "B") -> memoryview:
        view = self.arena.memory.get_slice(addr, length)
        self._views.append(view)
        if format_ != "B":
            view = view.cast(format_)  # type: ignore[call-overload] # a variable of the right letters
            self._views.insert(0, view)
        return view

    def close(self) -> None:
        """Let go of guest memory: the device must be done with it. Idempotent."""
        if not self._views:
            return
        for view in self._views:
            view.release()
        self._views = []
        for addr in (self.desc, self.driver_area, self.device_area, *self.tables.values()):
            self.arena.free(addr)

    def write_table(self, buffers: Sequence[Buffer], *, links: bool) -> tuple[int, int]:
        """Write an indirect table, with links or, as packed rings have them, without; return its address and length."""
        count = len(buffers)
        entries = []
        for index, (addr, length, flags) in enumerate(buffers):
            if links:
                more = index + 1 < count
                entries.append(_pack(addr, length, flags | NEXT if more else flags, index + 1 if more else 0))
            else:
                entries.append(_pack(addr, length, 0, flags))
        return self.arena.put(b"".join(entries)), 16 * count

    if TYPE_CHECKING:

        def add(self, buffers: Sequence[Buffer]) -> int:
            """Offer a chain and return its head or buffer id; raises RingFull."""
            ...

        def should_kick(self) -> bool:
            """Say whether the device wants to hear of what was added since this was asked last."""
            ...

        def used(self) -> list[tuple[int, int]]:
            """Take what the device gave back, as (head or id, length), and ask for an interrupt for the next."""
            ...

        def suppress_interrupts(self, suppress: bool) -> None:
            """Ask the device not to interrupt, or to do it again."""
            ...

        def notification_data(self) -> int:
            """Return the position of the next chain, for NOTIFICATION_DATA."""
            ...

    def _free_table(self, head: int) -> None:
        table = self.tables.pop(head, None)
        if table is not None:
            self.arena.free(table)


class SplitRing(Ring):
    """The driver's side of a split virtqueue."""

    def __init__(self, arena: Arena, size: int, *, event_idx: bool, indirect: bool, in_order: bool) -> None:
        super().__init__(arena, size, event_idx=event_idx, indirect=indirect, in_order=in_order)
        self.desc = arena.zeroed(16 * size)
        self.driver_area = arena.zeroed(6 + 2 * size)
        self.device_area = arena.zeroed(6 + 8 * size)
        self._descriptors = self._view(self.desc, 16 * size)
        self._avail = self._view(self.driver_area, 6 + 2 * size, "H")
        self._used = self._view(self.device_area, 6 + 8 * size, "H")
        self._elements = self._view(self.device_area, 4 + 8 * size, "I")
        # first in, first out: in order of the ring, which IN_ORDER asks for (2.7.5.2)
        self._free = list(range(size))
        self._chains: dict[int, list[int]] = {}
        self._next = self._last_used = 0

    def add(self, buffers: Sequence[Buffer]) -> int:
        """Offer a chain and return its head; raises RingFull."""
        free = self._free
        if self.indirect and len(buffers) > 1:
            if not free:
                raise RingFull
            table, length = self.write_table(buffers, links=True)
            buffers = [(table, length, INDIRECT)]
            self.tables[free[0]] = table
        count = len(buffers)
        if count > len(free):
            raise RingFull
        taken = free[:count]
        del free[:count]
        descriptors = self._descriptors
        for number, (addr, length, flags) in enumerate(buffers):
            at = taken[number] << 4
            if number + 1 < count:
                descriptors[at : at + 16] = _pack(addr, length, flags | NEXT, taken[number + 1])
            else:
                descriptors[at : at + 16] = _pack(addr, length, flags, 0)
        head = taken[0]
        self._chains[head] = taken
        self._avail[2 + self._next % self.size] = head
        release()  # 2.7.13.3.1: before the index that shows it; partner: the acquire in pop_descriptor_chain
        self._next = self._avail[1] = (self._next + 1) & U16
        self.pending += 1
        return head

    def should_kick(self) -> bool:
        """Say whether the device wants to hear of what was added since this was asked last."""
        full()  # 2.7.13.4.1: the index is seen before we look whether anybody waits; partner: enable_notification's
        added, self.pending = self.pending, 0
        if self.event_idx:
            avail_event = self._used[2 + 4 * self.size]
            return (self._next - avail_event - 1) & U16 < added
        return not self._used[0] & r.VRING_USED_F_NO_NOTIFY

    def used(self) -> list[tuple[int, int]]:
        """Take what the device gave back, and ask for an interrupt for the next."""
        taken: list[tuple[int, int]] = []
        while self._used[1] != self._last_used:
            acquire()  # partner: the release in SplitQueue.add_used and publish
            at = 1 + 2 * (self._last_used % self.size)
            head, length = self._elements[at], self._elements[at + 1]
            self._last_used = (self._last_used + 1) & U16
            if head not in self._chains:
                raise RuntimeError(f"the device gave chain {head} back, which it does not have")
            self._free += self._chains.pop(head)
            self._free_table(head)
            taken.append((head, length))
            if self.event_idx and self._used[1] == self._last_used:
                self._avail[2 + self.size] = self._last_used
                full()  # before the last look; partner: the fence in SplitQueue.needs_notification
        return taken

    def suppress_interrupts(self, suppress: bool) -> None:
        """Ask the device not to interrupt, or to do it again."""
        self._avail[0] = int(suppress)
        if self.event_idx:
            # as far away as can be: half a turn of the index
            self._avail[2 + self.size] = (self._last_used + (0x8000 if suppress else 0)) & U16

    def notification_data(self) -> int:
        """Return the available index (2.9)."""
        return self._next


class PackedRing(Ring):
    """The driver's side of a packed virtqueue.

    Attributes:
        wrap: the wrap counter with which the next descriptor becomes available.
    """

    def __init__(self, arena: Arena, size: int, *, event_idx: bool, indirect: bool, in_order: bool) -> None:
        super().__init__(arena, size, event_idx=event_idx, indirect=indirect, in_order=in_order)
        self.desc = arena.zeroed(16 * size)
        self.driver_area = arena.zeroed(4)
        self.device_area = arena.zeroed(4)
        self._words = self._view(self.desc, 16 * size, "I")
        self._cells = self._view(self.desc, 16 * size, "H")
        self._quads = self._view(self.desc, 16 * size, "Q")
        self._driver_event = self._view(self.driver_area, 4, "H")
        self._device_event = self._view(self.device_area, 4, "H")
        self._ids = list(range(size))
        self._counts: dict[int, int] = {}
        self._room = size
        self._next, self.wrap = 0, 1
        self._last, self._last_wrap = 0, 1

    def add(self, buffers: Sequence[Buffer]) -> int:
        """Offer a chain and return its buffer id; raises RingFull."""
        table = None
        if self.indirect and len(buffers) > 1:
            if not self._room:
                raise RingFull
            table, length = self.write_table(buffers, links=False)
            buffers = [(table, length, INDIRECT)]
        count = len(buffers)
        if count > self._room:
            raise RingFull
        buffer_id = self._ids.pop(0)
        if table is not None:
            self.tables[buffer_id] = table
        self._counts[buffer_id] = count
        self._room -= count
        first, first_flags = self._next, 0
        for number, (addr, length, flags) in enumerate(buffers):
            at = self._next
            self._quads[2 * at] = addr
            self._words[4 * at + 2] = length
            self._cells[8 * at + 6] = buffer_id
            flags |= (1 << 7 if self.wrap else 1 << 15) | (NEXT if number + 1 < count else 0)
            if number:
                self._cells[8 * at + 7] = flags
            else:
                first_flags = flags
            self._next += 1
            if self._next == self.size:
                self._next, self.wrap = 0, self.wrap ^ 1
        release()  # 2.8.21.1.1: before the flags that show it; partner: the acquire in pop_descriptor_chain
        self._cells[8 * first + 7] = first_flags
        self.pending += count
        return buffer_id

    def should_kick(self) -> bool:
        """Say whether the device wants to hear of what was added since this was asked last."""
        full()  # 2.8.21.3.1: the flags are seen before we look whether anybody waits; partner: enable_notification's
        added, self.pending = self.pending, 0
        flags = self._device_event[1] & 3
        if flags != r.VRING_PACKED_EVENT_FLAG_DESC:
            return flags != r.VRING_PACKED_EVENT_FLAG_DISABLE
        event = self._device_event[0]
        offset = event & 0x7FFF
        if event >> 15 != self.wrap:
            offset -= self.size
        return (self._next - offset - 1) & U16 < added

    def _is_used(self) -> bool:
        flags = self._cells[8 * self._last + 7] & 0x8080
        return bool(flags == (0x8080 if self._last_wrap else 0)) and self._room < self.size

    def used(self) -> list[tuple[int, int]]:
        """Take what the device gave back, and ask for an interrupt for the next."""
        taken: list[tuple[int, int]] = []
        while self._is_used():
            acquire()  # partner: the release in PackedQueue.add_used and publish
            buffer_id, length = self._cells[8 * self._last + 6], self._words[4 * self._last + 2]
            if not self._cells[8 * self._last + 7] & WRITE:
                length = 0
            count = self._counts.pop(buffer_id, 0)
            if not count:
                raise RuntimeError(f"the device gave buffer {buffer_id} back, which it does not have")
            self._ids.append(buffer_id)
            self._free_table(buffer_id)
            self._room += count
            self._last += count
            if self._last >= self.size:
                self._last, self._last_wrap = self._last - self.size, self._last_wrap ^ 1
            taken.append((buffer_id, length))
            if self.event_idx and not self._is_used():
                self._ask_at(self._last | self._last_wrap << 15)
                full()  # before the last look; partner: the fence in PackedQueue.needs_notification
        return taken

    def _ask_at(self, position: int) -> None:
        self._driver_event[0] = position
        release()  # before the flags that refer to it; partner: the look at both in PackedQueue.needs_notification
        self._driver_event[1] = r.VRING_PACKED_EVENT_FLAG_DESC

    def suppress_interrupts(self, suppress: bool) -> None:
        """Ask the device not to interrupt, or to do it again."""
        if suppress:
            self._driver_event[1] = r.VRING_PACKED_EVENT_FLAG_DISABLE
        elif self.event_idx:
            self._ask_at(self._last | self._last_wrap << 15)
        else:
            self._driver_event[1] = r.VRING_PACKED_EVENT_FLAG_ENABLE

    def notification_data(self) -> int:
        """Return offset and wrap counter of the next descriptor (2.9)."""
        return self._next | self.wrap << 15
