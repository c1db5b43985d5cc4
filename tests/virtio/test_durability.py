"""What the device acknowledged before a completed flush is there after its process was killed at any moment."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import pytest
from guest.host import install
from tests.virtio.durable import SIZE, SLOT, SLOTS, check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import os, sys
from pyvmm_virtio.backends.disk import open_disk
from pyvmm_virtio.devices import Block
from pyvmm_virtio.driver import drive
path, kind, first, slots, slot = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
with drive(Block(open_disk(path, kind), queues=2), ring="packed") as driver:
    os.write(1, b"0\\n")
    number = first
    while True:
        writes = []
        for _ in range(5):
            sector = number * 37 % slots * slot // 512
            data = number.to_bytes(8, "little") * (slot // 8)
            writes.append(driver.submit_write(sector, data, queue=number % 2))
            number += 1
        for write in writes:
            driver.finish(write)
        driver.flush()
        os.write(1, b"%d\\n" % (number - 1))
"""


def kill_once(path: Path, kind: str, first: int, chance: random.Random) -> int:
    """Write from number `first` on until a random moment; returns the last number that a flush covered."""
    command = [sys.executable, "-c", PROGRAM, str(path), kind, str(first), str(SLOTS), str(SLOT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"0\n"
        time.sleep(chance.random() * 0.05)
        child.kill()
        lines = child.stdout.read().splitlines()
    # the last line may have been cut by the kill
    return max([first - 1, *(int(line) for line in lines)])


def run(path: Path, kind: str, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    written: dict[int, int] = {}
    first = 1
    flushed = 0
    for _ in range(kills):
        last = kill_once(path, kind, first, chance)
        written.update((number * 37 % SLOTS, number) for number in range(first, last + 1))
        flushed += last >= first
        check(path, kind, written)
        first = last + 1000  # what was under way is older than everything to come
    assert flushed, "at least one was killed after a flush"


def make(path: Path, kind: str) -> None:
    if kind == "raw":
        path.write_bytes(bytes(SIZE))
    else:
        install(["qemu-utils", "qemu-system-common"], "which serve disk images")
        subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, str(SIZE)], check=True)


@pytest.mark.parametrize(("kind", "kills"), [("raw", 14), ("qcow2", 6)])
def test_killed_at_random(tmp_path: Path, kind: str, kills: int) -> None:
    path = tmp_path / "image"
    make(path, kind)
    run(path, kind, kills, int.from_bytes(os.urandom(4), "little"))
    if kind == "qcow2":
        assert subprocess.run(["qemu-img", "check", "-q", path], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_killed_two_hundred_times(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "image"
    make(path, kind)
    run(path, kind, 200, int.from_bytes(os.urandom(4), "little"))
    if kind == "qcow2":
        assert subprocess.run(["qemu-img", "check", "-q", path], check=False).returncode == 0
