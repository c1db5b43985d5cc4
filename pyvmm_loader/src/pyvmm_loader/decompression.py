"""Decompress what kernels are packed with, piece by piece, so that whoever asks can stop at a bound.

gzip, xz, lzma and bzip2 come with Python; zstd, lz4 and lzo need a library, which the error names.
"""

from __future__ import annotations

from .errors import ImageError, InvalidHeader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType
    from typing import Protocol

    from typing_extensions import Buffer

    class Decompressor(Protocol):
        """What bz2, lzma, zstd and lz4 share."""

        @property
        def eof(self) -> bool:
            """Has the end of the stream been seen?"""
            ...

        def decompress(self, data: Buffer, max_length: int = ..., /) -> bytes:
            """Return at most `max_length` bytes."""
            ...


CHUNK = 1 << 16
LIMIT = 1 << 30
"""Far above any kernel; a bomb ends here."""
RATIO = 16
"""Kernels shrink to a sixth at best; what grows more than this is no kernel."""
DICTIONARY_LIMIT = 256 << 20
"""The kernel's xz has no more than a 128 MiB dictionary; a header that asks for more is refused."""

LZ4_LEGACY = b"\x02\x21\x4c\x18"
LZ4_LEGACY_BLOCK = 8 << 20
LZO_MAGIC = b"\x89LZO\0\r\n\x1a\n"
LZO_MAX_BLOCK = 64 << 20
LZO_FILTER, LZO_EXTRA = 0x800, 0x40
LZO_CHECKS_OF_DATA, LZO_CHECKS_OF_PACKED = (0x1, 0x100), (0x2, 0x200)

EXTRAS = {"lz4": "compression", "zstd": "compression", "lzo": "lzo"}


class UnsupportedCompression(ImageError):
    """No library for the image's compression is installed (`compression`, `extra`)."""


def unpack(packed: Buffer, name: str, path: str, limit: int = LIMIT) -> bytearray:
    """Return what `packed` holds, at most `limit` bytes; `name` says how it is compressed, `path` is for messages.

    Raises InvalidHeader for damaged data or output above `limit`, UnsupportedCompression.
    """
    out = bytearray()
    with memoryview(packed) as view:
        try:
            for piece in _pieces(view, name, path):
                out += piece
                if len(out) > limit:
                    raise InvalidHeader(
                        f"{path}: unpacks to more than {limit} bytes; raise the limit if that is meant", field=name
                    )
        except (OSError, EOFError, ValueError, RuntimeError) as error:
            raise InvalidHeader(f"{path}: its {name} data is damaged ({error})", field=name) from error
    return out


def bound(size: int) -> int:
    """Return how large a file of `size` bytes may become where nobody said a limit."""
    return min(LIMIT, RATIO * size + CHUNK)


def _pieces(packed: memoryview, name: str, path: str) -> Iterator[Buffer]:
    if name == "gzip":
        return _gzip(packed)
    if name in ("xz", "lzma"):
        return _lzma(packed, name)
    if name == "bzip2":
        import bz2

        return _stream(bz2.BZ2Decompressor(), packed)
    if name == "zstd":
        return _zstd(packed, _library(("compression.zstd", "backports.zstd"), name, path))
    if name == "lzo":
        return _lzo(packed, _library(("lzo",), name, path))
    if bytes(packed[:4]) == LZ4_LEGACY:
        return _lz4_legacy(packed, _library(("lz4.block",), name, path))
    return _stream(_library(("lz4.frame",), name, path).LZ4FrameDecompressor(), packed)


def _library(names: tuple[str, ...], compression: str, path: str) -> ModuleType:
    from importlib import import_module

    for name in names:
        try:
            return import_module(name)
        except ImportError:
            continue
    extra = EXTRAS[compression]
    raise UnsupportedCompression(
        f"{path}: unpacking {compression} needs a library; pip install 'pyvmm-loader[{extra}]'",
        path=path,
        compression=compression,
        extra=extra,
    )


def _stream(reader: Decompressor, packed: memoryview) -> Iterator[bytes]:
    piece = reader.decompress(packed, CHUNK)
    while piece or not reader.eof:
        if not piece:
            raise EOFError("it ends too early")
        yield piece
        piece = b"" if reader.eof else reader.decompress(b"", CHUNK)


def _lzma(packed: memoryview, name: str) -> Iterator[bytes]:
    import lzma

    form = lzma.FORMAT_XZ if name == "xz" else lzma.FORMAT_ALONE
    try:
        yield from _stream(lzma.LZMADecompressor(format=form, memlimit=DICTIONARY_LIMIT), packed)
    except lzma.LZMAError as error:
        raise ValueError(str(error)) from error


def _zstd(packed: memoryview, zstd: ModuleType) -> Iterator[bytes]:
    try:
        yield from _stream(zstd.ZstdDecompressor(), packed)
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from error


def _gzip(packed: memoryview) -> Iterator[bytes]:
    import zlib

    stream = zlib.decompressobj(wbits=31)
    data: Buffer = packed
    try:
        while not stream.eof:
            piece = stream.decompress(data, CHUNK)
            if not piece and not stream.unconsumed_tail and not stream.eof:
                raise EOFError("it ends too early")
            yield piece
            data = stream.unconsumed_tail
    except zlib.error as error:
        raise ValueError(str(error)) from error


def _word(packed: memoryview, at: int, size: int, order: str = "big") -> int:
    if at + size > len(packed):
        raise EOFError("it ends too early")
    return int.from_bytes(packed[at : at + size], "big" if order == "big" else "little")


def _lz4_legacy(packed: memoryview, block: ModuleType) -> Iterator[bytes]:
    # lz4's doc/lz4_Frame_format.md, "Legacy frame": blocks of 8 MiB, each behind its compressed size; no end mark.
    at = 4
    while at < len(packed):
        size = _word(packed, at, 4, "little")
        # The kernel's build appends the unpacked size, which stands where a block's size would.
        if at + 4 == len(packed):
            return
        if at + 4 + size > len(packed):
            raise EOFError("a block leaves the data")
        try:
            # LZ4 expands at most 255 times, so that a small block needs no 8 MiB.
            room = min(LZ4_LEGACY_BLOCK, 255 * size + 64)
            yield block.decompress(packed[at + 4 : at + 4 + size], uncompressed_size=room)
        except block.LZ4BlockError as error:
            raise ValueError(str(error)) from error
        at += 4 + size


def _lzo(packed: memoryview, lzo: ModuleType) -> Iterator[Buffer]:
    # The format of lzop, which the kernel's build calls; its fields are big-endian.
    if bytes(packed[:9]) != LZO_MAGIC:
        raise ValueError("not lzop's magic")
    modern = _word(packed, 9, 2) >= 0x940
    at = 9 + (8 if modern else 5)  # three versions, method, level
    flags = _word(packed, at, 4)
    at += 4 + (4 if flags & LZO_FILTER else 0) + (12 if modern else 8)  # mode and times
    at += 1 + _word(packed, at, 1) + 4  # file name and checksum
    if flags & LZO_EXTRA:
        at += 4 + _word(packed, at, 4) + 4
    checks_of_data = sum([4 for bit in LZO_CHECKS_OF_DATA if flags & bit])
    checks_of_packed = sum([4 for bit in LZO_CHECKS_OF_PACKED if flags & bit])
    while True:
        whole = _word(packed, at, 4)
        if not whole:
            return
        size = _word(packed, at + 4, 4)
        at += 8 + checks_of_data + (checks_of_packed if size < whole else 0)
        if whole > LZO_MAX_BLOCK or size > whole or at + size > len(packed):
            raise ValueError("a block's size is impossible")
        data = packed[at : at + size]
        if size < whole:
            # LZO1X cannot expand more than 255 times; a block that claims more is not given its memory.
            if whole > 256 * size + 64:
                raise ValueError("a block's size is impossible")
            try:
                yield lzo.decompress(bytes(data), False, whole)
            except lzo.error as error:
                raise ValueError(str(error)) from error
        else:
            yield data
        at += size
