"""Exits per second of our run loop, a bare C loop and kvm-ioctls in one run; registers; kicks. Prints JSON.

`python benchmarks/kvm.py [--count N] [--rounds N] [--no-rust]`. Peers are built into a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm_kvm import (
    Hlt,
    IoEventAddress,
    IoOut,
    Kvm,
    MmioWrite,
    RunControl,
    VcpuExit,
    VcpuFd,
    VmFd,
    setup_real_mode,
    vcpu,
)
from pyvmm_kvm._kvm import lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PEERS = Path(__file__).parent / "peers" / "kvm"
CODE = {"pio": "e610ebfc", "mmio": "a200f0ebfb", "spin": "ebfe"}


class Machine:
    """One vCPU with a small real-mode program."""

    def __init__(self, code: bytes) -> None:
        self.memory = mmap.mmap(-1, 0x10000)
        self.memory[0x1000 : 0x1000 + len(code)] = code
        self.kvm = Kvm()
        self.vm: VmFd = self.kvm.create_vm()
        self.vm.set_user_memory_region(0, 0, self.memory)
        self.vcpu: VcpuFd = self.vm.create_vcpu(0)
        setup_real_mode(self.vcpu, 0x1000)
        sregs = self.vcpu.get_sregs()
        sregs.ds.base, sregs.ds.selector = 0x20000, 0x2000
        self.vcpu.set_sregs(sregs)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.vcpu.close()
        self.vm.close()
        self.kvm.close()
        self.memory.close()


def ours(kind: str, count: int) -> float:
    """Nanoseconds for `count` exits, each looked at the way a loop does that has no time to lose."""
    if kind == "ioeventfd":
        return ours_ioeventfd(count)
    total = 0
    with Machine(bytes.fromhex(CODE[kind])) as machine:
        run = machine.vcpu.run
        start = time.perf_counter_ns()
        for _ in range(count):
            exit_ = run()
            if type(exit_) is IoOut:
                total += exit_.port + exit_.data[0]
            elif type(exit_) is MmioWrite:
                total += exit_.addr + exit_.data[0]
        return time.perf_counter_ns() - start


def ours_by_match(kind: str, count: int) -> float:
    """Do the same with the patterns that read best, for each of which CPython makes a set, a list and a tuple."""
    if kind == "ioeventfd":
        return ours_ioeventfd(count)
    total = 0
    with Machine(bytes.fromhex(CODE[kind])) as machine:
        run = machine.vcpu.run
        start = time.perf_counter_ns()
        for _ in range(count):
            match run():
                case IoOut(port, data):
                    total += port + data[0]
                case MmioWrite(addr, data):
                    total += addr + data[0]
        return time.perf_counter_ns() - start


def ours_ioeventfd(count: int) -> float:
    """Let the guest count to `count` by itself; the kernel takes its writes."""
    code = b"\x66\xb9" + count.to_bytes(4, "little") + bytes.fromhex("e610664975faf4")
    event = os.eventfd(0, os.EFD_NONBLOCK)
    with Machine(code) as machine:
        machine.vm.register_ioevent(event, IoEventAddress.Pio(0x10))
        start = time.perf_counter_ns()
        exit_ = machine.vcpu.run()
        spent = time.perf_counter_ns() - start
        assert isinstance(exit_, Hlt), exit_
    os.close(event)
    return spent


def python_part(count: int = 200_000) -> dict[str, float]:
    """Median nanoseconds of `run()` and a look at the exit, when KVM_RUN itself is a Python call that does nothing."""
    real = vcpu._run
    code = lib.PYVMM_IO_OUT | 1 << lib.PYVMM_LENGTH_SHIFT | 0x10 << lib.PYVMM_ADDRESS_SHIFT

    def nothing(address: int) -> int:  # noqa: ARG001 - called in place of the compiled one
        return code

    def by_type(run: Callable[[], VcpuExit], times: int) -> None:
        for _ in range(times):
            exit_ = run()
            if type(exit_) is IoOut:
                exit_.port + exit_.data[0]

    def by_match(run: Callable[[], VcpuExit], times: int) -> None:
        for _ in range(times):
            match run():
                case IoOut(port, data):
                    port + data[0]

    samples: dict[str, list[float]] = {"by_type": [], "by_match": []}
    with Machine(bytes.fromhex(CODE["pio"])) as machine:
        vcpu._run = nothing
        try:
            for _ in range(20):
                for loop in (by_type, by_match):
                    start = time.perf_counter_ns()
                    loop(machine.vcpu.run, count // 20)
                    samples[loop.__name__].append((time.perf_counter_ns() - start) / (count // 20))
        finally:
            vcpu._run = real
    return {name: round(statistics.median(values)) for name, values in samples.items()}


def registers(count: int = 5000) -> dict[str, float]:
    """Microseconds for one read and one write of the general registers."""
    with Machine(bytes.fromhex(CODE["spin"])) as machine:
        start = time.perf_counter_ns()
        for _ in range(count):
            regs = machine.vcpu.get_regs()
        read = time.perf_counter_ns() - start
        start = time.perf_counter_ns()
        for _ in range(count):
            machine.vcpu.set_regs(regs)
        write = time.perf_counter_ns() - start
    with Machine(bytes.fromhex(CODE["pio"])) as machine:
        machine.vcpu.set_sync_valid_reg(machine.vcpu.SYNC_REGS)
        machine.vcpu.run()
        shared, _, _ = machine.vcpu.sync_regs()
        start = time.perf_counter_ns()
        for _ in range(count):
            machine.vcpu.run()
            shared.rip  # noqa: B018 - the read is what is measured
        synced = time.perf_counter_ns() - start
        machine.vcpu.clear_sync_valid_reg(machine.vcpu.SYNC_REGS)
        start = time.perf_counter_ns()
        for _ in range(count):
            machine.vcpu.run()
            machine.vcpu.get_regs().rip  # noqa: B018 - reading it is what is timed
        fetched = time.perf_counter_ns() - start
    both = {"exit_and_sync_regs_us": synced / count / 1e3, "exit_and_get_regs_us": fetched / count / 1e3}
    return both | {"get_regs_us": read / count / 1e3, "set_regs_us": write / count / 1e3}


def kicks(count: int = 1000) -> dict[str, float]:
    """Microseconds from `kick()` to the handler, for a guest that never exits by itself."""
    seen = threading.Semaphore(0)
    arrived = [0]

    def handler(_vcpu: VcpuFd, _exit: object) -> None:
        arrived[0] = time.perf_counter_ns()
        seen.release()

    samples = []
    with Machine(bytes.fromhex(CODE["spin"])) as machine, RunControl([machine.vcpu], handler) as control:
        control.start()
        for _ in range(count):
            time.sleep(0.0003)
            start = time.perf_counter_ns()
            control.kick()
            seen.acquire()
            samples.append((arrived[0] - start) / 1e3)
    samples.sort()
    return {"p50_us": samples[count // 2], "p99_us": samples[count * 99 // 100]}


def build(folder: Path, rust: bool) -> dict[str, list[str]]:
    """Return the commands of the peers that can be built here."""
    commands = {}
    if shutil.which("cc"):
        subprocess.run(["cc", "-O2", "-o", folder / "loop", PEERS / "loop.c"], check=True)
        commands["c"] = [str(folder / "loop")]
    if rust and shutil.which("cargo"):
        command = ["cargo", "build", "--release", "--quiet", "--manifest-path", PEERS / "Cargo.toml"]
        result = subprocess.run(
            [*map(str, command), "--target-dir", str(folder / "target")], check=False, capture_output=True, text=True
        )
        if result.returncode:
            print(json.dumps({"rust_peer": "did not build", "why": result.stderr[-400:]}))
        else:
            commands["kvm_ioctls"] = [str(folder / "target" / "release" / "kvm-loop")]
    return commands


def peer(command: list[str]) -> Callable[[str, int], float]:
    """Return a peer as a function like `ours`."""

    def measure(kind: str, count: int) -> float:
        return float(subprocess.run([*command, kind, str(count)], check=True, capture_output=True, text=True).stdout)

    return measure


def rounds(
    loops: dict[str, Callable[[str, int], float]], kind: str, count: int, times: int
) -> Iterator[dict[str, float]]:
    """Run rounds in which every loop takes its turn, so that noise meets all alike."""
    for _ in range(times):
        yield {name: loop(kind, count) / count for name, loop in loops.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-rust", action="store_true")
    options = parser.parse_args()
    report: dict[str, object] = {"python_part_of_an_exit_ns": python_part()}
    with tempfile.TemporaryDirectory() as folder:
        commands = build(Path(folder), not options.no_rust)
        loops: dict[str, Callable[[str, int], float]] = {"pyvmm_kvm": ours, "pyvmm_kvm_match": ours_by_match}
        loops |= {name: peer(command) for name, command in commands.items()}
        for kind in ("pio", "mmio", "ioeventfd"):
            table = list(rounds(loops, kind, options.count, options.rounds))
            medians = {name: statistics.median(row[name] for row in table) for name in loops}
            report[kind] = {
                "ns_per_exit": {name: round(value) for name, value in medians.items()},
                "exits_per_second": {name: round(1e9 / value) for name, value in medians.items()},
                "our_rate_against": {
                    name: round(statistics.median(row[name] / row["pyvmm_kvm"] for row in table), 3)
                    for name in loops
                    if name != "pyvmm_kvm"
                },
            }
    report["registers"] = {name: round(value, 2) for name, value in registers().items()}
    report["kick"] = {name: round(value, 1) for name, value in kicks().items()}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
