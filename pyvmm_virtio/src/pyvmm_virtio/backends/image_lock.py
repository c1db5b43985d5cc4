"""Locks that keep two machines from using one image: open file description locks on the whole file.

They exclude QEMU, which locks single bytes of the same kind, and Cloud Hypervisor, which locks as we do. They vanish
with the last descriptor, however a process ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from pyvmm_virtio.backends.errors import BackendError, ImageLocked

FLOCK = struct.Struct("hh4xqqi4x")
"""struct flock: type, whence, start, length (0: to the end, however far), pid (0 for this kind of lock)."""


def lock_image(fd: int, path: str, read_only: bool) -> None:
    """Lock the image for reading by many, or for writing by one.

    Raises:
        ImageLocked: somebody else has it.
        BackendError: the file system has no locks.
    """
    kind = fcntl.F_RDLCK if read_only else fcntl.F_WRLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise ImageLocked(error.errno, path, holders(fd), read_only) from None
        raise BackendError(error.errno, f"it cannot be locked ({error.strerror}): lock=False does without", path) from (
            error
        )


def holders(fd: int) -> list[tuple[int, str]]:
    """Return the processes that have the same file open, as far as we may look, as `(pid, name)`."""
    mine = os.fstat(fd)
    found: list[tuple[int, str]] = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for name in os.listdir(f"/proc/{pid}/fd"):
                path = f"/proc/{pid}/fd/{name}"
                theirs = os.stat(path)
                same = (theirs.st_dev, theirs.st_ino) == (mine.st_dev, mine.st_ino)
                if same and not (int(pid) == os.getpid() and int(name) == fd):
                    with open(f"/proc/{pid}/comm") as comm:
                        found.append((int(pid), comm.read().strip()))
                    break
        except OSError:
            continue  # gone, or not ours to look at
    return found
