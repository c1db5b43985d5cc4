"""Whoever is within a device, nobody waits for them: calls, kicks, resets, pauses and registers of other threads."""

from __future__ import annotations

import time
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import pytest

from pyvmm_device import EventLoop
from pyvmm_virtio.device import VirtioDevice
from pyvmm_virtio.driver import drive
from pyvmm_virtio.errors import DeviceBusy
from pyvmm_virtio.in_flight import InFlight
from pyvmm_virtio.mailbox import PATIENCE, Mailbox
from pyvmm_virtio.transport import status as s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAIT = 10.0
SOON = PATIENCE + 3.0
"""What a test takes for "it does not wait for who is within", on a machine that is busy."""


class Holding(VirtioDevice):
    """A device whose back end holds each request until it is let go."""

    device_type = 42
    queue_max_sizes = (16, 16)

    def __init__(self, loop: EventLoop | None = None) -> None:
        super().__init__(loop=loop)
        self.held = Event()
        self.let_go = Event()
        self.turns: list[int] = []
        self.order: list[object] = []
        self.in_flight = InFlight()

    def process_queue(self, index: int) -> None:
        self.turns.append(index)
        for chain in self.chains(index):
            if index == 0:
                self.held.set()
                assert self.let_go.wait(WAIT)
            self.complete(index, chain, 0)

    def quiesce(self) -> None:
        self.order.append("quiesce")

    def drop(self, index: int | None) -> None:
        self.order.append(("drop", index))

    def reset(self) -> None:
        self.order.append("reset")

    def queue_reset(self, index: int) -> None:
        self.order.append(("reset", index))


class Held:
    """Such a device, and a thread that is within it."""

    def __init__(self, transport: str = "mmio", ring: str = "split") -> None:
        self.device = Holding()
        self.driver: Any = drive(self.device, transport, ring, indirect=False)
        self.device.order.clear()
        self.request = self.driver.submit_buffers(0, [(0x20000, 16, 2)], kick=False)
        self.thread = Thread(target=self.device.kick, args=(0,))
        self.thread.start()
        assert self.device.held.wait(WAIT)

    def let_go(self) -> None:
        self.device.let_go.set()
        self.thread.join()

    def close(self) -> None:
        self.let_go()
        self.driver.close()


@pytest.fixture(params=[("mmio", "split"), ("pci", "packed")])
def held(request: pytest.FixtureRequest) -> Iterator[Held]:
    held = Held(*request.param)
    yield held
    held.close()


def in_time(function: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - whatever it returns
    begin = time.monotonic()
    result = function(*arguments)
    assert time.monotonic() - begin < SOON
    return result


def test_a_kick_is_left_to_who_is_within(held: Held) -> None:
    other = held.driver.submit_buffers(1, [(0x21000, 16, 2)], kick=False)
    for _ in range(1000):
        held.device.kick(1)
    assert held.device.turns == [0]
    assert held.device.dispatch.waiting() == 0  # a queue is owed a turn or not; nothing piles up
    held.let_go()
    held.driver.wait(other)
    assert held.device.turns == [0, 1]
    held.device.dispatch.check_invariants()


def test_calls_are_made_in_their_order_by_who_is_within(held: Held) -> None:
    seen: list[object] = []
    assert held.device.serve(seen.append, 1)
    assert held.device.dispatch.serve_now(seen.append, "never") is None
    assert not held.device.dispatch.call(seen.append, 2)
    assert held.device.serve(seen.append, 3)
    assert seen == []
    held.let_go()
    assert seen == [1, 2, 3]
    assert held.device.dispatch.serve_now(seen.append, 4)
    assert seen == [1, 2, 3, 4]


def test_who_has_to_know_waits_a_moment(held: Held) -> None:
    with pytest.raises(DeviceBusy):
        in_time(held.device.dispatch.ask, int)
    with pytest.raises(DeviceBusy):
        in_time(held.device.state)
    held.let_go()
    assert held.device.dispatch.ask(lambda: 42) == 42
    assert held.device.dispatch.ask(held.device.dispatch.ask, int) == 0


def test_a_reset_is_over_when_nobody_is_within(held: Held) -> None:
    driver, device = held.driver, held.device
    status = driver.port.status()
    in_time(driver.port.set_status, 0)
    assert driver.port.status() == status
    assert device.resetting
    assert not device.active
    # nobody waits any more, neither who asks for another nor who goes on too early
    begin = time.monotonic()
    for _ in range(100):
        driver.port.set_status(0)
        driver.port.set_status(s.ACKNOWLEDGE)
    assert time.monotonic() - begin < SOON
    assert driver.port.status() == status
    with pytest.raises(DeviceBusy):
        device.state()
    assert device.order == []
    held.let_go()
    assert driver.port.status() == 0
    assert device.order == [("drop", None), "reset"]
    device.dispatch.check_invariants()
    device.let_go.set()
    driver.reset()
    driver.wait(driver.submit_buffers(0, [(0x20000, 16, 2)]))


def test_a_call_from_before_a_reset_is_nobodys(held: Held) -> None:
    seen: list[object] = []
    assert held.device.serve(seen.append, "served")
    assert not held.device.dispatch.call(seen.append, "the machine's")
    assert held.device.finish(1, held.device.epochs[1], 7, 0)
    held.driver.port.set_status(0)
    held.let_go()
    assert seen == ["the machine's"]
    assert not held.device.errors
    assert not held.device.bugs


def test_a_queue_reset_is_over_when_nobody_is_within(held: Held) -> None:
    driver, device = held.driver, held.device
    epoch = device.epochs[0]
    in_time(device.driver_queue_reset, 0)
    assert device.epochs[0] != epoch
    assert device.dispatch.resetting_queues == {0}
    assert not driver.port.queue_enabled(0)
    in_time(device.driver_queue_reset, 0)
    assert device.order == []
    held.let_go()
    assert device.order == [("drop", 0), ("reset", 0)]
    assert not device.dispatch.resetting_queues
    assert device.active
    device.dispatch.check_invariants()


def test_a_reset_of_all_ends_that_of_a_queue(held: Held) -> None:
    in_time(held.device.driver_queue_reset, 0)
    held.driver.port.set_status(0)
    held.let_go()
    assert held.device.order == [("drop", None), "reset"] or held.device.order == [
        ("drop", 0),
        ("reset", 0),
        ("drop", None),
        "reset",
    ]
    assert not held.device.dispatch.resetting_queues
    held.device.dispatch.check_invariants()


def test_a_pause_ends_and_comes_to_rest_later(held: Held) -> None:
    in_time(held.device.pause)
    assert held.device.paused
    assert held.device.order == []
    held.let_go()
    assert held.device.order == ["quiesce"]
    other = held.driver.submit_buffers(1, [(0x21000, 16, 2)])
    assert not other.done
    held.device.resume()
    held.driver.wait(other)
    held.device.dispatch.check_invariants()


def test_the_end_of_a_device_is_left_to_who_is_within(held: Held) -> None:
    assert not in_time(held.device.dispatch.end, lambda: held.device.order.append("closed"))
    held.let_go()
    assert held.device.order == ["closed"]


def test_registers_are_there_while_a_reset_waits(held: Held) -> None:
    driver = held.driver
    resets = Thread(target=driver.port.set_status, args=(0,))
    resets.start()
    while not held.device.resetting:
        time.sleep(0.001)
    begin = time.monotonic()
    for _ in range(20):
        driver.port.status()
        driver.port.queue_max(0)
        driver.port.generation()
    assert time.monotonic() - begin < PATIENCE * 20
    resets.join()


def test_workers_hold_a_reset_and_nobody_else() -> None:
    device = Holding()
    with drive(device, indirect=False) as driver:
        device.order.clear()
        workers = device.in_flight
        assert workers is not None
        workers.__enter__()
        in_time(driver.port.set_status, 0)
        assert device.resetting
        assert device.order == [("drop", None)]
        assert driver.port.status() != 0
        workers.__exit__(None, None, None)
        assert device.order == [("drop", None), "reset"]
        assert driver.port.status() == 0


def test_an_interrupt_that_fails_or_takes_its_time_holds_nobody() -> None:
    device = Holding()
    device.let_go.set()
    with drive(device, indirect=False) as driver:
        inside, go = Event(), Event()

        class Slow:
            def signal_queue(self, index: int) -> None:
                inside.set()
                assert go.wait(WAIT)
                raise RuntimeError(f"no way to queue {index}")

            def signal_config(self) -> None:
                raise RuntimeError("no way")

        device.dispatch.interrupt = Slow()
        driver.submit_buffers(0, [(0x20000, 16, 2)], kick=False)
        thread = Thread(target=device.kick, args=(0,))
        thread.start()
        assert inside.wait(WAIT)
        in_time(device.kick, 1)
        in_time(device.config_changed)
        in_time(driver.config, 0, 1)
        go.set()
        thread.join()
        device.config_changed()
        assert device.dispatch.faults["interrupt"] == 3
        assert device.active
        assert not device.needs_reset
        device.dispatch.check_invariants()


def test_a_mailbox_under_many_threads() -> None:
    """Each call is made once, never two at a time, and nobody is forgotten."""
    box = Mailbox()
    inside, made, asked = [0], [0], [0]

    def one() -> None:
        inside[0] += 1
        assert inside[0] == 1
        made[0] += 1
        inside[0] -= 1

    def work(number: int) -> None:
        for turn in range(300):
            if (number + turn) % 7:
                box.call(one)
            else:
                try:
                    box.ask(one)
                except DeviceBusy:
                    asked[0] += 1

    threads = [Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made[0] + asked[0] == 6 * 300
    assert not box.within
    assert not box.waiting()


def test_a_call_that_raises_leaves() -> None:
    box = Mailbox()
    with pytest.raises(ValueError, match="mine"):
        box.call(int, "mine")
    with pytest.raises(ValueError, match="mine"):
        box.ask(int, "mine")
    assert not box.within
    seen: list[int] = []

    def outer() -> None:
        box.call(int, "of somebody else")  # logged, for whoever makes it is not to blame
        box.call(seen.append, 1)
        assert not seen

    box.call(outer)
    assert seen == [1]

    def interrupted() -> None:
        raise KeyboardInterrupt

    def brings_it() -> None:
        box.call(interrupted)
        box.call(seen.append, 2)

    with pytest.raises(KeyboardInterrupt):
        box.call(brings_it)
    assert not box.within
    box.call(seen.append, 3)
    assert seen == [1, 2, 3]  # made before what was brought later


def test_a_slice_is_shared_by_all_queues_of_a_device() -> None:
    """However many queues a guest kicks in one turn of the loop, they move a slice and a chain each at most."""
    with EventLoop() as loop:
        device = Holding(loop)
        device.let_go.set()
        moved: list[int] = []

        def take(index: int) -> None:
            for chain in device.chains(index):
                moved.append(chain.length)
                device.complete(index, chain, 0)

        device.process_queue = take  # type: ignore[method-assign]
        with drive(device, indirect=False) as driver:
            big = 600 << 10
            for index in (0, 1):
                for _ in range(8):
                    driver.submit_buffers(index, [(0x100000, big, 2)], kick=False)
            device.kick(0)
            assert len(moved) == 2
            for _ in range(100):
                device.kick(1)
                device.kick(0)
            assert len(moved) == 2
            loop.run_once(0)
            assert len(moved) == 4
            for _ in range(8):
                loop.run_once(0)
            assert len(moved) == 16
            assert device.dispatch.has_room()
            device.dispatch.check_invariants()


def test_a_turn_whose_time_comes_while_somebody_is_within_is_not_forgotten() -> None:
    with EventLoop() as loop:
        device = Holding(loop)
        with drive(device, indirect=False) as driver:
            big = 600 << 10
            for _ in range(8):
                driver.submit_buffers(1, [(0x100000, big, 2)], kick=False)
            device.kick(1)
            assert device.dispatch.owed == {1}

            def hold() -> None:
                device.held.set()
                assert device.let_go.wait(WAIT)

            thread = Thread(target=device.serve, args=(hold,))
            thread.start()
            assert device.held.wait(WAIT)
            loop.run_once(0)
            device.let_go.set()
            thread.join()
            device.dispatch.check_invariants()
            for _ in range(8):
                loop.run_once(0)
            assert len(driver.poll(1)) == 8
            device.dispatch.check_invariants()


def test_who_puts_something_in_while_somebody_leaves_is_not_forgotten() -> None:
    """The last look of who leaves, and the second try of who finds the seat taken, at each moment between them."""
    made: list[int] = []

    class Late(Mailbox):
        """Something is brought just before, or just after, the seat is free."""

        def __init__(self, moment: str) -> None:
            super().__init__()
            self.moment = moment

        def _stand_up(self) -> None:
            moment, self.moment = self.moment, ""
            if moment == "before":
                assert not self.call(made.append, 2)
            super()._stand_up()
            if moment == "after":
                assert self.call(made.append, 2)

    for moment in ("before", "after"):
        made.clear()
        box = Late(moment)
        assert box.call(made.append, 1)
        assert made == [1, 2]
        assert not box.within
        assert not box.waiting()


def test_who_finds_the_seat_free_at_last_takes_it() -> None:
    made: list[int] = []

    class Missed(Mailbox):
        """The first try comes just too early."""

        misses = 0

        def sit(self) -> bool:
            if self.misses:
                self.misses -= 1
                return False
            return super().sit()

    box = Missed()
    for number, function in enumerate((box.call, box.ask)):
        box.misses = 1
        function(made.append, number)
    assert made == [0, 1]
    assert not box.within
    assert not box.waiting()
    assert box.enter(0)
    assert not box.enter(0)
    box.leave()
