"""One counter of an 8254, as a function of time: what it holds, and when its output rises."""

from __future__ import annotations

from pyvmm_device.state import FLAG, Stateful, array, number, optional, sint, uint

LATCH, LOW_BYTE, HIGH_BYTE, BOTH_BYTES = range(4)
STATUS_OUT, STATUS_NULL_COUNT = 0x80, 0x40

TERMINAL_COUNT, ONE_SHOT, RATE, SQUARE, SOFTWARE_STROBE, HARDWARE_STROBE = range(6)
"""The modes, 0 to 5 (data sheet, "Mode Definitions")."""

COUNT = number(1, 0x10000)


class PitCounter(Stateful):
    """A counter. Every call that depends on time is given the tick, a number of periods of the 8254's clock.

    ``since`` is the tick at which the counter held its whole count; while the gate stops it, ``stopped`` is how many
    ticks it had counted.
    """

    STATE = {
        "control": uint(6),
        "programmed": FLAG,
        "count": COUNT,
        "waiting": optional(COUNT),
        "due": sint(),
        "since": optional(sint()),
        "stopped": optional(sint()),
        "taken": sint(),
        "gate": FLAG,
        "low": optional(uint(8)),
        "high_next": FLAG,
        "latched": array(uint(8), 2),
        "latched_status": optional(uint(8)),
    }

    def __init__(self) -> None:
        self._control = BOTH_BYTES << 4
        self._programmed = False
        self._count = 0x10000
        self._waiting: int | None = None  # a count that was written, and is loaded later
        self._due = 0  # when, in a mode that begins again by itself
        self._since: int | None = None
        self._stopped: int | None = None
        self._taken = 0  # how many rises since it was loaded the owner knows of
        self._gate = True
        self._low: int | None = None  # the first byte of a count of two
        self._high_next = False  # the next read gives the second byte
        self._latched: list[int] = []
        self._latched_status: int | None = None

    @property
    def mode(self) -> int:
        """0 to 5; bit 2 of the control word's mode does not count where bit 1 is set."""
        mode = self._control >> 1 & 7
        return mode & 3 if mode & 2 else mode

    @property
    def periodic(self) -> bool:
        """Whether it begins again by itself."""
        return self.mode in (RATE, SQUARE)

    @property
    def period(self) -> int:
        """The count it works with, in ticks."""
        return self._count

    @property
    def _modulus(self) -> int:
        return 10000 if self._control & 1 else 0x10000

    # programming

    def control(self, word: int, tick: int) -> None:
        """Take the low 6 bits of a control word: a mode, or the command to latch the count."""
        if word >> 4 == LATCH:
            self._latch_count(tick)
            return
        self._control = word
        self._programmed = True
        # "all control logic is immediately reset and OUT goes to a known initial state"
        self._low = self._waiting = self._since = self._stopped = self._latched_status = None
        self._latched = []
        self._high_next = False
        self._taken = 0

    def write(self, value: int, tick: int) -> None:
        """Take a byte of a count."""
        access = self._control >> 4
        if access == LOW_BYTE:
            self._take(value, tick)
        elif access == HIGH_BYTE:
            self._take(value << 8, tick)
        elif self._low is None:
            self._low = value
            if self.mode == TERMINAL_COUNT:
                # "writing the first byte disables counting. OUT is set low immediately"
                self._since = self._stopped = None
        else:
            low, self._low = self._low, None
            self._take(value << 8 | low, tick)

    def _take(self, written: int, tick: int) -> None:
        if self._control & 1:
            # digits beyond 9 are worth what they say
            written = sum((written >> 4 * place & 0xF) * 10**place for place in range(4))
        count = written or self._modulus  # "0 is equivalent to 2^16 for binary counting and 10^4 for BCD counting"
        self._settle(tick)
        running = self._since is not None
        if self.mode in (ONE_SHOT, HARDWARE_STROBE) or (self.periodic and running):
            # loaded by the next trigger, or at the end of the current cycle
            if self._waiting is None and running:
                self._due = self._end_of_cycle(tick)
            self._waiting = count
            return
        self._count = count
        self._load(tick)

    def _load(self, tick: int) -> None:
        self._since = tick
        self._taken = 0
        self._stopped = None if self._gate or self.mode in (ONE_SHOT, HARDWARE_STROBE) else 0

    def set_gate(self, gate: bool, tick: int) -> None:
        """Set the level of the gate (data sheet, "Gate Pin Operations Summary")."""
        if gate is self._gate:
            return
        self._settle(tick)
        self._gate = gate
        mode = self.mode
        if mode in (ONE_SHOT, HARDWARE_STROBE):
            if gate and (self._waiting is not None or self._since is not None):
                self._count, self._waiting = self._waiting or self._count, None
                self._load(tick)
        elif self._since is None:
            return
        elif not gate:
            self._stopped = tick - self._since
        elif self.periodic:
            self._count, self._waiting = self._waiting or self._count, None
            self._load(tick)  # "initiates counting" anew
        else:
            self._since = tick - (self._stopped or 0)
            self._stopped = None

    def _end_of_cycle(self, tick: int) -> int:
        """Return when a new count would be loaded: in mode 3 "at the end of the current half-cycle"."""
        passed = self._passed(tick)
        begin = tick - passed % self._count
        high = self._high_half
        return begin + (high if self.mode == SQUARE and passed % self._count < high else self._count)

    @property
    def _high_half(self) -> int:
        return (self._count + 1) // 2

    def _settle(self, tick: int) -> None:
        """Load the count that waited for the end of a cycle, if that has come."""
        if self._waiting is None or self._since is None or not self.periodic or self._stopped is not None:
            return
        if tick < self._due:
            return
        passed = max(0, self._due - self._since)
        # rises that nobody took yet are still to be taken after this load
        self._taken -= self._rises(passed)
        after_high_half = passed % self._count != 0
        self._count, self._waiting = self._waiting, None
        self._since = self._due - (self._high_half if after_high_half else 0)

    # what it does meanwhile

    def _passed(self, tick: int) -> int:
        if self._since is None:
            return 0
        return self._stopped if self._stopped is not None else max(0, tick - self._since)

    def _rises(self, passed: int) -> int:
        """Return how often the output rose in the ticks since the count was loaded."""
        if self.periodic:
            return passed // self._count if self._count > 1 else 0  # "a count of 1 is illegal"
        return int(passed > self._count if self.mode in (SOFTWARE_STROBE, HARDWARE_STROBE) else passed >= self._count)

    def take_rises(self, tick: int) -> int:
        """Return how often the output rose since this was asked last."""
        self._settle(tick)
        if self._since is None:
            return 0
        rises = self._rises(self._passed(tick))
        new, self._taken = rises - self._taken, rises
        return max(0, new)

    def next_rise(self, tick: int) -> int | None:
        """Return the tick at which the output rises next, or None: it does not."""
        self._settle(tick)
        if self._since is None or self._stopped is not None:
            return None
        passed, count = self._passed(tick), self._count
        if not self.periodic:
            at = count + (self.mode in (SOFTWARE_STROBE, HARDWARE_STROBE))
            return self._since + at if passed < at else None
        if self._waiting is not None and self.mode == SQUARE and passed % count < self._high_half:
            return self._due + self._waiting // 2 if self._waiting > 1 else None
        return self._since + (passed // count + 1) * count if count > 1 else self._due if self._waiting else None

    def output(self, tick: int) -> bool:
        """Return the level of the output."""
        self._settle(tick)
        mode, passed = self.mode, self._passed(tick)
        if self._since is None:
            return not self._programmed or mode != TERMINAL_COUNT
        if self.periodic:
            if self._stopped is not None or self._count == 1:
                return True  # "if GATE goes low ... OUT is set high immediately"
            position = passed % self._count
            return position != self._count - 1 if mode == RATE else position < self._high_half
        return passed != self._count if mode in (SOFTWARE_STROBE, HARDWARE_STROBE) else passed >= self._count

    def value(self, tick: int) -> int:
        """Return what the counting element holds, 16 bits, four digits in BCD."""
        self._settle(tick)
        passed, count = self._passed(tick), self._count
        if self.mode == SQUARE:
            position = passed % count
            held = (count & ~1) - 2 * (position if position < self._high_half else position - self._high_half)
        else:
            held = count - (passed % count if self.periodic else passed)
        held %= self._modulus
        if self._control & 1:
            return sum(held // 10**place % 10 << 4 * place for place in range(4))
        return held

    # reading

    def _latch_count(self, tick: int) -> None:
        if self._latched:
            return  # "the second Counter Latch Command is ignored"
        low, high = self.value(tick).to_bytes(2, "little")
        self._latched = {LOW_BYTE: [low], HIGH_BYTE: [high]}.get(self._control >> 4, [low, high])

    def read_back(self, *, count: bool, status: bool, tick: int) -> None:
        """Latch the count, the status, or both; what was latched before and not read stays."""
        if count:
            self._latch_count(tick)
        if status and self._latched_status is None:
            value = self._control
            if self.output(tick):
                value |= STATUS_OUT
            if self._since is None or self._waiting is not None:
                value |= STATUS_NULL_COUNT
            self._latched_status = value

    def read(self, tick: int) -> int:
        """Return the next byte: a latched status, a latched count, or the count as it runs."""
        if self._latched_status is not None:
            status, self._latched_status = self._latched_status, None
            return status
        if self._latched:
            return self._latched.pop(0)
        value = self.value(tick)
        access = self._control >> 4
        if access == HIGH_BYTE or (access == BOTH_BYTES and self._high_next):
            self._high_next = False
            return value >> 8
        self._high_next = access == BOTH_BYTES
        return value & 0xFF

    def __repr__(self) -> str:
        return f"<PitCounter mode {self.mode}, count {self._count}, {'stopped' if self._since is None else 'runs'}>"
