"""One request of a block driver, taken apart and checked (VIRTIO 1.3, 5.2.6)."""

from __future__ import annotations

import struct

from pyvmm_virtio.backends.block import DISCARD, ZERO, ZERO_UNMAP
from pyvmm_virtio.constants import block as c
from pyvmm_virtio.devices.block.config import MAX_SECTORS, MAX_SEGMENTS, SECTOR, SECTOR_SHIFT
from pyvmm_virtio.errors import InvalidChain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_virtio.memory import GuestMemory
    from pyvmm_virtio.queue.buffers import Reader, Writer
    from pyvmm_virtio.queue.chain import DescriptorChain

HEADER = struct.Struct("<IIQ")
"""Type, reserved, sector."""
RANGE = struct.Struct("<QII")
"""Sector, number of sectors, flags: of a discard or a write of zeros."""
FILLING = bytes(65536)


class Request:
    """What the driver wants, and the memory it gave for it.

    The driver may lay its bytes out in buffers as it likes (2.7.4.3): the header is the first 16 readable bytes, the
    status the last writable one, and between them is the data.

    Attributes:
        head: of the chain.
        type: ``VIRTIO_BLK_T_...``.
        sector: where it begins.
        reader: what is left to read: the data of a write.
        writer: where to write: the data of a read.

    Raises:
        VirtqueueError: there is no header, or no place for a status: it cannot be answered.
    """

    sector: int
    __slots__ = ("_filled", "_status", "head", "reader", "sector", "type", "writer")

    def __init__(self, memory: GuestMemory, chain: DescriptorChain) -> None:
        self.head = chain.head_index
        self.reader: Reader = chain.reader(memory)
        self.writer: Writer = chain.writer(memory)
        room = self.writer.available_bytes()
        if not room:
            raise InvalidChain(chain.queue_index, self.head, None, "a block request has no place for its status")
        self._status = self.writer.split_at(room - 1)
        self._filled = room - 1
        self.type, _, self.sector = self.reader.read_obj(HEADER)

    def finish(self, status: int) -> int:
        """Write the status; returns the length for the used ring.

        2.7.8.2: "The device MUST write at least len bytes ... beginning at the first device-writable buffer": what the
        request did not fill is made zeros, so that the length may cover the status, which comes last.
        """
        writer = self.writer
        while left := writer.available_bytes():
            writer.write(FILLING[:left])
        self._status.write(status.to_bytes(1, "little"))
        return self._filled + 1

    def release(self) -> None:
        """Let go of the driver's memory."""
        self.reader.release()
        self.writer.release()
        self._status.release()


class Refused(Exception):
    """A request is answered with a status other than OK."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def ranges(request: Request, capacity: int) -> list[tuple[int, int, int]]:
    """Read what to discard or to fill with zeros, as (operation, offset, length) in bytes; all are checked first.

    Raises:
        Refused: the answer to a request that makes no sense.
    """
    reader = request.reader
    length = reader.available_bytes()
    if not length or length % RANGE.size or length > MAX_SEGMENTS * RANGE.size:
        raise Refused(c.VIRTIO_BLK_S_IOERR)
    discard = request.type == c.VIRTIO_BLK_T_DISCARD
    allowed = 0 if discard else c.VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
    found = []
    # copied out once: the guest may change it meanwhile
    for sector, count, flags in RANGE.iter_unpack(reader.read()):
        if flags & ~allowed:
            # 5.2.6.2: "MUST set the status byte to VIRTIO_BLK_S_UNSUPP ... if any unknown flag is set. Furthermore ...
            # for discard commands if the unmap flag is set"
            raise Refused(c.VIRTIO_BLK_S_UNSUPP)
        if count > MAX_SECTORS or sector + count > capacity:
            raise Refused(c.VIRTIO_BLK_S_IOERR)
        op = DISCARD if discard else ZERO_UNMAP if flags else ZERO
        if count:
            found.append((op, sector << SECTOR_SHIFT, count << SECTOR_SHIFT))
    return found


def data_offset(request: Request, length: int, capacity: int) -> int:
    """Return where in bytes a read or write of `length` bytes begins; raises `Refused` where it cannot be."""
    if length % SECTOR or request.sector + (length >> SECTOR_SHIFT) > capacity:
        raise Refused(c.VIRTIO_BLK_S_IOERR)
    return request.sector << SECTOR_SHIFT
