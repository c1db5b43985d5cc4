"""Memory ordering: the orderings of atomic accesses, and the compiled fence, imported only by those who use them."""

from __future__ import annotations

from enum import Enum

from pyvmm_memory._memory import lib
from pyvmm_memory.errors import GuestMemoryError


class InvalidOrdering(GuestMemoryError, ValueError):
    """A load cannot release, and a store cannot acquire."""


class Ordering(Enum):
    """What an atomic access promises, as in Rust. Every access here is SeqCst, which promises all of it."""

    Relaxed = "relaxed"
    Release = "release"
    Acquire = "acquire"
    AcqRel = "acquire and release"
    SeqCst = "sequentially consistent"

    def check_load(self) -> None:
        """Raise InvalidOrdering where a load cannot have it."""
        if self in (Ordering.Release, Ordering.AcqRel):
            raise InvalidOrdering(f"a load cannot be {self.name}")

    def check_store(self) -> None:
        """Raise InvalidOrdering where a store cannot have it."""
        if self in (Ordering.Acquire, Ordering.AcqRel):
            raise InvalidOrdering(f"a store cannot be {self.name}")


def fence() -> None:
    """Order every access before this against every access after it (sequentially consistent).

    x86 lets a load pass an earlier store: a ring's index store and the load of the peer's event index need this. The
    partner is the peer's fence between its own store and load: of the two loads, at least one then sees the other's
    store, and no notification is lost.
    """
    lib.pyvmm_fence()
