"""How fast kernels get into guest memory, beside a plain copy of the same bytes. Prints JSON.

python benchmarks/loader.py
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.loader.images import XEN_NOTE, bzimage, elf

from pyvmm_loader import BzImage, Elf
from pyvmm_memory import GuestMemoryMmap

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 15


def best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def main() -> None:
    block = os.urandom(1 << 20)
    images = {"vmlinux_50MiB": (elf(block * 50), Elf.load), "bzimage_14MiB": (bzimage(block * 14), BzImage.load)}
    report: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, GuestMemoryMmap.from_ranges([(0, 128 << 20)]) as memory:
        memory.write_slice(bytes(120 << 20), 0)  # no page of the target is touched for the first time below
        for name, (image, load) in images.items():
            path = Path(folder, name)
            path.write_bytes(image)
            ours = best(lambda load=load, path=path: load(memory, None, path))  # type: ignore[misc]
            copy = best(lambda image=image: memory.write_slice(image, 0x100000))  # type: ignore[misc]
            report[name] = {"load_ms": ours * 1e3, "copy_ms": copy * 1e3, "ratio": copy / ours}
        tiny = elf(notes=(XEN_NOTE,))
        report["load_elf_pvh"] = {"us": best(lambda: Elf.load(memory, None, tiny)) * 1e6}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
