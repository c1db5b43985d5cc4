"""Read an initrd as the kernel does: archives one behind the other, each compressed or not, zeros between them.

Source: Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

from pyvmm_loader.errors import InvalidHeader
from pyvmm_loader.initrd.bootconfig import split_bootconfig
from pyvmm_loader.initrd.initramfs import MAGIC, MAGIC_CRC, read_archive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from typing_extensions import Buffer

    from pyvmm_loader.initrd.initramfs import Entry

MAX_ARCHIVES = 256
CHUNK = 1 << 16


def read_archives(initrd: Buffer, limit: int | None = None) -> Iterator[Entry]:
    """Yield the entries of all archives in an initrd, in their order; a bootconfig at its end is left out.

    What is compressed must be the last part, since only unpacking it tells where it ends. It may unpack to `limit`
    bytes, by default 16 times its size and 16 MiB.

    Raises InvalidHeader and ImageTruncated, and UnsupportedCompression where a library is missing.
    """
    data, _ = split_bootconfig(initrd)
    rest = yield from _read_plain(data)
    if rest < len(data):
        from pyvmm_loader.compression.magic import compression
        from pyvmm_loader.images.extraction import extract

        packed = data[rest:]
        if compression(memoryview(packed)) is None:
            raise InvalidHeader(f"no archive at {rest:#x}, packed or not; pass an initramfs", field="magic", value=rest)
        # once only, as in the kernel: what unpacks to something compressed again is no initramfs
        unpacked = extract(packed, limit)
        end = yield from _read_plain(unpacked)
        if end < len(unpacked):
            raise InvalidHeader(f"no newc header at {end:#x} of what was compressed", field="magic")


def _read_plain(data: bytes) -> Generator[Entry, None, int]:
    """Yield the entries of archives and skip zeros; return the offset of what is neither."""
    at = 0
    for _ in range(MAX_ARCHIVES):
        at = _skip_zeros(data, at)
        if data[at : at + 6] not in (MAGIC, MAGIC_CRC):
            return at
        if at % 4:
            raise InvalidHeader(f"an archive at {at:#x}, which is no multiple of 4", field="alignment", value=at)
        at = yield from read_archive(data, at)
    raise InvalidHeader(f"more than {MAX_ARCHIVES} archives in one initrd", field="archives")


def _skip_zeros(data: bytes, at: int) -> int:
    """Return the offset of the next byte that is not zero, or the end."""
    while at < len(data):
        piece = data[at : at + CHUNK]
        left = len(piece.lstrip(b"\0"))
        at += len(piece) - left
        if left:
            break
    return at
