"""The compiled data plane of a disk: reads and writes of raw files on split rings, a batch at a time without the GIL.

`native/block.h` does what `Block` does in Python for requests laid out as drivers do it, and stops in front of every
other chain: those, all errors, and everything that is policy, are Python's.
"""

from __future__ import annotations

from pyvmm_memory import GuestMemoryMmap
from pyvmm_memory.region import GuestRegionMmap
from pyvmm_virtio._virtio import ffi, lib
from pyvmm_virtio.backends.block import PIECE
from pyvmm_virtio.backends.raw import RawFile
from pyvmm_virtio.backends.workers import WorkerDisk
from pyvmm_virtio.queue.split import SplitQueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm_virtio.backends.block import BlockBackend
    from pyvmm_virtio.memory import GuestMemory
    from pyvmm_virtio.queue.protocol import Queue


CALL_BYTES = 32 << 20
"""What one call moves at most where nobody else waits for it: as long may a reset have to."""


class Ring:
    """What C knows of one queue: where its parts are, and guest memory, in this process.

    The queue keeps views of all of that and lets them go with its own, so that memory is not unmapped before.

    Raises:
        QueueNotReady: the queue is not enabled.
        InvalidRing: it does not lie in this memory.
    """

    __slots__ = ("_regions", "capacity", "may_write", "memory", "queue", "struct", "views")

    def __init__(self, queue: SplitQueue, memory: GuestMemoryMmap) -> None:
        self.queue = queue
        self.memory = memory
        self.capacity, self.may_write = 0, False  # those that the structure has
        parts = queue.host_addresses(memory)
        regions = [region for region in memory if region.mapping.view is not None]
        queue.hold(region.view[:] for region in regions)
        self.views = queue.held()
        self._regions = ffi.new("pyvmm_region[]", len(regions))
        for at, region in enumerate(regions):
            self._regions[at] = (region.start, region.size, region.mapping.as_ptr(), not region.view.readonly)
        self.struct = ffi.new("pyvmm_block_queue *")
        self.struct.table, self.struct.avail, self.struct.used = parts
        self.struct.size = queue.size()
        self.struct.regions = self._regions
        self.struct.region_count = len(regions)

    def is_current(self, queue: Queue, memory: GuestMemory) -> bool:
        """Say whether nothing has moved since. No mapping of such a memory is taken back: it has one generation."""
        return self.queue is queue and self.memory is memory and self.views is queue.held()


class DataPlane:
    """Serves the queues of one device, within its calls.

    Args:
        disk: a `RawFile`, or a `WorkerDisk` of one.
        limit: the most bytes of a request that are moved while the caller waits.
        threads: how many others move large requests at the same time.

    Attributes:
        capacity: of the disk, in sectors; the device says it before each turn, and so
        may_write: whether writes are for C.
    """

    def __init__(self, disk: RawFile, limit: int, threads: int) -> None:
        self._disk = disk
        self._limit = limit
        self._limits = 0xFFFFFFFF, 0xFFFFFFFF
        self.capacity = 0
        self.may_write = False
        self._rings: dict[int, Ring] = {}
        self._pool: Any = ffi.gc(lib.pyvmm_pool_start(threads), lib.pyvmm_pool_stop) if threads else ffi.NULL
        if threads and not self._pool:
            raise MemoryError("no memory for the threads of a disk")

    @classmethod
    def of(cls, disk: BlockBackend, *, waits: bool) -> DataPlane | None:
        """Make one for a disk that can have one; `waits` says whether a kick returns when all is done."""
        if type(disk) is WorkerDisk and type(disk.disk) is RawFile:
            return cls(disk.disk, PIECE if waits else disk.quick_limit, disk.workers - 1 if waits else 0)
        # a class derived from it may read and write in ways of its own
        return cls(disk, PIECE, 0) if type(disk) is RawFile else None

    def take(self, queue: Queue, memory: GuestMemory, room: int) -> tuple[int, int, bool]:
        """Do what is in a queue, as far as it is for C; returns how many chains and bytes, and whether Python looks.

        Args:
            queue: the queue.
            memory: guest memory.
            room: how many bytes may be moved, before the last request.

        Raises what `pop_descriptor_chain` does where the ring is not in memory.
        """
        ring = self._rings.get(queue.index)
        if ring is None or not ring.is_current(queue, memory):
            made = self._make_ring(queue, memory)
            if made is None:
                return 0, 0, True
            ring = self._rings[queue.index] = made
        struct = ring.struct
        struct.next_avail, struct.next_used = queue.next_avail(), queue.next_used()
        struct.budget = room if room < CALL_BYTES else CALL_BYTES
        if ring.capacity != self.capacity or ring.may_write != self.may_write:
            struct.capacity = ring.capacity = self.capacity
            struct.may_write = ring.may_write = self.may_write
        under_way = ring.queue.heads_in_flight()
        if under_way:
            struct.taken = heads = ffi.from_buffer(under_way)
            count = lib.pyvmm_block_run(struct, self._pool)
            struct.taken = ffi.NULL
            del heads
        else:
            count = lib.pyvmm_block_run(struct, self._pool)
        if count < 0:
            return 0, 0, True
        if count:
            ring.queue.advance(count)
        return count, struct.moved, bool(struct.stopped)

    def set_limits(self, size_max: int, seg_max: int) -> None:
        """Say how many bytes a buffer, and how many buffers a request may have, as was negotiated."""
        self._limits = size_max, seg_max
        self._rings.clear()

    def _make_ring(self, queue: Queue, memory: GuestMemory) -> Ring | None:
        """Return nothing where C would do something else than Python: it neither translates nor records writes."""
        if type(memory) is not GuestMemoryMmap or memory.dirty_tracking:
            return None
        if type(queue) is not SplitQueue or not queue.is_plain():
            return None
        if not all(type(region) is GuestRegionMmap for region in memory):
            return None
        ring = Ring(queue, memory)
        ring.struct.indirect = queue.indirect_allowed()
        ring.struct.disk = self._disk.fileno()
        ring.struct.limit = self._limit
        ring.struct.size_max, ring.struct.seg_max = self._limits
        return ring

    def close(self) -> None:
        """End the threads; idempotent."""
        self._rings.clear()
        if self._pool:
            ffi.release(self._pool)
            self._pool = ffi.NULL
