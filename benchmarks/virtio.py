"""Virtqueues beside rust-vmm's virtio-queue, in its own benchmark's operations, and whole requests. Prints JSON.

`python benchmarks/virtio.py [--rounds N] [--no-rust]`. The Rust peer is built into a temporary folder. One operation is
what virtio-queue times: 1 chain of 128 descriptors, 128 chains of 1, each direct or by indirect tables, and 128 chains
given back. Packed rings, which the peer does not have, stand beside our split ones. `requests` is a whole way: a driver
in Python offers, kicks and collects, and a device takes and gives back.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm_memory import GuestMemoryMmap
from pyvmm_virtio.device import VirtioDevice
from pyvmm_virtio.driver import drive
from pyvmm_virtio.driver.arena import Arena
from pyvmm_virtio.driver.rings import PackedRing, Ring, SplitRing
from pyvmm_virtio.queue import PackedQueue, SplitQueue

if TYPE_CHECKING:
    from collections.abc import Callable

PEER = Path(__file__).parent / "peers" / "virtio"
KINDS = ("single", "single-indirect", "multiple", "multiple-indirect", "used")
SIZE = 256
TURNS = 20
"""Operations of ours in one measurement; the peer runs a hundred times as many, for a clock to see them."""


class Takes(VirtioDevice):
    """Gives every chain back at once."""

    device_type = 42
    queue_max_sizes = (SIZE,)

    def process_queue(self, index: int) -> None:
        """Take and give back."""
        for chain in self.chains(index):
            self.complete(index, chain, 0)


def filled(kind: str, ring_kind: type[Ring], memory: GuestMemoryMmap) -> tuple[Ring, SplitQueue | PackedQueue]:
    """Make a ring in which a driver has put what an operation takes, and the device's side of it."""
    arena = Arena(memory, 0x10000, 16 << 20)
    ring = ring_kind(arena, SIZE, event_idx=False, indirect=kind.endswith("indirect"), in_order=False)
    chains, length = (1, 128) if kind.startswith("single") else (128, 1)
    for _ in range(chains):
        # an indirect table of one descriptor has to be asked for
        buffers = [(0x100000, 0x1000, 0)] * length
        if ring.indirect and length == 1:
            table, size = ring.write_table(buffers, links=ring_kind is SplitRing)
            buffers = [(table, size, 4)]
        ring.add(buffers)
    queue = (SplitQueue if ring_kind is SplitRing else PackedQueue)(SIZE)
    queue.set_desc_table_address(ring.desc)
    queue.set_avail_ring_address(ring.driver_area)
    queue.set_used_ring_address(ring.device_area)
    queue.set_ready(True)
    return ring, queue


def ours(kind: str, ring_kind: type[Ring]) -> float:
    """Nanoseconds per operation, the shortest of a row."""
    best = float("inf")
    with GuestMemoryMmap.from_ranges([(0, 32 << 20)]) as memory:
        ring, queue = filled(kind, ring_kind, memory)
        before = queue.state()
        for _ in range(TURNS):
            queue.restore(before)
            queue.is_valid(memory)
            heads = [queue.pop_descriptor_chain(memory) for _ in range(128)] if kind == "used" else []
            start = time.perf_counter_ns()
            if kind == "used":
                for chain in heads:
                    queue.add_used(memory, chain.head_index if chain else 0, 0x1000)
            else:
                seen = 0
                for chain in queue.iter(memory):
                    for _ in chain.raw:
                        seen += 1
                assert seen == 128
            best = min(best, time.perf_counter_ns() - start)
            if kind == "used" and ring_kind is PackedRing:
                # what was given back has to be offered again
                ring.close()
                queue.release()
                ring, queue = filled(kind, ring_kind, memory)
                before = queue.state()
        ring.close()
        queue.release()
    return best


def requests(ring: str, *, indirect: bool, seconds: float) -> dict[str, float]:
    """Chains per second through MMIO, 64 deep, of two buffers each."""
    with drive(Takes(), "mmio", ring, indirect=indirect) as driver:
        buffers = [(0x2000000, 16, 0), (0x2001000, 4096, 2)]
        count, end = 0, time.perf_counter() + seconds
        start = time.perf_counter()
        while time.perf_counter() < end:
            for _ in range(64):
                driver.submit_buffers(0, buffers, kick=False)
            driver.kick(0)
            count += len(driver.poll(0))
        return {"chains_per_second": round(count / (time.perf_counter() - start))}


def rust(command: str) -> Callable[[str], float]:
    """Return the peer as a function."""

    def measure(kind: str) -> float:
        done = subprocess.run([command, kind, str(TURNS * 100)], check=True, capture_output=True, text=True)
        return float(done.stdout)

    return measure


def build(folder: str) -> tuple[str, str]:
    """Build the peer; returns its path, or why there is none."""
    if shutil.which("cargo") is None:
        return "", "cargo is not installed"
    command = ["cargo", "build", "--release", "--quiet", "--manifest-path", str(PEER / "Cargo.toml")]
    done = subprocess.run([*command, "--target-dir", folder], check=False, capture_output=True, text=True)
    if done.returncode:
        return "", f"the peer did not build: {done.stderr[-400:]}"
    return str(Path(folder) / "release" / "queue-loop"), ""


def compare(peer: Callable[[str], float] | None, kind: str, rounds: int) -> dict[str, float]:
    """Medians over rounds in which each takes its turn, so that noise meets all alike."""
    chains = 1 if kind.startswith("single") else 128
    splits, packeds, peers = [], [], []
    for _ in range(rounds):
        splits.append(ours(kind, SplitRing))
        packeds.append(ours(kind, PackedRing))
        peers += [peer(kind)] if peer else []
    split, packed = statistics.median(splits), statistics.median(packeds)
    result: dict[str, float] = {
        "split_ns": round(split),
        "packed_ns": round(packed),
        "split_chains_per_second": round(1e9 * chains / split),
        "packed_chains_per_second": round(1e9 * chains / packed),
        "packed_times_split": round(packed / split, 2),
    }
    if peer is not None:
        theirs = statistics.median(peers)
        result["rust_ns"] = round(theirs)
        result["split_times_rust"] = round(split / theirs, 1)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each operation (%(default)s)")
    parser.add_argument("--no-rust", action="store_true", help="do not build the peer")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command, missing = ("", "not asked for") if arguments.no_rust else build(folder)
        peer = rust(command) if command else None
        report: dict[str, object] = {kind: compare(peer, kind, arguments.rounds) for kind in KINDS}
        if not command:
            report["rust"] = missing
    report["requests"] = {
        f"{ring}{' indirect' * indirect}": requests(ring, indirect=indirect, seconds=0.2 * arguments.rounds)
        for ring in ("split", "packed")
        for indirect in (False, True)
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
