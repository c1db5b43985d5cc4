"""Decompress what kernels are packed with, piece by piece, so that whoever asks can stop at a bound.

gzip, xz, lzma and bzip2 come with Python; zstd, lz4 and lzo need a library, which the error names.
"""

from __future__ import annotations

from pyvmm_loader.compression.magic import compression
from pyvmm_loader.errors import ImageError, InvalidHeader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import ModuleType
    from typing import Protocol

    from typing_extensions import Buffer

    class Decompressor(Protocol):
        """What bz2, lzma, zstd and lz4 share."""

        @property
        def eof(self) -> bool:
            """Has the end of the stream been seen?"""
            ...

        @property
        def needs_input(self) -> bool:
            """Is all that can be had without further data returned?"""
            ...

        @property
        def unused_data(self) -> bytes | None:
            """What of the data came behind the end of the stream."""
            ...

        def decompress(self, data: Buffer, max_length: int = ..., /) -> bytes:
            """Return at most `max_length` bytes."""
            ...


CHUNK = 1 << 16
LIMIT = 1 << 30
"""Far above any kernel; a bomb ends here."""
RATIO = 16
"""Kernels shrink to a sixth at best; what grows more than this is no kernel."""
SMALL = 16 << 20
"""What is padded to large pages shrinks to almost nothing; this much of it harms nobody."""
FREE_MEMBERS, MEMBER_SIZE = 64, 1024
"""A file is a sequence of members, and nothing forbids empty ones (RFC 1952 2.2, RFC 8878 3), but each costs as much as
many bytes of another. So there may be one for each KiB of the file, and some more; pbzip2 and pzstd make far larger
ones."""
WINDOW_LOG = 27
"""zstd -22, which the kernel's build calls, asks for a window of 128 MiB, however small the kernel."""
DICTIONARY_LIMIT = (1 << WINDOW_LOG) + (1 << 20)
"""The kernel's xz asks for a dictionary of 128 MiB likewise; beside it lies the decoder's state."""

LZ4_LEGACY = b"\x02\x21\x4c\x18"
LZ4_LEGACY_BLOCK = 8 << 20
LZO_MAGIC = b"\x89LZO\0\r\n\x1a\n"
LZO_MAX_BLOCK = 64 << 20
LZO_FILTER, LZO_EXTRA = 0x800, 0x40
LZO_CHECKS_OF_DATA, LZO_CHECKS_OF_PACKED = (0x1, 0x100), (0x2, 0x200)

EXTRAS = {"lz4": "compression", "zstd": "compression", "lzo": "lzo"}


class UnsupportedCompression(ImageError):
    """No library for the image's compression is installed (`compression`, `extra`)."""


def unpack(packed: Buffer, name: str, path: str, limit: int | None = None) -> Generator[bytes, None, None]:
    """Yield what `packed` holds, piece by piece, at most `limit` bytes of it, or `bound` of its size.

    `name` says how it is compressed, `path` is for messages. No piece is larger than a block of the compression, 8 MiB
    for the kernel's lz4 and 64 KiB for most others.

    Raises InvalidHeader for damaged data or output above `limit`, UnsupportedCompression.
    """
    size = 0
    with memoryview(packed) as view:
        if limit is None:
            limit = bound(len(view))
        try:
            for piece in _pieces(view, name, path, limit):
                size += len(piece)
                if size > limit:
                    raise _too_large(path, name, limit)
                yield piece
        except (OSError, EOFError, ValueError, RuntimeError) as error:
            raise InvalidHeader(f"{path}: its {name} data is damaged ({error})", field=name) from error


def bound(size: int) -> int:
    """Return how large a file of `size` bytes may become where nobody said a limit."""
    return min(LIMIT, RATIO * size + SMALL)


def _too_large(path: str, name: str, limit: int) -> InvalidHeader:
    return InvalidHeader(f"{path}: unpacks to more than {limit} bytes; raise the limit if that is meant", field=name)


def _pieces(packed: memoryview, name: str, path: str, limit: int) -> Iterator[bytes]:
    if name == "gzip":
        return _streams(_Gzip, packed)
    if name in ("xz", "lzma"):
        return _lzma(packed, name)
    if name == "bzip2":
        import bz2

        return _streams(bz2.BZ2Decompressor, packed)
    if name == "zstd":
        return _zstd(packed, _library(zstd_module(), name, path))
    if name == "lzo":
        return _lzo(packed, path, limit)
    if bytes(packed[:4]) == LZ4_LEGACY:
        return _lz4_legacy(packed, _library("lz4.block", name, path))
    return _streams(_library("lz4.frame", name, path).LZ4FrameDecompressor, packed)


def zstd_module() -> str:
    """Return the name of Python's own module, or of its backport."""
    import sys

    return "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"


def _library(module: str, name: str, path: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        extra = EXTRAS[name]
        raise UnsupportedCompression(
            f"{path}: unpacking {name} needs a library; pip install 'pyvmm-loader[{extra}]'",
            path=path,
            compression=name,
            extra=extra,
        ) from error


class _Members:
    """Counts the members, blocks or archives that a file is made of; `one()` raises ValueError for too many."""

    def __init__(self, size: int) -> None:
        self._left = FREE_MEMBERS + size // MEMBER_SIZE

    def one(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"it is made of members of less than {MEMBER_SIZE} bytes on average; compress it again")


def _streams(make: Callable[[], Decompressor], packed: memoryview) -> Iterator[bytes]:
    """Unpack one stream, and those of the same kind behind it: pbzip2, pzstd and cat make files of several."""
    name, at, members = compression(packed), 0, _Members(len(packed))
    while True:
        members.one()
        reader = make()
        while not reader.eof:
            with packed[at : at + CHUNK if reader.needs_input else at] as data:
                at += len(data)
                piece = reader.decompress(data, CHUNK)
            if piece:
                yield piece
            elif reader.needs_input and at == len(packed) and not reader.eof:
                raise EOFError("it ends too early")
        at -= len(reader.unused_data or b"")
        # A bzImage's payload ends with its unpacked size, 4 bytes that may look like a magic.
        with packed[at:] as rest:
            if len(rest) <= 4 or compression(rest) != name:
                return


class _Gzip:
    """zlib's decompressor in the shape of the others."""

    def __init__(self) -> None:
        import zlib

        self._stream = zlib.decompressobj(wbits=31)
        self._error = zlib.error

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        return not self._stream.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: Buffer, max_length: int = CHUNK, /) -> bytes:
        try:
            return self._stream.decompress(self._stream.unconsumed_tail or data, max_length)
        except self._error as error:
            raise ValueError(str(error)) from error


def _lzma(packed: memoryview, name: str) -> Iterator[bytes]:
    import lzma
    from functools import partial

    form = lzma.FORMAT_XZ if name == "xz" else lzma.FORMAT_ALONE
    try:
        yield from _streams(partial(lzma.LZMADecompressor, format=form, memlimit=DICTIONARY_LIMIT), packed)
    except lzma.LZMAError as error:
        raise ValueError(str(error)) from error


def _zstd(packed: memoryview, zstd: ModuleType) -> Iterator[bytes]:
    from functools import partial

    options = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG}
    try:
        yield from _streams(partial(zstd.ZstdDecompressor, options=options), packed)
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from error


def _word(packed: memoryview, at: int, size: int, order: str = "big") -> int:
    if at + size > len(packed):
        raise EOFError("it ends too early")
    return int.from_bytes(packed[at : at + size], "big" if order == "big" else "little")


def _lz4_legacy(packed: memoryview, block: ModuleType) -> Iterator[bytes]:
    # lz4's doc/lz4_Frame_format.md, "Legacy frame": blocks of 8 MiB, each behind its compressed size; no end mark.
    at, members = 4, _Members(len(packed))
    while at < len(packed):
        members.one()
        size = _word(packed, at, 4, "little")
        # The kernel's build appends the unpacked size, which stands where a block's size would.
        if at + 4 == len(packed):
            return
        if bytes(packed[at : at + 4]) == LZ4_LEGACY:  # another archive, as the kernel's unlz4.c takes it
            at += 4
            continue
        if at + 4 + size > len(packed):
            raise EOFError("a block leaves the data")
        try:
            # LZ4 expands at most 255 times, so that a small block needs no 8 MiB.
            room = min(LZ4_LEGACY_BLOCK, 255 * size + 64)
            yield block.decompress(packed[at + 4 : at + 4 + size], uncompressed_size=room)
        except block.LZ4BlockError as error:
            raise ValueError(str(error)) from error
        at += 4 + size


def _lzo(packed: memoryview, path: str, limit: int) -> Iterator[bytes]:
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
    members = _Members(len(packed))
    while True:
        members.one()
        whole = _word(packed, at, 4)
        if not whole:
            return
        size = _word(packed, at + 4, 4)
        at += 8 + checks_of_data + (checks_of_packed if size < whole else 0)
        if whole > LZO_MAX_BLOCK or size > whole or at + size > len(packed):
            raise ValueError("a block's size is impossible")
        if whole > limit:
            raise _too_large(path, "lzo", limit)
        data = bytes(packed[at : at + size])
        if size < whole:
            # LZO1X cannot expand more than 255 times; a block that claims more is not given its memory.
            if whole > 256 * size + 64:
                raise ValueError("a block's size is impossible")
            lzo = _library("lzo", "lzo", path)
            try:
                yield lzo.decompress(data, False, whole)
            except lzo.error as error:
                raise ValueError(str(error)) from error
        else:
            yield data
        at += size
