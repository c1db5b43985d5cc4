"""Locks for what several vCPUs and the event loop use at once: one that nothing calls out under, one with an outbox.

The rule: no lock of ours is held while another object's method, a callback or an interrupt is called. Two objects that
call each other under their locks stop both vCPUs for ever, whatever each of them does right: a bridge moves the
interrupt of what is behind it while that one tells the bridge of its own. So an object computes under its lock, and
what others are to hear of it goes into the lock's *outbox*, which is emptied when the lock has been released:

>>> class Button:
...     def __init__(self, line):
...         self.lock, self.line, self.presses = DeferringLock(), line, 0
...
...     def press(self):
...         with self.lock:
...             self.presses += 1
...             self.lock.after(self.line, self.presses)
...             print("computed")
>>> Button(lambda presses: print("told of", presses)).press()
computed
told of 1

What is in the outbox runs in the order in which it was put in, which is the order of what happened under the lock, and
by one thread at a time: a level line that two vCPUs move ends at the level that was wanted last. The threads do not
wait for each other for that: who finds somebody emptying the outbox leaves its calls to them and goes on, so what is
to have happened when a method returns is not for the outbox. Do that after the ``with``, in its own thread, with a
generation by which whom it is done to refuses what is older than what it has.

Outbox: invariants. `_emptying` is held by the thread that empties; it is only ever tried, or waited for up to
`PATIENCE`, never with the lock held, so it takes part in no deadlock. A call that is in the outbox has somebody who
will run it: who put it in tries for `_emptying` after releasing the lock, and who fails to get it does so before its
holder gives it up and looks into the outbox once more. A thread that has run `TURN` calls hands over to one that waits,
so that nobody empties for ever what others fill; one that finds more than `BACKLOG` calls waits for its turn, so that a
guest whose vCPUs are faster than a line cannot make the outbox grow without end.
"""

from __future__ import annotations

from _thread import RLock, allocate_lock, get_ident
from collections import deque

from pyvmm_device.tally import ERROR, Tally

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

TURN = 256
"""So many calls does a thread run before it hands the outbox over to another that waits."""

BACKLOG = 256
"""From so many calls on, who adds one waits for its turn to empty the outbox..."""

PATIENCE = 0.05
"""...for so many seconds, and then leaves it to the others."""

Lock = RLock
"""A re-entrant lock for an object's own data, under which nothing is called out."""

_take_back = RLock.release
_is_held_by_this_thread = RLock._is_owned  # type: ignore[attr-defined]  # what threading.Condition uses


class DeferringLock(RLock):  # type: ignore[misc]  # final for type checkers only
    """A re-entrant lock with an outbox of calls that are made when it has been released.

    Attributes:
        failed: how many of those calls raised, by their names; the first of each is logged. Whoever happens to empty
            the outbox is not who is to blame, so nothing is raised there.
    """

    __slots__ = ("_emptied_by", "_emptying", "_outbox", "_waiting", "failed")

    def __init__(self) -> None:
        self.failed = Tally(__name__)
        self._outbox: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._emptying = allocate_lock()
        self._emptied_by = 0
        self._waiting: set[int] = set()

    def after(self, function: Callable[..., object], *args: object) -> None:
        """Call a function when the lock has been released; at once where this thread does not hold it.

        Args:
            function: whatever it returns is ignored, and an exception is counted in `failed`.
            args: for the function: what is the case now, for later is too late to look.
        """
        self._outbox.append((function, args))
        if not _is_held_by_this_thread(self):
            self._empty()

    def release(self) -> None:
        """Release the lock; the last release makes the calls that were put in."""
        _take_back(self)
        if self._outbox and not _is_held_by_this_thread(self):
            self._empty()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _take_back(self)
        if self._outbox and not _is_held_by_this_thread(self):
            self._empty()

    def _empty(self) -> None:
        """Make the calls, unless somebody does already."""
        outbox, emptying = self._outbox, self._emptying
        while outbox:
            if not (emptying.acquire(False) or self._wait()):
                return
            self._emptied_by = get_ident()
            left = TURN
            try:
                while outbox and left:
                    left -= 1
                    function, args = outbox.popleft()
                    try:
                        function(*args)
                    except Exception as error:  # noqa: BLE001 - of somebody else's making, whoever's thread this is
                        self._count(function, error)
            finally:
                self._emptied_by = 0
                emptying.release()
            if self._waiting:  # after the release: who gave up waiting before it is not among them, see _wait
                return

    def _wait(self) -> bool:
        """Wait for the turn to empty the outbox where there is reason to, and return whether it has come."""
        this = get_ident()
        if self._emptied_by == this or len(self._outbox) <= BACKLOG:
            return False
        self._waiting.add(this)
        came = self._emptying.acquire(timeout=PATIENCE)
        self._waiting.discard(this)
        # once more, for the holder may have seen us among those who wait just before we were not, and gone
        return came or self._emptying.acquire(False)

    def _count(self, function: Callable[..., object], error: Exception) -> None:
        name = getattr(function, "__qualname__", type(function).__name__)
        text = "%s, called after a lock, failed (others are only counted): %r"
        self.failed.count(name, text, name, error, level=ERROR)

    def __repr__(self) -> str:
        return f"<DeferringLock {'held here' if _is_held_by_this_thread(self) else 'not held here'}>"
