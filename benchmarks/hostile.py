"""What a guest's attacks on its own devices cost everybody else. Prints JSON.

python benchmarks/hostile.py [--seconds N] [--minutes N] [--shared] [ATTACK...]

Each attack of `benchmarks/attacks.py` runs for 30 seconds in a process of its own, beside an event loop with a serial
line. The device that is attacked does its work in an I/O thread, as in the example, or with `--shared` in the event
loop itself. Measured are: how late the event loop wakes (ms, at p50, p99 and most), how long what is typed takes to
come back by the serial line (ms), how fast resident memory grows (KiB a second), how many bytes the guest made us read
and write, and how many steps the attack made, both in a second. The first line of the result, "nobody", is the same
without an attack: the peer of the same run. `--minutes` runs only the attacks on memory, for so long.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.attacks import ATTACKS, Attack

from pyvmm_device import EventLoop, IoThread, Serial
from pyvmm_virtio.driver.driver import DriverError

if TYPE_CHECKING:
    from collections.abc import Callable

WAKE_SECONDS = 0.005
ECHO_SECONDS = 0.05
SWITCH_SECONDS = 0.0005
"""As the example sets it: how long a busy thread may keep the others waiting."""
MEMORY_SECONDS = 0.25


class Waker:
    """Asks the loop to be woken, and notes how late that was, in ms."""

    def __init__(self, loop: EventLoop) -> None:
        self.loop = loop
        self.late: list[float] = []
        self.ask()

    def ask(self) -> None:
        """Ask once more."""
        self.due = time.perf_counter() + WAKE_SECONDS
        self.loop.call_later(WAKE_SECONDS, self.woken)

    def woken(self) -> None:
        """Note it."""
        self.late.append((time.perf_counter() - self.due) * 1e3)
        self.ask()


class Echo:
    """A serial line: what is typed goes through the loop to a guest, who reads and writes it in a thread of its own."""

    def __init__(self, loop: EventLoop) -> None:
        self.loop = loop
        self.took: list[float] = []
        self.typed = 0.0
        self.rings = threading.Semaphore(0)
        self.serial = Serial(self, self)
        self.serial.write(1, memoryview(b"\x01"))  # an interrupt for each byte that is received
        threading.Thread(target=self.guest, daemon=True).start()
        self.ask()

    def ask(self) -> None:
        """Type again in a while."""
        self.loop.call_later(ECHO_SECONDS, self.type)

    def type(self) -> None:
        """Type a byte."""
        self.typed = time.perf_counter()
        self.serial.enqueue(b"x")

    def trigger(self) -> None:
        """Interrupt the guest."""
        self.rings.release()

    def guest(self) -> None:
        """Give back what comes."""
        byte = bytearray(1)
        while True:
            self.rings.acquire()
            self.serial.read(5, memoryview(byte))
            if byte[0] & 1:
                self.serial.read(0, memoryview(byte))
                self.serial.write(0, memoryview(bytes(byte)))

    def write(self, data: bytes) -> int:
        """Take what comes back, as the console."""
        self.took.append((time.perf_counter() - self.typed) * 1e3)
        self.loop.call_soon(self.ask)
        return len(data)

    def flush(self) -> None:
        """Have nothing to flush."""


def attack_for(attack: Attack, vcpu: int, until: float, steps: list[int]) -> None:
    """Be a vCPU that attacks."""
    while time.monotonic() < until:
        with contextlib.suppress(DriverError):  # a device that says that it had enough is what we want
            attack.turn(vcpu)
        steps[vcpu] += 1


def moved() -> int:
    """Return how many bytes this process has read and written by system calls."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"]) + int(lines["wchar"])


def resident() -> float:
    """Return this process's resident memory in KiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


def slope(samples: list[tuple[float, float]]) -> float:
    """Return how fast a value grows in the second half of the time."""
    late = samples[len(samples) // 2 :]
    return statistics.linear_regression(*zip(*late, strict=True)).slope if len(late) > 1 else 0.0


def quantile(values: list[float], part: float) -> float:
    """Return a quantile, or minus one where there is no value."""
    ordered = sorted(values)  # a copy: more come meanwhile
    return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 3) if ordered else -1.0


def measure(make: Callable[[EventLoop], Attack] | None, seconds: float, *, shared: bool) -> dict[str, float]:
    """Run one attack and return what it cost."""
    sys.setswitchinterval(SWITCH_SECONDS)
    logging.disable()
    loop = EventLoop()
    thread = None if shared else IoThread("attacked")
    attack = make(thread.loop if thread else loop) if make else None
    waker, echo = Waker(loop), Echo(loop)
    threading.Thread(target=loop.run, daemon=True).start()
    count = attack.threads if attack else 0
    steps = [0] * count
    begin, begun = time.monotonic(), moved()
    vcpus = [
        threading.Thread(target=attack_for, args=(attack, number, begin + seconds, steps), daemon=True)
        for number in range(count)
    ]
    for vcpu in vcpus:
        vcpu.start()
    samples = []
    while (now := time.monotonic()) < begin + seconds:
        samples.append((now - begin, resident()))
        time.sleep(MEMORY_SECONDS)
    return {
        "wake_p50_ms": quantile(waker.late, 0.5),
        "wake_p99_ms": quantile(waker.late, 0.99),
        "wake_most_ms": quantile(waker.late, 1),
        "echo_p50_ms": quantile(echo.took, 0.5),
        "echo_p99_ms": quantile(echo.took, 0.99),
        "echoes": len(echo.took),
        "memory_KiB_per_second": round(slope(samples), 1),
        "memory_MiB": round(samples[-1][1] / 1024, 1),
        "moved_MB_per_second": round((moved() - begun) / seconds / 1e6, 1),
        "steps_per_second": round(sum(steps) / seconds, 1),
    }


def in_child(name: str, seconds: float, *, shared: bool) -> dict[str, float]:
    """Measure in a process of its own, which is not asked to end in order: its threads may be anywhere."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            result = measure(ATTACKS.get(name), seconds, shared=shared)
            os.write(write_end, json.dumps(result).encode())
        except BaseException:  # noqa: BLE001 - shown here, for the process ends without
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as file:
        said = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not said:
        raise SystemExit(f"the attack {name} ended its process, status {status}")
    result = json.loads(said)
    return dict(result)


def main() -> None:
    """Read the command line, attack, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=f"of {', '.join(ATTACKS)} (all)")
    parser.add_argument("--seconds", type=float, default=30, help="for each (%(default)g)")
    parser.add_argument("--minutes", type=float, help="run only the attacks on memory, each for so long")
    parser.add_argument("--shared", action="store_true", help="one event loop for the device and all others")
    asked = parser.parse_args()
    unknown = set(asked.attacks) - set(ATTACKS)
    if unknown:
        parser.error(f"no attack {', '.join(sorted(unknown))}: there are {', '.join(ATTACKS)}")
    names = asked.attacks or [name for name, kind in ATTACKS.items() if not asked.minutes or kind.grows]
    seconds = asked.minutes * 60 if asked.minutes else asked.seconds
    results = {}
    for name in ["nobody", *names]:
        print(f"{name}: {seconds:g} s ...", file=sys.stderr, flush=True)
        results[name] = in_child(name, min(seconds, 30) if name == "nobody" else seconds, shared=asked.shared)
    print(json.dumps({"device in": "the event loop" if asked.shared else "an I/O thread", **results}, indent=2))


if __name__ == "__main__":
    main()
