from __future__ import annotations

import random
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from pyvmm_loader import Initramfs, LoaderError, read_initramfs

if TYPE_CHECKING:
    from pathlib import Path


def build() -> Initramfs:
    fs = Initramfs()
    fs.directory("/dev")
    fs.device("dev/console", 5, 1)
    fs.device("dev/vda", 254, 0, 0o640, block=True)
    fs.fifo("pipe")
    fs.file("init", b"#!/bin/sh\n", 0o755, mtime=7)
    fs.hardlink("sbin-init", "init")
    fs.symlink("linuxrc", "init")
    return fs


def test_round_trip_is_deterministic() -> None:
    raw = bytes(build())
    assert raw == bytes(build())
    entries = {entry.name: entry for entry in read_initramfs(raw)}
    assert list(entries) == ["dev", "dev/console", "dev/vda", "pipe", "init", "sbin-init", "linuxrc"]
    assert entries["dev/console"].rdev == (5, 1)
    assert stat.S_ISBLK(entries["dev/vda"].mode)
    assert entries["linuxrc"].data == b"init"
    assert entries["init"].ino == entries["sbin-init"].ino
    assert (entries["init"].nlink, entries["init"].data, entries["sbin-init"].data) == (2, b"", b"#!/bin/sh\n")
    assert repr(entries["init"]) == "<Entry -rwxr-xr-x init 0 bytes>"


@pytest.mark.skipif(shutil.which("cpio") is None, reason="GNU cpio is not installed")
def test_gnu_cpio_reads_the_same(tmp_path: Path) -> None:
    command = ["cpio", "-idm", "--quiet", "init", "sbin-init", "linuxrc", "pipe", "dev"]
    subprocess.run(command, input=bytes(build()), cwd=tmp_path, check=True)
    assert (tmp_path / "init").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "init").stat().st_nlink == 2
    assert (tmp_path / "linuxrc").readlink().name == "init"
    made = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"], input=b"init\nlinuxrc\n", cwd=tmp_path, capture_output=True, check=True
    ).stdout
    # GNU cpio puts hard links last
    assert {entry.name for entry in read_initramfs(made)} == {"init", "linuxrc"}


def test_bad_names() -> None:
    fs = Initramfs()
    for name in ("", "/", "a\0b", "x" * 4096, "TRAILER!!!"):
        with pytest.raises(LoaderError):
            fs.file(name, b"")
    with pytest.raises(LoaderError, match="first"):
        fs.hardlink("a", "b")


def test_numbers_have_32_bits() -> None:
    for mtime in (-1, 1 << 32):
        fs = Initramfs()
        fs.file("late", b"", mtime=mtime)
        with pytest.raises(LoaderError, match="late: cpio holds numbers of 32 bits"):
            bytes(fs)


def test_mutated_archives() -> None:
    raw = bytes(build())
    chance = random.Random(1)
    refused = 0
    for _ in range(3000):
        copy = bytearray(raw)
        copy[chance.randrange(len(copy))] = chance.randrange(256)
        try:
            for entry in read_initramfs(copy[: chance.randint(1, len(copy))]):
                assert len(entry.data) <= len(raw)
        except LoaderError:
            refused += 1
    assert refused > 1000
