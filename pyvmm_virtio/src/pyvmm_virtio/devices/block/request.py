"""One request of a block driver, taken apart and checked (VIRTIO 1.3, 5.2.6)."""

from __future__ import annotations

import struct

from pyvmm_virtio.backends.block import DISCARD, PIECE, RANGE_PIECE, READ, WRITE, ZERO, ZERO_UNMAP
from pyvmm_virtio.constants import block as c
from pyvmm_virtio.constants.ring import VRING_DESC_F_WRITE
from pyvmm_virtio.devices.block.config import MAX_SECTORS, MAX_SEGMENTS, SECTOR, SECTOR_SHIFT
from pyvmm_virtio.errors import InvalidChain
from pyvmm_virtio.memory import Seen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm_virtio.memory import GuestMemory
    from pyvmm_virtio.queue.buffers import Reader, Writer
    from pyvmm_virtio.queue.chain import DescriptorChain

    Step = tuple[int, int, int]
    """What to do on the disk: operation, offset and length in bytes."""

HEADER = struct.Struct("<IIQ")
"""Type, reserved, sector."""
RANGE = struct.Struct("<QII")
"""Sector, number of sectors, flags: of a discard or a write of zeros."""
NO_LIMIT = 0xFFFFFFFF


class Request:
    """What the driver wants, and the memory it gave for it.

    The driver may lay its bytes out in buffers as it likes (2.7.4.3): the header is the first 16 readable bytes, the
    status the last writable one, and between them is the data.

    Attributes:
        head: of the chain.
        queue: from which it came.
        type: ``VIRTIO_BLK_T_...``.
        sector: where it begins.
        reader: what is left to read: the data of a write.
        writer: where to write: the data of a read.
        steps: what is left to do on the disk, the first one first.

    Raises:
        VirtqueueError: there is no header, or no place for a status: it cannot be answered.
    """

    __slots__ = ("_filled", "_room", "_seen", "_status", "head", "queue", "reader", "sector", "steps", "type", "writer")

    sector: int

    def __init__(self, memory: GuestMemory, chain: DescriptorChain) -> None:
        self.head = chain.head_index
        self.queue = chain.queue_index
        self._seen = Seen(memory)
        self.reader: Reader = chain.reader(memory)
        self.writer: Writer = chain.writer(memory)
        room = self.writer.available_bytes()
        if not room:
            raise InvalidChain(chain.queue_index, self.head, None, "a block request has no place for its status")
        self._status = self.writer.split_at(room - 1)
        self._room = room - 1
        self._filled = 0
        self.type, _, self.sector = self.reader.read_obj(HEADER)
        self.steps: list[Step] = []

    def look_up(self, memory: GuestMemory, chain: DescriptorChain) -> None:
        """Have what is left in guest memory as it is now; raises InvalidBuffer where it is not there any more."""
        if not self._seen.has_changed(memory):
            return
        read, written = self.reader.bytes_read(), self.writer.bytes_written()
        self.release()
        self.reader, self.writer = chain.reader(memory), chain.writer(memory)
        self._status = self.writer.split_at(self._room)
        self.reader.advance(read)
        self.writer.advance(written)

    def take_step(self) -> Step | None:
        """Return the next thing to do, of a size that does not take long, or None where all is done."""
        if not self.steps:
            return None
        op, offset, length = self.steps[0]
        count = min(length, PIECE if op in (READ, WRITE) else RANGE_PIECE)
        if count < length:
            self.steps[0] = op, offset + count, length - count
        else:
            del self.steps[0]
        return op, offset, count

    def views(self, step: Step) -> Sequence[memoryview]:
        """Return the memory for a step."""
        op, _, count = step
        return self.writer.views(count) if op == READ else self.reader.views(count) if op == WRITE else ()

    def end_step(self, step: Step, *, done: bool) -> None:
        """Note that a step was done, or failed; memory that it was to fill may have changed in both cases."""
        op, _, count = step
        if op == READ:
            self.writer.advance(count)
            self._filled += count if done else 0
        elif op == WRITE:
            self.reader.advance(count)

    def fill(self, data: bytes) -> None:
        """Write what the driver wants to know."""
        self._filled += self.writer.write(data)

    def finish(self, status: int) -> int:
        """Write the status; returns the length for the used ring.

        2.7.8.2: "The device MUST write at least len bytes to descriptor, beginning at the first device-writable
        buffer". The status comes last, so it is among them only where all before it was filled: a request that failed,
        or gave more room than its answer needs, says less than was written, which it may. Filling the rest would cost
        a guest nothing, and us gigabytes.
        """
        self._status.write(status.to_bytes(1, "little"))
        return self._filled + (self._filled == self._room)

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


def is_within_limits(chain: DescriptorChain, size_max: int, seg_max: int) -> bool:
    """Say whether a request keeps to what the device said of its buffers of data: how long, and how many.

    5.2.5: "size_max ... the maximum size of any single segment", "seg_max ... the maximum number of segments in a
    request"; what a header or a status shares a buffer with counts, these themselves do not.
    """
    raw = chain.raw
    if len(raw) <= seg_max and size_max == NO_LIMIT:
        return True
    header, count = HEADER.size, 0
    last = max((at for at, one in enumerate(raw) if one[2] & VRING_DESC_F_WRITE and one[1]), default=-1)
    for at, (_, length, flags, _) in enumerate(raw):
        if flags & VRING_DESC_F_WRITE:
            length -= at == last
        else:
            skipped = min(header, length)
            header -= skipped
            length -= skipped
        count += length > 0
        if length > size_max or count > seg_max:
            return False
    return True


def ranges(request: Request, capacity: int) -> list[Step]:
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
    for sector, count, flags in RANGE.iter_unpack(reader.read(length)):
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
