"""Calls that are made one after another, by whichever thread finds nobody at it, and with no lock held.

A lock around code that may take its time makes everybody wait for it, and two of them can wait for each other. Here
nobody waits for a call: whoever brings one makes it, if nobody is *within*, and else leaves it in the box and goes on
with what it has to do. Whoever is within makes what is in the box before it leaves. The box's own `lock` is held for
the bookkeeping alone, never while a call is made.

Most of the time nobody else is there, and a lock costs more than all the rest of a short call. So who comes and who
leaves takes none then: there is one *seat*, a deque with one entry while it is free, and taking that out and putting it
back are single steps for all threads. Who finds the seat taken takes the lock, puts in what it brings, and then tries
the seat once more; who leaves gives the seat up, and then looks once more whether something was put in. Whichever of
the two comes first, the other one sees it.

A few have to know that a call is over, and can wait for that as long as they say: they `enter`, do what they have to
do, and `leave`. They are the *heirs* of whoever is within, and come before the calls that wait.

- `within` is the thread that makes calls, or 0. Who has the seat sets it. Only that thread makes it another's, under
  `lock`, and the seat stays taken.
- What is put into the box while somebody is within is made, for both look twice. A thread that is ended by what is no
  `Exception` leaves at once; what waits then is made by whoever comes next, before what that one brings: calls are
  made in the order in which they came.
- A call that a call makes waits in the box like any other, so no code runs within itself.
"""

from __future__ import annotations

from _thread import get_ident
from collections import deque

from pyvmm_device.locks import Lock
from pyvmm_device.tally import ERROR, Tally
from pyvmm_virtio.errors import DeviceBusy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event
    from typing import Any, ClassVar, TypeVar

    Call = tuple[Callable[..., object], tuple[Any, ...]]
    T = TypeVar("T")

PATIENCE = 0.4
"""How many seconds somebody waits to be within who has to know what comes of it."""


class Mailbox:
    """Makes calls one after another; the file's head says how.

    A subclass may have `upcoming`, which returns what is to be done when no call waits any more, and `failed`. It may
    `sit`, and then makes what waits (`make_waiting`) and its own call, and leaves.

    Attributes:
        calls: those that wait, for a subclass that looks at them under the lock.
        lock: of the bookkeeping; nothing is called out under it.
        more: set by a subclass where `upcoming` may have something: within, or under the lock, and who does that tries
            to `sit` then.
        within: the thread that makes calls now, or 0.
    """

    __slots__ = ("_heirs", "_seat", "calls", "lock", "more", "within")

    lost: ClassVar[Tally] = Tally(__name__)
    """What came out of the calls of those that have no `failed` of their own."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.within = 0
        self.more = False
        self.calls: deque[Call] = deque()
        self._heirs: list[tuple[int, Event]] = []
        self._seat: deque[None] = deque((None,), maxlen=1)

    def call(self, function: Callable[..., object], *arguments: object) -> bool:
        """Have a call made: now, or, where somebody is within, by them; returns whether it was made."""
        if not self.sit():
            with self.lock:
                self.calls.append((function, arguments))
                if not self.sit():
                    return False
                self.calls.pop()
        try:
            if self.calls:
                self.make_waiting()
            function(*arguments)
        finally:
            self.leave()
        return True

    def ask(self, function: Callable[..., T], *arguments: object) -> T:
        """Make a call when nobody else is within and return what it returns; within, at once.

        Raises:
            DeviceBusy: somebody was within all the time, and has been for `PATIENCE` seconds.
        """
        if self.within == get_ident():
            return function(*arguments)
        if not self.enter(PATIENCE):
            raise DeviceBusy("a back end holds a request of the device: try again when it has answered")
        try:
            return function(*arguments)
        finally:
            self.leave()

    def make(self, seconds: float, function: Callable[..., object], *arguments: object) -> bool:
        """Make a call when nobody else is within, or leave it to them after so many seconds; as `call`."""
        if not self.enter(seconds):
            return self.call(function, *arguments)
        try:
            function(*arguments)
        finally:
            self.leave()
        return True

    def is_within(self) -> bool:
        """Say whether it is this thread that makes calls."""
        return self.within == get_ident()

    def waiting(self) -> int:
        """Return how many calls wait."""
        return len(self.calls)

    def sit(self) -> bool:
        """Be within if nobody is; false where somebody is, or this thread already. Who sits leaves."""
        try:
            self._seat.pop()
        except IndexError:
            return False
        self.within = get_ident()
        return True

    def enter(self, seconds: float) -> bool:
        """Be within, once nobody else is; false where that is not so for so many seconds, or this thread is already.

        Who enters leaves.
        """
        if self.sit():
            return True
        this = get_ident()
        if self.within == this:
            return False
        from threading import Event

        heir = this, Event()
        with self.lock:
            self._heirs.append(heir)
            if self.sit():
                self._heirs.remove(heir)
                return True
        if heir[1].wait(seconds):
            return True
        with self.lock:
            if heir not in self._heirs:
                return True  # it came in the last moment
            self._heirs.remove(heir)
            return False

    def leave(self) -> None:
        """Make the calls that wait, and be within no more."""
        while True:
            if not (self.calls or self.more or self._heirs):
                self._stand_up()
                # once more, for whoever put something in just before found the seat taken
                if not (self.calls or self.more or self._heirs) or not self.sit():
                    return
            call = self._next()
            if call is None:
                return
            try:
                self._make(*call)
            except BaseException:
                self._stand_up()
                raise

    def make_waiting(self) -> None:
        """Make the calls that wait: they came before the one that this thread is within for."""
        for _ in range(len(self.calls)):
            self._make(*self.calls.popleft())

    def _make(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001 - it is the call of another thread
            self.failed(error)

    def _stand_up(self) -> None:
        self.within = 0
        self._seat.append(None)

    def _next(self) -> Call | None:
        """Return what is to be done now; None where this thread is not within any more."""
        with self.lock:
            if not self._heirs:
                call = self.calls.popleft() if self.calls else self.upcoming()
                if call is None:
                    self.more = False
                    self._stand_up()
                return call
            self.within, come = self._heirs.pop(0)
        come.set()
        return None

    def upcoming(self) -> Call | None:
        """Return what is to be done when no call waits any more, if `more` is set; called under the lock."""
        return None

    def failed(self, error: Exception) -> None:
        """Take what came out of a call that waited."""
        message = "%r: a call failed (others of this kind are only counted): %r"
        self.lost.count(type(error).__name__, message, self, error, level=ERROR)
