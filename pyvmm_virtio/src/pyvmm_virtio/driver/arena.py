"""Guest memory for a driver: pieces to hand out and to take back."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_virtio.memory import GuestMemory


class ArenaFull(MemoryError):
    """There is no guest memory left for another buffer."""


class Arena:
    """Allocates from a range of guest memory. Sizes are rounded up to powers of two, so freed pieces fit again.

    Args:
        memory: guest memory.
        start: the first address.
        end: the address after the last.
    """

    def __init__(self, memory: GuestMemory, start: int, end: int) -> None:
        self.memory = memory
        self._next = start
        self._end = end
        self._free: dict[int, list[int]] = {}
        self._sizes: dict[int, int] = {}

    def alloc(self, size: int, align: int = 16) -> int:
        """Return the address of some bytes, whose content is what it was. Raises ArenaFull."""
        size = max(align, 1 << (max(size, 1) - 1).bit_length())
        free = self._free.get(size)
        if free:
            return free.pop()
        # a power of two, aligned to itself up to a page, is aligned to whatever was asked for
        align = max(align, min(size, 4096))
        addr = (self._next + align - 1) & -align
        if addr + size > self._end:
            raise ArenaFull(f"no {size} bytes left below {self._end:#x}: give the driver more memory")
        self._next = addr + size
        self._sizes[addr] = size
        return addr

    def zeroed(self, size: int, align: int = 16) -> int:
        """Return the address of some bytes that are zero."""
        addr = self.alloc(size, align)
        with self.memory.get_slice(addr, size) as view:
            view[:] = bytes(size)
        return addr

    def put(self, data: bytes) -> int:
        """Return the address of a copy of some bytes."""
        addr = self.alloc(len(data))
        if data:
            with self.memory.get_slice(addr, len(data)) as view:
                view[:] = data
        return addr

    def free(self, addr: int) -> None:
        """Take a piece back."""
        self._free.setdefault(self._sizes[addr], []).append(addr)
