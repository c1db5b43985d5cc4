"""An error that leaves its room, of devices without queues: whatever a device calls, nothing comes out of it again.

Lines, callbacks and outputs that raise, under every device of the code, are a counted event: the guest's access, the
timer and the restore that led to the call end as if nothing had happened.
"""

import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.hostile.devices import DEVICES, NOT_ALONE, Case, Output, device_classes, made_by

from pyvmm_device import DebugPort, EventLoop, ManualClock, Pl011, Serial
from pyvmm_device.output import OutputBuffer

ERRORS = [OSError(28, "No space left on device"), ValueError("write to closed file"), RuntimeError("of its own")]


class Broken(Output):
    """Nothing of it works."""

    def __init__(self, error: Exception) -> None:
        self.calls = 0
        self.error = error
        self.events = self  # type: ignore[assignment]  # a callback is its `append`

    def fail(self, *_: object) -> None:
        self.calls += 1
        raise self.error

    def write(self, data: bytes) -> None:
        self.fail()

    append = trigger = assert_ = clear = fail


def attack(case: Case, output: Output, seed: int) -> object:
    chance, clock = random.Random(seed), ManualClock()
    device = case.make(output, clock)
    for _ in range(500):
        offset, length = chance.randrange(case.size), chance.choice((1, 1, 2, 4, 8))
        buffer = memoryview(bytearray(chance.randbytes(length)))
        (device.read if chance.random() < 0.4 else device.write)(offset, buffer)
        if chance.random() < 0.1:
            case.outside(device, chance.randrange(256))
            clock.advance(chance.randrange(1 << 29))
        if chance.random() < 0.02:
            device.restore(json.loads(json.dumps(device.state())))
        if chance.random() < 0.01:
            device.reset()
    return device.state()


@pytest.mark.parametrize("error", ERRORS, ids=[type(error).__name__ for error in ERRORS])
@pytest.mark.parametrize("case", DEVICES.values(), ids=DEVICES)
def test_what_a_device_calls_may_fail(case: Case, error: Exception) -> None:
    broken = Broken(error)
    assert attack(case, broken, 1) == attack(case, Output(), 1)


def test_every_device_is_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = device_classes()
    made: set[type] = set()
    for case in DEVICES.values():
        made |= made_by(monkeypatch, case, classes)
    assert {one.__name__ for one in classes - made} == NOT_ALONE


PUTS: dict[str, Callable[[Callable[[bytes], object]], tuple[Callable[[bytes], None], Callable[[], int]]]] = {}


def puts(name: str) -> Callable[..., object]:
    def add(make: Callable[..., object]) -> Callable[..., object]:
        PUTS[name] = make  # type: ignore[assignment]
        return make

    return add


class To:
    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.write = write


class NoLine:
    def trigger(self) -> None:
        pass


@puts("Serial")
def _serial(write: Callable[[bytes], object]) -> object:
    serial = Serial(NoLine(), To(write))
    return lambda data: serial.write(0, memoryview(data)), lambda: serial.lost_output


@puts("Serial that interrupts")
def _interrupting(write: Callable[[bytes], object]) -> object:
    serial = Serial(NoLine(), To(write))
    serial.write(1, memoryview(b"\x02"))
    return lambda data: serial.write(0, memoryview(data)), lambda: serial.lost_output


@puts("Pl011")
def _pl011(write: Callable[[bytes], object]) -> object:
    uart = Pl011(NoLine(), To(write))
    return lambda data: uart.write(0, memoryview(data)), lambda: uart.lost_output


@puts("DebugPort")
def _debug(write: Callable[[bytes], object]) -> object:
    port = DebugPort(write)
    return lambda data: port.write(0, memoryview(data)), lambda: port.lost_output


@pytest.mark.parametrize("make", PUTS.values(), ids=PUTS)
def test_bytes_that_are_refused_are_counted_and_the_first_is_logged(
    make: Callable[..., tuple[Callable[[bytes], None], Callable[[], int]]], caplog: pytest.LogCaptureFixture
) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        put, lost = make(full.write)
        for _ in range(100):
            put(b"x")
    put(b"x")  # and closed
    assert lost() == 101
    assert caplog.text.count("refused") == 1


@pytest.mark.parametrize("make", PUTS.values(), ids=PUTS)
def test_bytes_that_a_full_pipe_does_not_take_are_counted(
    make: Callable[..., tuple[Callable[[bytes], None], Callable[[], int]]],
) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    with open(read, "rb"), open(write, "wb", buffering=0) as pipe:
        assert isinstance(pipe, io.RawIOBase)
        while pipe.write(bytes(4096)):
            pass
        put, lost = make(pipe.write)
        put(b"x")
        put(b"y")
        assert lost() == 2


def test_a_full_disk_under_a_buffer_is_counted(tmp_path: Path) -> None:
    with EventLoop() as loop, open("/dev/full", "wb", buffering=0) as full, OutputBuffer(full.fileno(), loop) as output:
        assert output.write(b"abc") == 3
        for _ in range(3):
            loop.run_once(0)
        assert output.lost == 3
        assert not loop.errors
    path = tmp_path / "out"
    with EventLoop() as loop, path.open("wb") as file, OutputBuffer(file.fileno(), loop) as output:
        output.write(b"to a file")
        loop.run_once(0)
        loop.run_once(0)
        assert path.read_bytes() == b"to a file"
