"""No lock of ours is held while another object's method, a callback or an interrupt is called.

What holds it over the whole suite is the detector (``-p tests.hostile.debug_locks``); here it is shown to find what it
has to find, and to miss no lock.
"""

import ast
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest
from source import ROOT, modules, tree

MAKERS = {"Lock", "RLock", "allocate_lock", "Condition", "Semaphore", "BoundedSemaphore", "Barrier", "LockType"}
REPLACED = {"Lock", "RLock", "allocate_lock", "Condition"}
"""What the detector knows to replace, of `_thread` and `threading`."""
OWN = {"pyvmm_device.locks", "pyvmm_device.tally"}
"""Where locks of `_thread` are used by packages that could use `pyvmm_device.locks`: what that is made of."""

PLANTED = """
    import threading
    from _thread import allocate_lock
    from pyvmm_device.locks import DeferringLock, Lock

    class Bell:
        def __init__(self):
            self.lock = Lock()
        def ring(self):
            with self.lock:
                pass

    class Good:
        def __init__(self, bell):
            self.lock, self.bell, self.rung = DeferringLock(), bell, 0
        def press(self):
            with self.lock:
                self.count()
                self.lock.after(self.bell.ring)
        def count(self):
            self.rung += 1

    class CallsOut(Good):
        def press(self):
            with self.lock:
                self.bell.ring()

    class CallsBack:
        def __init__(self, callback):
            self.changed, self.callback = threading.Condition(), callback
        def press(self):
            with self.changed:
                self.callback()

    class Inverted:
        def __init__(self):
            self.one, self.other = allocate_lock(), threading.RLock()
        def forth(self):
            with self.one, self.other:
                pass
        def back(self):
            with self.other, self.one:
                pass

    class Slow:
        def __init__(self):
            self.lock = DeferringLock()
        def hold(self, entered, seconds):
            with self.lock:
                entered.set()
                import time
                time.sleep(seconds)
        def take(self):
            with self.lock:
                pass
"""

TESTS = """
    import threading
    import pyvmm_planted as planted

    def test_good():
        good = planted.Good(planted.Bell())
        good.press()
        assert good.rung == 1

    def test_calls_out():
        planted.CallsOut(planted.Bell()).press()

    def test_calls_back():
        planted.CallsBack(lambda: None).press()

    def test_inversion():
        inverted = planted.Inverted()
        inverted.forth()
        inverted.back()

    def test_waits():
        slow, entered = planted.Slow(), threading.Event()
        thread = threading.Thread(target=slow.hold, args=(entered, 0.5))
        thread.start()
        entered.wait(20)
        slow.take()
        thread.join()
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of the tests of a planted module under the detector."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "pyvmm_planted.py").write_text(textwrap.dedent(PLANTED))
    (folder / "test_planted.py").write_text(textwrap.dedent(TESTS))
    (folder / "pytest.ini").write_text(f"[pytest]\npythonpath = {folder}\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.hostile.debug_locks", "-rA", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_a_planted_call_out_is_found(report: str) -> None:
    assert "FAILED test_planted.py::test_calls_out" in report
    assert "pyvmm_planted:Bell.ring of Bell is called under the lock of CallsOut" in report


def test_a_planted_callback_is_found(report: str) -> None:
    assert "FAILED test_planted.py::test_calls_back" in report
    assert "<lambda> is called under the lock of CallsBack" in report


def test_a_planted_inversion_is_found(report: str) -> None:
    assert "FAILED test_planted.py::test_inversion" in report
    assert "and the other way round" in report
    assert "in forth" in report
    assert "in back" in report


def test_a_long_wait_is_reported_with_both_stacks_and_fails_nothing(report: str) -> None:
    assert "PASSED test_planted.py::test_waits" in report
    assert "s for the lock of Slow" in report
    assert "in take" in report
    assert "in hold" in report


def test_what_is_right_passes(report: str) -> None:
    assert "PASSED test_planted.py::test_good" in report
    assert "1 inversions, 2 calls out under a lock, 1 waits" in report


def lock_calls(body: ast.Module) -> Iterator[tuple[ast.Call, str, str]]:
    """Calls that make a lock: the node, the module that the maker comes from, and its name there."""
    names: dict[str, tuple[str, str]] = {}
    for node in ast.walk(body):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = (node.module or "", alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name] = (alias.name, "")
    for node in ast.walk(body):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id in names:
            home, name = names[function.id]
        elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            home, name = names.get(function.value.id, ("", ""))[0], function.attr
        else:
            continue
        if name in MAKERS and home in {"_thread", "threading", "multiprocessing", "asyncio"}:
            yield node, home, name


def faults(name: str, body: ast.Module) -> list[str]:
    """What a module does with locks that the detector would not see, or that has its place in `pyvmm_device.locks`."""
    found = []
    for node, home, maker in lock_calls(body):
        where = f"{name}:{node.lineno}: {home}.{maker}"
        if home not in {"_thread", "threading"} or maker not in REPLACED:
            found.append(f"{where} is not replaced by the detector")
        elif name.startswith(("pyvmm_device", "pyvmm_virtio")) and name not in OWN and maker != "Condition":
            found.append(f"{where}: take DeferringLock or Lock of pyvmm_device.locks")
    # a lock that is made when the module is loaded exists before the detector does
    for statement in body.body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
            made = {call.func.id for call in ast.walk(statement.value) if isinstance(call, ast.Call)
                    and isinstance(call.func, ast.Name)}  # fmt: skip
            if made & (MAKERS | {"DeferringLock"}):
                found.append(f"{name}:{statement.lineno}: a lock of a module; give it an owner")
    return found


@pytest.mark.parametrize("name", list(modules()))
def test_every_lock_is_one_that_the_detector_replaces(name: str) -> None:
    assert faults(name, tree(modules()[name])) == []


@pytest.mark.parametrize(
    "text",
    [
        "import threading\nlock = threading.Lock()",
        "from threading import Lock\nclass A:\n    def f(self):\n        self.lock = Lock()",
        "from _thread import allocate_lock as made\nclass A:\n    def f(self):\n        self.lock = made()",
        "import threading as t\nclass A:\n    def f(self):\n        self.lock = t.Semaphore()",
        "from pyvmm_device.locks import DeferringLock\nLOCK = DeferringLock()",
    ],
)
def test_the_lint_finds(text: str) -> None:
    assert faults("pyvmm_device.planted", ast.parse(text))
