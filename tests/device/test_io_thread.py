"""An event loop with a thread of its own."""

import threading
import time

from pyvmm_device import EventFdInterrupt, IoThread


def test_it_serves_until_it_is_closed() -> None:
    seen: list[str] = []
    with IoThread("disk") as io, EventFdInterrupt() as kick:
        came = threading.Event()
        token = io.loop.add_eventfd(kick.fileno(), lambda _: came.set())
        kick.trigger()
        assert came.wait(10)
        token.cancel()
        assert io.call(lambda: seen.append(threading.current_thread().name), 10)
        assert not io.within
        assert io.running
    assert seen == ["disk"]
    assert not io.running
    assert io.loop.closed
    io.close()


def test_what_a_callback_does_wrong_does_not_end_it() -> None:
    with IoThread() as io:
        io.loop.call_soon(lambda: 1 // 0)
        io.loop.stop()
        assert io.call(lambda: None, 10)
        assert sum(io.loop.errors.values()) == 1


def test_calls_from_within_do_not_wait_for_themselves() -> None:
    seen: list[bool] = []
    with IoThread() as io:
        assert io.call(lambda: seen.append(io.call(lambda: seen.append(io.within))), 10)
    assert seen == [True, True]


def test_it_may_close_itself() -> None:
    io = IoThread()
    io.loop.call_soon(io.close)
    end = time.monotonic() + 10
    while io.running and time.monotonic() < end:
        time.sleep(0.001)
    assert io.loop.closed


def test_closing_waits_for_a_stuck_callback_only_so_long() -> None:
    go, within = threading.Event(), threading.Event()
    io = IoThread()

    def stick() -> None:
        within.set()
        go.wait(10)

    io.loop.call_soon(stick)
    assert within.wait(10)
    assert not io.call(lambda: None, 0.01)
    assert not io.close(0.01)
    assert io.running
    assert not io.loop.closed  # it is still waited in
    go.set()
    assert io.close(10)
    assert io.loop.closed
