"""An NBD client with many requests under way at once."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from pyvmm_device.locks import Lock
from pyvmm_virtio.backends.block import DISCARD, FLUSH, READ, WRITE, ZERO, ZERO_UNMAP, Topology
from pyvmm_virtio.backends.errors import NbdError
from pyvmm_virtio.backends.nbd import protocol as nbd
from pyvmm_virtio.backends.nbd.connection import open_connection
from pyvmm_virtio.backends.nbd.transmission import Transmission

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

SECTOR = 512


class NbdDisk(Transmission):
    """An export of an NBD server.

    Requests are begun by `submit` and end in `on_ready`; `readv` and its like wait. None of it is for several threads
    at once.

    Args:
        address: a path of a unix socket, or `(host, port)`.
        export: the export's name.
        read_only: refuse writes even if the server would take them.
        owns: closed after this disk, such as the `QemuNbdServer` it talks to.

    Raises:
        NbdError: the server refuses, or is none.
        OSError: nobody answers there.
    """

    def __init__(
        self,
        address: str | tuple[str, int],
        export: str = "",
        *,
        read_only: bool = False,
        owns: Sequence[object] = (),
    ) -> None:
        self._owns = list(owns)
        self._address, self._export = address, export
        self._lock = Lock()  # of what `refresh` changes
        self._asked = self._told = 0
        try:
            connection, said = open_connection(address, export)
        except BaseException:
            self._close_owned()
            raise
        super().__init__(connection, said, address)
        if said.size < SECTOR:
            self.close()
            raise NbdError(errno.EINVAL, f"export {export!r} is smaller than one sector")
        self.size = said.size // SECTOR * SECTOR
        self.read_only = read_only or bool(said.flags & nbd.READ_ONLY)
        self.can_discard = self.can_discard and not self.read_only
        block = max(SECTOR, said.min_block)
        self.topology = Topology(block, max(block, said.preferred_block), 0, 0, max(block, said.preferred_block))

    def refresh(self) -> int:
        """Open the export once more to see how large it is now; returns `size`. Any thread may do it."""
        with self._lock:
            self._asked += 1
            asked = self._asked
        connection, said = open_connection(self._address, self._export)
        with connection, suppress(OSError):
            connection.send(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_DISC, 0, 0, 0))
        with self._lock:
            # who asked later may have been answered earlier
            if asked > self._told:
                self._told = asked
                self.size = said.size // SECTOR * SECTOR
            return self.size

    def _wait(self, op: int, views: Sequence[memoryview], offset: int, length: int) -> None:
        result: list[int] = []
        self.submit(op, views, offset, length, result.append)
        self.drain()
        if result[0]:
            if self.broken is not None and result[0] == errno.EIO:
                raise self.broken
            raise NbdError(result[0], f"the NBD server failed: {os.strerror(result[0])}")

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        """Read and wait."""
        self._wait(READ, views, offset, sum(map(len, views)))

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        """Write and wait."""
        self._wait(WRITE, views, offset, sum(map(len, views)))

    def flush(self) -> None:
        """Flush and wait."""
        self._wait(FLUSH, (), 0, 0)

    def discard(self, offset: int, length: int) -> None:
        """Trim and wait."""
        self._wait(DISCARD, (), offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Write zeros and wait."""
        self._wait(ZERO_UNMAP if unmap else ZERO, (), offset, length)

    def close(self) -> None:
        """Say goodbye and close, then what this disk owns; idempotent."""
        if self.connection.fileno() >= 0:
            if self.broken is None and not self.wants_write():
                with suppress(OSError):  # it is gone, which is what we want
                    self.connection.send(nbd.REQUEST.pack(nbd.REQUEST_MAGIC, 0, nbd.CMD_DISC, 0, 0, 0))
            self.give_up("the disk was closed")
            self.connection.close()
        self._close_owned()

    def _close_owned(self) -> None:
        while self._owns:
            self._owns.pop().close()  # type: ignore[attr-defined] # whatever has a close

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<NbdDisk {self._address!r} {self._export!r}, {self.count} requests under way>"
