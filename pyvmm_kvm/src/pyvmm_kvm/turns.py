"""One thread at a time, and no lock held while it works: a note of whose turn it is."""

from __future__ import annotations

from threading import Condition, get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

PATIENCE = 30
"""Seconds that a thread waits for its turn; what is done in one is a few system calls that do not wait."""


class Turns:
    """`with turns:` waits for its turn, and has it until the block ends.

    A lock would be held while others are called, who may want it themselves; here they are told so. Raises RuntimeError
    where the thread has its turn already, TimeoutError where another one does not end its own.
    """

    __slots__ = ("_changed", "_whose")

    def __init__(self) -> None:
        self._changed = Condition()
        self._whose: int | None = None

    def __enter__(self) -> None:
        with self._changed:
            if self._whose == get_ident():
                raise RuntimeError("this was called from within itself, by what it called")
            if not self._changed.wait_for(lambda: self._whose is None, PATIENCE):
                raise TimeoutError(f"another thread has not come to an end in {PATIENCE} s")
            self._whose = get_ident()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._whose = None
            self._changed.notify()
