"""Unpacking: every compression that kernels come with, damage, bombs, and libraries that are not there."""

from __future__ import annotations

import bz2
import gzip
import lzma
import subprocess
import sys
from struct import pack
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from tests.loader.images import bzimage, elf, patch_dictionary
from tests.loader.tools import need

from pyvmm_loader import InvalidHeader, NotAKernel, UnsupportedCompression, extract
from pyvmm_loader.__main__ import main
from pyvmm_loader.compression import decompress as decompression
from pyvmm_loader.compression.decompress import LZ4_LEGACY

if TYPE_CHECKING:
    from pathlib import Path

KERNEL = elf(bytes(range(256)) * 1000)
ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
LIBRARIES = {"lz4": "lz4.frame", "zstd": ZSTD, "lzop": "lzo"}


def lz4_frame() -> bytes:
    frame = pytest.importorskip("lz4.frame", reason="lz4 is not installed")
    return bytes(frame.compress(KERNEL))


def lz4_legacy() -> bytes:
    block = pytest.importorskip("lz4.block", reason="lz4 is not installed")
    packed = block.compress(KERNEL, store_size=False)
    return b"\x02\x21\x4c\x18" + pack("<I", len(packed)) + bytes(packed)


def zstd() -> bytes:
    return bytes(pytest.importorskip(ZSTD, reason="zstd is not installed").compress(KERNEL))


PACK = {
    "gzip": lambda: gzip.compress(KERNEL, mtime=0),
    "xz": lambda: lzma.compress(KERNEL),
    "lzma": lambda: lzma.compress(KERNEL, lzma.FORMAT_ALONE),
    "bzip2": lambda: bz2.compress(KERNEL),
    "lz4": lz4_frame,
    "lz4-legacy": lz4_legacy,
    "zstd": zstd,
}


@pytest.fixture(params=PACK)
def packed(request: pytest.FixtureRequest) -> bytes:
    return PACK[request.param]()


def test_round_trip(packed: bytes) -> None:
    assert extract(packed) == KERNEL
    # a bzImage appends the unpacked size, as four bytes
    image = bzimage(b"code" + packed + pack("<I", len(KERNEL)), payload_offset=4, payload_length=len(packed) + 4)
    assert extract(image) == KERNEL


def test_damage_and_bombs(packed: bytes) -> None:
    with pytest.raises(InvalidHeader, match="damaged"):
        extract(packed[: len(packed) // 2])
    with pytest.raises(InvalidHeader, match="more than 1000"):
        extract(packed, 1000)


def test_every_flipped_byte_is_a_typed_error_or_still_unpacks(packed: bytes) -> None:
    for at in range(0, len(packed), max(1, len(packed) // 60)):
        damaged = bytearray(packed)
        damaged[at] ^= 0xFF
        try:
            assert len(extract(damaged, 4 * len(KERNEL))) <= 4 * len(KERNEL)
        except (InvalidHeader, NotAKernel):
            continue


@pytest.mark.parametrize("tool", ["lz4 -l -9", "zstd -19", "xz --check=crc32", "gzip -9", "bzip2 -9", "lzop -9"])
def test_what_the_tools_of_the_kernels_build_write(tool: str) -> None:
    command = tool.split()
    library = LIBRARIES.get(command[0])
    if library:
        pytest.importorskip(library, reason=f"{library} is not installed")
    data = subprocess.run([need(command[0]), *command[1:], "-c"], input=KERNEL, capture_output=True, check=True).stdout
    assert extract(data) == KERNEL


def test_streams_that_follow_each_other(packed: bytes) -> None:
    if packed.startswith(b"\x5d"):
        with pytest.raises(InvalidHeader, match="damaged"):
            extract(packed[:-1] + b"\xff" + packed)
        return
    assert extract(packed + packed) == 2 * KERNEL, "pbzip2, pzstd and cat write such files"
    assert extract(packed + packed[:4]) == KERNEL, "the unpacked size that a bzImage appends may look like a magic"
    if not packed.startswith(LZ4_LEGACY):  # whose blocks go on to the end of the file
        assert extract(packed + b"something else") == KERNEL, "the tools ignore it as well"
    with pytest.raises(InvalidHeader, match="damaged"):
        extract(packed + packed[: len(packed) // 2])


def test_a_dictionary_is_as_large_as_a_kernel_may_ask_for() -> None:
    # the kernel's scripts/xz_wrap.sh: --lzma2=dict=128MiB
    for size, fits in ((128 << 20, True), (192 << 20, False)):
        for form, check in ((lzma.FORMAT_XZ, lzma.FILTER_LZMA2), (lzma.FORMAT_ALONE, lzma.FILTER_LZMA1)):
            data = bytearray(lzma.compress(KERNEL, form, filters=[{"id": check, "dict_size": 1 << 20}]))
            patch_dictionary(data, size)
            if fits:
                assert extract(data) == KERNEL
            else:
                with pytest.raises(InvalidHeader, match="damaged"):
                    extract(data)


class FakeLzo:
    """Stands where python-lzo would, for blocks that hold a length and one byte."""

    error = type("error", (Exception,), {})

    @staticmethod
    def decompress(data: bytes, header: bool, size: int) -> bytes:
        if data == b"bad!":
            raise FakeLzo.error("bad block")
        return data[:1] * size


def lzop(*blocks: bytes, version: int = 0x1030, flags: int = 0, extra: bytes = b"") -> bytes:
    head = decompression.LZO_MAGIC + pack(">HH", version, 0x20A0)
    head += pack(">HBB", 0x940, 1, 9) if version >= 0x940 else pack(">B", 1)
    head += pack(">I", flags) + bytes(12 if version >= 0x940 else 8) + b"\4name" + bytes(4) + extra
    return head + b"".join(blocks) + bytes(4)


def test_lzop_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lzo", SimpleNamespace(decompress=FakeLzo.decompress, error=FakeLzo.error))
    block, stored = pack(">II", 9, 3) + b"xyz", pack(">II", 2, 2) + b"ab"
    assert extract(lzop(block, stored)) == b"x" * 9 + b"ab"
    assert extract(lzop(block, version=0x900)) == b"x" * 9
    checked = pack(">II", 9, 3) + bytes(8) + b"xyz"
    assert extract(lzop(checked, flags=0x3)) == b"x" * 9
    assert extract(lzop(block, flags=0x40, extra=pack(">I", 2) + b"xx" + bytes(4))) == b"x" * 9
    for bad in (
        pack(">II", 9, 4) + b"bad!",
        pack(">II", 1 << 30, 3) + b"xyz",
        pack(">II", 5000, 3) + b"xyz",
        pack(">II", 3, 9) + b"xyz",
        pack(">II", 900, 90) + b"xyz",
    ):
        with pytest.raises(InvalidHeader, match="damaged"):
            extract(lzop(bad))
    with pytest.raises(InvalidHeader, match="damaged"):
        extract(lzop(block)[:-4])
    with pytest.raises(InvalidHeader, match="magic"):
        extract(b"\x89LZO" + bytes(60))
    with pytest.raises(InvalidHeader, match="more than 1000 bytes"):
        extract(lzop(pack(">II", 2000, 100) + bytes(100)), 1000)


def test_lzop_files_of_stored_blocks_need_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lzo", None)
    stored = pack(">II", len(KERNEL), len(KERNEL)) + KERNEL
    assert extract(lzop(stored)) == KERNEL
    with pytest.raises(UnsupportedCompression):
        extract(lzop(pack(">II", 9, 3) + b"xyz"))


def test_a_missing_library_is_named_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("compression.zstd", "backports.zstd", "lz4.block", "lz4.frame", "lzo"):
        monkeypatch.setitem(sys.modules, module, None)
    for magic, name, extra in (
        (b"\x28\xb5\x2f\xfd", "zstd", "compression"),
        (b"\x02\x21\x4c\x18", "lz4", "compression"),
        (b"\x04\x22\x4d\x18", "lz4", "compression"),
        (lzop(pack(">II", 9, 3) + b"xyz"), "lzo", "lzo"),
    ):
        with pytest.raises(UnsupportedCompression, match=rf"{name} .*pyvmm-loader\[{extra}\]") as caught:
            extract(magic + bytes(100))
        assert (caught.value.compression, caught.value.extra) == (name, extra)


def test_refusals() -> None:
    with pytest.raises(NotAKernel):
        extract(KERNEL)
    with pytest.raises(InvalidHeader, match="payload"):
        extract(bzimage(payload_offset=4, payload_length=1 << 30))
    with pytest.raises(InvalidHeader, match="payload"):
        extract(bzimage(version=0x207, payload_offset=4, payload_length=16))
    with pytest.raises(NotAKernel, match="known here"):
        extract(bzimage(payload_offset=4, payload_length=16))


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target, tree = tmp_path / "Image.gz", tmp_path / "vmlinux", tmp_path / "tree"
    source.write_bytes(PACK["gzip"]())
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
    assert gzip.decompress(source.read_bytes()) == KERNEL, "the output is not touched before the image is understood"
    assert main(["extract", str(source), str(source)]) == 1
    assert gzip.decompress(source.read_bytes()) == KERNEL
    source.write_bytes(source.read_bytes()[:-9])
    assert main(["extract", str(source), str(target)]) == 1
    assert not target.exists(), "half a kernel would be taken for a whole one"
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 3
    assert "nothing compressed" in err[0]
    assert "the image itself" in err[1]
    assert "damaged" in err[2]
    assert main(["extract", str(source), str(tmp_path / "no" / "folder")]) == 1
