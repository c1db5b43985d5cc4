"""Something remembered that has changed: what the event loop is to call, by number, by turn, by moment."""

import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from pyvmm_device import EventFdInterrupt, EventLoop, IoThread, Registration, Timer

Add = Callable[[EventLoop, int, Callable[[], object]], Registration]

ADD: list[Add] = [
    EventLoop.add_reader,
    lambda loop, fd, callback: loop.add_eventfd(fd, lambda _: callback()),
    EventLoop.add_writer,
]
NAMES = ["reader", "eventfd", "writer"]


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    with EventLoop() as loop:
        yield loop


def eventfd(count: int = 0) -> int:
    return os.eventfd(count, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


@pytest.mark.parametrize("add", ADD, ids=NAMES)
@pytest.mark.parametrize("later", ADD, ids=NAMES)
def test_a_registration_touches_no_successor(loop: EventLoop, add: Add, later: Add) -> None:
    first = eventfd()
    old = add(loop, first, lambda: pytest.fail("the closed one was called"))
    os.close(first)
    second = eventfd(1)
    assert second == first
    calls: list[str] = []
    new = later(loop, second, lambda: calls.append("new"))
    try:
        assert not old.active or add is not later  # where it waits for something else, it ends by its own `cancel`
        old.cancel()
        assert not old.cancel()
        assert new.active
        loop.run_once(0)
        assert calls == ["new"]
        assert new.cancel()
        assert not new.cancel()
        loop.run_once(0)
        assert calls == ["new"]
    finally:
        os.close(second)


@pytest.mark.parametrize("add", ADD, ids=NAMES)
@pytest.mark.parametrize("seed", range(8))
def test_events_of_a_turn_are_for_who_waited_when_it_began(loop: EventLoop, add: Add, seed: int) -> None:
    """Descriptors end, are closed and come again under the same numbers while a turn's events are handed out."""
    chance = random.Random(seed)
    fds: dict[int, Registration] = {}
    wrong: list[int] = []

    def make(count: int) -> None:
        # a writer's eventfd that is not ready is at its limit, and one that is has room
        fd = eventfd(0)
        ready = bool(count)
        if add is EventLoop.add_writer:
            if not ready:
                os.eventfd_write(fd, (1 << 64) - 2)
        elif ready:
            os.eventfd_write(fd, 1)
        fds[fd] = add(loop, fd, lambda: on_event(fd, ready))

    def on_event(fd: int, ready: bool) -> None:
        if not ready:
            wrong.append(fd)
        for other in chance.sample(sorted(fds), min(len(fds), 3)):
            fds.pop(other).cancel()
            os.close(other)
            make(0)

    for _ in range(40):
        make(1)
    for _ in range(4):
        loop.run_once(0)
    for fd, token in fds.items():
        token.cancel()
        os.close(fd)
    assert not wrong
    assert not loop.errors


def test_another_callback_for_the_same_number_waits_for_its_own_turn(loop: EventLoop) -> None:
    one, other = eventfd(1), eventfd(1)
    calls: list[str] = []

    def first(mine: int, theirs: int) -> None:
        calls.append("old")
        os.eventfd_read(mine)
        os.eventfd_read(theirs)
        loop.add_reader(theirs, lambda: calls.append("new"))

    loop.add_reader(one, lambda: first(one, other))
    loop.add_reader(other, lambda: first(other, one))
    loop.run_once(0)
    loop.run_once(0)
    assert calls == ["old"]
    os.close(one)
    os.close(other)


def test_a_cancelled_eventfd_is_not_read_whoever_cancels_it() -> None:
    """A number that another thread closes is somebody else's at once: nothing of theirs is taken."""
    stolen = []
    with IoThread() as io:
        for _ in range(300):
            fd = eventfd(1)
            token = io.loop.add_eventfd(fd, lambda _: None)
            token.cancel()
            os.close(fd)
            newcomer = eventfd(7)
            assert newcomer == fd
            io.loop.wake()
            try:
                if os.eventfd_read(newcomer) != 7:
                    stolen.append(newcomer)
            except BlockingIOError:
                stolen.append(newcomer)
            os.close(newcomer)
        assert not io.loop.errors
    assert not stolen


def test_registrations_may_end_after_their_loop() -> None:
    loop = EventLoop()
    fd = eventfd()
    token, writer, timer = loop.add_eventfd(fd, print), loop.add_writer(fd, print), loop.call_later(1, print)
    loop.close()
    os.close(fd)
    token.cancel()
    writer.cancel()
    timer.cancel()
    assert not loop.remove_reader(fd)


def test_timers_that_were_cancelled_in_their_own_turn_are_not_called(loop: EventLoop) -> None:
    calls: list[int] = []
    timers: list[Timer] = []

    def call(number: int) -> None:
        calls.append(number)
        for timer in timers:
            timer.cancel()

    timers += [loop.call_at(0, lambda number=number: call(number)) for number in range(5)]  # type: ignore[misc]
    loop.run_once(0)
    assert calls == [0]
    assert "0 timers" in repr(loop)


def test_threads_add_and_cancel_while_the_loop_runs() -> None:
    failed: list[int] = []

    def churn(seed: int) -> None:
        chance = random.Random(seed)
        held: list[tuple[int, Registration]] = []
        for _ in range(400):
            if held and chance.random() < 0.5:
                fd, token = held.pop(chance.randrange(len(held)))
                if not token.cancel():
                    failed.append(fd)
                os.close(fd)
            else:
                fd = eventfd(chance.randrange(2))
                held.append((fd, io.loop.add_eventfd(fd, lambda _: None)))
            io.loop.call_later(60, print).cancel()
        for fd, token in held:
            token.cancel()
            os.close(fd)

    with IoThread() as io:
        threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert not io.loop.errors
        assert "0 readers, 0 writers, 0 timers" in repr(io.loop)


def test_an_interrupt_is_never_sent_to_a_successor_of_its_descriptor() -> None:
    """Triggered in one thread while it is closed in another, whose next descriptor has its number."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(300):
            interrupt = EventFdInterrupt()
            number = interrupt.fileno()

            def trigger(interrupt: EventFdInterrupt = interrupt) -> None:
                with suppress(ValueError):
                    while True:
                        interrupt.trigger()

            thread = threading.Thread(target=trigger)
            thread.start()
            interrupt.close()
            successor = eventfd()
            thread.join()
            assert successor == number
            with pytest.raises(BlockingIOError):
                os.eventfd_read(successor)
            os.close(successor)
    finally:
        sys.setswitchinterval(interval)
