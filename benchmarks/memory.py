"""Guest memory beside raw `mmap` slicing and, where cargo is, the vm-memory crate, in one run. Prints JSON.

python benchmarks/memory.py [--no-rust] [--rounds N]

`targets` has the ratios that the package promises; `operations` the fourteen of vm-memory's own benchmark at its four
places (the first and the last of eight regions of 2 GiB, and across two borders), all in nanoseconds, the least of
many short runs.
"""

from __future__ import annotations

import argparse
import io
import json
import mmap
import os
import shutil
import subprocess
import tempfile
import time
import timeit
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm_memory import GuestMemoryMmap, HostRefused, Snapshot, VolatileSlice, save
from pyvmm_memory.access import COMPILED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PEER = Path(__file__).parent / "peers" / "memory"
REGION = 0x8000_0000
ACCESS = 0x200
PLACES = {"first": (0, False), "cross_0": (0, True), "cross_6": (6, True), "last": (7, False)}


class Timer:
    """The least time of one call over many short runs."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def __call__(self, statement: str, **names: object) -> float:
        """Nanoseconds of one statement."""
        timer = timeit.Timer(statement, globals=names)
        count = max(1, int(0.0004 / max(min(timer.repeat(3, 10)) / 10, 1e-9)))
        return min(timer.repeat(self.rounds, count)) / count * 1e9

    def paired(self, ours: str, theirs: str, **names: object) -> dict[str, float]:
        """Both in turns, so that a slow moment of the machine meets both."""
        timers = [timeit.Timer(statement, globals=names) for statement in (ours, theirs)]
        count = max(1, int(0.0004 / max(min(timers[1].repeat(3, 10)) / 10, 1e-9)))
        best = [float("inf")] * 2
        for _ in range(self.rounds):
            for index, timer in enumerate(timers):
                best[index] = min(best[index], timer.timeit(count) / count * 1e9)
        return {"ns": round(best[0], 1), "peer_ns": round(best[1], 1), "ratio": round(best[0] / best[1], 3)}


def scalars(timer: Timer) -> dict[str, dict[str, float]]:
    result: dict[str, dict[str, float]] = {}
    with GuestMemoryMmap.from_ranges([(0, 1 << 20), (1 << 32, 1 << 20)]) as memory, mmap.mmap(-1, 1 << 20) as raw:
        view = memoryview(raw)
        for bits, code in ((8, "B"), (16, "H"), (32, "I"), (64, "Q")):
            cells = view.cast("B").cast(code)  # type: ignore[call-overload]
            names = {"m": memory, "c": cells, "i": 4096 * 8 // bits}
            result[f"read_u{bits}"] = timer.paired(f"m.read_u{bits}(4096)", "c[i]", **names)
            result[f"write_u{bits}"] = timer.paired(f"m.write_u{bits}(5, 4096)", "c[i] = 5", **names)
            result[f"load_{bits}"] = timer.paired(f"m.load(4096, {bits // 8})", "c[i]", **names)
            result[f"store_{bits}"] = timer.paired(f"m.store(5, 4096, {bits // 8})", "c[i] = 5", **names)
            cells.release()
        view.release()
    return result


def slices(timer: Timer) -> dict[str, dict[str, float]]:
    result: dict[str, dict[str, float]] = {}
    with GuestMemoryMmap.from_ranges([(0, 32 << 20)]) as memory, mmap.mmap(-1, 32 << 20) as raw:
        memory.write_slice(b"x" * (32 << 20), 0)
        raw[:] = b"x" * (32 << 20)
        for size in (512, 64 << 10, 1 << 20, 16 << 20):
            target = bytearray(size)
            view = memoryview(target)
            names = {"m": memory, "r": memoryview(raw), "w": view, "t": target, "d": bytes(size), "e": 4096 + size}
            bare = size < 4096
            read = "r.obj[4096:e]" if bare else "w[:] = r[4096:e]"
            write = "r.obj[4096:e] = d" if bare else "r[4096:e] = d"
            result[f"read_slice_{size}"] = timer.paired("m.read_slice(t, 4096)", read, **names)
            result[f"write_slice_{size}"] = timer.paired("m.write_slice(d, 4096)", write, **names)
            names["r"].release()  # type: ignore[attr-defined]
            view.release()
    return result


def operations(timer: Timer) -> Iterator[tuple[str, float]]:
    names: dict[str, object] = {
        "n": ACCESS,
        "image": bytes(index % 256 for index in range(ACCESS)),
        "target": bytearray(ACCESS),
        "small": (0x33334444 << 32 | 0x11112222).to_bytes(8, "little"),
        "big": bytes(96),
        "Q12": "12Q",
        "II": "II",
    }
    statements = {
        "read_from": "m.read_volatile_from(a, image, n)",
        "read_from_file": "m.read_volatile_from(a, zero, n)",
        "read_exact_from": "m.read_exact_volatile_from(a, image, n)",
        "read_entire_slice_from": "m.read_slice(target, a)",
        "read_slice_from": "m.read(target, a)",
        "read_small_obj": "m.read_obj(II, s)",
        "read_big_obj": "m.read_obj(Q12, b)",
        "write_to": "m.write_volatile_to(a, target, n)",
        "write_to_file": "m.write_volatile_to(a, null, n)",
        "write_exact_to": "m.write_all_volatile_to(a, target, n)",
        "write_entire_slice_to": "m.write_slice(image, a)",
        "write_slice_to": "m.write(image, a)",
        "write_small_obj": "m.write_obj(small, s)",
        "write_big_obj": "m.write_obj(big, b)",
    }
    zero, null = os.open("/dev/zero", os.O_RDONLY), os.open("/dev/null", os.O_WRONLY)
    with GuestMemoryMmap.from_ranges([(index * REGION, REGION) for index in range(8)]) as memory:
        for place, (region, cross) in PLACES.items():

            def at(size: int, region: int = region, cross: bool = cross) -> int:
                return REGION * (region + 1) - size // 2 if cross else REGION * region

            for name, statement in statements.items():
                places = {"a": at(ACCESS), "s": at(8), "b": at(96)}
                yield f"{name}/{place}", timer(statement, m=memory, zero=zero, null=null, **names, **places)
    os.close(zero)
    os.close(null)


def others(timer: Timer) -> Iterator[tuple[str, float]]:
    with GuestMemoryMmap.from_ranges([(index << 20, 1 << 20) for index in range(256)]) as memory:
        yield (
            "find_region_256",
            timer("for a in p: f(a)", f=memory.find_region, p=[index << 20 for index in range(256)]),
        )
    whole, other = (VolatileSlice.from_buffer(bytearray(10240)) for _ in range(2))
    kib, half = whole.subslice(0, 1024), whole.subslice(0, 512)
    octets, words = bytearray(1024), memoryview(bytearray(1024)).cast("H")
    yield "volatile_copy_to_u8", timer("s.copy_to(b)", s=kib, b=octets)
    yield "volatile_copy_from_u8", timer("s.copy_from(b)", s=kib, b=octets)
    yield "volatile_copy_to_u16", timer("s.copy_to(b)", s=half, b=words)
    yield "volatile_copy_from_u16", timer("s.copy_from(b)", s=half, b=words)
    yield "volatile_copy_to_volatile_slice", timer("s.copy_to_volatile_slice(o)", s=whole, o=other)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE


def large() -> dict[str, object]:
    """64 GiB that nobody touches, and the first byte of a snapshot of 1 GiB."""
    before = resident()
    begin = time.perf_counter()
    with GuestMemoryMmap.from_ranges([(0, 64 << 30)]) as memory:
        created = time.perf_counter() - begin
        memory.write_u64(1, 32 << 30)
        result: dict[str, object] = {
            "sparse_64_gib_ms": round(created * 1e3, 3),
            "sparse_64_gib_resident_mib": round((resident() - before) / 2**20, 2),
        }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "memory")
        with GuestMemoryMmap.from_ranges([(0, 1 << 30)]) as memory:
            for page in range(0, 1 << 30, 1 << 20):
                memory.write_slice(os.urandom(64), page)
            save(memory, path)
        begin = time.perf_counter()
        try:
            with Snapshot(path) as file:
                memory, _ = file.restore_lazily()
        except HostRefused as error:
            return result | {"lazy_restore": f"skipped: {error}"}
        with memory:
            memory.read_u8(512 << 20)
            result["lazy_restore_first_byte_ms"] = round((time.perf_counter() - begin) * 1e3, 3)
    return result


def rust() -> dict[str, float] | str:
    """Nanoseconds by operation of the Rust crate, or why there are none."""
    if not shutil.which("cargo"):
        return "skipped: there is no cargo on this machine"
    with tempfile.TemporaryDirectory() as folder:
        command = ["cargo", "build", "--release", "--quiet", "--manifest-path", str(PEER / "Cargo.toml")]
        built = subprocess.run(
            [*command, "--target-dir", folder], capture_output=True, text=True, check=False, timeout=900
        )
        if built.returncode:
            return f"skipped: the peer does not build: {built.stderr[-300:]}"
        shown = subprocess.run([Path(folder, "release", "memory-peer")], capture_output=True, text=True, check=True)
    return {name: float(ns) for name, _, ns in (line.partition(" ") for line in io.StringIO(shown.stdout))}


def targets(single: dict[str, dict[str, float]], bulk: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    def worst(results: dict[str, dict[str, float]], keep: Callable[[str], bool]) -> float:
        return max(each["ratio"] for name, each in results.items() if keep(name))

    sizes = ("_65536", "_1048576", "_16777216")
    return {
        "scalar_to_memoryview_item": {"worst": worst(single, lambda _: True), "at_most": 2.5},
        "slice_512_to_mmap_slice": {"worst": worst(bulk, lambda name: name.endswith("_512")), "at_most": 3.0},
        "bulk_rate_to_memcpy": {
            "worst": round(1 / worst(bulk, lambda name: name.endswith(sizes)), 3),
            "at_least": 0.95,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-rust", action="store_true", help="leave out the Rust crate")
    parser.add_argument("--rounds", type=int, default=200, help="short runs of each operation (default: %(default)s)")
    arguments = parser.parse_args()
    timer, quick = Timer(arguments.rounds), Timer(max(arguments.rounds // 8, 5))
    single, bulk = scalars(timer), slices(timer)
    peer = "skipped: asked to" if arguments.no_rust else rust()
    table: dict[str, dict[str, float]] = {}
    for name, ns in (*operations(quick), *others(quick)):
        table[name] = {"ns": round(ns, 1)}
        if isinstance(peer, dict):
            table[name] |= {"rust_ns": peer[name], "ratio": round(ns / max(peer[name], 0.01), 1)}
    report = {
        "compiled": COMPILED,
        "targets": targets(single, bulk),
        "large": large(),
        "scalars_beside_a_memoryview_item": single,
        "slices_beside_mmap": bulk,
        "rust_peer": peer if isinstance(peer, str) else "vm-memory",
        "operations": table,
    }
    if isinstance(peer, dict):
        report["rust_bulk_ns"] = {name: ns for name, ns in peer.items() if name.startswith("bulk")}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
