"""Unpack the kernel inside: a bzImage's vmlinux, an EFI zboot's Image, or a compressed file."""

from __future__ import annotations

from pyvmm_loader.compression.decompress import UnsupportedCompression, unpack
from pyvmm_loader.compression.magic import compression
from pyvmm_loader.errors import InvalidHeader, NotAKernel
from pyvmm_loader.images.identify import identify
from pyvmm_loader.images.source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvmm_loader.images.source import ImageLike

__all__ = ["UnsupportedCompression", "extract", "extract_pieces"]


def extract(image: ImageLike, limit: int | None = None) -> bytes:
    """Return the kernel inside: of a bzImage its vmlinux, of a compressed file the file.

    It has at most `limit` bytes, by default 16 times what it is packed into and 16 MiB.

    Raises InvalidHeader for damaged data or output above `limit`, NotAKernel where nothing is compressed,
    UnsupportedCompression.
    """
    from io import BytesIO

    content = BytesIO()  # gives away what it holds without a copy
    for piece in extract_pieces(image, limit):
        content.write(piece)
    return content.getvalue()


def extract_pieces(image: ImageLike, limit: int | None = None) -> Iterator[bytes]:
    """Yield what `extract` returns, piece by piece, for content that need not be in memory as a whole."""
    with Source(image) as source, _packed(source) as packed:
        name = compression(packed)
        if name is None:
            raise NotAKernel(f"{source.name}: nothing compressed in it that is known here", path=source.name)
        yield from unpack(packed, name, source.name, limit)


def _packed(source: Source) -> memoryview:
    kind = identify(source.view)
    if kind == "bzimage":
        from pyvmm_loader.images.bzimage import BzImageFile

        file = BzImageFile(source.view, source.name)
        try:
            packed = file.packed
        finally:
            file.close()
        if packed is None:
            raise InvalidHeader(f"{source.name}: the header names no payload in the file", field="payload_offset")
        return packed
    if kind == "zboot":
        from pyvmm_loader.images.zboot import ZbootFile

        return ZbootFile(source.view, source.name).payload
    return source.view[:]
