"""One bus for ports and for memory-mapped I/O: which device answers at an address.

Who is put together with the machine registers at a range of its own, and an overlap is a mistake. What a guest moves
about is a `Claim`: its range may lie on another's for a moment, or for good, and then one of them answers.

Claims: invariants. The bus's lock protects all of a claim's fields. `wanted` is where it is to answer, `entry` its
registration while it does. A claim that is wanted somewhere and has no entry is among `_waiting`, in the order in which
they came to want that place, and for each of these there is somebody who has an address of it (`conflict`). Whenever a
range goes away they are looked at again, the oldest first. `ticket` says which look at the registers `wanted` comes
from: `place` takes a ticket *before* it looks, and what an older ticket says is not heard. So threads may look and
place with no lock, in any order, and the bus ends at what the registers say.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import count

from pyvmm_device.errors import DeviceNotFound, DeviceOverlap, InvalidAccessLength, InvalidRange
from pyvmm_device.locks import DeferringLock
from pyvmm_device.tally import ERROR, Tally

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pyvmm_device.protocols import Device as Device
    from pyvmm_device.trace import Sink


_TICKETS = count()
_NOWHERE = -(1 << 65)  # before every address, and before what a caller might take for one


class BusRange:
    """A range of addresses.

    Args:
        base: the first address.
        size: in bytes.

    Raises:
        InvalidRange: no size, or an end beyond 64 bits.

    >>> BusRange(0x3f8, 8).overlaps(BusRange(0x3ff, 1))
    True
    """

    __slots__ = ("base", "size")

    def __init__(self, base: int, size: int) -> None:
        if base < 0 or size <= 0 or base + size > 1 << 64:
            raise InvalidRange(base, size)
        self.base = base
        self.size = size

    @property
    def last(self) -> int:
        """The last address that belongs to it."""
        return self.base + self.size - 1

    def overlaps(self, other: BusRange) -> bool:
        """Say whether the two share an address."""
        return self.base <= other.last and other.base <= self.last

    def __contains__(self, address: int) -> bool:
        return self.base <= address <= self.last

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BusRange) and (self.base, self.size) == (other.base, other.size)

    def __hash__(self) -> int:
        return hash((self.base, self.size))

    def __repr__(self) -> str:
        return f"BusRange({self.base:#x}, {self.size:#x})"


class BusEntry:
    """One registration: a range, its device, and how often the guest came by.

    ``reads`` and ``writes`` count accesses, and stay exact when several vCPUs count at once: CPython does not switch
    threads within an increment. ``claim`` is whose registration it is, where it is one that moves.
    """

    __slots__ = ("base", "claim", "device", "end", "read", "reads", "write", "writes")

    def __init__(self, base: int, end: int, device: Device, claim: Claim | None = None) -> None:
        self.base = base
        self.end = end
        self.device = device
        self.claim = claim
        self.read: Callable[[int, memoryview], object] = device.read
        self.write: Callable[[int, memoryview], object] = device.write
        self.reads = 0
        self.writes = 0

    @property
    def range(self) -> BusRange:
        """The addresses it answers at."""
        return BusRange(self.base, self.end - self.base)

    def __repr__(self) -> str:
        return f"<{self.base:#x}..{self.end - 1:#x} {self.device!r}: {self.reads} reads, {self.writes} writes>"


class Claim:
    """A range that may move, and may lie on another's meanwhile; see `place`.

    Args:
        bus: whose addresses are meant.
        device: who is to answer there.
        on_move: called when it began, or ceased, to answer somewhere: look at `mapped`, which may be further by then.

    Attributes:
        mapped: where the device answers, or None.
        conflict: who has an address of the place that is wanted, so that the device answers nowhere; or None.
    """

    __slots__ = ("bus", "conflict", "device", "entry", "on_move", "ticket", "wanted")

    def __init__(self, bus: Bus, device: Device, on_move: Callable[[], object] | None = None) -> None:
        self.bus = bus
        self.device = device
        self.on_move = on_move
        self.wanted: BusRange | None = None
        self.entry: BusEntry | None = None
        self.conflict: object | None = None
        self.ticket = -1

    @property
    def mapped(self) -> BusRange | None:
        """Where it answers, or None."""
        return None if self.entry is None else self.wanted

    def __repr__(self) -> str:
        return f"<Claim of {self.device!r}, wanted at {self.wanted!r}, {'mapped' if self.mapped else 'not mapped'}>"


class _Nobody:
    """Stands before the first device, so that a lookup always finds an entry."""

    def read(self, offset: int, buffer: memoryview) -> None:
        raise DeviceNotFound(offset, len(buffer))

    write = read


class Bus:
    """Devices by address. A lookup takes O(log n) and no lock.

    Registering replaces the table as a whole, so vCPUs may look up while another thread adds and removes devices. An
    access that is under way when its device is removed still ends in that device.

    Args:
        width: the bits of an address: 16 for ports, 64 for memory.
        name: what traces call it.

    Attributes:
        mistakes: how often a device's ``read`` returned something instead of filling the buffer, by its class.
    """

    __slots__ = (
        "_limit",
        "_lock",
        "_nobody",
        "_trace",
        "_waiting",
        "mistakes",
        "name",
        "table",
        "unclaimed_reads",
        "unclaimed_writes",
    )

    def __init__(self, width: int = 64, name: str = "bus") -> None:
        self.name = name
        self.unclaimed_reads = 0
        self.unclaimed_writes = 0
        self.mistakes = Tally(__name__)
        self._limit = 1 << width
        self._lock = DeferringLock()
        self._trace: Sink | None = None
        self._nobody = BusEntry(_NOWHERE, _NOWHERE, _Nobody())
        self._waiting: dict[Claim, None] = {}
        # First addresses and entries, replaced as one; `IoManager` looks up in it without a call.
        self.table: tuple[list[int], list[BusEntry]] = ([_NOWHERE], [self._nobody])

    def register(self, range: BusRange, device: Device) -> None:  # noqa: A002 - vm-device's name
        """Let a device answer at a range.

        Raises:
            InvalidRange: the range does not fit into this bus.
            DeviceOverlap: another device has an address of it; names who.
        """
        self.update(add=((range, device),))

    def deregister(self, addr: int) -> Device:
        """Take out the device whose range an address lies in, and return it.

        Raises:
            DeviceNotFound: there is none.
        """
        return self.update(remove=(addr,))[0]

    def update(self, remove: Iterable[int] = (), add: Iterable[tuple[BusRange, Device]] = ()) -> list[Device]:
        """Remove and add devices in one step: the guest sees the bus before or after, and an error changes nothing.

        Claims that wait for addresses that became free get them.

        Args:
            remove: for each device to remove, any address of its range.
            add: ranges and their devices.

        Returns:
            The devices that were removed.

        Raises:
            DeviceNotFound: there is no device at an address to remove.
            InvalidRange: a range does not fit into this bus.
            DeviceOverlap: another device has an address of a range; names who.
        """
        addresses = tuple(remove)
        new = [BusEntry(wanted.base, wanted.base + wanted.size, device) for wanted, device in add]
        self._check(new)
        with self._lock:
            entries = self.table[1][1:]
            removed: list[BusEntry] = []
            overlap = refused = None
            for addr in addresses:
                entry = self._find(addr)
                if entry is None or entry not in entries:
                    raise DeviceNotFound(addr)
                entries.remove(entry)
                removed.append(entry)
            for entry in new:
                overlap = _taken(entries, entry.base, entry.end)
                if overlap is not None:
                    refused = entry
                    break
                entries.append(self._connect(entry))
            else:
                for claim in [entry.claim for entry in removed if entry.claim is not None]:
                    claim.wanted = claim.entry = None
                    self._tell(claim)
                self._settle(entries)
        if overlap is not None and refused is not None:  # its text is the device's own, so it is made without the lock
            taken = (overlap.base, overlap.end - overlap.base)
            raise DeviceOverlap((refused.base, refused.end - refused.base), taken, overlap.device)
        return [entry.device for entry in removed]

    def _check(self, entries: Iterable[BusEntry]) -> None:
        for entry in entries:
            if entry.end > self._limit:
                raise InvalidRange(entry.base, entry.end - entry.base)

    # ranges that move

    def place(self, moves: Sequence[tuple[Claim, BusRange | None]], ticket: int) -> None:
        """Let claims answer where they are wanted, all in one step, unless a later look said otherwise.

        What is wanted where somebody else answers waits until that one goes away. This is the one bus's part of the
        function `place`.

        Args:
            moves: each with its place; None is nowhere.
            ticket: the number of the look, taken before it began.

        Raises:
            InvalidRange: a range does not fit into this bus.
        """
        for claim, at in moves:
            if at is not None and at.base + at.size > self._limit and claim.ticket < ticket:
                raise InvalidRange(at.base, at.size)
        with self._lock:
            entries: list[BusEntry] = []
            gone: dict[Claim, BusEntry | None] = {}
            for claim, wanted in moves:
                if ticket < claim.ticket:
                    continue
                claim.ticket = ticket
                if wanted is claim.wanted or wanted == claim.wanted:
                    continue
                if not gone:
                    entries = self.table[1][1:]
                if claim.entry is not None:
                    gone[claim] = claim.entry
                    entries.remove(claim.entry)
                self._waiting.pop(claim, None)
                claim.wanted, claim.entry, claim.conflict = wanted, None, None
                if wanted is not None:
                    self._waiting[claim] = None
                gone.setdefault(claim, None)
            if gone:
                self._settle(entries)
                for claim, before in gone.items():
                    if before is not None and claim.entry is None:
                        self._tell(claim)

    def _settle(self, entries: list[BusEntry]) -> None:
        """Make these the registrations, and with them what waited and overlaps none of them."""
        for claim in list(self._waiting):
            wanted = claim.wanted
            assert wanted is not None  # or it would not wait
            holder = _taken(entries, wanted.base, wanted.base + wanted.size)
            claim.conflict = None if holder is None else holder.device
            if holder is None:
                claim.entry = self._connect(BusEntry(wanted.base, wanted.base + wanted.size, claim.device, claim))
                entries.append(claim.entry)
                del self._waiting[claim]
                self._tell(claim)
        entries.sort(key=_base)
        self.table = ([_NOWHERE, *(entry.base for entry in entries)], [self._nobody, *entries])

    def _tell(self, claim: Claim) -> None:
        if claim.on_move is not None:
            self._lock.after(claim.on_move)

    def _connect(self, entry: BusEntry) -> BusEntry:
        if self._trace is None:
            entry.read, entry.write = entry.device.read, entry.device.write
        else:
            from pyvmm_device.trace import traced

            entry.read, entry.write = traced(self.name, entry, self._trace)
        return entry

    def returned(self, device: Device, value: object) -> None:
        """Hear that a device's ``read`` returned something where it had to fill the buffer: say so once for each kind.

        The guest reads what is in the buffer. `mistakes` counts, by the device's class.
        """
        self.mistakes.count(
            type(device).__name__,
            "%r: read returned %r; it has to fill the buffer that it is given (buffer[:] = ...) and return nothing",
            device,
            value,
            level=ERROR,
        )

    def trace(self, sink: Sink | None) -> None:
        """Report every access that a device takes to a function, or stop doing so; costs nothing while off."""
        with self._lock:
            self._trace = sink
            for entry in self.table[1][1:]:
                self._connect(entry)

    def _find(self, addr: int) -> BusEntry | None:
        bases, entries = self.table
        entry = entries[bisect_right(bases, addr) - 1]
        return entry if addr < entry.end else None

    def device(self, addr: int) -> tuple[BusRange, Device] | None:
        """Return the range and the device that an address belongs to, or None."""
        entry = self._find(addr)
        return None if entry is None else (entry.range, entry.device)

    def check_access(self, addr: int, length: int) -> tuple[int, Device]:
        """Return the offset and the device for an access.

        An access lies in one range: neighbouring ranges of the same device do not join, as in vm-device.

        Raises:
            InvalidAccessLength: it has no length or runs past the last address of the bus.
            DeviceNotFound: it does not lie in one range.
        """
        if length <= 0 or addr + length > self._limit:
            raise InvalidAccessLength(length)
        entry = self._find(addr)
        if entry is None or addr + length > entry.end:
            raise DeviceNotFound(addr, length)
        return addr - entry.base, entry.device

    def entries(self) -> list[BusEntry]:
        """Return the registrations by address, with their counts."""
        return self.table[1][1:]

    def __iter__(self) -> Iterator[tuple[BusRange, Device]]:
        return iter([(entry.range, entry.device) for entry in self.entries()])

    def __len__(self) -> int:
        return len(self.table[1]) - 1

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        shown = ", ".join(f"{entry.base:#x}..{entry.end - 1:#x} {entry.device!r}" for entry in self.entries())
        return f"<Bus {shown or 'without devices'}>"


def place(look: Callable[[], Iterable[tuple[Claim, BusRange | None]]]) -> None:
    """Let claims answer where a look at the registers says, on whichever buses.

    Call it after a change of the registers, with no lock. When it returns, that change is in effect, or a later one.

    Args:
        look: returns claims, each with the range where it is to answer, or None for nowhere.
    """
    ticket = next(_TICKETS)
    moves: dict[Bus, list[tuple[Claim, BusRange | None]]] = {}
    for claim, wanted in look():
        moves.setdefault(claim.bus, []).append((claim, wanted))
    for bus, some in moves.items():
        bus.place(some, ticket)


def _taken(entries: list[BusEntry], base: int, end: int) -> BusEntry | None:
    """Return who has an address from one to before another."""
    for other in entries:
        if base < other.end and other.base < end:
            return other
    return None


def _base(entry: BusEntry) -> int:
    return entry.base
