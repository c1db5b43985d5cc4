"""A slot of guest physical memory, and the hold on its buffer for as long as the kernel may use it."""

from __future__ import annotations

from pyvmm_kvm._kvm import ffi
from pyvmm_kvm.hold import Hold

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

    from pyvmm_kvm._kvm import CData

# flags of a slot, of a guest_memfd and of a range
MEM_LOG_DIRTY_PAGES = 1 << 0
MEM_READONLY = 1 << 1
MEM_GUEST_MEMFD = 1 << 2
GUEST_MEMFD_MMAP = 1 << 0
GUEST_MEMFD_INIT_SHARED = 1 << 1
MEMORY_ATTRIBUTE_PRIVATE = 1 << 3


class MemorySlot:
    """A registered piece of guest physical memory, and the buffer that backs it."""

    __slots__ = ("_hold", "flags", "guest_phys_addr", "memory", "memory_size", "slot", "userspace_addr")

    def __init__(self, slot: int, guest_phys_addr: int, memory: object, flags: int, pin: CData) -> None:
        self.slot = slot
        self.guest_phys_addr = guest_phys_addr
        self.memory = memory
        self.memory_size = len(pin)
        self.userspace_addr = int(ffi.cast("unsigned long", pin))
        self.flags = flags
        self._hold = Hold(pin)

    @classmethod
    def pinned(cls, slot: int, guest_phys_addr: int, memory: Buffer, flags: int) -> Self | None:
        """Return a slot that keeps the buffer exported until `release`, or None where the buffer is empty."""
        view = memory if not _by_method(memory) else memory.__buffer__(0)
        with memoryview(view) as look:
            size = look.nbytes
        if not size:
            return None
        pin = ffi.from_buffer("char[]", view, require_writable=not flags & MEM_READONLY)
        return cls(slot, guest_phys_addr, memory, flags, pin)

    def release(self) -> None:
        """Let go of the buffer, which the kernel must not be using."""
        self._hold.release()

    def __repr__(self) -> str:
        end = self.guest_phys_addr + self.memory_size
        return f"<MemorySlot {self.slot} [{self.guest_phys_addr:#x}, {end:#x}) flags={self.flags:#x}>"


def _by_method(memory: Buffer) -> bool:
    # before Python 3.12 memoryview() does not ask __buffer__ of classes written in Python
    return getattr(type(memory), "__buffer__", None) is not None and not _exports(memory)


def _exports(memory: Buffer) -> bool:
    try:
        memoryview(memory).release()
    except TypeError:
        return False
    return True
