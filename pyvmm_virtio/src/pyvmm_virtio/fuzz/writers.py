"""Rings as an attacker writes them: every byte is within reach, and nothing is checked."""

from __future__ import annotations

from struct import Struct

from pyvmm_virtio.fuzz.knobs import INDIRECT, NEXT, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from random import Random

    from pyvmm_virtio.driver.rings import Ring
    from pyvmm_virtio.fuzz.knobs import Plan

_pack = Struct("<QIHH").pack
_unpack = Struct("<QIHH").unpack_from


class Writer:
    """What both formats share.

    Args:
        view: all of guest memory, which begins at address 0.
        ring: where the areas are and how large.
    """

    packed = False

    def __init__(self, view: memoryview, ring: Ring) -> None:
        self.view = view
        self.size = ring.size
        self.size_of_memory = len(view)
        self.desc, self.driver_area, self.device_area = ring.desc, ring.driver_area, ring.device_area
        self.indirect = ring.indirect
        self.position = 0

    def poke(self, addr: int, data: bytes) -> None:
        """Change bytes, if they are in memory."""
        if 0 <= addr <= self.size_of_memory - len(data):
            self.view[addr : addr + len(data)] = data

    def put(self, addr: int, value: int) -> None:
        """Store 16 bits."""
        self.poke(addr, value.to_bytes(2, "little"))

    def descriptor(self, at: int, addr: int, length: int, flags: int, other: int) -> None:
        """Write a descriptor at an address; `other` is the link or the buffer id."""
        first, second = (other, flags) if self.packed else (flags, other)
        self.poke(at, _pack(addr & (1 << 64) - 1, length & 0xFFFFFFFF, first & 0xFFFF, second & 0xFFFF))

    if TYPE_CHECKING:

        def offer(self, plan: Plan, table: int) -> None:
            """Write a chain into the ring and make it available; `table` is room for an indirect one."""
            ...

        def relink(self, at: int, target: int) -> None:
            """Have a descriptor linked to another."""
            ...

        def break_ring(self, chance: Random) -> None:
            """Break the ring."""
            ...

    def break_event(self, chance: Random) -> None:
        """Say anything about notifications."""
        for at in (self.driver_area, self.driver_area + 2 * (self.packed or self.size + 2)):
            self.put(at, chance.choice((0, 1, 0x7FFF, 0x8000, 0xFFFF, chance.getrandbits(16))))

    def protected(self) -> list[tuple[int, int]]:
        """Return what the device may write besides buffers, as (address, length)."""
        if self.packed:
            return [(self.desc, 16 * self.size), (self.device_area, 4)]
        return [(self.device_area, 6 + 8 * self.size)]

    def writable(self) -> list[tuple[int, int]]:
        """Find every buffer that any descriptor allows the device to write, through tables too."""
        found: list[tuple[int, int]] = []
        for index in range(self.size):
            addr, length, flags = self._fields(self.desc + 16 * index)
            if flags & INDIRECT and addr < self.size_of_memory:
                # all of it, however long: a link may lead anywhere in a table
                for at in range(addr, min(addr + length, self.size_of_memory) - 15, 16):
                    inner, size, bits = self._fields(at)
                    if bits & WRITE:
                        found.append((inner, size))
            elif flags & WRITE:
                found.append((addr, length))
        return found

    def _fields(self, at: int) -> tuple[int, int, int]:
        addr, length, first, second = _unpack(self.view, at)
        return addr, length, second if self.packed else first

    def _table(self, plan: Plan, table: int) -> list[int]:
        last = len(plan.buffers) - 1
        places = []
        for number, (addr, length, flags) in enumerate(plan.buffers):
            link = NEXT if number < last and not self.packed else 0
            self.descriptor(table + 16 * number, addr, length, flags | link, number + 1 if link else 0)
            places.append(table + 16 * number)
        return places

    def _laid_out(self, plan: Plan, table: int) -> tuple[list[list[int]], list[int]]:
        """Return the descriptors for the ring, and where those of the table are."""
        if not plan.indirect or not self.indirect:
            return plan.buffers[: self.size], []
        places = self._table(plan, table)
        length = 16 * len(plan.buffers) if plan.table_length is None else plan.table_length
        return [[table, length, INDIRECT]], places


class SplitWriter(Writer):
    """A split ring."""

    def __init__(self, view: memoryview, ring: Ring) -> None:
        super().__init__(view, ring)
        self.free = 0

    def offer(self, plan: Plan, table: int) -> None:
        """Write a chain into the ring and make it available."""
        buffers, places = self._laid_out(plan, table)
        head, count = self.free, len(buffers)
        for number, (addr, length, flags) in enumerate(buffers):
            at = self.desc + 16 * ((head + number) % self.size)
            link = NEXT if number + 1 < count else 0
            self.descriptor(at, addr, length, flags | link, (head + number + 1) % self.size if link else 0)
            places.append(at)
        self.free = (head + count) % self.size
        self.put(self.driver_area + 4 + 2 * (self.position % self.size), head)
        self.position = self.position + 1 & 0xFFFF
        self.put(self.driver_area + 2, self.position)
        for patch in plan.patches:
            patch(self, places)

    def relink(self, at: int, target: int) -> None:
        """Have a descriptor linked to another."""
        self.put(at + 12, int.from_bytes(self.view[at + 12 : at + 14], "little") | NEXT)
        self.put(at + 14, target)

    def break_ring(self, chance: Random) -> None:
        """Let the index jump, or name a head that is none."""
        if chance.randrange(2):
            self.put(self.driver_area + 2, self.position + chance.choice((1, self.size + 1, 0x8000, 0xFFFF)) & 0xFFFF)
        else:
            slot = (self.position - 1) % self.size
            self.put(self.driver_area + 4 + 2 * slot, chance.choice((self.size, 0xFFFF, chance.randrange(self.size))))


class PackedWriter(Writer):
    """A packed ring."""

    packed = True

    def __init__(self, view: memoryview, ring: Ring) -> None:
        super().__init__(view, ring)
        self.wrap = 1
        self.id = 0

    def offer(self, plan: Plan, table: int) -> None:
        """Write a chain into the ring and make it available."""
        buffers, places = self._laid_out(plan, table)
        self.id = (self.id + 1) % self.size
        count = len(buffers)
        first: tuple[int, int] | None = None
        for number, (addr, length, flags) in enumerate(buffers):
            at = self.desc + 16 * self.position
            flags |= (NEXT if number + 1 < count else 0) | (1 << 7 if self.wrap else 1 << 15)
            self.descriptor(at, addr, length, flags if first else 0, self.id)
            first = first or (at, flags)
            places.append(at)
            self.position += 1
            if self.position == self.size:
                self.position, self.wrap = 0, self.wrap ^ 1
        if first:
            self.put(first[0] + 14, first[1])
        for patch in plan.patches:
            patch(self, places)

    def relink(self, at: int, target: int) -> None:
        """Have a descriptor go on, with another id."""
        self.put(at + 12, target)
        self.put(at + 14, int.from_bytes(self.view[at + 14 : at + 16], "little") ^ NEXT)

    def break_ring(self, chance: Random) -> None:
        """Mark a descriptor as of another turn, or all of them as available."""
        for index in range(self.size) if chance.randrange(2) else (chance.randrange(self.size),):
            at = self.desc + 16 * index + 15
            self.poke(at, bytes([self.view[at] ^ 0x80]))
            self.poke(at - 1, bytes([self.view[at - 1] ^ (0x80 if chance.randrange(2) else 0)]))
