"""Mappings that Python's mmap module cannot make: raw pointers, and ranges at an address of our choice."""

from __future__ import annotations

import mmap
import weakref

from pyvmm_memory._memory import ffi, lib
from pyvmm_memory.bitmap import new_bitmap
from pyvmm_memory.errors import InvalidPointer, InvalidRegion, MmapFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from typing_extensions import Buffer

    from pyvmm_memory.bitmap import NewBitmap
    from pyvmm_memory.mmap_region import MmapRegion

    R = TypeVar("R", bound=MmapRegion)


class HostRange:
    """`size` bytes at a host address, and what to call when they are let go of.

    A view of a `ffi.buffer` keeps that object alive, so the range is in use exactly as long as the object lives:
    that is what an mmap object counts, and a raw pointer does not.
    """

    __slots__ = ("_watch", "address", "release", "size")

    def __init__(self, address: int, size: int, release: Callable[[], object]) -> None:
        self.address = address
        self.size = size
        self.release = release
        self._watch: weakref.ref[Buffer] | None = None

    def buffer(self) -> Buffer:
        """Return the range as a buffer: the same object as long as anybody uses it."""
        buffer = None if self._watch is None else self._watch()
        if buffer is None:
            made: Buffer = ffi.buffer(ffi.cast("char *", self.address), self.size)
            self._watch = weakref.ref(made)
            return made
        return buffer

    def close(self) -> None:
        """Let go of the range; raises BufferError while views of it live."""
        if self._watch is not None and self._watch() is not None:
            raise BufferError("views of the range live")
        self.release()


def from_pointer(cls: type[R], addr: int, size: int, prot: int, flags: int, bitmap: NewBitmap | None = None) -> R:
    """Do what `MmapRegion.build_raw` does."""
    if addr <= 0 or addr % mmap.PAGESIZE:
        raise InvalidPointer(f"{addr:#x} is not the start of a page")
    if not 0 < size <= 1 << 62:
        raise InvalidRegion(f"{size} bytes cannot be mapped")
    owner = HostRange(addr, size, lambda: None)
    made = None if bitmap is None else new_bitmap(bitmap, size)
    return cls(owner.buffer(), size, prot, flags, bitmap=made, owned=False, kind="raw", owner=owner)


def checked(result: int, what: str) -> int:
    """Return the result of a call of `_memory`; raises MmapFailed where it is -errno."""
    if result < 0:
        raise MmapFailed(OSError(-result, _strerror(-result)), what)
    return result


def _strerror(number: int) -> str:
    import os

    return os.strerror(number)


def map_at(address: int, size: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    """Call mmap(2); returns the address. Raises MmapFailed."""
    return checked(lib.pyvmm_mmap(address, size, prot, flags, fd, offset), f"mapping {size:#x} bytes")


def unmap(address: int, size: int) -> None:
    """Call munmap(2). Raises MmapFailed."""
    checked(lib.pyvmm_munmap(address, size), f"unmapping {size:#x} bytes")
