"""A disk whose slow requests are worked on by threads, so that nobody else waits for them.

What a disk does takes as long as it takes: a flush may take a tenth of a second, in which an event loop would serve no
network card. The system calls that do the work hold no GIL, so threads do them side by side.

A request is *waiting* until a thread takes it, *held* while one is at a piece of it, and waiting again between two
pieces, behind those that came meanwhile. What waits can be cancelled at once. What is held cannot: the kernel has it,
with views of guest memory, which live as long. Then the thread lets go after the piece at which it is, and says so.
The disk is closed when nobody is at it any more, by whoever leaves it last.
"""

from __future__ import annotations

import errno
import os
import time
from _thread import get_ident
from collections import deque
from contextlib import suppress

from pyvmm_device.locks import Lock
from pyvmm_device.tally import ERROR, Tally
from pyvmm_virtio.backends.block import DISCARD, FLUSH, PIECE, RANGE_PIECE, READ, WRITE, ZERO_UNMAP, cut
from pyvmm_virtio.backends.memory import MemoryDisk
from pyvmm_virtio.backends.raw import RawFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from queue import SimpleQueue
    from types import TracebackType
    from typing import Self

    from pyvmm_virtio.backends.block import BlockBackend, Done

QUICK_LIMIT = 65536
"""Up to so many bytes a thread would take longer to wake up than the page cache to answer."""
QUICK = (RawFile, MemoryDisk)
"""What answers from the page cache; what is derived from them may have ways of its own."""
CLOSE_SECONDS = 0.5
"""How long `close` waits for threads that the kernel holds."""


class _Job:
    """A request; `left` says that there is no further piece of it, `cancelled` that its caller gave it up."""

    __slots__ = ("cancelled", "done", "error", "left", "length", "offset", "op", "views")

    def __init__(self, op: int, views: Sequence[memoryview], offset: int, length: int, done: Done) -> None:
        self.op = op
        self.views = list(views)
        self.offset = offset
        self.length = sum(map(len, views)) if op in (READ, WRITE) else length
        self.done = done
        self.error = 0
        self.left = self.cancelled = False


class WorkerDisk:
    """Another disk, and threads.

    `submit` hands a request to a thread; it ends in `on_ready`, which the device calls when `fileno` is readable. The
    other methods are the disk's own, at once and here.

    Args:
        disk: what does the work; closed with this.
        workers: how many threads.

    Attributes:
        quick_limit: up to so many bytes are read and written faster at once than by a thread; 0 where nobody knows.
        errors: how often each kind of error came from the disk that was none of a system call: its own bugs.
    """

    def __init__(self, disk: BlockBackend, workers: int = 4) -> None:
        from queue import SimpleQueue
        from threading import Thread

        self.disk = disk
        self.workers = workers
        self.size = disk.size
        self.read_only = disk.read_only
        self.topology = disk.topology
        self.can_discard = disk.can_discard
        self.quick_limit = QUICK_LIMIT if type(disk) in QUICK else 0
        self.readv, self.writev, self.flush = disk.readv, disk.writev, disk.flush
        self.discard, self.write_zeroes = disk.discard, disk.write_zeroes
        self.errors = Tally(__name__)
        self._lock = Lock()
        # under the lock: what waits, what is held, and the flushes that wait for the one that is being made
        self._waiting: deque[_Job] = deque()
        self._held: set[_Job] = set()
        self._flushes: list[_Job] | None = None
        self._working = workers
        self._closing = False
        self._closed = False
        self._tickets: SimpleQueue[None] = SimpleQueue()  # one for each that waits, and a few for those that left
        self._finished: deque[_Job] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._threads = [Thread(target=self._work, name=f"disk-{number}", daemon=True) for number in range(workers)]
        for thread in self._threads:
            thread.start()

    def refresh(self) -> int:
        """Look again how large the disk is; returns `size`."""
        self.size = self.disk.refresh()
        return self.size

    def submit(self, op: int, views: Sequence[memoryview], offset: int, length: int, done: Done) -> object:
        """Have a thread do it; `done` is called from `on_ready`."""
        job = _Job(op, views, offset, length, done)
        with self._lock:
            if self._closing:
                job.error = errno.EIO
                self._finished.append(job)
            else:
                self._put(job)
        return job

    def _put(self, job: _Job) -> None:
        """Have a job wait for a thread, under the lock."""
        if job.op == FLUSH and self._flushes is not None:
            self._flushes.append(job)
        else:
            self._waiting.append(job)
            self._tickets.put(None)

    def cancel(self, request: object) -> bool:
        """Give a request up: at once where it waits, or is done and nobody was told.

        Where a thread is at it, that one calls `done`, when it lets go.
        """
        job: _Job = request  # type: ignore[assignment] # it is one of ours
        with self._lock:
            if job in self._held:
                job.left = job.cancelled = True
                return False
            if self._flushes is not None and job in self._flushes:
                self._flushes.remove(job)
            elif job in self._waiting:
                self._waiting.remove(job)
                self._take_ticket()
            elif job in self._finished:
                self._finished.remove(job)
            job.views.clear()
        return True

    def _take_ticket(self) -> None:
        """Take the ticket of a job that left, or they would add up while all threads are held."""
        from queue import Empty

        with suppress(Empty):  # a thread has it, and will find nothing
            self._tickets.get_nowait()

    # the threads

    def _work(self) -> None:
        while True:
            self._tickets.get()
            with self._lock:
                if self._closing:
                    break
                job = self._next()
            if job is not None:
                self._do(job)
            del job  # guest memory cannot be given back while somebody holds a view
        self._leave()

    def _next(self) -> _Job | None:
        """Take a job, under the lock; none where it left, or is a flush that waits for another."""
        if not self._waiting:
            return None
        job = self._waiting.popleft()
        if job.op == FLUSH:
            if self._flushes is not None:
                self._flushes.append(job)
                return None
            self._flushes = []
        self._held.add(job)
        return job

    def _do(self, job: _Job) -> None:
        """Do one piece of a job, and finish it, or have it wait again."""
        if job.op == FLUSH:
            self._do_flushes(job)
            return
        job.error = self._attempt(self._do_piece, job)
        if job.length and not job.error:
            with self._lock:
                if not job.left and not self._closing:
                    # behind the others, so that a large one does not keep a thread
                    self._held.discard(job)
                    self._put(job)
                    return
            job.error = errno.ECANCELED
        self._finish(job)

    def _attempt(self, function: Callable[..., object], *arguments: object) -> int:
        """Call what the disk does; returns the error, or 0."""
        try:
            function(*arguments)
        except OSError as failure:
            return failure.errno or errno.EIO
        except Exception as failure:  # noqa: BLE001 - a bug in a disk must not end its threads: it is shown
            from traceback import format_exc

            # a disk's own bug: the request fails, and nobody waits for it for ever; as text, for frames hold views
            kind, message = type(failure).__name__, "%r: an error that is no OSError (others are only counted)\n%s"
            self.errors.count(kind, message, self.disk, format_exc(), level=ERROR)
            return errno.EIO
        return 0

    def _do_piece(self, job: _Job) -> None:
        disk, op, offset = self.disk, job.op, job.offset
        count = min(job.length, PIECE if op in (READ, WRITE) else RANGE_PIECE)
        job.offset += count
        job.length -= count
        if op == READ:
            disk.readv(cut(job.views, count), offset)
        elif op == WRITE:
            disk.writev(cut(job.views, count), offset)
        elif op == DISCARD:
            disk.discard(offset, count)
        else:
            disk.write_zeroes(offset, count, op == ZERO_UNMAP)

    def _do_flushes(self, job: _Job) -> None:
        """Flush for one job, then once for all that came meanwhile, until none did."""
        group = [job]
        while group:
            error = self._attempt(self.disk.flush)
            for each in group:
                each.error = error
                self._finish(each)
            with self._lock:
                group = self._flushes or []
                self._flushes = [] if group else None
                self._held.update(group)

    def _finish(self, job: _Job) -> None:
        job.views.clear()
        with self._lock:
            self._held.discard(job)
            if not job.cancelled:
                self._finished.append(job)
            if self._event >= 0:
                os.eventfd_write(self._event, 1)  # also for who waits until nothing is under way
        if job.cancelled:
            self._attempt(job.done, job.error)

    def _leave(self) -> None:
        with self._lock:
            self._working -= 1
            last = not self._working
        if last:
            self.disk.close()

    # the device's side

    def fileno(self) -> int:
        """Return an eventfd that is readable when a request has ended."""
        return self._event

    def wants_write(self) -> bool:
        """Say whether there is something to send: never."""
        return False

    def on_ready(self) -> None:
        """End the requests whose work is done."""
        with suppress(BlockingIOError):
            if self._event >= 0:
                os.eventfd_read(self._event)
        try:
            for _ in range(len(self._finished)):
                job = self._finished.popleft()
                job.done(job.error)
        finally:
            if self._finished and self._event >= 0:
                os.eventfd_write(self._event, 1)  # one of them failed, or more came: they are for the next call

    def _is_idle(self) -> bool:
        with self._lock:
            return not (self._waiting or self._held or self._flushes or self._finished)

    def wait(self, seconds: float) -> bool:
        """End requests as they are done until there are none, but for so long at most; returns whether it is so."""
        import select

        deadline = time.monotonic() + seconds
        while not self._is_idle():
            left = deadline - time.monotonic()
            if not self._finished:
                if left <= 0:
                    return False
                poll = select.poll()
                poll.register(self._event, select.POLLIN)
                poll.poll(left * 1000)
            self.on_ready()
        return True

    def drain(self, seconds: float) -> None:
        """Return once nothing is under way any more; after a time, what waits is given up, and fails."""
        if self.wait(seconds):
            return
        self._give_up()
        self.on_ready()

    def _give_up(self) -> None:
        """Have everything fail that no thread is at."""
        with self._lock:
            waiting = [*self._waiting, *(self._flushes or ())]
            self._waiting.clear()
            if self._flushes:
                self._flushes.clear()
            for job in waiting:
                job.error = errno.ECANCELED
                job.views.clear()
                self._take_ticket()
            for job in self._held:
                job.left = True
            self._finished.extend(waiting)

    def close(self) -> None:
        """End the threads, dropping what they have not begun, and close the disk; idempotent.

        A thread that the kernel holds is not waited for, but for a moment: it closes the disk when it comes back. So
        does one of the threads that calls this itself, from a `done`.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = self._closing = True
        self._give_up()
        for _ in self._threads:
            self._tickets.put(None)
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            if thread.ident != get_ident():
                thread.join(max(0.0, deadline - time.monotonic()))
        if not self._threads:
            self.disk.close()
        self.on_ready()
        with self._lock:
            event, self._event = self._event, -1
        os.close(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        with self._lock:
            count = len(self._waiting) + len(self._held) + len(self._flushes or ()) + len(self._finished)
        return f"<WorkerDisk of {self.disk!r}, {count} requests under way>"
