"""Guests that move into another VM, by a program made of `moving`: the same on each architecture."""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING, Protocol

from tests.vmm.virtio_guest import CHUNK, MIB, from_ext2, is_clean, make_ext2, pattern

if TYPE_CHECKING:
    from pathlib import Path

    import lab

    class Guests(Protocol):
        """What starts guests in a host of an architecture."""

        host: lab.Host
        demo: str
        devices: str

        def put(self, path: Path) -> str: ...
        def boot(self, initrd: str, words: str, *options: str, program: str) -> lab.Completed: ...


MOVED = "refused [], other values in []"


def check_waiting(guests: Guests, program: str, cpus: int, *options: str) -> None:
    """The demo's init waits for a line here, and gets it there."""
    done = guests.boot(guests.demo, "wait=60", "--cpus", str(cpus), *options, program=program)
    assert done.status == 0, done.text + done.stderr.decode()
    before, after = done.text.split(MOVED)
    assert f", {cpus} CPU{'s' * (cpus > 1)}, 256 MiB of memory" in before
    assert f"moved {cpus} vCPUs" in before
    assert "echo: hello" in after
    assert b"_vmm: the guest powered off" in done.stderr


def check_disks(guests: Guests, program: str, folder: Path, *options: str) -> None:
    """Two processors have read from a disk here; there they write, and use another disk and random numbers."""
    content = os.urandom(100_000)
    make_ext2(folder / "vda", content)
    (folder / "vdb").write_bytes(bytes(8 * MIB))
    disks = [guests.put(folder / name) for name in ("vda", "vdb")]
    words = [word for disk in disks for word in ("--disk", disk)]
    done = guests.boot(guests.devices, "do=disk,blocks,rng", "--cpus", "2", "--rng", *words, *options, program=program)
    assert done.status == 0, done.text + done.stderr.decode()
    assert "failed" not in done.text
    before, after = done.text.split(MOVED)
    assert f"disk: read {len(content)} bytes, crc {zlib.crc32(content):08x}" in before
    assert "rng: from virtio_rng.0 64 bytes" in after
    for disk in disks:
        guests.host.get(disk, folder / "after")
    assert from_ext2(folder / "after/vda", "output") == pattern(MIB, 1)
    assert is_clean(folder / "after/vda")
    second = (folder / "after/vdb").read_bytes()
    for cpu in range(2):
        assert second[3 * MIB + cpu * CHUNK : 3 * MIB + (cpu + 1) * CHUNK] == pattern(CHUNK, 100 + cpu)
