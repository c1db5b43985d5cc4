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


def test_event_loop_outlives_what_its_callbacks_raise(caplog: pytest.LogCaptureFixture) -> None:
    def divide() -> None:
        _ = 1 // 0

    with EventLoop() as loop:
        for _ in range(3):
            loop.call_soon(divide)
        loop.call_later(0.001, divide)
        loop.call_later(0.002, loop.stop)
        loop.run()
        (name,) = loop.errors
        assert loop.errors == {divide.__qualname__: 4}
    assert caplog.text.count("ZeroDivisionError") == 1
    assert name in caplog.text


def test_event_loop_lets_out_what_is_to_end_the_program() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    seen = []
    with EventLoop() as loop:
        loop.call_at(0, interrupt)
        loop.call_at(0, lambda: seen.append("later"))
        with pytest.raises(KeyboardInterrupt):
            loop.run()
        loop.run_once(0)
    assert seen == ["later"]


def test_removed_readers_are_not_called() -> None:
    with EventLoop() as loop, EventFdInterrupt() as event:
        loop.add_reader(event.fileno(), lambda: pytest.fail("called"))
        loop.remove_reader(event.fileno())
        loop.remove_reader(event.fileno())
        event.trigger()
        loop.call_later(0.02, loop.stop)
        loop.run()
