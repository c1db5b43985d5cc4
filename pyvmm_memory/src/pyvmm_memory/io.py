"""Moving bytes between views of guest memory and files, sockets, streams and buffers, without a copy between."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, TypeAlias

    from typing_extensions import Buffer

    class HasFileno(Protocol):
        """A socket, or a file opened without buffering."""

        def fileno(self) -> int:
            """Return the descriptor."""
            ...

    class Reader(Protocol):
        """A stream that fills buffers: any binary file, `io.BytesIO`."""

        def readinto(self, buffer: Buffer, /) -> int | None:
            """Fill `buffer` from its start; returns the count."""
            ...

    class Writer(Protocol):
        """A stream that takes bytes: any binary file, `io.BytesIO`."""

        def write(self, data: Buffer, /) -> int | None:
            """Take `data`; returns how much of it."""
            ...

    Source: TypeAlias = int | HasFileno | Reader | Buffer
    Sink: TypeAlias = int | HasFileno | Writer | Buffer


def read_into(source: Source, view: memoryview, done: int) -> int:
    """Fill `view` once from `source`, of which `done` bytes were taken already if it is a buffer.

    Streams with `readinto` are asked through it, so that what they have buffered is not skipped.
    EINTR is retried (PEP 475).
    """
    if isinstance(source, int):
        return os.readv(source, [view])
    if hasattr(source, "readinto"):
        return source.readinto(view) or 0
    if hasattr(source, "fileno"):
        return os.readv(source.fileno(), [view])
    with memoryview(source) as whole, whole.cast("B") as data:
        count = min(len(view), max(len(data) - done, 0))
        view[:count] = data[done : done + count]
        return count


def write_from(sink: Sink, view: memoryview, done: int) -> int:
    """Write `view` once to `sink`, into which `done` bytes went already if it is a buffer. EINTR is retried."""
    if isinstance(sink, int):
        return os.write(sink, view)
    # an mmap writes too, but at a position of its own: it is a buffer here
    if hasattr(sink, "write") and not hasattr(sink, "find"):
        return sink.write(view) or 0
    if hasattr(sink, "fileno"):
        return os.write(sink.fileno(), view)
    buffer: Buffer = sink  # type: ignore[assignment]
    with memoryview(buffer) as whole, whole.cast("B") as data:
        count = min(len(view), max(len(data) - done, 0))
        data[done : done + count] = view[:count]
        return count
