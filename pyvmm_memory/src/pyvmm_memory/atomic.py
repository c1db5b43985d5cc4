"""GuestMemoryAtomic: publishes whole collections, so that hotplug never disturbs an access under way."""

from __future__ import annotations

from threading import Condition, get_ident

from pyvmm_memory.errors import MemoryBusy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from pyvmm_memory.guest_memory_mmap import GuestMemoryMmap

PATIENCE = 30
"""Seconds that a writer waits for another, who has a region to map or to close."""


class ExclusiveGuard:
    """The right to replace the memory, held from `lock()` to the end of the `with` block.

    It is a note of who has it, and no lock is held while the block runs.
    """

    __slots__ = ("_owner",)

    def __init__(self, owner: GuestMemoryAtomic) -> None:
        self._owner = owner

    def __enter__(self) -> ExclusiveGuard:
        self._owner._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owner._give_back()

    def replace(self, memory: GuestMemoryMmap) -> None:
        """Publish `memory`; snapshots taken before keep working on the old one."""
        self._owner._publish(memory)


class GuestMemoryAtomic:
    """A cell that holds the current memory: `memory()` takes a snapshot, `with lock() as guard` replaces it."""

    __slots__ = ("_before", "_changed", "_memory", "_writer")

    def __init__(self, memory: GuestMemoryMmap) -> None:
        self._memory = memory
        #: the generations of the memories that were here before
        self._before = 0
        self._changed = Condition()
        #: the thread that may replace the memory
        self._writer: int | None = None

    def __repr__(self) -> str:
        return f"<GuestMemoryAtomic of {self._memory!r}>"

    def _take(self) -> None:
        with self._changed:
            if self._writer == get_ident():
                raise MemoryBusy("this thread may replace the memory already: use the guard that it has")
            if not self._changed.wait_for(lambda: self._writer is None, PATIENCE):
                raise MemoryBusy(f"another thread has not given back the right to replace the memory in {PATIENCE} s")
            self._writer = get_ident()

    def _give_back(self) -> None:
        with self._changed:
            self._writer = None
            self._changed.notify()

    def _publish(self, memory: GuestMemoryMmap) -> None:
        old, self._memory = self._memory, memory
        self._before += old.generation + 1

    @property
    def generation(self) -> int:
        """The number that moves when the memory is replaced, or takes something back itself."""
        return self._before + self._memory.generation

    def memory(self) -> GuestMemoryMmap:
        """Return the current collection: immutable, one load, no lock."""
        return self._memory

    def lock(self) -> ExclusiveGuard:
        """Exclude other writers for a `with` block; readers never wait.

        The block raises MemoryBusy where this thread is in such a block already, or another one for very long.
        """
        return ExclusiveGuard(self)
