"""Iotlb: which I/O virtual addresses mean which guest physical addresses, and what may be done there."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from threading import Lock

from pyvmm_memory.address import U64_MAX, as_int
from pyvmm_memory.errors import GuestMemoryError, InvalidLength, Overflow
from pyvmm_memory.permissions import Permissions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class IovaRange:
    """`length` bytes of I/O virtual addresses from `base` on."""

    __slots__ = ("base", "length")
    __match_args__ = ("base", "length")

    def __init__(self, base: int, length: int) -> None:
        self.base = base
        self.length = length

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and (self.base, self.length) == (other.base, other.length)

    def __hash__(self) -> int:
        return hash((self.base, self.length))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base:#x}, {self.length:#x})"


class MappedRange(IovaRange):
    """`length` bytes of guest physical addresses from `base` on."""

    __slots__ = ()


class IotlbFails(GuestMemoryError):
    """Part of a range is not mapped (`misses`), or mapped without the rights asked for (`access_fails`)."""

    def __init__(self, misses: list[IovaRange], access_fails: list[IovaRange]) -> None:
        super().__init__(f"not mapped: {misses or 'nothing'}; not allowed: {access_fails or 'nothing'}")
        self.misses = misses
        self.access_fails = access_fails


class _Entry:
    __slots__ = ("difference", "end", "permissions", "start")

    def __init__(self, start: int, end: int, difference: int, permissions: Permissions) -> None:
        self.start = start
        self.end = end
        # What to add to an I/O virtual address. With the target itself as the value, two neighbours that are mapped to
        # the same place would look like one mapping.
        self.difference = difference
        self.permissions = permissions

    def part(self, start: int, end: int) -> _Entry:
        return _Entry(start, end, self.difference, self.permissions)


class Iotlb:
    """A cache of mappings. Every change makes a new table: readers in other threads need no lock, writers take turns.

    `generation` moves, always up, when a mapping or a right is taken back: by an invalidation, by a mapping in place of
    another, and by forgetting. It moves after the table has changed, so what is looked up at one generation is either
    right or has another one by the time that the change returns. New mappings where there was none do not move it.

    A full table (`capacity` mappings) forgets all but the newest, as a hardware TLB may at any time: what is missing is
    asked for again. A guest that maps without end costs a bounded amount of memory.

    >>> tlb = Iotlb()
    >>> tlb.set_mapping(0x1000, 0x80000, 0x1000, Permissions.Read)
    >>> list(tlb.lookup(0x1800, 8, Permissions.Read))
    [MappedRange(0x80800, 0x8)]
    """

    __slots__ = ("_entries", "_lock", "capacity", "generation")

    def __init__(self, capacity: int = 1 << 16) -> None:
        self.capacity = capacity
        self.generation = 0
        self._lock = Lock()
        self._entries: tuple[list[int], list[_Entry]] = ([], [])

    def set_mapping(self, iova: int, map_to: int, length: int, permissions: Permissions) -> None:
        """Map `length` bytes at `iova` to `map_to`, in place of what was mapped there.

        Raises InvalidLength for no or a negative length, Overflow where either range leaves 64 bits, ValueError for
        permissions that there are not.
        """
        if permissions not in (Permissions.No, Permissions.Read, Permissions.Write, Permissions.ReadWrite):
            raise ValueError(f"{permissions!r} are no permissions")
        start, end = _range(iova, length)
        if start == end:
            raise InvalidLength(0)
        target, _ = _range(map_to, length)
        new = _Entry(start, end, target - start, Permissions(permissions))
        with self._lock:
            self._insert(new)

    def _insert(self, new: _Entry) -> None:
        entries = self._entries[1]
        first, last = self._touched(new.start, new.end)
        cut = entries[first:last]
        revoked = any(each.difference != new.difference or not new.permissions.allow(each.permissions) for each in cut)
        sides = _sides(cut, new.start, new.end)
        if len(entries) - len(cut) + len(sides) >= self.capacity:
            # an invalidation of what is forgotten finds nothing to cut: it has to be told now
            self._publish(0, len(entries), [new], True)
            return
        # with a neighbour on each side, which it may continue
        before, behind = entries[max(first - 1, 0) : first], entries[last : last + 1]
        around = sorted([*before, *sides, new, *behind], key=_start)
        self._publish(first - len(before), last + len(behind), _merged(around), revoked)

    def invalidate_mapping(self, iova: int, length: int) -> None:
        """Forget `length` bytes at `iova`; mappings that reach beyond keep the rest. Raises InvalidLength, Overflow."""
        start, end = _range(iova, length)
        with self._lock:
            first, last = self._touched(start, end)
            cut = self._entries[1][first:last]
            self._publish(first, last, _sides(cut, start, end), bool(cut))

    def invalidate_all(self) -> None:
        """Forget everything."""
        with self._lock:
            count = len(self._entries[1])
            self._publish(0, count, [], count > 0)

    def _touched(self, start: int, end: int) -> tuple[int, int]:
        """Return where the entries begin and end, in the table, that have an address from one to before another."""
        starts, entries = self._entries
        if start == end:
            return 0, 0
        first = bisect_right(starts, start)
        if first and entries[first - 1].end > start:
            first -= 1
        return first, bisect_left(starts, end, first)

    def _publish(self, first: int, last: int, instead: list[_Entry], revoked: bool) -> None:
        """Put entries in the place of some; what a guest maps one by one costs a copy each time, and no more."""
        starts, entries = self._entries
        # The table first: a reader between the two keeps the old generation, and asks again.
        self._entries = (
            [*starts[:first], *(entry.start for entry in instead), *starts[last:]],
            [*entries[:first], *instead, *entries[last:]],
        )
        if revoked:
            self.generation += 1

    def lookup(self, iova: int, length: int, access: Permissions) -> Iterator[MappedRange]:
        """Return the physical ranges of `length` bytes at `iova`, in order, where all of them allow `access`.

        Asking for `Permissions.No` succeeds on any mapping. Raises IotlbFails with all that is missing or forbidden,
        neighbours as one, InvalidLength, and Overflow where the range leaves 64 bits.
        """
        start, end = _range(iova, length)
        starts, entries = self._entries
        found: list[MappedRange] = []
        misses: list[IovaRange] = []
        forbidden: list[IovaRange] = []
        at = start
        index = max(bisect_right(starts, start) - 1, 0)
        while at < end:
            while index < len(entries) and entries[index].end <= at:
                index += 1
            entry = entries[index] if index < len(entries) else None
            if entry is None or entry.start > at:
                upto = end if entry is None else min(entry.start, end)
                _extend(misses, at, upto)
            else:
                upto = min(entry.end, end)
                if entry.permissions.allow(access):
                    found.append(MappedRange(at + entry.difference, upto - at))
                else:
                    _extend(forbidden, at, upto)
            at = upto
        if misses or forbidden:
            raise IotlbFails(misses, forbidden)
        return iter(found)

    def __len__(self) -> int:
        return len(self._entries[1])

    def __repr__(self) -> str:
        return f"<Iotlb of {len(self)} mappings>"


def _start(entry: _Entry) -> int:
    return entry.start


def _sides(cut: list[_Entry], start: int, end: int) -> list[_Entry]:
    """Return what is left of entries, in their order, on both sides of a range that is taken out of them."""
    left = [cut[0].part(cut[0].start, start)] if cut and cut[0].start < start else []
    right = [cut[-1].part(end, cut[-1].end)] if cut and cut[-1].end > end else []
    return left + right


def _merged(entries: list[_Entry]) -> list[_Entry]:
    """Return entries, in their order, with those as one that continue each other."""
    merged: list[_Entry] = []
    for entry in entries:
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.end == entry.start
            and last.difference == entry.difference
            and last.permissions == entry.permissions
        ):
            merged[-1] = last.part(last.start, entry.end)
        else:
            merged.append(entry)
    return merged


def _range(base: int, length: int) -> tuple[int, int]:
    base, length = as_int(base), as_int(length)
    if length < 0:
        raise InvalidLength(length)
    if base < 0 or base + length > U64_MAX + 1:
        raise Overflow(base, length)
    return base, base + length


def _extend(ranges: list[IovaRange], start: int, end: int) -> None:
    if ranges and ranges[-1].base + ranges[-1].length == start:
        ranges[-1].length += end - start
    else:
        ranges.append(IovaRange(start, end - start))
