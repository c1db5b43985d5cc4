"""The lock with an outbox: what is called after it, in which order, by whom, and what cannot happen meanwhile."""

import logging
import threading
import time
from collections.abc import Iterator

import pytest

from pyvmm_device import locks
from pyvmm_device.locks import BACKLOG, DeferringLock, Lock


def held_by_somebody(lock: DeferringLock) -> bool:
    """Whether another thread could not take the lock now."""
    answer = []

    def ask() -> None:
        answer.append(not lock.acquire(blocking=False))
        if not answer[0]:
            lock.release()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return answer[0]


def test_calls_are_made_when_the_outermost_with_has_released_the_lock() -> None:
    lock, seen = DeferringLock(), list[object]()
    with lock:
        with lock:
            lock.after(lambda: seen.append(("inner", held_by_somebody(lock))))
        assert seen == []
        lock.after(lambda: seen.append(("outer", held_by_somebody(lock))))
        assert held_by_somebody(lock)
        assert seen == []
    assert seen == [("inner", False), ("outer", False)]


def test_calls_are_made_after_acquire_and_release_too() -> None:
    lock, seen = DeferringLock(), list[object]()
    assert lock.acquire()
    lock.after(seen.append, 1)
    assert seen == []
    lock.release()
    assert seen == [1]


def test_a_call_put_in_by_who_does_not_hold_the_lock_is_made_at_once() -> None:
    lock, seen = DeferringLock(), list[object]()
    lock.after(seen.append, 1)
    assert seen == [1]


def test_calls_are_made_when_the_with_ends_by_an_exception() -> None:
    lock, seen = DeferringLock(), list[object]()

    def fail() -> None:
        with lock:
            lock.after(seen.append, 1)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
    assert seen == [1]


def test_a_call_may_take_the_lock_and_put_in_more_which_come_in_order_without_recursion() -> None:
    lock, seen = DeferringLock(), list[object]()

    def again(number: int) -> None:
        with lock:
            seen.append(number)
            if number < 10 * BACKLOG:
                lock.after(again, number + 1)

    with lock:
        lock.after(again, 0)
        lock.after(seen.append, -1)
    assert seen == [0, -1, *range(1, 10 * BACKLOG + 1)]


def test_exceptions_are_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    lock, seen = DeferringLock(), list[object]()

    def fail() -> None:
        raise OSError("of another's making")

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with lock:
                lock.after(fail)
                lock.after(seen.append, 1)
    assert seen == [1, 1, 1]
    assert sum(lock.failed.values()) == 3
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "of another's making" in caplog.text


def test_one_that_holds_nothing_when_it_is_interrupted_leaves_the_outbox_to_the_next() -> None:
    lock, seen = DeferringLock(), list[object]()

    def interrupt() -> None:
        raise KeyboardInterrupt

    def put() -> None:
        with lock:
            lock.after(interrupt)
            lock.after(seen.append, 1)

    with pytest.raises(KeyboardInterrupt):
        put()
    with lock:
        lock.after(seen.append, 2)
    assert seen == [1, 2]


@pytest.fixture
def busy_switching() -> Iterator[None]:
    import sys

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("busy_switching")
def test_a_level_ends_as_it_was_wanted_last_and_calls_are_made_one_at_a_time_in_order() -> None:
    lock, inside = DeferringLock(), Lock()
    wanted, line, at_once = [0], [], []

    def move(level: int) -> None:
        if not inside.acquire(blocking=False):
            at_once.append(level)
            return
        line.append(level)
        inside.release()

    def vcpu() -> None:
        for _ in range(500):
            with lock:
                wanted[0] += 1
                lock.after(move, wanted[0])

    threads = [threading.Thread(target=vcpu) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert at_once == []
    assert line == list(range(1, 2001))
    assert sum(lock.failed.values()) == 0


@pytest.mark.usefixtures("busy_switching")
def test_two_objects_that_call_each_other_never_stand_still() -> None:
    class Side:
        def __init__(self) -> None:
            self.lock, self.other, self.heard = DeferringLock(), self, 0

        def move(self) -> None:
            with self.lock:
                self.lock.after(self.other.hear)

        def hear(self) -> None:
            with self.lock:
                self.heard += 1

    one, other = Side(), Side()
    one.other, other.other = other, one
    threads = [threading.Thread(target=lambda side=side: [side.move() for _ in range(500)]) for side in (one, other)]
    for thread in threads:
        thread.daemon = True
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert (one.heard, other.heard) == (500, 500)


def test_nobody_waits_for_a_call_that_does_not_end_and_the_outbox_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.001)
    lock, stuck, entered, seen = DeferringLock(), threading.Event(), threading.Event(), []

    def stay() -> None:
        entered.set()
        stuck.wait(20)

    def put(call: object) -> None:
        with lock:
            lock.after(call)  # type: ignore[arg-type]

    thread = threading.Thread(target=put, args=(stay,))
    thread.start()
    entered.wait(20)
    for _ in range(BACKLOG + 10):  # the last ten wait for a moment each
        put(lambda: seen.append(threading.get_ident()))
    assert seen == []
    stuck.set()
    thread.join()
    assert seen == [thread.ident] * (BACKLOG + 10)


@pytest.mark.usefixtures("busy_switching")
def test_who_empties_hands_over_to_those_who_fill() -> None:
    lock, end, emptied = DeferringLock(), threading.Event(), list[int]()

    def fill() -> None:
        while not end.is_set():
            with lock:
                for _ in range(BACKLOG):
                    lock.after(abs, 1)

    fillers = [threading.Thread(target=fill) for _ in range(2)]
    for filler in fillers:
        filler.start()
    until = time.monotonic() + 20
    for number in range(50):
        with lock:
            lock.after(emptied.append, number)
    end.set()
    for filler in fillers:
        filler.join()
    assert emptied == list(range(50))
    assert time.monotonic() < until


def test_repr_says_who_holds_it() -> None:
    lock = DeferringLock()
    assert "not held here" in repr(lock)
    with lock:
        assert repr(lock) == "<DeferringLock held here>"
