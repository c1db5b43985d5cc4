"""The event loop with single readers, timers and calls."""

import os
import threading

import pytest

from pyvmm_device import EventFdInterrupt, EventLoop


def test_event_loop_reads_times_and_is_asked() -> None:
    seen: list[str] = []
    with EventLoop() as loop, EventFdInterrupt() as event:

        def on_event() -> None:
            os.eventfd_read(event.fileno())
            seen.append("event")

        loop.add_reader(event.fileno(), on_event)
        loop.call_later(0.02, event.trigger)
        loop.call_later(0.2, loop.stop)
        other = threading.Thread(target=lambda: loop.call_soon(lambda: seen.append("asked")))
        other.start()
        loop.run()
        other.join()
    assert seen == ["asked", "event"]


def test_event_loop_stops_from_another_thread() -> None:
    with EventLoop() as loop:
        threading.Timer(0.05, loop.stop).start()
        loop.run()


def test_event_loop_lets_exceptions_out() -> None:
    with EventLoop() as loop:
        loop.call_soon(lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            loop.run()


def test_removed_readers_are_not_called() -> None:
    with EventLoop() as loop, EventFdInterrupt() as event:
        loop.add_reader(event.fileno(), lambda: pytest.fail("called"))
        loop.remove_reader(event.fileno())
        loop.remove_reader(event.fileno())
        event.trigger()
        loop.call_later(0.02, loop.stop)
        loop.run()
