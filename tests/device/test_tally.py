"""Events are counted by kind, and the first of each is logged."""

import doctest
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyvmm_device import tally
from pyvmm_device.tally import ERROR, Tally


def test_the_example() -> None:
    assert doctest.testmod(tally).failed == 0


def test_each_kind_is_logged_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    events = Tally("pyvmm_device.somebody")
    assert events.count("reset", "%s asked for a reset", "the guest")
    assert not events.count("reset", "%s asked for a reset", "the guest")
    assert events.count("bytes", "%d bytes are lost", 5, level=ERROR, amount=5)
    assert not events.count("bytes", "%d bytes are lost", 7, level=ERROR, amount=7)
    assert events == {"reset": 2, "bytes": 12}
    assert events["never"] == 0
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("pyvmm_device.somebody", "WARNING", "the guest asked for a reset"),
        ("pyvmm_device.somebody", "ERROR", "5 bytes are lost"),
    ]


def test_a_record_keeps_no_error(caplog: pytest.LogCaptureFixture) -> None:
    Tally("pyvmm_device.somebody").count("error", "refused: %s", OSError("no room"))
    (record,) = caplog.records
    assert record.args == ("no room",)


def test_threads_lose_no_count(caplog: pytest.LogCaptureFixture) -> None:
    events = Tally("pyvmm_device.somebody")
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(lambda: [events.count("event", "it came") for _ in range(5000)])
    assert events == {"event": 20000}
    assert len(caplog.records) == 1
