"""How fast kernels get into guest memory: beside a plain copy of the same bytes and, where cargo is, linux-loader.

python benchmarks/loader.py

Prints JSON. Load and copy move the same bytes from the same pages of the page cache to the same guest memory, which was
touched before; the copy has them mapped already. Their rounds alternate, so that other load on the machine meets both,
and the ratio is the median of those of neighbouring rounds; times are those of the best ones. A load has opened and
mapped its file, read and checked its headers and zeroed BSS besides. `read_ns` is the time of one read into guest
memory. linux-loader's own benchmarks are `load_elf_pvh`,
`configure_pvh` and `load_bzimage`.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.loader.images import XEN_NOTE, bzimage, elf

from pyvmm_loader import BootPlan, BzImage, Elf
from pyvmm_loader.x86_64.e820 import RAM, E820Entry
from pyvmm_loader.x86_64.layout import PVH_INFO_START
from pyvmm_loader.x86_64.pvh import start_info
from pyvmm_memory import GuestMemoryMmap

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO

PEER = Path(__file__).parent / "peers" / "loader"
ROUNDS = 100
SIZE = 128 << 20
KERNEL = 0x100000
AT_LEAST = 0.8


def alternate(*works: Callable[[], object], rounds: int = ROUNDS) -> list[list[int]]:
    """Nanoseconds of each round of each, measured in turn."""
    taken: list[list[int]] = [[] for _ in works]
    for _ in range(rounds):
        for number, work in enumerate(works):
            begin = time.perf_counter_ns()
            work()
            taken[number].append(time.perf_counter_ns() - begin)
    return taken


def best(work: Callable[[], object], rounds: int) -> int:
    """Nanoseconds of the best round."""
    return min(alternate(work, rounds=rounds)[0])


def rust(paths: list[Path]) -> dict[str, float] | str:
    """Nanoseconds by operation of linux-loader, or why there are none."""
    if not shutil.which("cargo"):
        return "skipped: there is no cargo on this machine"
    with tempfile.TemporaryDirectory() as folder:
        command = ["cargo", "build", "--release", "--quiet", "--manifest-path", str(PEER / "Cargo.toml")]
        built = subprocess.run(
            [*command, "--target-dir", folder], capture_output=True, text=True, check=False, timeout=900
        )
        if built.returncode:
            return f"skipped: the peer does not build: {built.stderr[-300:]}"
        shown = subprocess.run(
            [Path(folder, "release", "loader-peer"), *paths], capture_output=True, text=True, check=True
        )
    return {name: float(ns) for name, _, ns in (line.partition(" ") for line in shown.stdout.splitlines())}


def configure_pvh(memory: GuestMemoryMmap) -> None:
    """Write what linux-loader's benchmark writes: start_info and a map of one entry."""
    memory.write_slice(start_info(0x20000, [E820Entry(0, SIZE, RAM)]), PVH_INFO_START)


def read_at(memory: GuestMemoryMmap, file: FileIO, offset: int, size: int) -> None:
    """Read a part of a file into guest memory."""
    file.seek(offset)
    memory.read_exact_volatile_from(KERNEL, file, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-rust", action="store_true", help="leave out linux-loader")
    arguments = parser.parse_args()
    block = os.urandom(1 << 20)
    images = {
        "load_elf_pvh": (elf(notes=(XEN_NOTE,)), Elf.load, 0),
        "load_vmlinux": (elf(block * 50), Elf.load, 50 << 20),
        "load_bzimage": (bzimage(block * 14), BzImage.load, 14 << 20),
    }
    operations: dict[str, dict[str, float]] = {}
    targets: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, GuestMemoryMmap.from_ranges([(0, SIZE)]) as memory:
        memory.write_slice(bytes(SIZE), 0)  # no page of the target is touched for the first time below
        paths = []
        for name, (image, load, size) in images.items():
            path = Path(folder, name)
            path.write_bytes(image)
            paths.append(path)
            work = partial(load, memory, None, path)
            if not size:
                operations[name] = {"ns": best(work, rounds=2000)}
                continue
            with path.open("rb", buffering=0) as file:
                at = len(image) - size  # what is loaded ends with the file
                with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content, memoryview(content)[at:] as kernel:
                    ours, copy, read = alternate(
                        work,
                        partial(memory.write_slice, kernel, KERNEL),
                        partial(read_at, memory, file, at, size),
                    )
            operations[name] = {"ns": min(ours), "bytes": size, "copy_ns": min(copy), "read_ns": min(read)}
            ratio = statistics.median(by_copy / by_load for by_copy, by_load in zip(copy, ours, strict=True))
            targets[f"{name}_to_copy"] = {"ratio": round(ratio, 3), "at_least": AT_LEAST}
        operations["configure_pvh"] = {"ns": best(partial(configure_pvh, memory), rounds=2000)}
        operations["plan_pvh"] = {"ns": best(lambda: BootPlan(paths[0], memory, "console=ttyS0").close(), rounds=500)}
        peer = "skipped: asked to" if arguments.no_rust else rust(paths)
    if isinstance(peer, dict):
        for name, ns in peer.items():
            operations[name] |= {"rust_ns": ns, "ratio": round(operations[name]["ns"] / ns, 2)}
    report = {
        "targets": targets,
        "operations": operations,
        "rust_peer": peer if isinstance(peer, str) else "linux-loader",
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
