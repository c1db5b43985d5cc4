"""A detector of what locks must not do, as a pytest plugin: ``python -m pytest -p tests.hostile.debug_locks``.

It replaces every lock that a module of ours makes by one that watches (test_locks.py finds those it could not replace),
and a test fails in which

* two locks are taken in both orders, by whichever threads (an inversion: two such threads at once stand still);
* a Python function is called, while a lock is held, that belongs to another object than the one that made the lock, or
  to nobody of ours: a callback. Calls of the object's own methods, of plain functions of our modules and of the
  standard library, and of `PLAIN` data that takes no lock and calls nobody are none of that.

Waits of more than `PATIENCE` for a lock are reported at the end, with the stacks of who waited and of who held it.
"""

from __future__ import annotations

import _thread
import sys
import threading
import time
import traceback
from collections.abc import Hashable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType
    from typing import TypeAlias

    RealLock: TypeAlias = _thread.LockType | _thread.RLock

PATIENCE = 0.1

PLAIN = {
    # what a device is made of: it takes no lock and calls nobody
    "Bar", "BusEntry", "BusRange", "Claim", "ConfigSpace", "Item", "Kind", "MsiCapability", "MsiIrqConfig",
    "MsixCapability", "MsixPendingBits", "MsixTable", "PicChip", "PitCounter", "Register", "_NoLock",
    # put into the outbox of their device's lock what is to happen
    "Alarm", "InterruptOutput",
    # numbers and names, of which a loop or an IOTLB has a table
    "Registration.active", "Registration.expire", "_Entry", "Permissions",
    # counts and logs, under a lock of its own that it holds for the count only
    "Tally",
    # one write to an eventfd of our own
    "EventFdInterrupt",
    # a look into a dictionary, or at a number
    "PciBus.__bool__", "PciBus.get", "PciBus.number", "SecondaryBus.number",
}  # fmt: skip
"""Classes, and methods by their qualified names, that may be called while another object's lock is held."""

LIBRARY = sys.stdlib_module_names | {"_frozen_importlib", "_frozen_importlib_external", "_pytest", "zipimport"}
LIBRARY |= {"hypothesis"}  # it has the garbage collector call it, wherever that runs
WAITING = {"asyncio", "concurrent", "logging", "selectors", "socket", "subprocess", "queue"}
WAITING_METHODS = {"Thread.start", "Thread.join", "Event.wait", "Barrier.wait"}
"""Of the standard library, what waits, or writes to somewhere: none of it belongs under a lock."""

REAL_LOCK, REAL_RLOCK, REAL_CONDITION = _thread.allocate_lock, _thread.RLock, threading.Condition


class Held(threading.local):
    """The locks that a thread holds, in the order in which it took them."""

    def __init__(self) -> None:
        self.locks: list[Watched] = []
        self.muted = 0


class Watched:
    """What a lock that is watched knows of itself; `Detector` has what happens when it is taken and released."""

    owner: int
    is_ours: bool
    site: str
    depth: int
    holder: int

    def watch(self, frame: FrameType) -> None:
        made_by = frame.f_locals.get("self")
        self.owner = id(made_by)
        self.is_ours = ours(frame)
        kind = type(made_by).__name__ if made_by is not None else module_of(frame)
        self.site = f"{kind} ({module_of(frame)}:{frame.f_lineno})"
        self.depth = 0
        self.holder = 0


class Detector:
    def __init__(self) -> None:
        self.held = Held()
        self.pairs: dict[tuple[object, object], str] = {}
        self.found: dict[tuple[str, str, str], str] = {}
        self.news: list[str] = []
        self.waits: list[str] = []

    # what locks tell

    def taking(self, lock: Watched, take: Callable[..., bool], blocking: bool, timeout: float) -> bool:
        """Take a lock by its own means, noting the order, and who made us wait."""
        if not lock.is_ours:
            return take(blocking, timeout)
        locks = self.held.locks
        if lock.depth and lock.holder == _thread.get_ident():
            taken = take(blocking, timeout)
            lock.depth += taken
            return taken
        if blocking:  # who only tries waits for nobody, and so takes part in no deadlock
            self.note_order(lock)
        taken = take(False) or (blocking and self.waiting(lock, take, timeout))
        if taken:
            lock.depth, lock.holder = 1, _thread.get_ident()
            locks.append(lock)
            sys.setprofile(self.profile)
        return taken

    def releasing(self, lock: Watched) -> None:
        """Note that a lock is about to be released, which `holder` may do or, of a plain one, anybody."""
        if not lock.is_ours:
            return
        lock.depth -= 1
        if lock.depth:
            return
        lock.holder = 0
        locks = self.held.locks
        if lock in locks:
            locks.remove(lock)
        if not locks:
            sys.setprofile(None)

    def note_order(self, lock: Watched) -> None:
        for other in self.held.locks:
            if other is lock:
                continue
            # of one kind (a bridge behind a bridge) it is the objects that count, otherwise the kinds
            one, two = (id(other), id(lock)) if other.site == lock.site else (other.site, lock.site)
            if (one, two) not in self.pairs:
                self.pairs[one, two] = stack()
            earlier = self.pairs.get((two, one))
            if earlier is not None:
                text = f"{lock.site} is taken under {other.site}, and the other way round\n{stack()}\nand\n{earlier}"
                self.complain("inversion", min(other.site, lock.site), max(other.site, lock.site), text)

    def waiting(self, lock: Watched, take: Callable[..., bool], timeout: float) -> bool:
        begun = time.monotonic()
        first = PATIENCE if timeout < 0 else min(timeout, PATIENCE)
        if take(True, first):
            return True
        if 0 <= timeout <= PATIENCE:
            return False
        frame = sys._current_frames().get(lock.holder)
        holder = "".join(traceback.format_stack(frame)) if frame is not None else "nobody that is known\n"
        taken = take(True, timeout if timeout < 0 else timeout - PATIENCE)
        waited = time.monotonic() - begun
        self.waits.append(f"{waited:.2f} s for the lock of {lock.site}\n{stack()}\nwhich was held by\n{holder}")
        return taken

    # what functions are called meanwhile

    def profile(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call" or self.held.muted or not self.held.locks:
            return
        self.held.muted += 1
        try:
            self.look(frame)
        finally:
            self.held.muted -= 1

    def look(self, frame: FrameType) -> None:
        if self.is_fine(frame) or (frame.f_back is not None and not self.is_fine(frame.f_back)):
            return  # or it is called by what is called out, which is enough
        lock, owner = self.held.locks[-1], owner_of(frame)
        who = f"{module_of(frame)}:{frame.f_code.co_qualname}"
        if ("call out", lock.site, who) in self.found:
            return
        of = f" of {type(owner).__name__}" if owner is not None else ""
        self.complain("call out", lock.site, who, f"{who}{of} is called under the lock of {lock.site}\n{stack(frame)}")

    def is_fine(self, frame: FrameType) -> bool:
        module, name, owner = module_of(frame), frame.f_code.co_qualname, owner_of(frame)
        root = module.partition(".")[0]
        # the garbage collector calls the one anywhere, and who makes an object has it for itself until that is done
        if module == __name__ or frame.f_code.co_name in ("__del__", "__init__"):
            return True
        if root in WAITING or (root == "threading" and name in WAITING_METHODS):
            return False
        if owner is None:
            return root.startswith("pyvmm_") or root in LIBRARY
        if isinstance(owner, Watched) or any(lock.owner == id(owner) for lock in self.held.locks):
            return True
        if frame.f_code.co_name == "now" and hasattr(owner, "call_at"):
            return True  # whatever clock it is, it only says what time it is
        kinds = {kind.__name__ for kind in type(owner).__mro__}
        if isinstance(owner, BaseException) or name in PLAIN or kinds & PLAIN:
            return True
        # a method that the standard library defines, of whatever class, such as an enum's operator
        return root in LIBRARY

    def complain(self, kind: str, one: str, other: str, text: str) -> None:
        if (kind, one, other) not in self.found:
            self.found[kind, one, other] = text
            self.news.append(f"{kind}: {text}")


def module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def owner_of(frame: FrameType) -> object:
    """Whose method a function is, or within which one it was made; None of a plain function."""
    code = frame.f_code
    named = code.co_argcount and code.co_varnames[0] == "self"
    return frame.f_locals.get("self") if named or "self" in code.co_freevars else None


def stack(frame: FrameType | None = None) -> str:
    """The stack of this thread without the detector's own part of it."""
    entries = traceback.extract_stack(frame)
    return "".join(traceback.format_list([entry for entry in entries if entry.filename != __file__][-12:]))


DETECTOR = Detector()


class WatchedLock(Watched):
    """Stands for a lock of `_thread` or `threading`, re-entrant or not."""

    def __init__(self, real: RealLock, frame: FrameType) -> None:
        self.real = real
        self.watch(frame)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return DETECTOR.taking(self, self.real.acquire, blocking, timeout)

    def release(self) -> None:
        DETECTOR.releasing(self)
        self.real.release()

    __enter__ = acquire

    def __exit__(self, *error: object) -> None:
        self.release()

    def locked(self) -> bool:
        return self.depth > 0

    def _is_owned(self) -> bool:
        return self.depth > 0 and self.holder == _thread.get_ident()

    # as threading.Condition asks for them

    def _release_save(self) -> int:
        depth = self.depth
        for _ in range(depth):
            self.release()
        return depth

    def _acquire_restore(self, depth: int) -> None:
        for _ in range(depth):
            self.acquire()


def ours(frame: FrameType) -> bool:
    return module_of(frame).startswith("pyvmm_")


def make_lock() -> object:
    frame = sys._getframe(1)
    return WatchedLock(REAL_LOCK(), frame) if ours(frame) else REAL_LOCK()


def make_rlock() -> object:
    frame = sys._getframe(1)
    return WatchedLock(REAL_RLOCK(), frame) if ours(frame) else REAL_RLOCK()


def make_condition(lock: RealLock | None = None) -> object:
    frame = sys._getframe(1)
    if lock is None and ours(frame):
        return REAL_CONDITION(WatchedLock(REAL_RLOCK(), frame))  # type: ignore[arg-type]
    return REAL_CONDITION(lock)


def install() -> None:
    """Replace what locks are made by, in our modules from now on and in those that are imported already."""
    # imported with the real ones: it inherits from one, and what it holds while it empties an outbox only it may hold
    from pyvmm_device import locks

    class WatchedDeferringLock(locks.DeferringLock, Watched):  # type: ignore[misc]
        __doc__ = locks.DeferringLock.__doc__

        def __init__(self) -> None:
            super().__init__()
            self.watch(sys._getframe(1))

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            return DETECTOR.taking(self, super().acquire, blocking, timeout)

        def __enter__(self) -> bool:  # type: ignore[override]
            return self.acquire()

        def release(self) -> None:
            DETECTOR.releasing(self)
            super().release()

        def __exit__(self, *error: object) -> None:
            DETECTOR.releasing(self)
            super().__exit__(*error)  # type: ignore[arg-type]

    makers: dict[object, object] = {
        REAL_LOCK: make_lock,
        threading.Lock: make_lock,
        REAL_RLOCK: make_rlock,
        threading.RLock: make_rlock,
        REAL_CONDITION: make_condition,
        locks.DeferringLock: WatchedDeferringLock,
    }
    keep = {"DeferringLock": WatchedDeferringLock, "Lock": make_rlock}
    for name, module in list(sys.modules.items()):
        if not name.startswith("pyvmm_"):
            continue
        replaced = keep if module is locks else {
            key: makers[value] for key, value in vars(module).items() if isinstance(value, Hashable) and value in makers
        }  # fmt: skip
        for key, value in replaced.items():
            setattr(module, key, value)
    _thread.RLock = make_rlock  # type: ignore[misc, assignment]
    _thread.allocate_lock = make_lock  # type: ignore[assignment]
    threading.Lock = make_lock  # type: ignore[assignment]
    threading.RLock = make_rlock  # type: ignore[assignment]
    threading.Condition = make_condition  # type: ignore[misc, assignment]


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    install()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Fail the test in which something was found, or the next one if it was found by a thread in between."""
    result = yield
    news, DETECTOR.news = DETECTOR.news, []
    if news:
        pytest.fail("\n".join(news), pytrace=False)
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    kinds = [kind for kind, _, _ in DETECTOR.found]
    terminalreporter.write_line(
        f"locks: {kinds.count('inversion')} inversions, {kinds.count('call out')} calls out under a lock, "
        f"{len(DETECTOR.waits)} waits over {PATIENCE * 1000:.0f} ms"
    )
    for kind, one, other in DETECTOR.found:
        terminalreporter.write_line(f"  {kind}: {one}, {other}")
    for wait in DETECTOR.waits:
        terminalreporter.write_line(f"waited {wait}")
