"""Bus lookups, UART bytes and wake-ups of the event loop, beside vm-device, vm-superio and asyncio. Prints JSON.

`python benchmarks/device.py [--count N] [--rounds N] [--no-rust]`. The Rust peer is built into a temporary folder.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm_device import Bus, BusRange, EventLoop, IoManager, Serial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PEER = Path(__file__).parent / "peers" / "device"
BASE, STRIDE = 0x10000000, 0x1000
SIZES = (1, 16, 256)


class Silent:
    """A device that answers with the least work."""

    def read(self, offset: int, buffer: memoryview) -> None:  # noqa: ARG002 - the bus hands it to every device
        """Answer."""
        buffer[0] = 1

    def write(self, offset: int, data: memoryview) -> None:
        """Take it."""


class Quiet:
    """An interrupt and an output that cost nothing."""

    def trigger(self) -> None:
        """Take an edge."""

    def write(self, data: bytes) -> None:
        """Take a byte."""


def ours(kind: str, devices: int, count: int) -> float:
    """Nanoseconds per operation."""
    spans = [BusRange(BASE + number * STRIDE, STRIDE) for number in range(devices)]
    addresses = [BASE + number % max(devices, 1) * STRIDE + 4 for number in range(min(count, 256))] * (
        count // 256 or 1
    )
    buffer = memoryview(bytearray(4))
    serial = Serial(Quiet(), Quiet())
    byte = memoryview(b"x")
    if kind == "lookup":
        bus = Bus()
        for span in spans:
            bus.register(span, Silent())
        device = bus.device
        start = time.perf_counter_ns()
        for address in addresses:
            device(address)
    elif kind == "dispatch":
        io = IoManager()
        for span in spans:
            io.register_mmio(Silent(), [span])
        read = io.mmio_read
        start = time.perf_counter_ns()
        for address in addresses:
            read(address, buffer)
    elif kind == "transmit":
        write = serial.write
        start = time.perf_counter_ns()
        for _ in addresses:
            write(0, byte)
    else:
        chunk, take = b"x" * 64, serial.read
        one = buffer[:1]
        start = time.perf_counter_ns()
        for _ in range(len(addresses) // 64):
            serial.enqueue(chunk)
            for _ in range(64):
                take(0, one)
    return (time.perf_counter_ns() - start) / len(addresses)


def rust(command: str) -> Callable[[str, int, int], float]:
    """Return the peer as a function like `ours`; it runs longer, for a clock to see it."""

    def measure(kind: str, devices: int, count: int) -> float:
        words = [command, kind, str(devices), str(count * 20)]
        return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)

    return measure


def build(folder: str) -> tuple[str, str]:
    """Build the peer; returns its path, or why there is none."""
    if shutil.which("cargo") is None:
        return "", "cargo is not installed"
    command = ["cargo", "build", "--release", "--quiet", "--manifest-path", str(PEER / "Cargo.toml")]
    done = subprocess.run([*command, "--target-dir", folder], check=False, capture_output=True, text=True)
    if done.returncode:
        return "", f"the peer did not build: {done.stderr[-400:]}"
    return str(Path(folder) / "release" / "device-loop"), ""


def compare(peer: Callable[[str, int, int], float] | None, kind: str, devices: int, count: int, rounds: int) -> object:
    """Medians over rounds in which both take their turn, so that noise meets both alike."""
    table = []
    for _ in range(rounds):
        table.append((ours(kind, devices, count), peer(kind, devices, count) if peer is not None else None))
    mine = statistics.median(own for own, _ in table)
    result = {"ns": round(mine, 1), "per_second": round(1e9 / mine)}
    if peer is not None:
        others = [other for _, other in table if other is not None]
        result["rust_ns"] = round(statistics.median(others), 1)
        result["times_rust"] = round(statistics.median(own / other for own, other in table if other), 1)
    return result


@contextlib.contextmanager
def busy(interval: float | None) -> Iterator[None]:
    """Run a Python thread that computes all the time, with a switch interval; None is no such thread."""
    if interval is None:
        yield
        return
    running, before = True, sys.getswitchinterval()

    def compute() -> None:
        while running:
            sum(range(100))

    sys.setswitchinterval(interval)
    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        running = False
        thread.join()
        sys.setswitchinterval(before)


def wakes(count: int, start_loop: Callable[[int, Callable[[], object]], Callable[[], object]]) -> dict[str, float]:
    """Microseconds from a write to an eventfd in one thread to its handler in the loop's."""
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    arrived, samples = threading.Event(), []
    begun = [0]

    def handler() -> None:
        samples.append((time.perf_counter_ns() - begun[0]) / 1e3)
        os.eventfd_read(fd)
        arrived.set()

    stop = start_loop(fd, handler)
    for _ in range(count):
        time.sleep(0.0005)
        arrived.clear()
        begun[0] = time.perf_counter_ns()
        os.eventfd_write(fd, 1)
        arrived.wait()
    stop()
    os.close(fd)
    samples.sort()
    return {"p50_us": round(samples[count // 2], 1), "p99_us": round(samples[count * 99 // 100], 1)}


def our_loop(fd: int, handler: Callable[[], object]) -> Callable[[], object]:
    """Run an `EventLoop` in a thread."""
    loop = EventLoop()
    loop.add_reader(fd, handler)
    thread = threading.Thread(target=loop.run)
    thread.start()

    def stop() -> None:
        loop.stop()
        thread.join()
        loop.close()

    return stop


def asyncio_loop(fd: int, handler: Callable[[], object]) -> Callable[[], object]:
    """Return the peer from the standard library."""
    loop = asyncio.new_event_loop()
    loop.add_reader(fd, handler)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def stop() -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    return stop


def latencies(count: int) -> dict[str, object]:
    """Both loops, idle and beside a busy thread."""
    report: dict[str, object] = {}
    for name, interval in (("idle", None), ("busy", 0.005), ("busy_switching_every_100_us", 0.0001)):
        with busy(interval):
            mine, other = wakes(count, our_loop), wakes(count, asyncio_loop)
        ratio = round(mine["p50_us"] / other["p50_us"], 2)
        report[name] = {"pyvmm_device": mine, "asyncio": other, "p50_against_asyncio": ratio}
    return report


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-rust", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, why = ("", "not asked for") if options.no_rust else build(folder)
        peer = rust(path) if path else None
        report: dict[str, object] = {"rust_peer": "vm-device 0.1, vm-superio 0.8" if path else why}
        for kind in ("lookup", "dispatch"):
            report[f"bus_{kind}"] = {
                str(size): compare(peer, kind, size, options.count, options.rounds) for size in SIZES
            }
        report["uart_bytes"] = {
            kind: compare(peer, kind, 0, options.count, options.rounds) for kind in ("transmit", "receive")
        }
    report["event_loop_wake"] = latencies(min(1000, options.count))
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
