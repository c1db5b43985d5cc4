"""Raw images: a file, or a block device, served as it is."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from pyvmm_device.locks import Lock
from pyvmm_virtio.backends.block import Topology, advance
from pyvmm_virtio.backends.errors import BackendError, BadImage
from pyvmm_virtio.backends.image_lock import lock_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from threading import Event
    from types import TracebackType
    from typing import Self

# linux/fs.h
BLKSSZGET, BLKPBSZGET, BLKIOMIN, BLKIOOPT, BLKGETSIZE64 = 0x1268, 0x127B, 0x1278, 0x1279, 0x80081272
# linux/falloc.h
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)
SECTOR = 512
MAX_VIEWS = 1024
"""IOV_MAX."""
ZEROS = bytes(1 << 20)


class RawFile:
    """A file or block device whose bytes are the disk's.

    The size of a file must be a multiple of 512 bytes, since a guest could not reach the rest.

    Any thread may use it. Flushes are made one after another: Linux tells of pages that it could not write once for
    each open file, and forgets them then (errseq_t in Documentation/filesystems/vfs.rst), so that of two flushes at
    once one would be told that all is well. And one that failed is remembered: all later ones fail, until the image is
    opened again by whoever knows what became of it.

    Args:
        path: of the image.
        read_only: open it for reading only.
        lock: keep others from using it meanwhile.
        fd: an open descriptor to use instead of opening `path`; it becomes this object's own.

    Raises:
        ImageLocked: another process uses it.
        BadImage: its size is no number of sectors, or it is no file.
        OSError: it cannot be opened.
    """

    def __init__(self, path: str, *, read_only: bool = False, lock: bool = True, fd: int = -1) -> None:
        self.path = os.fspath(path)
        self.read_only = read_only
        self.can_discard = True
        self._can_zero = True
        self._lost = 0  # the error of the first flush that failed
        self._lock = Lock()  # of the next
        self._flushing: Event | None = None  # set when the flush that is being made is over
        self._fd = fd if fd >= 0 else self._open()
        try:
            # pwrite(2), "BUGS": "if a file is opened with O_APPEND, pwrite() appends data to the end of the file,
            # regardless of the value of offset"
            if fd >= 0 and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
                raise BadImage(errno.EINVAL, "it is open for appending, and writes go to its end", self.path)
            self.is_device = stat.S_ISBLK(os.fstat(self._fd).st_mode)
            self.size = self._probe_size()
            self.topology = self._probe_topology()
            if lock:
                lock_image(self._fd, self.path, read_only)
        except BaseException:
            os.close(self._fd)
            raise

    def _open(self) -> int:
        # opening a named pipe would wait for somebody at its other end
        self._check_kind(os.stat(self.path).st_mode)
        return os.open(self.path, (os.O_RDONLY if self.read_only else os.O_RDWR) | os.O_CLOEXEC)

    def _check_kind(self, mode: int) -> None:
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            what = "a directory" if stat.S_ISDIR(mode) else "neither a file nor a block device"
            raise BadImage(errno.EINVAL, f"it is {what}: give an image, or a block device", self.path)

    def _probe_size(self) -> int:
        mode = os.fstat(self._fd)
        if self.is_device:
            return int.from_bytes(fcntl.ioctl(self._fd, BLKGETSIZE64, bytes(8)), "little")
        self._check_kind(mode.st_mode)
        if mode.st_size % SECTOR or not mode.st_size:
            whole = -(-mode.st_size // SECTOR or -1) * SECTOR
            cure = f"'truncate -s {whole} {self.path}' makes it one"
            raise BadImage(errno.EINVAL, f"{mode.st_size} bytes are no disk of 512-byte sectors: {cure}", self.path)
        return mode.st_size

    def _probe_topology(self) -> Topology:
        if not self.is_device:
            block = os.fstat(self._fd).st_blksize
            return Topology(SECTOR, 4096, 0, 0, max(SECTOR, min(block, 1 << 16)))
        sizes = [
            int.from_bytes(fcntl.ioctl(self._fd, request, bytes(4)), "little")
            for request in (BLKSSZGET, BLKPBSZGET, BLKIOMIN, BLKIOOPT)
        ]
        return Topology(sizes[0], sizes[1], sizes[2], sizes[3], max(sizes[1], SECTOR))

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def refresh(self) -> int:
        """Look again how large it is; returns `size`."""
        self.size = self._probe_size()
        return self.size

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill all views; a file that shrank meanwhile is an EIO."""
        # almost always it is one buffer, and all of it at once
        if len(views) != 1 or os.preadv(self._fd, views, offset) != len(views[0]):
            self._transfer(os.preadv, views, offset)

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        """Write all views."""
        if len(views) != 1 or os.pwritev(self._fd, views, offset) != len(views[0]):
            self._transfer(os.pwritev, views, offset)

    def _transfer(
        self, call: Callable[[int, Sequence[memoryview], int], int], views: Sequence[memoryview], offset: int
    ) -> None:
        done = call(self._fd, views, offset) if len(views) <= MAX_VIEWS else 0
        total = sum(map(len, views))
        while done < total:
            rest = advance(views, done)[:MAX_VIEWS]
            count = call(self._fd, rest, offset + done)
            if not count:
                raise OSError(errno.EIO, f"the image ends after {offset + done} bytes", self.path)
            done += count

    def flush(self) -> None:
        """Fdatasync, when those that came before are over. After one that failed, all fail."""
        over = self._take_turn()
        try:
            if self._lost:
                raise OSError(self._lost, "an earlier flush failed, and what it was for may be lost", self.path)
            os.fdatasync(self._fd)
        except OSError as error:
            self._lost = self._lost or error.errno or errno.EIO
            raise
        finally:
            with self._lock:
                self._flushing = None
            over.set()

    def _take_turn(self) -> Event:
        """Wait until nobody else flushes; returns what to set afterwards."""
        from threading import Event

        over = Event()
        while True:
            with self._lock:
                ahead = self._flushing
                if ahead is None:
                    self._flushing = over
                    return over
            ahead.wait()

    def discard(self, offset: int, length: int) -> None:
        """Punch a hole. Where that is impossible nothing happens, which a discard allows."""
        self.can_discard = self.can_discard and self._fallocate(PUNCH_HOLE | KEEP_SIZE, offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Punch a hole, or have the file system make zeros, or write them."""
        if unmap and self.can_discard:
            # what was a hole's before reads as zeros, so this is a way to write them
            self.can_discard = self._fallocate(PUNCH_HOLE | KEEP_SIZE, offset, length)
            if self.can_discard:
                return
        if self._can_zero:
            self._can_zero = self._fallocate(ZERO_RANGE | KEEP_SIZE, offset, length)
            if self._can_zero:
                return
        with memoryview(ZEROS) as zeros:
            for start in range(offset, offset + length, len(zeros)):
                self.writev([zeros[: offset + length - start]], start)

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        try:
            fallocate(self._fd, mode, offset, length)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return False
            raise
        return True

    def close(self) -> None:
        """Close it; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RawFile {self.path!r} {self.size} bytes{', read-only' * self.read_only}>"


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Do what `os.posix_fallocate` does not: the system call with a `mode`."""
    from pyvmm_virtio._virtio import ffi, lib

    while lib.pyvmm_fallocate(fd, mode, offset, length):
        if ffi.errno != errno.EINTR:
            raise BackendError(ffi.errno, f"fallocate: {os.strerror(ffi.errno)}")
