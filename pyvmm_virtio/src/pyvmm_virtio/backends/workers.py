"""A disk whose slow requests are worked on by threads, so that nobody else waits for them.

What a disk does takes as long as it takes: a flush may take a tenth of a second, in which an event loop would serve no
network card. The system calls that do the work hold no GIL, so threads do them side by side.
"""

from __future__ import annotations

import errno
import os
from collections import deque

from pyvmm_virtio.backends.block import DISCARD, FLUSH, READ, WRITE, ZERO_UNMAP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from queue import SimpleQueue
    from types import TracebackType
    from typing import Self

    from pyvmm_virtio.backends.block import BlockBackend, Done

    Job = tuple[int, Sequence[memoryview], int, int, Done]

QUICK_LIMIT = 65536
"""Up to so many bytes a thread would take longer to wake up than the page cache to answer."""


class WorkerDisk:
    """Another disk, and threads.

    `submit` hands a request to a thread; it ends in `on_ready`, which the device calls when `fileno` is readable. The
    other methods are the disk's own, at once and here.

    Args:
        disk: what does the work; closed with this.
        workers: how many threads.
    """

    quick_limit = QUICK_LIMIT

    def __init__(self, disk: BlockBackend, workers: int = 4) -> None:
        from queue import SimpleQueue
        from threading import Thread

        self.disk = disk
        self.workers = workers
        self.size = disk.size
        self.read_only = disk.read_only
        self.topology = disk.topology
        self.can_discard = disk.can_discard
        self.readv, self.writev, self.flush = disk.readv, disk.writev, disk.flush
        self.discard, self.write_zeroes = disk.discard, disk.write_zeroes
        self._pending = 0
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._finished: deque[tuple[Done, int]] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._threads = [Thread(target=self._work, name=f"disk-{number}", daemon=True) for number in range(workers)]
        for thread in self._threads:
            thread.start()

    def refresh(self) -> int:
        """Look again how large the disk is; returns `size`."""
        self.size = self.disk.refresh()
        return self.size

    def submit(self, op: int, views: Sequence[memoryview], offset: int, length: int, done: Done) -> None:
        """Have a thread do it; `done` is called from `on_ready`."""
        self._pending += 1
        self._jobs.put((op, views, offset, length, done))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            op, views, offset, length, done = job
            error = 0
            try:
                self._do(op, views, offset, length)
            except OSError as failure:
                error = failure.errno or errno.EIO
            except Exception:  # noqa: BLE001 - a bug in a disk must not end its threads: it is shown
                import logging
                from traceback import format_exc

                # a disk's own bug: the request fails, and nobody waits for it for ever; as text, for frames hold views
                logging.getLogger(__name__).error("%r: an error that is no OSError\n%s", self.disk, format_exc())
                error = errno.EIO
            del views, job  # guest memory cannot be given back while somebody holds a view
            self._finished.append((done, error))
            del done
            os.eventfd_write(self._event, 1)

    def _do(self, op: int, views: Sequence[memoryview], offset: int, length: int) -> None:
        if op == READ:
            self.disk.readv(views, offset)
        elif op == WRITE:
            self.disk.writev(views, offset)
        elif op == FLUSH:
            self.disk.flush()
        elif op == DISCARD:
            self.disk.discard(offset, length)
        else:
            self.disk.write_zeroes(offset, length, op == ZERO_UNMAP)

    def fileno(self) -> int:
        """Return an eventfd that is readable when a request has ended."""
        return self._event

    def wants_write(self) -> bool:
        """Say whether there is something to send: never."""
        return False

    def on_ready(self) -> None:
        """End the requests whose work is done."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            if not self._finished:  # an error in a `done` may have left some of which the event was read already
                return
        while self._finished:
            done, error = self._finished.popleft()
            self._pending -= 1
            done(error)

    def drain(self, seconds: float) -> None:  # noqa: ARG002 - a thread in a system call cannot be given up
        """Return once nothing is under way any more, however long that takes."""
        import select

        while self._pending:
            if not self._finished:
                poll = select.poll()
                poll.register(self._event, select.POLLIN)
                poll.poll()
            self.on_ready()

    def close(self) -> None:
        """End the threads when they have done their work, and close the disk; idempotent."""
        if not self._threads:
            return
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
        self.on_ready()
        os.close(self._event)
        self._event = -1
        self.disk.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<WorkerDisk of {self.disk!r}, {self._pending} requests under way>"
