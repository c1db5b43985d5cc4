"""Whatever a driver, a device, a machine and an event loop do to a dispatcher, in whatever order, its promises hold."""

from __future__ import annotations

from contextlib import suppress
from threading import Thread

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pyvmm_device import EventLoop
from pyvmm_memory import GuestMemoryMmap
from pyvmm_virtio.device import VirtioDevice
from pyvmm_virtio.driver import drive
from pyvmm_virtio.driver.rings import RingFull
from pyvmm_virtio.errors import VirtqueueError
from pyvmm_virtio.queue import PackedQueue, SplitQueue
from pyvmm_virtio.queue.base import BaseQueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, ClassVar

    from pyvmm_virtio.interrupt import VirtioInterrupt
    from pyvmm_virtio.memory import GuestMemory
    from pyvmm_virtio.queue.protocol import Queue

QUEUES, SIZE = 4, 4
MOST_REFILLS = 10
MANY_TURNS = 40
"""More than a driver that refills so often can keep a device busy with."""

moods = st.sampled_from(
    [
        "answer",
        "answer",
        "keep",
        "keep",
        "batches",
        "stopped batches",
        "leave",
        "one by one",
        "one by one",
        "nest",
        "bug",
        "fault",
    ]
)
queues = st.integers(0, QUEUES - 1)


class Racing(BaseQueue):
    """Another processor of the guest may offer something whenever notifications are about to be turned on."""

    __slots__ = ()
    racer: ClassVar[Callable[[int], None]]

    def enable_notification(self, memory: GuestMemory) -> bool:
        Racing.racer(self.index)
        return super().enable_notification(memory)  # type: ignore[misc,no-any-return] # of the other base


class RacingSplit(Racing, SplitQueue):
    __slots__ = ()


class RacingPacked(Racing, PackedQueue):
    __slots__ = ()


# a state names its class
RacingSplit.__name__, RacingPacked.__name__ = "SplitQueue", "PackedQueue"
RACING = {SplitQueue: RacingSplit, PackedQueue: RacingPacked}


class Moody(VirtioDevice):
    """Takes and gives back in all the ways that devices have, whichever it is told to.

    Attributes:
        mood: what it does in the turns to come.
        refills: how often the driver offers one more while its chains are given back.
        kept: of chains taken and not given back: queue, epoch and head.
        left: queues with chains that it left there, and will come back for.
        hushed: those of them that it has turned the notifications off of.
        wrong: what was found wrong within a turn; there, an exception would only be a bug of the device.
    """

    device_type = 42
    queue_max_sizes = (SIZE,) * QUEUES

    def __init__(self, machine: Dispatching, loop: EventLoop | None) -> None:
        super().__init__(loop=loop)
        self.machine = machine
        self.mood = "answer"
        self.refills = 0
        self.kept: list[tuple[int, int, int]] = []
        self.left: set[int] = set()
        self.hushed: set[int] = set()
        self.wrong: list[str] = []
        self.within: list[int] = []  # queues that it looks at, one within the other

    def activate(self, memory: GuestMemory, queues: Sequence[Queue], interrupt: VirtioInterrupt) -> None:
        for queue in queues:
            queue.__class__ = RACING[type(queue)]  # type: ignore[assignment,index] # those of these two

    def process_queue(self, index: int) -> None:
        dispatch = self.dispatch
        if not dispatch.active or dispatch.paused or dispatch.pausing or dispatch.needs_reset:
            self.wrong.append(f"queue {index} is served while nobody is: {dispatch.__getstate__()}")
        try:
            dispatch.check_invariants()
        except AssertionError as error:
            self.wrong.append(str(error))
        if self.within and (index - self.within[-1]) % QUEUES not in (1, 2):
            self.wrong.append(f"queue {index} has a turn within that of {self.within[-1]}, which did not ask for it")
        self.within.append(index)
        try:
            self.take_turn(index)
        finally:
            self.within.pop()

    def take_turns(self) -> None:
        for index in range(QUEUES):
            self.process_queue(index)

    def take_turn(self, index: int) -> None:
        self.left.discard(index)
        self.hushed.discard(index)
        if "batches" in self.mood and self.dispatch.batches(index, self.take_batch):
            return
        if self.mood == "one by one":
            self.take_one(index)
        else:
            self.take_all(index)

    def take_batch(self, queue: Queue, memory: GuestMemory, room: int = 1) -> tuple[int, int, bool]:
        count = 0
        while count < 2 and (chain := queue.pop_descriptor_chain(memory)) is not None:
            queue.add_used(memory, chain.head_index, 0)
            count += 1
            self.refill(queue.index)
        return count, 0, count == 2 and self.mood == "stopped batches"

    def take_one(self, index: int) -> None:
        self.dispatch.hush(index)
        self.check_quiet(index)
        self.left.add(index)
        chain = self.dispatch.take(index)
        if chain is not None:
            self.hushed.add(index)
            self.complete_batch(index, [(chain.head_index, 0)])
        else:
            self.left.discard(index)

    def take_all(self, index: int) -> None:
        for chain in self.chains(index):
            if self.dispatch.pausing:
                self.wrong.append(f"a chain of queue {index} is taken while the device comes to rest")
            self.check_quiet(index)
            if self.mood == "leave":
                self.queues[index].go_to_previous_position()
                self.left.add(index)
                return
            if self.mood == "keep":
                self.kept.append((index, self.epochs[index], chain.head_index))
                continue
            self.complete(index, chain, 0)
            self.refill(index)
            if self.mood == "bug":
                raise ValueError("as asked for")
            if self.mood == "fault":
                raise VirtqueueError(index, None, None, "as asked for")
            if self.mood == "nest":
                self.mood = "answer"
                self.serve(self.process_queue, (index + 1) % QUEUES)
                self.kick((index + 2) % QUEUES)

    def check_quiet(self, index: int) -> None:
        if self.machine.is_notified_of(index):
            self.wrong.append(f"notifications of queue {index} are on within its turn")

    def refill(self, index: int) -> None:
        if self.refills and self.dispatch.active:
            self.refills -= 1
            self.machine.refill(index)

    def quiesce(self) -> None:
        """Finish what was kept, and look whether anything can be taken meanwhile."""
        for index in range(QUEUES):
            self.kick(index)
            before = self.queues[index].next_avail()
            self.dispatch.batches(index, self.take_batch)
            if list(self.chains(index)) or self.dispatch.take(index) or self.queues[index].next_avail() != before:
                self.wrong.append(f"chains of queue {index} are taken while the device comes to rest")
        while self.kept:
            self.finish(*self.kept.pop(0), 0)


class Dispatching(RuleBasedStateMachine):
    """A driver that does its duty, and a device of every mood.

    Attributes:
        offered: for each queue, how many of the driver's chains the device has.
        silent: queues in which the driver has offered something and has not said so yet.
        late: queues of which it has to say so when this call of the device is over.
        told: for each queue, how many interrupts there were when the driver looked last.
        idle: whether nothing waits in the loop.
        stale: of what the device has kept, that of before a reset.
    """

    @initialize(ring=st.sampled_from(["split", "packed"]), event_idx=st.booleans(), loop=st.booleans())
    def begin(self, ring: str, event_idx: bool, loop: bool) -> None:
        self.loop = EventLoop() if loop else None
        self.device = Moody(self, self.loop)
        Racing.racer = self.device.refill
        self.memory = GuestMemoryMmap.from_ranges([(0, 1 << 20)])
        self.packed, self.event_idx = ring == "packed", event_idx
        self.driver = drive(
            self.device, "pci", ring, memory=self.memory, event_idx=event_idx, indirect=False, queue_size=SIZE
        )
        self.idle = True
        self.stale: list[tuple[int, int, int]] = []
        self.silent: set[int] = set()
        self.late: set[int] = set()
        self.forget()

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        self.driver.close()
        self.memory.close()
        if self.loop is not None:
            self.loop.close()

    def forget(self) -> None:
        self.offered = [0] * QUEUES
        self.told = [self.driver.vectors.get(index + 1, 0) for index in range(QUEUES)]
        self.silent.clear()
        self.late.clear()
        self.device.left.clear()
        self.device.hushed.clear()

    # the driver

    def submit(self, index: int) -> bool:
        with suppress(RingFull):
            self.driver.submit_buffers(index, [(0xF0000, 16, 2)], kick=False)
            self.offered[index] += 1
            return True
        return False

    def collect(self) -> None:
        """Look at what was given back; there was an interrupt for it."""
        for index in range(QUEUES):
            count = len(self.driver.poll(index))
            interrupts = self.driver.vectors.get(index + 1, 0)
            assert not count or interrupts > self.told[index], f"the driver was not told of queue {index}"
            self.offered[index] -= count
            self.told[index] = interrupts

    def refill(self, index: int) -> None:
        """Offer one more, as another processor of the guest would in the middle of a turn."""
        self.offered[index] -= len(self.driver.poll(index))
        if self.submit(index) and self.driver.queues[index].should_kick():
            self.late.add(index)

    def say_late(self) -> None:
        self.device.mood = "answer"
        while self.late:
            self.notify(self.late.pop(), always=True)

    def notify(self, index: int, *, always: bool = False) -> None:
        self.silent.discard(index)
        if self.driver.kick(index, always=always):
            self.idle = False

    @rule(index=queues, count=st.integers(1, SIZE), mood=moods, refills=st.integers(0, MOST_REFILLS))
    def offer_and_notify(self, index: int, count: int, mood: str, refills: int) -> None:
        self.device.mood, self.device.refills = mood, refills
        for _ in range(count):
            self.submit(index)
        self.notify(index)
        self.say_late()

    @precondition(lambda self: self.served())
    @rule(index=queues, count=st.integers(1, SIZE))
    def have_kept(self, index: int, count: int) -> None:
        self.offer_and_notify(index, count, "keep", 0)

    @precondition(lambda self: self.device.kept)
    @rule(one_queue=st.booleans())
    def reset_what_is_kept(self, one_queue: bool) -> None:
        if one_queue:
            self.reset_queue(self.device.kept[-1][0])
        else:
            self.reset()

    @rule(index=queues)
    def offer_silently(self, index: int) -> None:
        if self.submit(index):
            self.silent.add(index)

    @rule(index=st.integers(-1, QUEUES), mood=moods)
    def notify_of_nothing(self, index: int, mood: str) -> None:
        self.device.mood = mood
        self.idle = False
        self.device.kick(index)
        self.say_late()

    @rule()
    def reset(self) -> None:
        self.driver.port.set_status(0)
        assert not self.served()
        assert not self.device.serve(self.device.process_queue, 0)
        self.device.dispatch.check_invariants()
        self.stale = list(self.device.kept)
        self.driver.reset()
        self.forget()

    @rule(index=queues)
    def reset_queue(self, index: int) -> None:
        self.driver.reset_queue(index)
        self.stale += [kept for kept in self.device.kept if kept[0] == index and kept not in self.stale]
        self.offered[index] = 0
        self.told[index] = self.driver.vectors.get(index + 1, 0)
        for each in (self.silent, self.late, self.device.left, self.device.hushed):
            each.discard(index)

    # the device

    @rule(index=queues, mood=moods, refills=st.integers(0, MOST_REFILLS))
    def serve(self, index: int, mood: str, refills: int) -> None:
        served = self.served()
        self.device.mood, self.device.refills = mood, refills
        self.idle = False
        went_well = self.device.serve(self.device.process_queue, index)
        assert went_well == (served and not self.device.needs_reset)
        self.say_late()

    @rule()
    def serve_all(self) -> None:
        self.device.refills = MOST_REFILLS
        self.idle = False
        self.device.serve(self.device.take_turns)
        self.say_late()

    @precondition(lambda self: self.device.left)
    @rule()
    def come_back(self) -> None:
        self.device.mood = "answer"
        self.idle = False
        for index in sorted(self.device.left):
            self.device.kick(index)

    @precondition(lambda self: self.device.kept)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        kept = self.device.kept.pop(data.draw(st.integers(0, len(self.device.kept) - 1)))
        current = kept not in self.stale
        expected = self.served() and current
        results: list[bool] = []
        worker = Thread(target=lambda: results.append(self.device.finish(*kept, 0)))
        worker.start()
        worker.join()
        assert results == [expected]
        if not current:
            self.stale.remove(kept)
        elif not expected:
            self.device.kept.append(kept)

    @precondition(lambda self: self.served())
    @rule(close=st.booleans())
    def end(self, close: bool) -> None:
        if not close:
            self.device.fail(VirtqueueError(0, None, None, "as asked for"))
            return
        self.device.active = False

    # the machine

    @rule()
    def pause(self) -> None:
        self.device.pause()
        assert self.device.paused

    @rule(mood=moods, refills=st.integers(0, MOST_REFILLS))
    def resume(self, mood: str, refills: int) -> None:
        self.device.mood, self.device.refills = mood, refills
        self.idle = False
        self.device.resume()
        # each queue was looked at
        self.silent.clear()
        self.say_late()

    @rule()
    def move(self) -> None:
        """Be saved, and restored, in the same place."""
        interrupt = self.device.interrupt
        self.device.pause()
        self.collect()
        state = self.device.state()
        self.device.restore(state, interrupt)
        assert self.device.paused
        before = [self.driver.vectors.get(index + 1, 0) for index in range(QUEUES)]
        self.device.mood = "answer"
        self.device.dispatch.check_invariants()
        self.resume_at_once()
        if self.device.active:
            after = [self.driver.vectors.get(index + 1, 0) for index in range(QUEUES)]
            assert all(new > old for new, old in zip(after, before, strict=True)), "the driver is told of everything"

    def resume_at_once(self) -> None:
        self.idle = False
        self.device.resume()
        self.silent.clear()

    @precondition(lambda self: self.loop is not None)
    @rule(mood=moods, once=st.booleans())
    def run_loop(self, mood: str, once: bool) -> None:
        self.device.mood = mood
        for _ in range(1 if once else MANY_TURNS):
            self.loop.run_once(0)  # type: ignore[union-attr] # the precondition
        self.idle = not once
        self.say_late()

    # what holds

    def served(self) -> bool:
        return self.device.active and not self.device.paused and not self.device.needs_reset

    @invariant()
    def the_promises_of_the_head_hold(self) -> None:
        self.device.dispatch.check_invariants()
        assert self.device.wrong == []
        assert set(self.device.dispatch.faults) <= {"ValueError"}, self.device.dispatch.faults
        self.collect()
        self.nothing_is_forgotten()

    def nothing_is_forgotten(self) -> None:
        """What a driver has said it offered was looked at, and of what it will offer it may say so."""
        if not self.served() or (self.loop is not None and not self.idle):
            return
        for index in range(QUEUES):
            kept = sum(each[0] == index and each not in self.stale for each in self.device.kept)
            if index not in self.device.left and index not in self.silent:
                assert self.offered[index] == kept, f"{self.offered[index]} chains in queue {index}, {kept} kept"
            if not self.event_idx and index not in self.device.hushed:
                assert self.is_notified_of(index), f"notifications of queue {index} are off"

    def is_notified_of(self, index: int) -> bool:
        """Say whether the device wants to hear of a queue; false with EVENT_IDX, which only says of which chain."""
        flags = self.memory.read_u16(self.driver.queues[index].device_area + 2 * self.packed)
        return not self.event_idx and not flags


TestDispatching = Dispatching.TestCase
TestDispatching.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_a_device_that_completes_outside_of_calls_is_found() -> None:
    device, driver = started()
    with driver:
        driver.submit_buffers(0, [(0x20000, 16, 2)], kick=False)
        chain = next(device.chains(0))
        device.complete(0, chain, 0)
        with pytest.raises(AssertionError, match="3: the driver was not told"):
            device.dispatch.check_invariants()
        device.serve(lambda: None)
        device.dispatch.check_invariants()


def test_a_queue_that_is_owed_a_turn_has_it_from_the_loop_alone() -> None:
    """However often its driver notifies of it: whatever else waits there comes first, each time."""
    with EventLoop() as loop:
        device, driver = started(loop)
        with driver:
            turns: list[int] = []

            def answer(index: int) -> None:
                turns.append(index)
                for chain in device.chains(index):
                    device.complete(index, chain, 0)

            device.process_queue = answer  # type: ignore[method-assign]
            for _ in range(5):
                driver.poll()
                with suppress(RingFull):
                    for _ in range(SIZE):
                        driver.submit_buffers(0, [(0x20000, 16, 2)], kick=False)
                driver.kick(0, always=True)
            assert turns == [0]
            loop.run_once(0)
            assert turns == [0] * 2
            device.dispatch.check_invariants()


def test_each_queue_that_is_owed_a_turn_has_it_before_another_has_two() -> None:
    with EventLoop() as loop:
        device, driver = started(loop)
        with driver:
            turns: list[int] = []

            def answer(index: int) -> None:
                turns.append(index)
                for chain in device.chains(index):
                    device.complete(index, chain, 0)
                    driver.poll(index)
                    driver.submit_buffers(index, [(0x20000, 16, 2)], kick=False)

            device.process_queue = answer  # type: ignore[method-assign]
            for index in range(QUEUES):
                driver.submit_buffers(index, [(0x20000, 16, 2)])
            del turns[:]
            for _ in range(2 * QUEUES):
                loop.run_once(0)
            assert sorted(turns[:QUEUES]) == list(range(QUEUES))
            assert turns[QUEUES:] == turns[:QUEUES]


def started(loop: EventLoop | None = None) -> tuple[VirtioDevice, Any]:
    device = VirtioDevice(queue_max_sizes=(SIZE,) * QUEUES, loop=loop)
    device.device_type = 42  # type: ignore[misc] # of this one only
    return device, drive(device, indirect=False)
