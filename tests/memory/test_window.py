"""The compiled accesses and those in Python are one: the same windows, and the suite without the compiled ones."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyvmm_memory import _window, access, window

KINDS: list[Any] = [_window.Window, window.Window]
Kind = type[window.Window]


def test_the_compiled_one_is_used() -> None:
    assert access.COMPILED
    assert access.Window is KINDS[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("offset", [0, 1, 4, 8])
def test_load_and_store(kind: Kind, size: int, offset: int) -> None:
    memory = bytearray(range(32))
    pinned = kind(memory)
    assert pinned.load(offset, size) == int.from_bytes(bytes(range(offset, offset + size)), "little")
    pinned.store((1 << 8 * size) - 1, offset, size)
    assert memory[offset : offset + size] == b"\xff" * size
    assert memory[offset + size] == offset + size
    assert pinned.address % 8 == 0
    with pytest.raises(BufferError):
        memory.append(0)
    pinned.release()
    pinned.release()
    memory.append(0)
    assert pinned.address == 0
    pinned.reopen(memory)
    assert pinned.load(0, 1) in (0, 255)
    pinned.release()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outside_is_touched(kind: Kind) -> None:
    pinned = kind(bytearray(16))
    for offset, size in ((-1, 1), (16, 1), (9, 8), (15, 2), (0, 3), (0, 0), (0, 16), (2**62, 8)):
        with pytest.raises(ValueError, match="no such place"):
            pinned.load(offset, size)
        with pytest.raises(ValueError, match="no such place"):
            pinned.store(0, offset, size)
    with pytest.raises(OverflowError):
        pinned.store(256, 0, 1)
    with pytest.raises(OverflowError):
        pinned.store(-1, 0, 8)
    with pytest.raises(ValueError, match="no such place"):
        kind(b"constant").store(0, 0, 1)
    with pytest.raises(TypeError):
        kind(5)  # type: ignore[arg-type]
    pinned.release()
    with pytest.raises(ValueError, match=r"no such place|released"):
        pinned.load(0, 1)


def test_wrong_calls_of_the_compiled_one() -> None:
    pinned: Any = _window.Window(bytearray(8))
    for call in (pinned.load, pinned.store, lambda: pinned.load("a", 1), lambda: pinned.store(0, None, 1)):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(ValueError, match="open already"):
        pinned.reopen(bytearray(1))
    with pytest.raises(TypeError):
        KINDS[0]()
    fast: Any = _window.FastAccess()
    for wrong in ((5,), ([(1,)],), ([(1, 2)],), ([("a", pinned)],), ([5],)):
        with pytest.raises((TypeError, IndexError, SystemError)):
            fast.attach_windows(*wrong)
    fast.attach_windows([(0, pinned)])
    assert fast.read_u8(0) == 0
    with pytest.raises(AttributeError):
        fast.read_u8(100)
    for name in ("write_u8", "read", "load", "store"):
        with pytest.raises((TypeError, AttributeError)):
            getattr(fast, name)()


def test_keywords_reach_the_specification() -> None:
    import pyvmm_memory as pm

    with pm.GuestMemoryMmap.from_ranges([(0, 0x1000)]) as memory:
        memory.write_slice(buffer=b"hello", addr=0)
        assert memory.write(b"x", addr=4) == 1
        target = bytearray(5)
        memory.read_slice(target, addr=0)
        assert target == b"hellx"
        assert memory.load(addr=0, size=1, order=pm.Ordering.Relaxed) == ord("h")
        memory.store(value=1, addr=0, size=1)
        with pytest.raises(TypeError):
            memory.load()  # type: ignore[call-arg]


def test_the_suite_without_anything_compiled_in_the_way() -> None:
    tests = Path(__file__).parent
    chosen = [
        tests / name for name in ("test_guest_memory.py", "test_dirty.py", "test_model.py", "test_conformance.py")
    ]
    backings = "anonymous or tracked or through_iommu or not test_conformance"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", backings, *chosen],
        env=os.environ | {"PYVMM_MEMORY_PURE": "1"},
        cwd=tests.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
def test_conformance_without_anything_compiled_in_the_way() -> None:
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests, "--ignore", tests / "test_window.py"],
        env=os.environ | {"PYVMM_MEMORY_PURE": "1"},
        cwd=tests.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
