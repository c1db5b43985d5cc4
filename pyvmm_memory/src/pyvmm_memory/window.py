"""Single accesses to pinned memory, in readable Python: what `_window.c` does, for where it was not built."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer


class Window:
    """A pinned buffer with untorn accesses of 1, 2, 4 and 8 bytes; it stays pinned until `release`.

    An item of a cast memoryview is one load or store of that width. `struct.pack_into` is not: it zeroes its target
    first, and `int.from_bytes` of a slice may see two writes at once.
    """

    __slots__ = ("_cells", "_view", "tracked")

    def __init__(self, buffer: Buffer, tracked: bool = False) -> None:
        self.reopen(buffer)
        self.tracked = tracked

    def reopen(self, buffer: Buffer) -> None:
        """Pin a buffer again after `release`."""
        self._view = memoryview(buffer)
        size = len(self._view)
        whole = [self._view[: size - size % width] for width in (1, 2, 4, 8)]
        self._cells = {1: whole[0], 2: whole[1].cast("H"), 4: whole[2].cast("I"), 8: whole[3].cast("Q")}

    @property
    def address(self) -> int:
        """Where the buffer starts in this process, 0 once released."""
        from pyvmm_memory._memory import ffi

        try:
            return int(ffi.cast("uintptr_t", ffi.from_buffer(self._view)))
        except ValueError:
            return 0

    def release(self) -> None:
        """Let go of the buffer; idempotent."""
        for cells in self._cells.values():
            cells.release()
        self._view.release()

    def load(self, offset: int, size: int) -> int:
        """Load once; raises ValueError outside an open window."""
        if size not in self._cells or not 0 <= offset <= len(self._view) - size:
            raise ValueError("no such place in an open window")
        if offset % size == 0:
            return self._cells[size][offset // size]
        # no access of this width can be one access here; the slice is copied before it is looked at
        return int.from_bytes(bytes(self._view[offset : offset + size]), "little")

    def store(self, value: int, offset: int, size: int) -> None:
        """Store once; raises ValueError outside an open, writable window, OverflowError for a value too large."""
        if size not in self._cells or not 0 <= offset <= len(self._view) - size or self._view.readonly:
            raise ValueError("no such place in an open window")
        copy = value.to_bytes(size, "little")
        if offset % size == 0:
            self._cells[size][offset // size] = value
        else:
            self._view[offset : offset + size] = copy


class FastAccess:
    """Nothing is faster than the specification here: every access is the Python method's."""

    __slots__ = ()

    def attach_windows(self, spans: list[tuple[int, Window]]) -> None:
        """Serve these (start, Window) pairs."""


if sys.byteorder != "little":
    raise ImportError("pyvmm_memory knows little-endian hosts only")
