"""FileOffset: where in which file a region keeps its bytes."""

from __future__ import annotations

import os

from pyvmm_memory.address import as_int
from pyvmm_memory.errors import InvalidOffsetLength

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, TypeAlias

    class HasFileno(Protocol):
        """Anything with a descriptor."""

        def fileno(self) -> int:
            """Return the descriptor."""
            ...

    File: TypeAlias = int | HasFileno


class FileOffset:
    """A file (an open file, or its descriptor) and the byte offset in it where a region starts.

    The file stays the caller's: a mapping keeps what it needs, so the file may be closed once the region exists, and
    `file()` is then what it was given. Raises InvalidOffsetLength for a negative offset.
    """

    __slots__ = ("_file", "_start")

    def __init__(self, file: File, start: int = 0) -> None:
        self._file = file
        self._start = as_int(start)
        if self._start < 0:
            raise InvalidOffsetLength(f"offset {start} in a file is negative")

    def file(self) -> File:
        """Return what was given: a file object or a descriptor."""
        return self._file

    def start(self) -> int:
        """Return the offset in the file, in bytes."""
        return self._start

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._file if isinstance(self._file, int) else self._file.fileno()

    def same_file(self, other: FileOffset) -> bool:
        """Say whether both mean one file, by device and inode: a second descriptor of it is the same file."""
        mine, theirs = os.fstat(self.fileno()), os.fstat(other.fileno())
        return (mine.st_dev, mine.st_ino) == (theirs.st_dev, theirs.st_ino)

    def __repr__(self) -> str:
        return f"FileOffset({self._file!r}, {self._start:#x})"
