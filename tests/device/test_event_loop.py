"""The event loop: descriptors, timers, other threads, shutdown, slow handlers, life inside another loop."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pyvmm_device import EventFdInterrupt, EventFdLevelInterrupt, EventLoop


def together(*calls: Callable[[], object]) -> Callable[[], None]:
    def call() -> None:
        for one in calls:
            one()

    return call


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    with EventLoop() as loop:
        yield loop


def test_eventfds_come_with_their_count(loop: EventLoop) -> None:
    counts: list[int] = []
    with EventFdInterrupt() as event:

        def on_event(count: int) -> None:
            counts.append(count)
            loop.stop()

        loop.add_eventfd(event.fileno(), on_event)
        event.trigger()
        event.trigger()
        loop.run()
        assert loop.remove_reader(event.fileno())
    assert counts == [2]


def test_writers_and_readers_of_one_socket(loop: EventLoop) -> None:
    one, other = socket.socketpair()
    seen = []
    with one, other:
        loop.add_reader(one.fileno(), together(lambda: seen.append(one.recv(10)), loop.stop))
        loop.add_writer(
            one.fileno(), together(lambda: seen.append(b"writable"), lambda: loop.remove_writer(one.fileno()))
        )
        other.send(b"hello")
        loop.run()
        assert sorted(seen) == [b"hello", b"writable"]
        assert loop.remove_reader(one.fileno())
        assert not loop.remove_writer(one.fileno())


def test_timers_in_order_and_cancelled(loop: EventLoop) -> None:
    seen: list[str] = []
    now = loop.now()
    loop.call_at(now + 2_000_000, lambda: seen.append("second"))
    loop.call_at(now + 1_000_000, lambda: seen.append("first"))
    loop.call_at(now + 1_500_000, lambda: seen.append("never")).cancel()
    loop.call_later(0.005, loop.stop)
    loop.run()
    assert seen == ["first", "second"]


def test_an_earlier_timer_from_another_thread_is_in_time(loop: EventLoop) -> None:
    loop.call_later(30, loop.stop)
    start = time.monotonic()
    threading.Timer(0.02, lambda: loop.call_later(0.01, loop.stop)).start()
    loop.run()
    assert time.monotonic() - start < 5


def test_stop_keeps_what_was_asked_for_later(loop: EventLoop) -> None:
    seen: list[int] = []
    loop.call_soon(loop.stop)
    loop.call_soon(together(lambda: seen.append(1), loop.stop))
    loop.run()
    assert not seen
    loop.run()
    assert seen == [1]


def test_stop_before_run_returns_at_once(loop: EventLoop) -> None:
    loop.stop()
    loop.run()


def test_a_closed_descriptor_does_not_confuse_its_successor(loop: EventLoop) -> None:
    first = os.eventfd(0, os.EFD_NONBLOCK)
    loop.add_reader(first, lambda: pytest.fail("the closed one"))
    os.close(first)
    second = os.eventfd(1, os.EFD_NONBLOCK)
    try:
        assert second == first
        loop.add_reader(second, loop.stop)
        loop.run()
        loop.remove_reader(second)
    finally:
        os.close(second)


def test_removing_a_closed_descriptor(loop: EventLoop) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    loop.add_reader(fd, loop.stop)
    os.close(fd)
    assert loop.remove_reader(fd)


def test_one_handler_may_remove_another(loop: EventLoop) -> None:
    fds = [os.eventfd(1, os.EFD_NONBLOCK) for _ in range(2)]
    called = []

    def handler(mine: int) -> None:
        called.append(mine)
        for fd in fds:
            loop.remove_reader(fd)
        loop.stop()

    for fd in fds:
        loop.add_reader(fd, lambda fd=fd: handler(fd))  # type: ignore[misc]
    loop.run()
    assert len(called) == 1
    for fd in fds:
        os.close(fd)


def test_slow_handlers_are_named() -> None:
    reports: list[tuple[object, float]] = []
    with EventLoop(slow=0.005, on_slow=lambda handler, seconds: reports.append((handler, seconds))) as loop:

        def sluggish() -> None:
            time.sleep(0.01)

        loop.call_soon(sluggish)
        loop.call_later(0.001, sluggish)
        loop.call_soon(lambda: None)
        loop.call_later(0.03, loop.stop)
        loop.run()
    assert [handler for handler, _ in reports] == [sluggish, sluggish]
    assert all(seconds >= 0.01 for _, seconds in reports)


def test_slow_handlers_are_logged_by_default(caplog: pytest.LogCaptureFixture) -> None:
    with EventLoop(slow=0.0) as loop:
        loop.call_soon(loop.stop)
        loop.run()
    assert "EventLoop.stop held the event loop" in caplog.text


def test_inside_asyncio() -> None:
    seen: list[str] = []

    async def main() -> None:
        done = asyncio.Event()
        with EventLoop() as events, EventFdInterrupt() as event:
            asyncio.get_running_loop().add_reader(events.fileno(), events.run_once, 0)
            events.add_eventfd(event.fileno(), lambda _: seen.append("event"))
            events.call_later(0.02, together(lambda: seen.append("timer"), done.set))
            event.trigger()
            await asyncio.wait_for(done.wait(), 5)
            asyncio.get_running_loop().remove_reader(events.fileno())

    asyncio.run(main())
    assert seen == ["event", "timer"]


def test_wake_after_close_is_harmless() -> None:
    loop = EventLoop()
    loop.close()
    loop.close()
    loop.stop()
    loop.call_soon(lambda: None)
    assert "closed" in repr(loop)


def test_level_interrupt_is_raised_again_while_its_device_wants(loop: EventLoop) -> None:
    with EventFdLevelInterrupt() as line:
        line.assert_()
        line.assert_()
        assert os.eventfd_read(line.fileno()) == 1
        os.eventfd_write(line.resample_fd(), 1)  # the guest's end of interrupt
        line.on_resample()
        assert os.eventfd_read(line.fileno()) == 1
        line.clear()
        os.eventfd_write(line.resample_fd(), 1)
        line.on_resample()
        line.on_resample()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(line.fileno())
        line.set_status_checker(lambda: True)
        os.eventfd_write(line.resample_fd(), 1)
        line.on_resample()
        assert os.eventfd_read(line.fileno()) == 1
        assert "asserted" in repr(line)


def test_many_threads_ask_and_none_is_forgotten(loop: EventLoop) -> None:
    seen: list[int] = []

    def ask(first: int) -> None:
        for number in range(200):
            loop.call_soon(lambda number=number: seen.append(first + number))  # type: ignore[misc]

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(0, 1000, 200)]
    for thread in threads:
        thread.start()

    def look() -> None:
        if len(seen) == 1000:
            loop.stop()
        else:
            loop.call_later(0.001, look)

    loop.call_soon(look)
    loop.run()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(1000))
