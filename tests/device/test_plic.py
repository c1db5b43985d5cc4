"""The PLIC, in the sequences of Linux's drivers/irqchip/irq-sifive-plic.c and of the specification."""

import doctest
import threading
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.device.access import get, put

from pyvmm_device import DeviceStateError, InterruptError, Plic, Serial
from pyvmm_device.riscv import plic as regs


class Machine:
    """A PLIC with one context a hart, and the lines of the harts."""

    def __init__(self, contexts: int = 2, sources: int = 95) -> None:
        self.levels = [False] * contexts
        self.moves: list[tuple[int, bool]] = []
        self.plic = Plic([partial(self.move, context) for context in range(contexts)], sources)

    def move(self, context: int, up: bool) -> None:
        self.levels[context] = up
        self.moves.append((context, up))

    def enable(self, context: int, *sources: int, priority: int = 1) -> None:
        # plic_irq_enable(): the bit in the context's word, then the priority
        for source in sources:
            at = regs.enables_at(context, source)
            put(self.plic, at, get(self.plic, at, 4) | 1 << source % 32, 4)
            put(self.plic, regs.priority_at(source), priority, 4)

    def claim(self, context: int) -> int:
        return get(self.plic, regs.claim_at(context), 4)

    def complete(self, context: int, source: int) -> None:
        put(self.plic, regs.claim_at(context), source, 4)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_examples() -> None:
    assert doctest.testmod(regs).failed == 0


def test_offsets_are_those_of_the_specification() -> None:
    assert (regs.priority_at(1), regs.priority_at(1023)) == (0x4, 0xFFC)
    assert (regs.enables_at(0), regs.enables_at(1), regs.enables_at(15871, 1023)) == (0x2000, 0x2080, 0x1F1FFC)
    assert (regs.threshold_at(0), regs.claim_at(0), regs.threshold_at(1)) == (0x200000, 0x200004, 0x201000)
    assert regs.claim_at(15871) < regs.SIZE


def test_a_level_is_claimed_and_completed(machine: Machine) -> None:
    machine.enable(1, 10)
    line = machine.plic.source(10)
    line.assert_()
    line.assert_()
    assert machine.moves == [(1, True)]
    assert get(machine.plic, regs.PENDING, 4) == 1 << 10
    assert machine.claim(0) == 0  # is not enabled there
    assert machine.claim(1) == 10
    assert machine.levels == [False, False]
    assert get(machine.plic, regs.PENDING, 4) == 0
    assert machine.claim(1) == 0
    machine.complete(1, 10)
    assert machine.levels == [False, True]  # the device still asks
    assert machine.claim(1) == 10
    line.clear()
    machine.complete(1, 10)
    assert machine.levels == [False, False]


def test_a_request_outlives_its_level(machine: Machine) -> None:
    machine.enable(0, 3)
    machine.plic.source(3).assert_()
    machine.plic.source(3).clear()
    assert machine.claim(0) == 3
    machine.complete(0, 3)
    assert machine.claim(0) == 0


def test_of_edges_during_service_one_is_remembered(machine: Machine) -> None:
    machine.enable(0, 7)
    edge = machine.plic.edge(7)
    edge.trigger()
    edge.trigger()
    assert machine.claim(0) == 7
    edge.trigger()
    edge.trigger()
    assert machine.levels == [False, False]
    machine.complete(0, 7)
    assert machine.claim(0) == 7
    machine.complete(0, 7)
    assert machine.claim(0) == 0
    assert machine.moves == [(0, True), (0, False)] * 2


def test_priorities_then_numbers(machine: Machine) -> None:
    machine.enable(0, 40, 5, 64, priority=2)
    machine.enable(0, 94, priority=7)
    machine.enable(0, 1, priority=0)  # "never interrupt"
    for source in (1, 64, 40, 5, 94):
        machine.plic.source(source).assert_()
    assert [machine.claim(0) for _ in range(6)] == [94, 5, 40, 64, 0, 0]
    assert get(machine.plic, regs.PENDING, 4) == 1 << 1


def test_thresholds_hold_back_but_do_not_hide(machine: Machine) -> None:
    machine.enable(0, 9, priority=3)
    put(machine.plic, regs.threshold_at(0), 3, 4)
    assert get(machine.plic, regs.threshold_at(0), 4) == 3
    machine.plic.source(9).assert_()
    assert machine.levels == [False, False]
    put(machine.plic, regs.threshold_at(0), 2, 4)
    assert machine.levels == [True, False]
    put(machine.plic, regs.threshold_at(0), 7, 4)  # plic_toggle(): how Linux masks a context that is not there
    assert machine.levels == [False, False]
    assert machine.claim(0) == 9  # "not affected by the setting of the priority threshold register"


def test_one_interrupt_has_one_claimant(machine: Machine) -> None:
    machine.enable(0, 10)
    machine.enable(1, 10)
    machine.plic.source(10).assert_()
    assert machine.levels == [True, True]
    assert (machine.claim(1), machine.claim(0)) == (10, 0)
    assert machine.levels == [False, False]
    machine.complete(0, 10)  # any context for which it is enabled may complete it
    assert machine.levels == [True, True]


def test_a_completion_where_the_source_is_disabled_is_ignored(machine: Machine) -> None:
    machine.enable(0, 10)
    machine.plic.source(10).assert_()
    assert machine.claim(0) == 10
    put(machine.plic, regs.enables_at(0), 0, 4)
    machine.complete(0, 10)
    machine.complete(1, 10)
    machine.enable(0, 10)
    assert machine.levels == [False, False]
    machine.complete(0, 10)
    assert machine.levels == [True, False]


@pytest.mark.parametrize("number", [0, 5, 11, 96, 1023, 1024, 0xFFFFFFFF])
def test_wrong_completions_are_ignored(machine: Machine, number: int) -> None:
    machine.enable(0, 10)
    machine.enable(0, 11)
    machine.plic.source(10).assert_()
    machine.plic.source(11).assert_()
    assert machine.claim(0) == 10
    machine.complete(0, number)
    assert machine.claim(0) == 11
    assert machine.claim(0) == 0


def test_disabling_lowers_and_enabling_raises(machine: Machine) -> None:
    machine.enable(0, 33)
    machine.plic.source(33).assert_()
    put(machine.plic, regs.enables_at(0, 33), 0, 4)
    assert machine.levels == [False, False]
    machine.enable(1, 33)
    assert machine.levels == [False, True]
    put(machine.plic, regs.priority_at(33), 0, 4)
    assert machine.levels == [False, False]


def test_what_is_not_there_stays_zero(machine: Machine) -> None:
    plic = machine.plic
    for at in (
        regs.priority_at(0), regs.priority_at(96), regs.PENDING, regs.PENDING + 0x80, regs.enables_at(2),
        regs.threshold_at(2), regs.claim_at(2), regs.threshold_at(0) + 8, regs.SIZE - 4,
    ):  # fmt: skip
        put(plic, at, 0xFFFFFFFF, 4)
        assert get(plic, at, 4) == 0, hex(at)
    put(plic, regs.enables_at(0), 0xFFFFFFFF, 4)
    assert get(plic, regs.enables_at(0), 4) == 0xFFFFFFFE
    put(plic, regs.enables_at(0, 96), 0xFFFFFFFF, 4)
    assert get(plic, regs.enables_at(0, 96), 4) == 0
    put(plic, regs.priority_at(1), 0xFFFFFFF5, 4)
    assert get(plic, regs.priority_at(1), 4) == 5


@pytest.mark.parametrize("length", [1, 2, 8, 3])
def test_other_widths_do_nothing(machine: Machine, length: int) -> None:
    machine.enable(0, 10)
    machine.plic.source(10).assert_()
    saved = machine.plic.state()
    for at in (regs.claim_at(0), regs.enables_at(0), regs.priority_at(10)):
        assert get(machine.plic, at, length) == 0
        put(machine.plic, at, 0, length)
    assert get(machine.plic, regs.priority_at(10) + 1, 4) == 0
    assert machine.plic.state() == saved


def test_two_contexts_a_hart() -> None:
    machine = Machine(contexts=4)
    machine.enable(3, 10)  # the supervisor of the second hart
    machine.plic.source(10).assert_()
    assert machine.levels == [False, False, False, True]
    assert machine.plic.contexts == 4


def test_a_reset_keeps_levels_and_lowers_lines(machine: Machine) -> None:
    machine.enable(0, 10, 11)
    machine.plic.source(10).assert_()
    machine.plic.edge(11).trigger()
    machine.plic.reset()
    assert machine.levels == [False, False]
    assert get(machine.plic, regs.PENDING, 4) == 1 << 10


def test_a_state_raises_what_waits(machine: Machine) -> None:
    machine.enable(1, 10, 12)
    machine.plic.source(10).assert_()
    assert machine.claim(1) == 10
    machine.plic.source(12).assert_()
    other = Machine()
    other.plic.restore(machine.plic.state())
    assert other.moves == [(0, False), (1, False), (1, True)]
    assert other.claim(1) == 12
    assert "2 of 95 sources enabled, 0 pending, 2 served" in repr(other.plic)
    other.complete(1, 10)
    assert other.levels == [False, True]


def test_states_that_do_not_fit(machine: Machine) -> None:
    saved = machine.plic.state()
    for other in (Machine(3), Machine(2, 94)):
        with pytest.raises(DeviceStateError, match="95 sources and 2 contexts"):
            other.plic.restore(saved)
    for wrong in (
        {"pending": 1}, {"levels": 1 << 96}, {"enables": [0, 1]}, {"pending": 2, "served": 2}, {"edges": 2},
        {"priorities": [1] * 96}, {"priorities": [8] * 96}, {"thresholds": [0]},
    ):  # fmt: skip
        with pytest.raises(DeviceStateError):
            machine.plic.restore({**saved, **wrong})
    assert machine.plic.state() == saved


def test_wrong_inputs(machine: Machine) -> None:
    for number in (0, 96, -1):
        for call in (machine.plic.source, machine.plic.edge):
            with pytest.raises(InterruptError, match="sources 1 to 95"):
                call(number)
    for contexts, sources in ((0, 1), (1, 0), (1, 1024)):
        with pytest.raises(InterruptError, match="1 to 1023"):
            Plic([lambda up: None] * contexts, sources)
    assert repr(machine.plic.source(3)) == "<PlicSource 3>"
    assert repr(machine.plic.edge(3)) == "<PlicEdge 3>"


def test_a_serial_port_on_a_level(machine: Machine) -> None:
    class Nowhere:
        def write(self, data: bytes) -> None:
            pass

    serial = Serial(machine.plic.source(10), Nowhere())
    machine.enable(0, 10)
    put(serial, 1, 1)  # receive interrupts on
    serial.enqueue(b"a")
    assert machine.claim(0) == 10
    assert get(serial, 0) == ord("a")
    machine.complete(0, 10)
    assert machine.claim(0) == 0


# what happens: a level moves, an edge, a claim, a completion, and registers that change what passes
STEP = st.tuples(
    st.sampled_from("level edge claim complete enable priority threshold".split()), st.integers(0, 1 << 12)
)


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(STEP, max_size=60))
def test_lines_say_what_a_claim_would_find(steps: list[tuple[str, int]]) -> None:
    machine = Machine(2, 5)
    plic = machine.plic
    for what, value in steps:
        source, context = value % 5 + 1, value >> 4 & 1
        if what == "level":
            plic.set_level(source, bool(value >> 5 & 1))
        elif what == "edge":
            plic.send_edge(source)
        elif what == "claim":
            machine.claim(context)
        elif what == "complete":
            machine.complete(context, source)
        elif what == "enable":
            put(plic, regs.enables_at(context), value >> 5, 4)
        elif what == "priority":
            put(plic, regs.priority_at(source), value >> 5, 4)
        else:
            put(plic, regs.threshold_at(context), value >> 5, 4)
        state = plic.state()
        for context in range(2):
            passing = [
                source
                for source in range(1, 6)
                if state["pending"] & state["enables"][context] & 1 << source
                and state["priorities"][source] > state["thresholds"][context]
            ]
            assert machine.levels[context] == bool(passing)
            twin = Machine(2, 5)
            twin.plic.restore(state)
            assert twin.levels[context] == machine.levels[context]
            if passing:
                best = min(passing, key=lambda source: (-state["priorities"][source], source))
                assert twin.claim(context) == best


def test_harts_race_for_interrupts() -> None:
    machine = Machine()
    plic = machine.plic
    machine.enable(0, 1, 2, 3)
    machine.enable(1, 1, 2, 3)
    wanted, taken = 3000, [0, 0]
    done = threading.Event()

    def serve(context: int) -> None:
        while not done.is_set():
            source = plic.claim(context)
            if source:
                taken[context] += 1
                plic.complete(context, source)

    harts = [threading.Thread(target=serve, args=(context,)) for context in range(2)]
    for hart in harts:
        hart.start()
    for turn in range(wanted):
        plic.send_edge(turn % 3 + 1)
    # one that is served may have an edge that makes it pending again when it is completed
    while (state := plic.state())["pending"] or state["served"]:
        pass
    done.set()
    for hart in harts:
        hart.join()
    assert 0 < sum(taken) <= wanted
    assert machine.levels == [False, False]
    assert plic.state()["served"] == 0
