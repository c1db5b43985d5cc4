"""Block devices over a raw file, with the compiled data plane and without."""

import os
import tempfile

from pyvmm_virtio.backends.raw import RawFile
from pyvmm_virtio.backends.workers import WorkerDisk
from pyvmm_virtio.devices import Block

CONTENT = b"".join(number.to_bytes(4, "little") for number in range(1 << 18))


def raw_file(content: bytes = CONTENT) -> RawFile:
    """A disk with a content, in a file that nobody else can find."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return RawFile(file.name, lock=False, fd=os.dup(file.fileno()))


def planed() -> Block:
    return Block(raw_file(), queues=2, serial="subject")


def planed_with_threads() -> Block:
    return Block(WorkerDisk(raw_file(), 3), queues=2, serial="subject")


def plain() -> Block:
    return Block(raw_file(), queues=2, serial="subject", data_plane=False)
