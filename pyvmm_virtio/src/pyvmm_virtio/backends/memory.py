"""A disk in memory: for tests, for lessons, and for images that nobody needs afterwards."""

from __future__ import annotations

import errno
from mmap import mmap

from pyvmm_virtio.backends.block import Topology
from pyvmm_virtio.backends.errors import BadImage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

SECTOR = 512
ZEROS = bytes(1 << 20)
"""A guest may ask for gigabytes of them; memory of our own for all at once it does not get."""


class MemoryDisk:
    """Bytes as a disk.

    Args:
        content: how many bytes of zeros, or a buffer: a writable one (a bytearray, an mmap) is the disk itself, so what
            the guest writes appears in it, and `bytes` make a read-only disk.
        read_only: refuse writes to a writable one too.

    Attributes:
        mapped: the mapping of a file that the bytes are of, which a flush writes back, or None.

    Raises:
        BadImage: that is no whole number of 512-byte sectors.
    """

    def __init__(self, content: int | Buffer, *, read_only: bool = False) -> None:
        self._content = bytearray(content) if isinstance(content, int) else content
        self._view = memoryview(self._content).cast("B")
        if not len(self._view) or len(self._view) % SECTOR:
            raise BadImage(errno.EINVAL, f"{len(self._view)} bytes are no disk of 512-byte sectors: pad them")
        self.size = len(self._view)
        self.read_only = read_only or self._view.readonly
        self.topology = Topology()
        self.can_discard = True
        self.mapped = self._view.obj if isinstance(self._view.obj, mmap) else None
        self._lost = 0  # the error of the first flush that failed

    def refresh(self) -> int:
        """Return `size`: a buffer stays what it is while it is a disk."""
        return self.size

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill all views; raises OSError behind the end."""
        self._check(offset, sum(map(len, views)))
        for view in views:
            view[:] = self._view[offset : offset + len(view)]
            offset += len(view)

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        """Write all views; raises OSError behind the end."""
        self._check(offset, sum(map(len, views)))
        for view in views:
            self._view[offset : offset + len(view)] = view
            offset += len(view)

    def _check(self, offset: int, length: int) -> None:
        if length < 0 or not 0 <= offset <= self.size - length:
            raise OSError(errno.EIO, f"{length} bytes at {offset} are not within a disk of {self.size}")

    def flush(self) -> None:
        """Write a mapped file back; other memory forgets all or nothing. After one that failed, all fail."""
        if self.mapped is None or self.read_only:
            return
        if self._lost:
            raise OSError(self._lost, "an earlier flush failed, and what it was for may be lost")
        try:
            self.mapped.flush()
        except OSError as error:
            # as of a file (`RawFile`): the kernel tells it once
            self._lost = error.errno or errno.EIO
            raise

    def discard(self, offset: int, length: int) -> None:
        """Fill with zeros."""
        self.write_zeroes(offset, length, True)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:  # noqa: ARG002 - zeros are all there is
        """Fill with zeros."""
        self._check(offset, length)
        end = offset + length
        for start in range(offset, end, len(ZEROS)):
            self._view[start : min(start + len(ZEROS), end)] = ZEROS[: end - start]

    def close(self) -> None:
        """Let go of the buffer; idempotent. Whoever is at it with a view still has that."""
        self._view.release()

    def __repr__(self) -> str:
        return f"<MemoryDisk {self.size} bytes{', read-only' * self.read_only}>"
