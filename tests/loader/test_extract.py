from __future__ import annotations

import bz2
import gzip
import lzma
from typing import TYPE_CHECKING

import pytest
from tests.loader.images import bzimage, elf

from pyvmm_loader import InvalidHeader, NotAKernel, UnsupportedCompression, extract
from pyvmm_loader.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path

KERNEL = elf(bytes(range(256)) * 1000)
PACKED = {
    "gzip": gzip.compress(KERNEL, mtime=0),
    "xz": lzma.compress(KERNEL),
    "lzma": lzma.compress(KERNEL, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress(KERNEL),
}


@pytest.mark.parametrize("name", PACKED)
def test_round_trip(name: str) -> None:
    packed = PACKED[name]
    assert extract(packed) == KERNEL
    # a bzImage appends the unpacked size, as four bytes
    image = bzimage(b"code" + packed + b"size", payload_offset=4, payload_length=len(packed) + 4)
    assert extract(image) == KERNEL


@pytest.mark.parametrize("name", PACKED)
def test_damage_and_bombs(name: str) -> None:
    packed = PACKED[name]
    with pytest.raises(InvalidHeader, match="damaged"):
        extract(packed[: len(packed) // 2])
    with pytest.raises(InvalidHeader, match="more than 1000"):
        extract(packed, 1000)


def test_refusals() -> None:
    with pytest.raises(NotAKernel):
        extract(KERNEL)
    with pytest.raises(InvalidHeader, match="payload"):
        extract(bzimage(payload_offset=4, payload_length=1 << 30))
    with pytest.raises(UnsupportedCompression, match="zstd"):
        extract(b"\x28\xb5\x2f\xfd" + bytes(100))


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target, tree = tmp_path / "Image.gz", tmp_path / "vmlinux", tmp_path / "tree"
    source.write_bytes(PACKED["gzip"])
    assert main(["extract", str(source), str(target)]) == 0
    assert target.read_bytes() == KERNEL
    tree.mkdir()
    (tree / "dev").mkdir()
    (tree / "init").write_text("#!/bin/sh\n")
    (tree / "link").symlink_to("init")
    (tree / "other").hardlink_to(tree / "init")
    archive = tmp_path / "initramfs.cpio"
    assert main(["initramfs", str(tree), str(archive)]) == 0
    assert main(["initramfs", "--list", str(archive)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("dev", "init", "link", "other"))
    assert main(["extract", str(target), str(source)]) == 1
