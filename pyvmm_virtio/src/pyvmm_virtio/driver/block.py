"""A driver of block devices (VIRTIO 1.3, 5.2)."""

from __future__ import annotations

from struct import Struct

from pyvmm_virtio.constants import block as b
from pyvmm_virtio.driver.driver import Driver, DriverError
from pyvmm_virtio.features import mask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm_virtio.driver.driver import Request

SECTOR = 512
_header = Struct("<IIQ").pack
_segment = Struct("<QII").pack


class BlockError(DriverError):
    """The device answered with a status that is not OK: 1 is an I/O error, 2 is unsupported.

    Attributes:
        status: the status byte.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"the device answers with status {status}")
        self.status = status


class BlockDriver(Driver):
    """Reads and writes sectors of 512 bytes. ``submit_`` methods put many requests on their way; `finish` ends one."""

    known_features = mask(
        b.VIRTIO_BLK_F_SIZE_MAX,
        b.VIRTIO_BLK_F_SEG_MAX,
        b.VIRTIO_BLK_F_RO,
        b.VIRTIO_BLK_F_BLK_SIZE,
        b.VIRTIO_BLK_F_WCE,
        b.VIRTIO_BLK_F_TOPOLOGY,
        b.VIRTIO_BLK_F_CONFIG_WCE,
        b.VIRTIO_BLK_F_MQ,
        b.VIRTIO_BLK_F_DISCARD,
        b.VIRTIO_BLK_F_WRITE_ZEROES,
    )

    @property
    def capacity(self) -> int:
        """The device's size in sectors."""
        return self.config_value(0, 8)

    def submit_request(
        self,
        kind: int,
        sector: int = 0,
        data: Sequence[bytes] = (),
        into: Sequence[int] = (),
        *,
        queue: int = 0,
        kick: bool = True,
    ) -> Request:
        """Offer a request of a type (``VIRTIO_BLK_T_...``) with data to write, or sizes to read."""
        return self.submit(queue, (_header(kind, 0, sector), *data), (*into, 1), kick=kick)

    def submit_read(self, sector: int, count: int = 1, *, queue: int = 0, kick: bool = True) -> Request:
        """Put a read on its way."""
        return self.submit_request(b.VIRTIO_BLK_T_IN, sector, (), (count * SECTOR,), queue=queue, kick=kick)

    def submit_write(self, sector: int, data: bytes, *, queue: int = 0, kick: bool = True) -> Request:
        """Put a write on its way."""
        return self.submit_request(b.VIRTIO_BLK_T_OUT, sector, (data,), queue=queue, kick=kick)

    def status_of(self, request: Request) -> int:
        """Return the status byte of a request that is done, the last of its writable bytes."""
        addr, length, _ = request.buffers[-1]
        with self.memory.get_slice(addr + length - 1, 1) as view:
            return view[0]

    def finish(self, request: Request) -> bytes:
        """Wait for a request and return the data it read; raises BlockError."""
        self.wait(request)
        status = self.status_of(request)
        size = sum(length for _, length, flags in request.buffers[:-1] if flags)
        data = request.written(size) if not status else b""
        request.release()
        if status:
            raise BlockError(status)
        return data

    def read(self, sector: int, count: int = 1, *, queue: int = 0) -> bytes:
        """Read sectors; raises BlockError."""
        return self.finish(self.submit_read(sector, count, queue=queue))

    def write(self, sector: int, data: bytes, *, queue: int = 0) -> None:
        """Write whole sectors; raises BlockError."""
        self.finish(self.submit_write(sector, data, queue=queue))

    def flush(self, *, queue: int = 0) -> None:
        """Have everything that was written on stable storage; raises BlockError."""
        self.finish(self.submit_request(b.VIRTIO_BLK_T_FLUSH, queue=queue))

    def discard(self, sector: int, count: int, *, flags: int = 0) -> None:
        """Say that sectors are of no use any more; raises BlockError."""
        self.finish(self.submit_request(b.VIRTIO_BLK_T_DISCARD, 0, (_segment(sector, count, flags),)))

    def write_zeroes(self, sector: int, count: int, *, unmap: bool = False) -> None:
        """Zero sectors; raises BlockError."""
        flags = b.VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP if unmap else 0
        self.finish(self.submit_request(b.VIRTIO_BLK_T_WRITE_ZEROES, 0, (_segment(sector, count, flags),)))

    def get_id(self) -> bytes:
        """Return the device's name, without the zeros after it; raises BlockError."""
        data = self.finish(self.submit_request(b.VIRTIO_BLK_T_GET_ID, 0, (), (b.VIRTIO_BLK_ID_BYTES,)))
        return data.rstrip(b"\0")
