"""Compress an initramfs or a kernel in the forms that Linux unpacks, so that equal input gives equal output.

gzip, xz, lzma and bzip2 come with Python; zstd and lz4 need the library that the error names.

Source: the kernel's scripts/Makefile.lib and usr/Makefile for the forms; lib/xz and lib/decompress_unlz4.c for limits.
"""

from __future__ import annotations

from pyvmm_loader.errors import LoaderError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

    from typing_extensions import Buffer

LZ4_LEGACY = b"\x02\x21\x4c\x18"
LZ4_LEGACY_BLOCK = 8 << 20
FORMS = ("gzip", "xz", "lzma", "bzip2", "zstd", "lz4")


class CompressionUnavailable(LoaderError):
    """No library for a compression is installed, or it is none that Linux knows (`compression`)."""


def compress(data: Buffer, form: str) -> bytes:
    """Return `data` compressed as one of FORMS.

    >>> compress(b"initramfs", "gzip")[:4].hex()
    '1f8b0800'
    """
    if form == "gzip":
        import gzip

        return gzip.compress(bytes(memoryview(data)), mtime=0)
    if form in ("xz", "lzma"):
        import lzma

        if form == "lzma":
            return lzma.compress(data, format=lzma.FORMAT_ALONE)
        # "The XZ decompressor supports only CRC32 (and None)": lib/xz in the kernel
        return lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32)
    if form == "bzip2":
        import bz2

        return bz2.compress(data)
    if form == "zstd":
        packed: bytes = _library(form).compress(data, 19)
        return packed
    if form == "lz4":
        return _lz4(data, _library(form))
    raise CompressionUnavailable(f"no compression {form!r}; Linux knows {', '.join(FORMS)}", compression=form)


def _lz4(data: Buffer, block: ModuleType) -> bytes:
    # The kernel reads the legacy frame only: a magic, then blocks of 8 MiB behind their size.
    out = bytearray(LZ4_LEGACY)
    with memoryview(data) as view:
        for at in range(0, len(view), LZ4_LEGACY_BLOCK):
            packed = block.compress(
                view[at : at + LZ4_LEGACY_BLOCK], mode="high_compression", compression=9, store_size=False
            )
            out += len(packed).to_bytes(4, "little") + packed
    return bytes(out)


def _library(form: str) -> ModuleType:
    from importlib import import_module

    from pyvmm_loader.compression.decompress import zstd_module

    try:
        return import_module(zstd_module() if form == "zstd" else "lz4.block")
    except ImportError as error:
        raise CompressionUnavailable(
            f"{form} needs a library; pip install 'pyvmm-loader[compression]', or use gzip or xz", compression=form
        ) from error
