"""What this package needs of guest memory; `pyvmm_memory.GuestMemoryMmap` has it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, TypeAlias

    class GuestMemory(Protocol):
        """Guest memory by guest address. Errors are `pyvmm_memory.GuestMemoryError`.

        Memory that can track which pages were written also has ``dirty_tracking`` (whether it does now) and
        ``mark_dirty(addr, length)``, which is called after each write by this package.
        """

        def get_slice(self, addr: int, length: int) -> memoryview:
            """A writable view within one region."""
            ...

        def get_slices(self, addr: int, length: int) -> list[memoryview]:
            """Writable views that together cover a range."""
            ...

    class AtomicMemory(Protocol):
        """A cell that holds the current memory, as `pyvmm_memory.GuestMemoryAtomic`."""

        def memory(self) -> GuestMemory:
            """The memory as it is now."""
            ...

    MemorySource: TypeAlias = GuestMemory | AtomicMemory


def current(source: MemorySource) -> GuestMemory:
    """Return the memory as it is now, of a memory or of a cell that holds one."""
    snapshot: Callable[[], GuestMemory] | None = getattr(source, "memory", None)
    return snapshot() if snapshot is not None else source  # type: ignore[return-value] # told apart by the attribute


def dirty_marker(memory: GuestMemory) -> DirtyMarker | None:
    """Return the function to call after each write, or None where nobody tracks writes."""
    return memory.mark_dirty if getattr(memory, "dirty_tracking", False) else None  # type: ignore[attr-defined]


if TYPE_CHECKING:
    from collections.abc import Callable

    DirtyMarker: TypeAlias = Callable[[int, int], object]
