"""The smallest possible driver of each ring format: it writes what a test says, right or wrong, into guest memory."""

from collections.abc import Sequence

from pyvmm_memory import GuestMemoryMmap
from pyvmm_virtio.constants.ring import VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE
from pyvmm_virtio.queue import PackedQueue, SplitQueue

NEXT, WRITE, INDIRECT = VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_DESC_F_INDIRECT
DESC, AVAIL, USED, TABLE, DATA = 0x10000, 0xA0000, 0xC0000, 0x100000, 0x200000
MEMORY = 4 << 20

Buffer = tuple[int, int, int]  # address, length, flags


def memory() -> GuestMemoryMmap:
    return GuestMemoryMmap.from_ranges([(0, MEMORY)])


class SplitRing:
    kind = SplitQueue

    def __init__(self, memory: GuestMemoryMmap, size: int = 16) -> None:
        self.memory, self.size, self.index = memory, size, 0
        self.free = 0
        self.total = 0

    def queue(self, **options: bool) -> SplitQueue:
        queue = SplitQueue(self.size, **options)
        place(queue)
        return queue

    def describe(self, index: int, addr: int, length: int, flags: int = 0, next_: int = 0, table: int = DESC) -> None:
        at = table + 16 * index
        self.memory.write_u64(addr, at)
        self.memory.write_u32(length, at + 8)
        self.memory.write_u16(flags, at + 12)
        self.memory.write_u16(next_, at + 14)

    def offer_head(self, head: int) -> None:
        self.memory.write_u16(head, AVAIL + 4 + 2 * (self.index % self.size))
        self.index = self.index + 1 & 0xFFFF
        self.memory.write_u16(self.index, AVAIL + 2)

    def offer(self, *buffers: Buffer) -> int:
        head = self.free
        for number, (addr, length, flags) in enumerate(buffers):
            last = number == len(buffers) - 1
            here, there = (head + number) % self.size, (head + number + 1) % self.size
            self.describe(here, addr, length, flags if last else flags | NEXT, 0 if last else there)
        self.free = (head + len(buffers)) % self.size
        self.offer_head(head)
        return head

    def indirect(self, buffers: Sequence[Buffer], table: int = TABLE) -> Buffer:
        for number, (addr, length, flags) in enumerate(buffers):
            last = number == len(buffers) - 1
            self.describe(number, addr, length, flags if last else flags | NEXT, 0 if last else number + 1, table)
        return table, 16 * len(buffers), INDIRECT

    def used(self) -> list[tuple[int, int]]:
        """The last ring's worth of what was given back."""
        self.total += (self.memory.read_u16(USED + 2) - self.total) & 0xFFFF
        slots = [USED + 4 + 8 * (number % self.size) for number in range(max(0, self.total - self.size), self.total)]
        return [(self.memory.read_u32(slot), self.memory.read_u32(slot + 4)) for slot in slots]

    def suppress(self, *, no_interrupt: bool) -> None:
        self.memory.write_u16(int(no_interrupt), AVAIL)

    def wants_kick(self) -> bool:
        return not self.memory.read_u16(USED)


class PackedRing:
    kind = PackedQueue

    def __init__(self, memory: GuestMemoryMmap, size: int = 16) -> None:
        self.memory, self.size, self.index, self.wrap = memory, size, 0, 1
        self.ids = 0
        self.seen, self.seen_wrap = 0, 1
        self.counts: dict[int, int] = {}

    def queue(self, **options: bool) -> PackedQueue:
        queue = PackedQueue(self.size, **options)
        place(queue)
        return queue

    def describe(self, index: int, addr: int, length: int, flags: int = 0, id_: int = 0, table: int = DESC) -> None:
        at = table + 16 * index
        self.memory.write_u64(addr, at)
        self.memory.write_u32(length, at + 8)
        self.memory.write_u16(id_, at + 12)
        self.memory.write_u16(flags, at + 14)

    def flags(self) -> int:
        return 1 << 7 if self.wrap else 1 << 15

    def offer(self, *buffers: Buffer, id_: int | None = None) -> int:
        if id_ is None:
            id_, self.ids = self.ids, self.ids + 1 & 0xFFFF
        self.counts[id_] = len(buffers)
        first = None
        for number, (addr, length, flags) in enumerate(buffers):
            more = 0 if number == len(buffers) - 1 else NEXT
            at = self.index
            marks = flags | more | self.flags()
            self.describe(at, addr, length, marks if first is not None else 0, id_)
            first = first if first is not None else (at, marks)
            self.index += 1
            if self.index == self.size:
                self.index, self.wrap = 0, self.wrap ^ 1
        assert first is not None
        self.memory.write_u16(first[1], DESC + 16 * first[0] + 14)
        return id_

    def indirect(self, buffers: Sequence[Buffer], table: int = TABLE) -> Buffer:
        for number, (addr, length, flags) in enumerate(buffers):
            self.describe(number, addr, length, flags, 0, table)
        return table, 16 * len(buffers), INDIRECT

    def used(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        while True:
            at = DESC + 16 * self.seen
            marks = self.memory.read_u16(at + 14) & 0x8080
            if marks != (0x8080 if self.seen_wrap else 0) or not self.counts:
                return found
            id_ = self.memory.read_u16(at + 12)
            found.append((id_, self.memory.read_u32(at + 8)))
            self.seen += self.counts.pop(id_)
            if self.seen >= self.size:
                self.seen, self.seen_wrap = self.seen - self.size, self.seen_wrap ^ 1

    def suppress(self, *, no_interrupt: bool) -> None:
        self.memory.write_u16(int(no_interrupt), AVAIL + 2)

    def wants_kick(self) -> bool:
        return self.memory.read_u16(USED + 2) != 1


def place(queue: SplitQueue | PackedQueue) -> None:
    queue.set_desc_table_address(DESC)
    queue.set_avail_ring_address(AVAIL)
    queue.set_used_ring_address(USED)
    queue.set_ready(True)


RINGS: list[type[SplitRing] | type[PackedRing]] = [SplitRing, PackedRing]
Ring = SplitRing | PackedRing
