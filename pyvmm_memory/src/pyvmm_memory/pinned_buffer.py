"""PinnedBuffer: bytes of this process that stay where they are, with their view, single accesses and dirty bitmap."""

from __future__ import annotations

from pyvmm_memory.access import Window
from pyvmm_memory.errors import HostAddressNotAvailable, MemoryClosed, ReadOnlyMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pyvmm_memory.bitmap import Bitmap


class PinnedBuffer:
    """`size` bytes of `buffer`, which stays pinned as long as this lives and is not `closed`.

    `view` is a memoryview of it, None where nothing here may touch it, and `window` its single accesses: both pin it.
    `bitmap`, if there is one, begins at its first byte.
    """

    __slots__ = ("bitmap", "buffer", "closed", "size", "view", "window")

    def __init__(self, buffer: Buffer, size: int, view: memoryview | None, bitmap: Bitmap | None = None) -> None:
        self.buffer = buffer
        self.size = size
        self.view = view
        self.bitmap = bitmap
        self.closed = False
        self.window = Window(b"" if view is None else view, bitmap is not None)

    def allows(self, access: int) -> bool:
        """Say whether it may be read (1), written (2) or both; None of them always is."""
        if access and self.view is None:
            return False
        return not access & 2 or (not self.closed and self.view is not None and not self.view.readonly)

    def place(self, writing: bool) -> memoryview:
        """Return the view to read or write now. Raises MemoryClosed, HostAddressNotAvailable, ReadOnlyMemory."""
        if self.closed:
            raise MemoryClosed(f"{self!r} is closed")
        if self.view is None:
            raise HostAddressNotAvailable(f"{self!r} is mapped without PROT_READ: nothing here may touch it")
        if writing and self.view.readonly:
            raise ReadOnlyMemory(f"{self!r} is read-only: mapped without PROT_WRITE, or made of such a buffer")
        return self.view

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.size:#x} bytes>"
