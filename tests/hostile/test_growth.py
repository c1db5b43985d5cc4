"""Growth without an end, of devices without queues: timers and output. What a guest makes us hold has a bound."""

import ast
import gc
import os
import random
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from source import modules, tree
from tests.hostile.devices import DEVICES, Case, Output

from pyvmm_device import EventLoop, ManualClock
from pyvmm_device.clock import SECOND, Timers
from pyvmm_device.output import LIMIT, OutputBuffer

EVERY_CASE = pytest.mark.parametrize("case", DEVICES.values(), ids=DEVICES)


@EVERY_CASE
def test_a_device_has_one_timer_however_often_it_is_set(case: Case) -> None:
    chance, clock = random.Random(1), ManualClock()
    device, most = case.make(Output(), clock), 0
    for _ in range(1500):
        buffer = memoryview(bytearray(chance.randbytes(chance.choice((1, 2, 4)))))
        (device.read if chance.random() < 0.2 else device.write)(chance.randrange(case.size), buffer)
        if chance.random() < 0.05:
            clock.advance(chance.randrange(SECOND))
        if chance.random() < 0.01:
            device.restore(device.state())
        most = max(most, clock.waiting)
    assert most <= 1


@EVERY_CASE
def test_what_is_held_does_not_grow(case: Case) -> None:
    """What there is after each thousand accesses, with a loop whose timers are far away, and an output that forgets."""

    class Forgets(Output):
        def __init__(self) -> None:
            self.events = self  # type: ignore[assignment]

        def append(self, event: object) -> None:
            pass

        def write(self, data: bytes) -> None:
            pass

        def trigger(self) -> None:
            pass

        assert_ = clear = trigger

    chance = random.Random(2)
    with EventLoop() as loop:
        device = case.make(Forgets(), loop)  # type: ignore[arg-type]  # a clock is enough for all of them

        def access(count: int) -> int:
            for _ in range(count):
                buffer = memoryview(bytearray(chance.randbytes(chance.choice((1, 2, 4)))))
                (device.read if chance.random() < 0.2 else device.write)(chance.randrange(case.size), buffer)
                if chance.random() < 0.05:
                    case.outside(device, chance.randrange(256))
            loop.run_once(0)
            gc.collect()
            return len(gc.get_objects())

        access(500)
        first, second = access(1000), access(1000)
        assert second - first < 200, "objects for each of 1000 accesses"


def test_no_device_asks_for_timers_but_by_an_alarm() -> None:
    """Whoever keeps a timer by hand can keep two."""
    asking = {
        name
        for name, path in modules().items()
        if name.startswith("pyvmm_device")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in ("call_at", "call_later")
    }
    assert asking == {"pyvmm_device.clock", "pyvmm_device.event_loop"}


@pytest.mark.parametrize("make", [EventLoop, ManualClock])
def test_cancelled_timers_leave(make: Callable[[], EventLoop | ManualClock]) -> None:
    clock, chance = make(), random.Random(3)
    now, held = clock.now(), []
    for number in range(20_000):
        held.append(clock.call_at(now + 1000 * SECOND + chance.randrange(5), print))
        if number >= 10:
            held.pop(chance.randrange(10)).cancel()
    assert re.search(r"\b10 timers", repr(clock))
    for timer in held:
        timer.cancel()
        timer.cancel()
    assert re.search(r"\b0 timers", repr(clock))
    if isinstance(clock, EventLoop):
        clock.close()


def test_timers_against_a_sorted_list() -> None:
    chance, timers = random.Random(4), Timers()
    model: list[tuple[int, int]] = []
    made = {}
    for number in range(3000):
        what = chance.random()
        if what < 0.6:
            when = chance.randrange(50)
            made[number], first = timers.add(when, print)
            model.append((when, number))
            assert first == (min(model) == (when, number))
        elif what < 0.9 and model:
            item = chance.choice(model)
            model.remove(item)
            made[item[1]].cancel()
        else:
            now = chance.randrange(50)
            due = sorted(item for item in model if item[0] <= now)
            taken = timers.take_due(now)
            assert [item[2] for item in taken] == [made[item[1]] for item in due]
            gone = taken[: len(taken) // 2]
            timers.put_back(taken[len(gone) :])
            model = [item for item in model if item not in due[: len(gone)]]
        assert len(timers) == len(model)
        assert timers.next() == (min(model)[0] if model else None)


# output


def read_all(fd: int) -> bytes:
    os.set_blocking(fd, False)
    data = b""
    try:
        while piece := os.read(fd, 1 << 20):
            data += piece
    except BlockingIOError:
        pass
    return data


def test_output_that_nobody_takes_is_bounded_and_says_what_it_dropped() -> None:
    read, write = os.pipe()
    with EventLoop() as loop, OutputBuffer(write, loop) as output:
        sent = 0
        for _ in range(100_000):
            output.write(b"0123456789")
            sent += 10
            if not sent % 10_000:
                loop.run_once(0)
            assert len(output) <= LIMIT
        assert output.lost > sent // 2
        got = b""
        for _ in range(200):
            got += read_all(read)
            loop.run_once(0)
        assert len(output) == 0
        (dropped,) = re.findall(rb"\[(\d+) bytes were dropped\]", got)
        assert int(dropped) == output.lost
        assert len(got) == sent - output.lost + len(b"[ bytes were dropped]") + len(dropped)
        output.write(b"and on")
        loop.run_once(0)
        loop.run_once(0)
        assert read_all(read) == b"and on"
        assert "0 writers" in repr(loop)
    os.close(read)
    os.close(write)


def test_output_in_the_order_it_was_written_with_notes_in_their_place() -> None:
    read, write = os.pipe()
    chance = random.Random(5)
    with EventLoop() as loop, OutputBuffer(write, loop, limit=1 << 12) as output:
        got, numbers = b"", 0
        for _ in range(3000):
            for _ in range(chance.randrange(200)):
                output.write(b"%d\n" % numbers)
                numbers += 1
            loop.run_once(0)
            if chance.random() < 0.05:
                got += read_all(read)
        for _ in range(100):
            got += read_all(read)
            loop.run_once(0)
        lost = output.lost
        notes = [int(dropped) for dropped in re.findall(rb"\[(\d+) bytes were dropped\]", got)]
        assert sum(notes) == lost
        at = 0
        for piece in re.split(rb"(\[\d+ bytes were dropped\])", got):
            if piece.startswith(b"["):
                left = int(piece[1:].split()[0])
                while left > 0:
                    left -= len(b"%d\n" % at)
                    at += 1
                assert left == 0
            else:
                for line in piece.split():
                    assert int(line) == at
                    at += 1
        assert at == numbers
    os.close(read)
    os.close(write)


def test_closing_an_output_ends_in_time() -> None:
    read, write = os.pipe()
    with EventLoop() as loop:
        output = OutputBuffer(write, loop)
        output.write(b"last words")
        output.close()
        output.close()
        assert read_all(read) == b"last words"
        stuck = OutputBuffer(write, loop)
        for _ in range(40):
            stuck.write(bytes(4096))
            loop.run_once(0)
        held = len(stuck)
        stuck.close(0.05)
        assert stuck.lost >= held > 0
        assert stuck.write(b"x") == 0
    os.close(read)
    os.close(write)


def end_of(kind: str, folder: Path) -> tuple[int, ...]:
    """Something to write to, and the descriptor that nobody reads at its other end."""
    if kind == "terminal":
        return os.openpty()[::-1]
    if kind == "file":
        return (os.open(folder / "output", os.O_RDWR | os.O_CREAT),)
    return tuple(end.detach() for end in socket.socketpair())


@pytest.mark.parametrize("kind", ["terminal", "file", "socket"])
def test_output_never_waits_whatever_it_goes_to(kind: str, tmp_path: Path) -> None:
    ends = end_of(kind, tmp_path)
    with EventLoop() as loop:
        output = OutputBuffer(ends[0], loop)
        for _ in range(1000):
            output.write(bytes(997))
            assert len(output) <= LIMIT
        for _ in range(100):
            loop.run_once(0)
        if kind == "file":
            assert os.fstat(ends[0]).st_size > LIMIT // 2
        assert os.get_blocking(ends[0]), "its other users do not expect that"
        output.close(0.05)
    for end in ends:
        os.close(end)
