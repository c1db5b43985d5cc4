"""Unpack a compressed kernel: a bzImage's payload, or a compressed Image or vmlinux.

gzip, xz, lzma and bzip2 come with Python; zstd and lz4 need the library named in the error. The output is bounded.
"""

from __future__ import annotations

from .errors import ImageError, InvalidHeader, NotAKernel
from .formats import compression, identify
from .source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    from .source import ImageLike

    class Decompressor(Protocol):
        """What zlib, lzma, bz2 and their like share."""

        @property
        def eof(self) -> bool:
            """Has the end of the stream been seen?"""
            ...

        def decompress(self, data: bytes, max_length: int = ..., /) -> bytes:
            """Return at most `max_length` bytes."""
            ...


CHUNK = 1 << 16
LIMIT = 1 << 30  # far above any kernel; a bomb ends here


class UnsupportedCompression(ImageError):
    """No library for the image's compression is installed (`compression`)."""


def extract(image: ImageLike, limit: int = LIMIT) -> bytes:
    """Return the kernel inside: of a bzImage its vmlinux, of a compressed file the file. At most `limit` bytes.

    Raises InvalidHeader for damaged data or output above `limit`, NotAKernel where nothing is compressed,
    UnsupportedCompression.
    """
    with Source(image) as source:
        kind = identify(source.view)
        if kind == "bzimage":
            from .bzimage import BzImageFile

            file = BzImageFile(source.view, source.name)
            header = file.header
            end = header.payload_offset + header.payload_length
            try:
                if header.version < 0x208 or not header.payload_length or end > len(file.payload):
                    raise InvalidHeader(
                        f"{source.name}: the header names no payload in the file", field="payload_offset"
                    )
                packed = bytes(file.payload[header.payload_offset : end])
            finally:
                file.payload.release()
        else:
            packed = bytes(source.view)
        name = compression(memoryview(packed))
        if name is None:
            raise NotAKernel(f"{source.name}: nothing compressed in it that is known here", path=source.name)
        return _unpack(packed, name, source.name, limit)


def _unpack(packed: bytes, name: str, path: str, limit: int) -> bytes:
    out = bytearray()
    try:
        for piece in _pieces(packed, name, path):
            out += piece
            if len(out) > limit:
                raise InvalidHeader(
                    f"{path}: unpacks to more than {limit} bytes; raise the limit if that is meant", field=name
                )
    except (OSError, EOFError, ValueError, RuntimeError) as error:
        raise InvalidHeader(f"{path}: its {name} data is damaged ({error})", field=name) from error
    return bytes(out)


def _pieces(packed: bytes, name: str, path: str) -> Iterator[bytes]:
    if name == "gzip":
        yield from _gzip(packed)
        return
    reader: Decompressor
    if name in ("xz", "lzma"):
        import lzma

        # The kernel's xz has no more than a 128 MiB dictionary; a header that asks for more is refused.
        form = lzma.FORMAT_XZ if name == "xz" else lzma.FORMAT_ALONE
        reader = lzma.LZMADecompressor(format=form, memlimit=256 << 20)
        failure: type[Exception] = lzma.LZMAError
    elif name == "bzip2":
        import bz2

        reader, failure = bz2.BZ2Decompressor(), OSError
    else:
        raise UnsupportedCompression(
            f"{path}: {name} is not unpacked here; unpack it with the tool {name} first", path=path, compression=name
        )
    try:
        piece = reader.decompress(packed, CHUNK)
        while piece or not reader.eof:
            if not piece:
                raise EOFError("it ends too early")
            yield piece
            piece = b"" if reader.eof else reader.decompress(b"", CHUNK)
    except failure as error:
        raise ValueError(str(error)) from error


def _gzip(packed: bytes) -> Iterator[bytes]:
    import zlib

    stream = zlib.decompressobj(wbits=31)
    try:
        data = packed
        while not stream.eof:
            piece = stream.decompress(data, CHUNK)
            if not piece and not stream.unconsumed_tail and not stream.eof:
                raise EOFError("it ends too early")
            yield piece
            data = stream.unconsumed_tail
    except zlib.error as error:
        raise ValueError(str(error)) from error
