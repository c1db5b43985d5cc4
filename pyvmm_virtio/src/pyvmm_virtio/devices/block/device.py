"""The block device: requests of a driver, carried out on a disk (VIRTIO 1.3, 5.2)."""

from __future__ import annotations

import errno

from pyvmm_device.errors import DeviceStateError
from pyvmm_device.state import PART, load_fields, optional
from pyvmm_device.tally import ERROR
from pyvmm_memory import GuestMemoryError, Permissions
from pyvmm_virtio.backends.block import FLUSH, PIECE, READ, WRITE
from pyvmm_virtio.backends.disk import as_disk
from pyvmm_virtio.backends.memory import MemoryDisk
from pyvmm_virtio.constants import block as c
from pyvmm_virtio.constants.device_ids import VIRTIO_ID_BLOCK
from pyvmm_virtio.device import VirtioDevice
from pyvmm_virtio.devices.block.config import (
    CAPACITY,
    FIXED,
    SECTOR_SHIFT,
    WRITEBACK_OFFSET,
    block_config,
    block_features,
    other_disk,
)
from pyvmm_virtio.devices.block.request import (
    HEADER,
    NO_LIMIT,
    Refused,
    Request,
    data_offset,
    is_within_limits,
    ranges,
)
from pyvmm_virtio.devices.block.under_way import STATE, UnderWay, check_requests, not_taken
from pyvmm_virtio.devices.throttle import Throttle
from pyvmm_virtio.devices.watch import Watch
from pyvmm_virtio.errors import VirtioUsageError
from pyvmm_virtio.features import RING_FEATURES
from pyvmm_virtio.memory import dirty_marker
from pyvmm_virtio.turn import DESCRIPTOR_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike
    from typing import Any

    from typing_extensions import Buffer

    from pyvmm_device import EventLoop
    from pyvmm_virtio.backends.block import AsyncBlockBackend, BlockBackend
    from pyvmm_virtio.devices.block.data_plane import DataPlane
    from pyvmm_virtio.devices.block.request import Step
    from pyvmm_virtio.interrupt import VirtioInterrupt
    from pyvmm_virtio.memory import DirtyMarker, GuestMemory
    from pyvmm_virtio.queue.chain import DescriptorChain
    from pyvmm_virtio.queue.protocol import Queue
    from pyvmm_virtio.rate_limiter import RateLimiter

IN, OUT, FLUSH_TYPE, GET_ID = c.VIRTIO_BLK_T_IN, c.VIRTIO_BLK_T_OUT, c.VIRTIO_BLK_T_FLUSH, c.VIRTIO_BLK_T_GET_ID
OK, IOERR, UNSUPP = c.VIRTIO_BLK_S_OK, c.VIRTIO_BLK_S_IOERR, c.VIRTIO_BLK_S_UNSUPP
RANGED = {
    c.VIRTIO_BLK_T_DISCARD: c.VIRTIO_BLK_F_DISCARD,
    c.VIRTIO_BLK_T_WRITE_ZEROES: c.VIRTIO_BLK_F_WRITE_ZEROES,
}
MAX_SEG_MAX = 254
"""A header, a status and so many buffers fill a queue of 256; indirect tables may have no more either (2.7.5.3.1)."""
READABLE, WRITABLE = Permissions.Read, Permissions.Write
CACHES = ("writeback", "writethrough", "unsafe")


class Block(VirtioDevice):
    """A disk.

    >>> from pyvmm_virtio.backends.memory import MemoryDisk
    >>> disk = Block(MemoryDisk(bytes(4096)), serial="lesson")
    >>> disk.capacity, disk.read_only
    (8, True)

    Args:
        disk: the back end, such as `RawFile`, `MemoryDisk`, `NbdDisk`, a `WorkerDisk` around one of the first two, or
            what `open_disk` returns; or the path of a raw image, or a buffer. It becomes the device's own: `close`
            closes it.
        queues: how many request queues there are; one for each vCPU is what drivers like.
        queue_size: the largest size of each, a power of two.
        serial: up to 20 bytes of ASCII by which the guest can tell the disk (``/sys/block/vda/serial``).
        seg_max: the most buffers of data in one request; as many as fit into a queue where nothing is said.
        size_max: the most bytes in one buffer, or 0 for no limit.
        cache: "writeback": what the guest wrote is safe after a flush, unless it asks for write-through;
            "writethrough": as soon as a write is answered, even if the guest asks for write-back; "unsafe": never, for
            guests that are thrown away.
        rate_limiter: how many bytes and operations there may be in a time.
        loop: where a back end with many requests under way, and a rate limit, are waited for; that of an `IoThread`, if
            nobody else is to share its time. A back end that makes its caller wait gets threads then (`WorkerDisk`).
            Without a loop a kick returns when all requests are done, and a rate limit is impossible.
        data_plane: whether reads and writes of a `RawFile`, or a `WorkerDisk` of one, may be done in C where that is
            possible, many at a time and without the GIL. All else, and other back ends, are Python's in any case.

    Raises:
        VirtioUsageError: a combination that cannot be.
    """

    device_type = VIRTIO_ID_BLOCK
    fixed_config = FIXED

    def __init__(
        self,
        disk: BlockBackend | str | PathLike[str] | Buffer,
        *,
        queues: int = 1,
        queue_size: int = 256,
        serial: str = "",
        seg_max: int | None = None,
        size_max: int = 0,
        cache: str = "writeback",
        rate_limiter: RateLimiter | None = None,
        loop: EventLoop | None = None,
        data_plane: bool = True,
        ring_features: int = RING_FEATURES,
    ) -> None:
        most = min(MAX_SEG_MAX, max(1, queue_size - 2))
        seg_max = most if seg_max is None else seg_max
        if not 1 <= queues <= 0xFFFF or not 1 <= seg_max <= most or cache not in CACHES:
            raise VirtioUsageError(
                f"{queues} queues, {seg_max} segments, cache {cache!r}: give 1 to 65535, 1 to {most}, one of {CACHES}"
            )
        if not 0 <= size_max <= 0xFFFFFFFF:
            raise VirtioUsageError(f"buffers of at most {size_max} bytes: give up to 4294967295, or 0 for no limit")
        if not serial.isascii() or len(serial) > c.VIRTIO_BLK_ID_BYTES:
            raise VirtioUsageError(f"serial {serial!r}: give up to {c.VIRTIO_BLK_ID_BYTES} characters of ASCII")
        self.serial = serial.encode("ascii")
        self.cache = cache
        self._throttle = Throttle(self, rate_limiter, loop)
        self.disk = disk = as_disk(disk)
        if loop is not None and not hasattr(disk, "submit") and (type(disk) is not MemoryDisk or disk.mapped):
            # what waits for a file must not make the loop wait
            from pyvmm_virtio.backends.workers import WorkerDisk

            disk = WorkerDisk(disk)
        self._backend: BlockBackend = disk
        # told apart by the method
        self._async: AsyncBlockBackend | None = disk if hasattr(disk, "submit") else None  # type: ignore[assignment]
        # what a back end with requests under way still does at once
        self._quick_limit: int = getattr(disk, "quick_limit", 0) if self._async is not None else PIECE
        self._watch = Watch(loop, self._on_backend)
        self._closed = False
        self._may_plane = data_plane and rate_limiter is None
        self._plane: DataPlane | None = None
        self._writeback = False
        self._limits = NO_LIMIT, NO_LIMIT
        self._most = size_max or NO_LIMIT, seg_max
        super().__init__(
            features=block_features(disk, queues, size_max),
            config=block_config(disk, queues, seg_max, size_max, writeback=cache != "writethrough"),
            queue_max_sizes=(queue_size,) * queues,
            ring_features=ring_features,
            loop=loop,
        )
        self._work = UnderWay(self, disk, queues)
        self._listen()

    @property
    def capacity(self) -> int:
        """The size in sectors of 512 bytes, as the guest knows it."""
        capacity: int = CAPACITY.unpack_from(self.config)[0]
        return capacity

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self.disk.read_only

    def resize(self) -> int:
        """Look how large the disk is now, and tell the driver; returns the size in sectors.

        A server is asked here and now, and given up after its time; who served the guest goes on meanwhile.
        """
        self._backend.refresh()
        with self.lock:
            # looked at under the lock: of two who ask at once, the disk knows whose answer is the newer
            sectors = self._backend.size >> SECTOR_SHIFT
            if sectors != self.capacity:
                self.update_config(0, CAPACITY.pack(sectors))
        return sectors

    # the driver's side

    def activate(self, memory: GuestMemory, queues: Sequence[Queue], interrupt: VirtioInterrupt) -> None:  # noqa: ARG002 - its attributes say it
        """Settle on a cache mode, and on the limits that hold."""
        size_max, seg_max = self._most
        self._limits = (
            size_max if self.negotiated(c.VIRTIO_BLK_F_SIZE_MAX) else NO_LIMIT,
            seg_max if self.negotiated(c.VIRTIO_BLK_F_SEG_MAX) else NO_LIMIT,
        )
        if not self.negotiated(c.VIRTIO_BLK_F_FLUSH):
            # 5.2.5.2: "If VIRTIO_BLK_F_CONFIG_WCE is negotiated but VIRTIO_BLK_F_FLUSH is not, the device MUST
            # initialize writeback to 0"
            self.config[WRITEBACK_OFFSET] = 0
        self._settle_cache()
        if self._may_plane:
            from pyvmm_virtio.devices.block.data_plane import DataPlane

            self._plane = DataPlane.of(self._backend, waits=self.loop is None)
            self._may_plane = False
        if self._plane is not None:
            self._plane.set_limits(*self._limits)

    def _settle_cache(self) -> None:
        # 5.2.6.2: a driver that does not know of flushes, or chose write-through, finds every write stable
        may = self.negotiated(c.VIRTIO_BLK_F_FLUSH) and bool(self.config[WRITEBACK_OFFSET])
        self._writeback = self.cache == "unsafe" or (self.cache == "writeback" and may)

    def write_config(self, offset: int, data: memoryview) -> None:
        """Take the driver's choice between write-back and write-through."""
        if offset == WRITEBACK_OFFSET and len(data) == 1 and self.negotiated(c.VIRTIO_BLK_F_CONFIG_WCE):
            with self.lock:
                wanted = data[0] == 1 and self.cache != "writethrough" and self.negotiated(c.VIRTIO_BLK_F_FLUSH)
                self.config[WRITEBACK_OFFSET] = wanted
                self._settle_cache()

    def process_queue(self, index: int) -> None:
        """Carry out what is in a queue, after what was left of it before."""
        left = self._work.is_stalled(index)
        if not left or self._work.go_on(index):
            if self._throttle:
                self._take_at_rate(index)
            elif self._plane is None or not self._fast(index, self._plane):
                self._take(index)
            elif not left:
                return
        if self._async is not None:
            self._after_submitting()

    def _fast(self, index: int, plane: DataPlane) -> bool:
        """Have the data plane carry out what it can of a queue; false where something is left for Python."""
        plane.capacity = CAPACITY.unpack_from(self.config)[0]
        plane.may_write = self._writeback and not self.disk.read_only
        return self.dispatch.batches(index, plane.take)

    def _take(self, index: int) -> None:
        quick = self._quick if self._quick_limit else None
        dispatch = self.dispatch
        # the turn's, as `chains` has it
        queue, memory = self.queues[index], self.memory
        mark, give_back, completed = dirty_marker(memory), queue.add_used, dispatch.completed
        for chain in dispatch.chains(index):
            written = quick(memory, chain, mark) if quick is not None else 0
            if written:
                # at once, as the data plane does: the driver may offer it again
                give_back(memory, chain.head_index, written)
                completed.add(index)
                continue
            # it pays for what is moved when that is moved, and where
            dispatch.room += chain.length
            self._carry_out(chain)
            if self._async is None and self._work.has(index):
                break  # the rest of it comes first

    def _take_at_rate(self, index: int) -> None:
        """Take what the rate lets through: a request pays for what it moves, and one that is refused for nothing."""
        queue, dispatch = self.queues[index], self.dispatch
        for chain in dispatch.chains(index):
            dispatch.room += chain.length  # as in `_take`
            request = self.begin_again(chain)
            if request is None:
                continue
            if not self._throttle.admit(index, sum(count for op, _, count in request.steps if op in (READ, WRITE))):
                request.release()
                queue.go_to_previous_position()
                break
            self._work.begin(chain, request)
            if self._async is None and self._work.has(index):
                break

    def _quick(self, memory: GuestMemory, chain: DescriptorChain, mark: DirtyMarker | None) -> int:
        """Carry out a read or write laid out as all drivers do it, which is the same as `_carry_out` but faster.

        Returns how many bytes were written to memory; 0 where it is for `_carry_out`.
        """
        raw = chain.raw
        if len(raw) != 3:
            return 0
        (at, size, flags, _), (data, length, direction, _), (status, room, last, _) = raw
        # the device writes what is marked so: the header is not, the status is
        if size != 16 or room != 1 or flags & 2 or not last & 2 or length > self._limits[0]:
            return 0
        get_slice = memory.get_slice
        try:
            kind, _, sector = HEADER.unpack(get_slice(at, 16, READABLE))
            view = get_slice(data, length, WRITABLE if direction & 2 else READABLE)
            answer = get_slice(status, 1, WRITABLE)
        except GuestMemoryError:
            return 0  # a buffer across regions, one that is nowhere, or one that must not be written
        if answer.readonly or (direction & 2 and view.readonly):
            return 0
        if length & 511 or not length or length > self._quick_limit:
            return 0
        if sector + (length >> 9) > CAPACITY.unpack_from(self.config)[0]:
            return 0
        try:
            backend = self._backend
            if kind == IN and direction & 2:
                backend.readv((view,), sector << 9)
                written = length + 1
            elif kind == OUT and not direction & 2 and self._writeback and not backend.read_only:
                backend.writev((view,), sector << 9)
                written = 1
            else:
                return 0
        except OSError:
            return 0  # once more, the slow way, which says what went wrong
        answer[0] = OK
        if mark is not None:
            mark(data, written - 1)
            mark(status, 1)
        return written

    def _carry_out(self, chain: DescriptorChain) -> None:
        request = self.begin_again(chain)
        if request is not None:
            self._work.begin(chain, request)

    def begin_again(self, chain: DescriptorChain) -> Request | None:
        """Return the request of a chain, with what there is to do on the disk; None where it is answered already."""
        request = Request(self.memory, chain)
        # behind an IOMMU a buffer is in as many pieces as the driver likes; the descriptors have been paid for
        more = request.reader.pieces() + request.writer.pieces() - len(chain.raw)
        if more > 0:
            self.dispatch.room -= DESCRIPTOR_BYTES * more
        try:
            if not is_within_limits(chain, *self._limits):
                # 5.2.5: the device says by size_max and seg_max what it takes
                raise Refused(IOERR)
            request.steps = self._plan(request)
        except Refused as refusal:
            self.complete(chain.queue_index, request.head, request.finish(refusal.status))
            request.release()
            return None
        return request

    def _plan(self, request: Request) -> list[Step]:
        """Return what to do on the disk; raises `Refused`."""
        kind = request.type
        if kind == IN:
            if request.reader.available_bytes():
                raise Refused(IOERR)  # data to read into that the driver did not make writable
            length = request.writer.available_bytes()
            return [(READ, data_offset(request, length, self.capacity), length)]
        if kind == FLUSH_TYPE:
            return [] if self.cache == "unsafe" else [(FLUSH, 0, 0)]
        if kind == GET_ID:
            request.fill(self.serial.ljust(c.VIRTIO_BLK_ID_BYTES, b"\0"))
            return []
        changes = kind == OUT or kind in RANGED
        if changes and self.disk.read_only:
            # 5.2.6.2: "MUST set the status byte to VIRTIO_BLK_S_IOERR for a write request if the VIRTIO_BLK_F_RO
            # feature if offered, and MUST NOT write any data"
            raise Refused(IOERR)
        if kind == OUT:
            length = request.reader.available_bytes()
            pieces = [(WRITE, data_offset(request, length, self.capacity), length)]
        elif kind in RANGED and self.negotiated(RANGED[kind]):
            pieces = ranges(request, self.capacity)
        else:
            raise Refused(UNSUPP)
        return pieces if self._writeback or not changes else [*pieces, (FLUSH, 0, 0)]

    def log_failure(self, what: str, error: OSError) -> None:
        """Say the first time of its kind what a back end could not do."""
        kind = errno.errorcode.get(error.errno or 0, "error")
        message = "%r: a %s failed (others of this kind are only counted): %s"
        self.errors.count(kind, message, self, what, error, level=ERROR)

    # a back end with many requests under way

    def _after_submitting(self) -> None:
        if self.loop is None:
            self._work.wait()
        else:
            self._listen()

    def _listen(self) -> None:
        """Listen to the back end, and for room as long as it has something to send."""
        if self._async is None:
            return
        fd = self._async.fileno()
        self._watch.listen(fd, fd if fd >= 0 and self._async.wants_write() else -1)

    def _on_backend(self) -> None:
        self._watch.serve(self, self._take_replies)

    def _take_replies(self) -> None:
        if self._async is not None and not self._closed:
            try:
                self._async.on_ready()
            finally:
                self._listen()

    # the end of things

    def quiesce(self) -> None:
        """Wait a moment for what is under way, and keep the rest."""
        self._work.keep()
        self._listen()

    def drop(self, index: int | None) -> None:
        """Drop what is under way: nothing of it reaches the disk, or memory, but what the kernel holds already."""
        self._work.drop(index)
        self._listen()

    def reset(self) -> None:
        """Offer again what the driver chose not to have."""
        with self.lock:
            self.config[WRITEBACK_OFFSET] = self.cache != "writethrough"

    def device_state(self) -> dict[str, Any]:
        """Return how much of its rate it has used, and the requests that were taken and not answered."""
        return {"rate": self._throttle.state(), "requests": self._work.state()}

    def check_device_state(self, state: Mapping[str, Any], features: int) -> dict[str, Any]:  # noqa: ARG002 - the base's
        """Return the fields of `device_state`, each checked."""
        name = type(self).__name__
        fields = load_fields(name, {"rate": optional(PART), "requests": STATE}, state, others=())
        self._throttle.check_state(fields["rate"])
        wrong = check_requests(fields["requests"], len(self.queues))
        if wrong is not None:
            raise DeviceStateError(name, wrong)
        return fields

    def contradiction(self, fields: Mapping[str, Any]) -> str | None:
        """Return what of a state is not of this disk, or not of these queues."""
        return other_disk(fields["config"], self._backend.size) or not_taken(
            fields["own"]["requests"], fields["queues"] if fields["active"] else ()
        )

    def restore_device(self, state: Mapping[str, Any]) -> None:
        """Become what a state says; the requests in it begin anew when the device is served."""
        fields = self.check_device_state(state, 0)
        self._throttle.restore(fields["rate"])
        self._work.restore(fields["requests"])

    def close(self) -> None:
        """Close the disk, and serve nobody any more; idempotent. What has not begun is dropped."""
        self.dispatch.end(self._close)

    def _close(self) -> None:
        self._closed = True
        self._watch.listen()
        self._work.drop(None)
        if self._plane is not None:
            self._plane.close()
            self._plane = None
        self._backend.close()
