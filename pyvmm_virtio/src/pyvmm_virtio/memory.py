"""What this package needs of guest memory; `pyvmm_memory.GuestMemoryMmap` has it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, TypeAlias

    from pyvmm_memory import Permissions

    class GuestMemory(Protocol):
        """Guest memory by guest address. Errors are `pyvmm_memory.GuestMemoryError`.

        Memory that can track which pages were written also has ``dirty_tracking`` (whether it does now) and
        ``mark_dirty(addr, length)``, which is called after each write by this package. Memory of which something can
        be taken back has a ``generation``, a number that is another one afterwards.
        """

        def get_slice(self, addr: int, length: int, permissions: Permissions = ...) -> memoryview:
            """Return a view within one region, writable where that was asked for."""
            ...

        def get_slices(self, addr: int, length: int, permissions: Permissions = ...) -> list[memoryview]:
            """Return views that together cover a range."""
            ...

    class AtomicMemory(Protocol):
        """A cell that holds the current memory, as `pyvmm_memory.GuestMemoryAtomic`."""

        def memory(self) -> GuestMemory:
            """Return the memory as it is now."""
            ...

    MemorySource: TypeAlias = GuestMemory | AtomicMemory


class Seen:
    """Which memory something was looked up in, and at which of its generations.

    Args:
        memory: that memory.
    """

    __slots__ = ("_generation", "_memory")

    def __init__(self, memory: GuestMemory) -> None:
        self._memory, self._generation = memory, getattr(memory, "generation", 0)

    def has_changed(self, memory: GuestMemory) -> bool:
        """Say whether this is another memory, or generation, which it is looked up in from now on."""
        before = self._memory, self._generation
        self._memory, self._generation = memory, getattr(memory, "generation", 0)
        return before[0] is not memory or before[1] != self._generation


def dirty_marker(memory: GuestMemory) -> DirtyMarker | None:
    """Return the function to call after each write, or None where nobody tracks writes."""
    return memory.mark_dirty if getattr(memory, "dirty_tracking", False) else None  # type: ignore[attr-defined]


def is_translated(memory: GuestMemory) -> bool:
    """Say whether an IOMMU may stand before the memory, so that mappings come and go."""
    # a number of the class is every object's, for good
    return not isinstance(getattr(type(memory), "generation", 0), int)


if TYPE_CHECKING:
    from collections.abc import Callable

    DirtyMarker: TypeAlias = Callable[[int, int], object]
