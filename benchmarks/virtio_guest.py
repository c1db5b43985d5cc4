"""Block operations of a guest a second: the example VMM beside QEMU's microvm, in alternation. Prints JSON.

python benchmarks/virtio_guest.py [--rounds N]

The guest (guest/block_bench.c) is one ELF file for both. It reads 4 KiB blocks at random from a file in the page cache,
one at a time and 32 at a time, polls for the answers, and writes a letter to its serial port where a phase begins or
ends; the letters are timed here. A ratio is ours by QEMU's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from guest.host import GuestError, install, run

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "guest" / "block_bench.c"
FLAGS = (
    "-O2 -Wall -Wextra -Werror -static -nostdlib -ffreestanding -fno-stack-protector -fno-asynchronous-unwind-tables "
    "-fno-pic -no-pie -mgeneral-regs-only -mno-red-zone -Wl,--build-id=none -Wl,-Ttext=0x200000 -Wl,-e,enter "
    "-Wl,-z,noseparate-code"
).split()
SIZE = 64 << 20
PATIENCE = 120
CYCLES = 4
"""How often the guest is let through all of its phases before it is ended; the first time does not count."""


def operations() -> dict[str, int]:
    """How many reads the guest does in each phase, as its source says."""
    source = SOURCE.read_text()
    depth = int(re.search(r"define DEPTH (\d+)", source)[1])  # type: ignore[index] # it is there
    one = int(re.search(r"define OPS_1 (\d+)", source)[1])  # type: ignore[index]
    many = int(re.search(r"define OPS_32 \(DEPTH \* (\d+)\)", source)[1])  # type: ignore[index]
    return {"depth_1": one, f"depth_{depth}": depth * many}


def rates(command: list[str]) -> dict[str, float]:
    """Run a guest and return its operations a second in each phase, the median of some."""
    counts = operations()
    pairs = dict(zip(("AB", "CD"), counts, strict=True))
    times: dict[str, list[float]] = {name: [] for name in counts}
    moments: dict[str, float] = {}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    deadline = time.monotonic() + PATIENCE
    try:
        while len(times["depth_1"]) < CYCLES or len(times["depth_32"]) < CYCLES:
            letter = os.read(process.stdout.fileno(), 1).decode(errors="replace")
            moments[letter] = time.perf_counter()
            for pair, name in pairs.items():
                if letter == pair[1]:
                    times[name].append(moments[letter] - moments[pair[0]])
            if letter in ("X", "") or time.monotonic() > deadline:
                process.kill()
                said = process.communicate()[1].decode(errors="replace")
                raise SystemExit(f"the guest failed under {command[0]} (it said {letter!r}): {said}")
    finally:
        process.kill()
        process.communicate()
    return {name: counts[name] / statistics.median(taken[1:]) for name, taken in times.items()}


def commands(elf: str, image: str) -> dict[str, list[str]]:
    """How either machine is started."""
    ours = [sys.executable, str(ROOT / "examples" / "minimal_vmm.py"), "--kernel", elf, "--entry", "pvh"]
    qemu = "qemu-system-x86_64 -M microvm -accel kvm -cpu qemu64,-cx16,-xsave,-popcnt,-smap,-smep -m 64 -nodefaults"
    qemu += " -no-user-config -display none -serial stdio -global virtio-mmio.force-legacy=false"
    qemu += " -device virtio-blk-device,drive=disk -drive"
    return {
        "pyvmm": [*ours, "--memory", "64", "--disk", image],
        "qemu": [*qemu.split(), f"if=none,id=disk,file={image},format=raw", "-kernel", elf],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often both are started (%(default)s)")
    rounds = parser.parse_args().rounds
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        print(json.dumps({"skipped": "/dev/kvm does not open"}))
        return
    try:
        install(["gcc", "qemu-system-x86"], "which build the guest and run it beside us")
    except GuestError as error:
        print(json.dumps({"skipped": str(error)}))
        return
    with tempfile.TemporaryDirectory() as folder:
        elf, image = f"{folder}/guest.elf", f"{folder}/disk"
        run(["gcc", *FLAGS, "-o", elf, SOURCE])
        with open(image, "wb") as file:
            for _ in range(SIZE >> 20):
                file.write(os.urandom(1 << 20))
        measured: dict[str, list[dict[str, float]]] = {"pyvmm": [], "qemu": []}
        for _ in range(rounds):
            for name, command in commands(elf, image).items():
                measured[name].append(rates(command))
    result = {}
    for phase in operations():
        ours, theirs = (statistics.median(each[phase] for each in measured[name]) for name in ("pyvmm", "qemu"))
        result[f"4KiB_random_read_{phase}"] = {
            "pyvmm_per_second": round(ours),
            "qemu_microvm_per_second": round(theirs),
            "ratio": round(ours / theirs, 2),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
