"""GuestMemoryAtomic: publishes whole collections, so that hotplug never disturbs an access under way."""

from __future__ import annotations

from threading import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from pyvmm_memory.guest_memory_mmap import GuestMemoryMmap


class ExclusiveGuard:
    """The right to replace the memory, held from `lock()` to the end of the `with` block."""

    __slots__ = ("_owner",)

    def __init__(self, owner: GuestMemoryAtomic) -> None:
        self._owner = owner

    def __enter__(self) -> ExclusiveGuard:
        self._owner._lock.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owner._lock.release()

    def replace(self, memory: GuestMemoryMmap) -> None:
        """Publish `memory`; snapshots taken before keep working on the old one."""
        self._owner._publish(memory)


class GuestMemoryAtomic:
    """A cell that holds the current memory: `memory()` takes a snapshot, `with lock() as guard` replaces it."""

    __slots__ = ("_before", "_lock", "_memory")

    def __init__(self, memory: GuestMemoryMmap) -> None:
        self._memory = memory
        #: the generations of the memories that were here before
        self._before = 0
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"<GuestMemoryAtomic of {self._memory!r}>"

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
        """Exclude other writers for a `with` block; readers never wait."""
        return ExclusiveGuard(self)
