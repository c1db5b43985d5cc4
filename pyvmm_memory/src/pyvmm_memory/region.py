"""One region: a span of guest addresses backed by one host mapping, and the views of it."""

from __future__ import annotations

import mmap

from .address import U64_MAX, GuestAddress
from .errors import InvalidRegion, MemoryInUse

# mmap.MAP_NORESERVE exists from Python 3.13 on; the value is that of every Linux architecture KVM runs on.
MAP_NORESERVE = 0x4000


class GuestRegionMmap:
    """`size` bytes of zeroed private anonymous memory at guest address `start`.

    Raises InvalidRegion for a size of zero or less or an end beyond 64 bits,
    OSError where the host refuses the mapping.
    """

    __slots__ = ("buffer", "closed", "end", "size", "start", "u16", "u32", "u64", "view")

    def __init__(self, start: int, size: int) -> None:
        if size <= 0 or start < 0 or start + size > U64_MAX + 1:
            raise InvalidRegion(f"{size} bytes at {start:#x} are no range of 64-bit addresses")
        self.start = start
        self.size = size
        self.end = start + size
        self.closed = False
        #: the host mapping: a writable buffer, for `VmFd.set_user_memory_region`
        self.buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        self._make_views()

    def _make_views(self) -> None:
        self.view = memoryview(self.buffer)
        # Item access on a cast view is one load or store of that width: fast, and never torn.
        self.u16 = self.view[: self.size & ~1].cast("H")
        self.u32 = self.view[: self.size & ~3].cast("I")
        self.u64 = self.view[: self.size & ~7].cast("Q")

    def __len__(self) -> int:
        return self.size

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<GuestRegionMmap {self.start:#x}-{self.end - 1:#x} {self.size:#x} bytes anonymous{state}>"

    def start_addr(self) -> GuestAddress:
        """The first guest address."""
        return GuestAddress(self.start)

    def last_addr(self) -> GuestAddress:
        """The last guest address (inclusive)."""
        return GuestAddress(self.end - 1)

    def close(self) -> None:
        """Unmap; harmless twice. Raises MemoryInUse, changing nothing, while slices of it live."""
        if self.closed:
            return
        for view in (self.u64, self.u32, self.u16, self.view):
            view.release()
        try:
            self.buffer.close()
        except BufferError as error:
            self._make_views()
            raise MemoryInUse(f"{self!r} is still in use: release its slices, close the VM, then close") from error
        self.closed = True
