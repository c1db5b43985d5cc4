"""``python -m pyvmm_virtio.fuzz``: attack a device, and say what came of it."""

from __future__ import annotations

import argparse
import logging
import sys
import time

from pyvmm_virtio.errors import VirtioUsageError
from pyvmm_virtio.fuzz.fuzzer import Finding, Fuzzer
from pyvmm_virtio.samples import NAMES, make

PER_SECOND_OF_PROGRESS = 1000


def main() -> int:
    """Attack what the command line names; returns 0 where the device held, 1 where it did not, 2 for no such device."""
    parser = argparse.ArgumentParser(
        prog="python -m pyvmm_virtio.fuzz",
        description="Attack a virtio device with requests that are mostly right and have one rare thing wrong.",
        epilog="A finding names its seed; the same seed does the same again.",
    )
    parser.add_argument("device", help=f"{', '.join(NAMES)}, or module:Class (or FILE.py:Class) of your own")
    parser.add_argument("--chains", type=int, default=20000, help="for each transport and ring (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of chance (%(default)s)")
    parser.add_argument("--transport", choices=("mmio", "pci"), help="only this one")
    parser.add_argument("--ring", choices=("split", "packed"), help="only this one")
    arguments = parser.parse_args()
    if arguments.chains < 1:
        parser.error(f"--chains {arguments.chains}: give at least 1")
    logging.getLogger("pyvmm_virtio").setLevel(logging.CRITICAL)
    for transport in (arguments.transport,) if arguments.transport else ("mmio", "pci"):
        for ring in (arguments.ring,) if arguments.ring else ("split", "packed"):
            try:
                attack(arguments.device, transport, ring, arguments.seed, arguments.chains)
            except Finding as finding:
                sys.stdout.write(f"\nFOUND {finding}\n")
                return 1
            except VirtioUsageError as error:
                sys.stderr.write(f"{error}\n")
                return 2
    return 0


def attack(device: str, transport: str, ring: str, seed: int, chains: int) -> None:
    """Run one fuzzer, with a line of progress each second on a terminal."""
    began = shown = time.monotonic()
    with Fuzzer(make(device), transport, ring, seed=seed) as fuzzer:
        while fuzzer.report.chains < chains:
            report = fuzzer.run(min(PER_SECOND_OF_PROGRESS, chains - fuzzer.report.chains))
            if sys.stdout.isatty() and time.monotonic() - shown > 1:
                shown = time.monotonic()
                sys.stdout.write(f"\r{transport} {ring}: {report.chains} of {chains} chains")
                sys.stdout.flush()
    took = time.monotonic() - began
    sys.stdout.write(f"\r{transport} {ring}: {report!r}, {report.chains / took:.0f} chains a second\n")


if __name__ == "__main__":
    sys.exit(main())
