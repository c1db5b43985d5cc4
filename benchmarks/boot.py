"""How long from nothing to a guest's first word: examples/minimal_vmm.py beside ``qemu-system-x86_64 -M microvm``.

Both boot the same files in alternation, with the same memory and one vCPU:

- ``first_byte``: from the start of the process to the first serial byte of a guest of ten instructions (PVH), which is
  the cost of the VMM itself;
- ``userspace``: from the start of the process to the first line of Linux's first process, less the ``first_byte`` of
  the same VMM, which leaves the time from the first KVM_RUN on;
- ``resident``: memory of the process beyond the guest's own, when that line appears (as Firecracker counts it: the
  sum of every mapping but the one that is as large as the guest's memory).

Prints JSON; times are medians in seconds, ``ratio`` is ours by QEMU's.
"""

import argparse
import compileall
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from guest import initramfs, kernel  # noqa: E402 - the checkout's own package, which is not installed
from guest.byte_program import TEN_INSTRUCTIONS, pvh_elf  # noqa: E402 - as above
from guest.host import install  # noqa: E402 - as above

PATIENCE = 120
CMDLINE = "console=ttyS0 panic=-1 reboot=k quiet wait=60"
# with its host's features QEMU 7.2 aborts on KVM-PVM; these are the ones the guest kernel does without there
QEMU_CPU = "qemu64,-cx16,-xsave,-popcnt,-smap,-smep"

Command = Callable[[Path, int, Path | None], list[str]]


def ours(image: Path, memory: int, initrd: Path | None) -> list[str]:
    """Return our command line."""
    options = ["--initrd", str(initrd), "--cmdline", CMDLINE] if initrd else []
    return [
        sys.executable,
        str(ROOT / "examples" / "minimal_vmm.py"),
        "--kernel",
        str(image),
        "--memory",
        str(memory),
        *options,
    ]


def qemu(image: Path, memory: int, initrd: Path | None) -> list[str]:
    """Return the peer's command line."""
    machine = "qemu-system-x86_64 -M microvm -enable-kvm -nodefaults -no-user-config -display none -serial stdio"
    options = ["-initrd", str(initrd), "-append", CMDLINE] if initrd else []
    return [*machine.split(), "-cpu", QEMU_CPU, "-m", str(memory), "-smp", "1", "-kernel", str(image), *options]


@contextlib.contextmanager
def started(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a VMM whose input stays open and silent; end it afterwards."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(process: subprocess.Popen[bytes], text: bytes) -> None:
    """Read the console until a text has appeared."""
    assert process.stdout is not None
    said = b""
    deadline = time.monotonic() + PATIENCE
    while text not in said:
        chunk = os.read(process.stdout.fileno(), 4096)
        said += chunk
        if not chunk or time.monotonic() > deadline:
            raise SystemExit(f"{process.args!r} never said {text!r} but: {said[-2000:]!r}")


def first_byte(command: Command, image: Path) -> float:
    """Seconds from the start of the process to the first serial byte of the ten instructions."""
    start = time.monotonic()
    with started(command(image, 128, None)) as process:
        until(process, b"!")
        return time.monotonic() - start


def userspace(command: Command, image: Path, initrd: Path, memory: int) -> tuple[float, int]:
    """Seconds from the start of the process to the guest's first line, and the resident bytes beyond its memory."""
    start = time.monotonic()
    with started(command(image, memory, initrd)) as process:
        until(process, b"guest: Linux")
        return time.monotonic() - start, resident(process.pid, memory << 20)


def resident(pid: int, guest_memory: int) -> int:
    """Resident bytes of all mappings but the guest's memory."""
    total = size = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            size = int(match[2], 16) - int(match[1], 16)
        elif line.startswith("Rss:") and size != guest_memory:
            total += int(line.split()[1]) * 1024
    return total


def compare(values: dict[str, list[float]]) -> dict[str, float]:
    """Medians of both sides and their ratio."""
    medians = {name: statistics.median(samples) for name, samples in values.items()}
    return {**medians, "ratio": medians["pyvmm"] / medians["qemu"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="boots of the ten instructions each (%(default)s)")
    parser.add_argument("--linux-rounds", type=int, default=3, help="boots of Linux each (%(default)s)")
    parser.add_argument("--memory", type=int, default=128, metavar="MIB", help="the guest's memory (%(default)s)")
    arguments = parser.parse_args()
    install(["qemu-system-x86"], "the peer to measure beside")
    # as after any first run, also where PYTHONDONTWRITEBYTECODE is set: the peer is compiled too
    for source in ROOT.glob("pyvmm_*/src"):
        compileall.compile_dir(source, quiet=1)
    image, initrd = kernel.build("boot").vmlinux, initramfs.demo()
    sides: dict[str, Command] = {"pyvmm": ours, "qemu": qemu}
    tiny: dict[str, list[float]] = {name: [] for name in sides}
    total: dict[str, list[float]] = {name: [] for name in sides}
    bytes_: dict[str, list[float]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "ten-instructions.elf"
        program.write_bytes(pvh_elf(TEN_INSTRUCTIONS))
        for _ in range(arguments.rounds):
            for name, command in sides.items():
                tiny[name].append(first_byte(command, program))
    for _ in range(arguments.linux_rounds):
        for name, command in sides.items():
            seconds, beyond = userspace(command, image, initrd, arguments.memory)
            total[name].append(seconds - statistics.median(tiny[name]))
            bytes_[name].append(beyond)
    print(
        json.dumps(
            {
                "first_byte": compare(tiny),
                "userspace": compare(total),
                "resident": compare(bytes_),
                "rounds": arguments.rounds,
                "linux_rounds": arguments.linux_rounds,
                "memory_mib": arguments.memory,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
