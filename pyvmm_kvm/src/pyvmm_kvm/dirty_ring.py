"""The dirty ring: which pages a vCPU wrote, in the order of writing, without a bitmap of all memory."""

from __future__ import annotations

import mmap
import os

from pyvmm_kvm._kvm import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

_DIRTY, _RESET = 1 << 0, 1 << 1
_ENTRY = 16  # sizeof(struct kvm_dirty_gfn)


class DirtyRing:
    """A vCPU's ring, mapped. Before the first vCPU comes `VmFd.enable_cap(cap, size)`.

    `cap` is `Cap.DIRTY_LOG_RING` or, on processors that order stores weakly, `Cap.DIRTY_LOG_RING_ACQ_REL`.
    After `harvest`, call `VmFd.reset_dirty_rings` to give the entries back.
    """

    __slots__ = ("_count", "_gfns", "_map", "_next")

    def __init__(self, fd: int, size: int) -> None:
        if size < mmap.PAGESIZE or size & (size - 1):
            raise ValueError(f"a ring has whole pages, and a power of two of bytes, not {size}")
        offset = lib.KVM_DIRTY_LOG_PAGE_OFFSET * os.sysconf("SC_PAGESIZE")
        self._map = mmap.mmap(fd, size, offset=offset)
        self._gfns = ffi.from_buffer("struct kvm_dirty_gfn *", self._map)
        self._count = size // _ENTRY
        self._next = 0

    def __len__(self) -> int:
        return self._count

    def harvest(self, limit: int | None = None) -> list[tuple[int, int]]:
        """Take the entries that wait, oldest first, as (address space << 16 | slot, page number in the slot)."""
        found: list[tuple[int, int]] = []
        # the ring cannot hold more than its size, so one turn is the bound
        for _ in range(min(self._count, limit if limit is not None else self._count)):
            entry = self._gfns + self._next % self._count
            # pairs with smp_wmb() in the kernel's kvm_dirty_ring_push: slot and offset are there before the flag
            if lib.pyvmm_load_acquire(entry) & (_DIRTY | _RESET) != _DIRTY:
                break
            found.append((entry.slot, entry.offset))
            # pairs with smp_load_acquire() in kvm_dirty_gfn_harvested: the entry was read before the kernel reuses it
            lib.pyvmm_store_release(entry, _RESET)
            self._next += 1
        return found

    def close(self) -> None:
        """Unmap it."""
        if self._count:
            ffi.release(self._gfns)
            self._map.close()
            self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
