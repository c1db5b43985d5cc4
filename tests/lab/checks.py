"""What holds of a guest on each architecture: it comes up, ends, uses disks, and moves into another VM."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from tests.vmm.virtio_guest import CHUNK, MIB, from_ext2, is_clean, make_ext2, pattern

if TYPE_CHECKING:
    import lab
    from tests.lab.foreign_guests import Guests

ROOT = Path(__file__).resolve().parents[2]
MOVED = "refused [], other values in []"
FILES = {
    "x86": b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\x3e\0\x01\0\0\0" + bytes(200),
    "riscv": bytes(16) + (1 << 20).to_bytes(8, "little") + bytes(24) + b"RISCV\0\0\0RSC\x05" + bytes(100_000),
    "text": b"#!/bin/sh\necho this is no kernel\n" * 100,
}


class Disks:
    """Two disks for a guest's init to use as programs do.

    Args:
        guests: whose host gets them.
        folder: where they are made.
        content: of the file that the first one, which has ext2, begins with.
        second: what is on the second one.
    """

    def __init__(self, guests: Guests, folder: Path, content: bytes, second: bytes = bytes(8 * MIB)) -> None:
        self.guests = guests
        self.folder = folder
        self.content = content
        make_ext2(folder / "vda", content)
        (folder / "vdb").write_bytes(second)
        self.paths = [guests.put(folder / name) for name in ("vda", "vdb")]
        self.options = [word for path in self.paths for word in ("--disk", path)]

    def check_read(self, text: str) -> None:
        """The guest says that it has read the first one's file."""
        assert f"disk: read {len(self.content)} bytes, crc {zlib.crc32(self.content):08x}" in text

    def check_written(self) -> bytes:
        """Both hold what a guest with two processors writes; returns the second one's content."""
        for path in self.paths:
            self.guests.host.get(path, self.folder / "after")
        assert from_ext2(self.folder / "after/vda", "output") == pattern(MIB, 1)
        assert is_clean(self.folder / "after/vda")
        after = (self.folder / "after/vdb").read_bytes()
        for cpu in range(2):
            assert after[3 * MIB + cpu * CHUNK : 3 * MIB + (cpu + 1) * CHUNK] == pattern(CHUNK, 100 + cpu)
        return after


def check_userspace(guests: Guests, cpus: int) -> None:
    """The demo's init says which machine it sees, and powers off."""
    done = guests.boot(guests.demo, "wait=0", "--cpus", str(cpus))
    assert done.status == 0, done.text + done.stderr.decode()
    assert "guest: Linux" in done.text
    assert f"-{guests.name}, {cpus} CPU{'s' * (cpus > 1)}, 256 MiB of memory" in done.text
    assert f"{guests.name}_vmm: the guest powered off" in done.stderr.decode()


def check_restart(guests: Guests, report: str) -> None:
    """A restart is an orderly end, and a panic is none: `report` is in what is said of it."""
    done = guests.boot(guests.demo, "wait=0 end=reboot")
    assert done.status == 0
    assert f"{guests.name}_vmm: the guest rebooted" in done.stderr.decode()
    done = guests.boot(guests.demo, "wait=0 end=crash")
    assert done.status == 1
    assert f"{guests.name}_vmm: the guest's kernel panicked: Attempted to kill init!" in done.stderr.decode()
    assert report in done.stderr.decode()


def check_devices(guests: Guests, folder: Path, *options: str) -> tuple[lab.Completed, bytes]:
    """Two processors use two disks and random numbers; returns the command and the second disk's content."""
    second = os.urandom(8 * MIB)
    disks = Disks(guests, folder, os.urandom(100_000), second)
    words = ["--cpus", "2", "--rng", *options, *disks.options]
    done = guests.boot(guests.devices, "do=features,disk,blocks,rng,interrupts", *words)
    assert done.status == 0, done.text + done.stderr.decode()
    assert "failed" not in done.text
    disks.check_read(done.text)
    for cpu in range(2):
        page = second[cpu * 4096 : (cpu + 1) * 4096]
        assert f"blocks: processor {cpu} read 4096 bytes, crc {zlib.crc32(page):08x}" in done.text
    assert "rng: from virtio_rng.0 64 bytes" in done.text
    return done, disks.check_written()


def interrupts(done: lab.Completed) -> list[str]:
    """Return the lines by which a guest says what interrupted it."""
    return [line for line in done.text.splitlines() if line.startswith("interrupt: ")]


def check_waiting_moves(guests: Guests, cpus: int, *options: str) -> None:
    """The demo's init waits for a line here, and gets it in another VM."""
    done = guests.boot(guests.demo, "wait=60", "--cpus", str(cpus), *options, program=guests.moving)
    assert done.status == 0, done.text + done.stderr.decode()
    before, after = done.text.split(MOVED)
    assert f", {cpus} CPU{'s' * (cpus > 1)}, 256 MiB of memory" in before
    assert f"moved {cpus} vCPUs" in before
    assert "echo: hello" in after
    assert b"_vmm: the guest powered off" in done.stderr


def check_disks_move(guests: Guests, folder: Path, *options: str) -> None:
    """Two processors have read from a disk here; there they write, and use another disk and random numbers."""
    disks = Disks(guests, folder, os.urandom(100_000))
    words = ["--cpus", "2", "--rng", *disks.options, *options]
    done = guests.boot(guests.devices, "do=disk,blocks,rng", *words, program=guests.moving)
    assert done.status == 0, done.text + done.stderr.decode()
    assert "failed" not in done.text
    before, after = done.text.split(MOVED)
    disks.check_read(before)
    assert "rng: from virtio_rng.0 64 bytes" in after
    disks.check_written()


def check_refusal(guests: Guests, folder: Path, options: list[str], cure: str) -> None:
    """A wrong wish is refused in one line that says the cure; `{NAME}` in it is one of `FILES`, or a path."""
    paths = {"missing": "/nowhere", "kernel": guests.kernel}
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
        paths[name] = guests.put(folder / name)
    words = [option.format(**paths) for option in options]
    kernel = [] if "--kernel" in options else ["--kernel", guests.kernel]
    done = guests.host.run(["python3", guests.vmm, *kernel, *words])
    *usage, message = done.stderr.decode().strip().splitlines()
    assert done.status == 2, done.stderr
    assert message.startswith((f"{guests.name}_vmm: ", f"{guests.name}_vmm.py: error: ")), done.stderr
    assert cure in message
    assert all(line.startswith(("usage:", " ")) for line in usage), done.stderr
    assert not done.stdout


def check_another_host(name: str, machine: str, folder: Path) -> None:
    """The example's machine is refused here, where KVM is not `machine`'s."""
    command = [sys.executable, f"examples/{name}_vmm.py", "--kernel", str(folder)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{name}_vmm: its guests need KVM of {machine}, this is ")
    assert done.stderr.count("\n") == 1
