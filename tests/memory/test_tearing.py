"""A second thread in C watches one place: aligned accesses of 8 bytes or fewer are never seen half done."""

import ctypes
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import pack_into

import pytest

import pyvmm_memory as pm
from pyvmm_memory.window import Window

from .backings import rounds

ADDR = 0x1008


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("watch") / "watch.so"
    source = Path(__file__).parent / "native" / "watch.c"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-pthread", source, "-o", library], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.watch_start.argtypes = [ctypes.c_uint64, ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int]
    return loaded


@pytest.fixture(params=["plain", "tracked"])
def memory(request: pytest.FixtureRequest) -> Iterator[pm.GuestMemoryMmap]:
    bitmap = pm.AtomicBitmap if request.param == "tracked" else None
    with pm.GuestMemoryMmap.from_ranges([(0x1000, 0x1000)], bitmap=bitmap) as memory:
        yield memory


def watch(watcher: ctypes.CDLL, address: int, width: int, write: bool, work: Callable[[], None]) -> tuple[int, int]:
    low, high = values(width)
    watcher.watch_start(address, width, low, high, int(write))
    result = (ctypes.c_uint64 * 3)()
    try:
        work()
    finally:
        watcher.watch_stop(result)
    return result[0], result[1]


def values(width: int) -> tuple[int, int]:
    # every byte differs, and neither is what a zeroed place holds
    return int("11" * width, 16), int("fe" * width, 16)


def ref(memory: pm.GuestMemoryMmap, width: int) -> pm.VolatileRef:
    return memory.get_volatile_slice(ADDR, 8).get_ref("_BH_I___Q"[width], 0)


WRITERS: dict[str, Callable[[pm.GuestMemoryMmap, int, int], object]] = {
    "store": lambda memory, value, width: memory.store(value, ADDR, width),
    "write_u": lambda memory, value, width: getattr(memory, f"write_u{8 * width}")(value, ADDR),
    "write_slice": lambda memory, value, width: memory.write_slice(value.to_bytes(width, "little"), ADDR),
    "write": lambda memory, value, width: memory.write(bytearray(value.to_bytes(width, "little")), ADDR),
    "VolatileRef": lambda memory, value, width: ref(memory, width).store(value),
    "region": lambda memory, value, width: next(iter(memory)).write(value.to_bytes(width, "little"), ADDR - 0x1000),
}


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("how", WRITERS)
def test_writes_are_whole(watcher: ctypes.CDLL, memory: pm.GuestMemoryMmap, how: str, width: int) -> None:
    low, high = values(width)
    write = WRITERS[how]
    write(memory, low, width)

    def work() -> None:
        for _ in range(rounds(800)):
            write(memory, high, width)
            write(memory, low, width)

    looks, wrong = watch(watcher, memory.get_host_address(ADDR), width, False, work)
    assert looks > 0
    assert wrong == 0


READERS: dict[str, Callable[[pm.GuestMemoryMmap, int], int]] = {
    "load": lambda memory, width: memory.load(ADDR, width),
    "read_u": lambda memory, width: getattr(memory, f"read_u{8 * width}")(ADDR),
    "read_slice": lambda memory, width: read(memory, width),
    "VolatileRef": lambda memory, width: ref(memory, width).load(),
}


def read(memory: pm.GuestMemoryMmap, width: int) -> int:
    copy = bytearray(width)
    memory.read_slice(copy, ADDR)
    return int.from_bytes(copy, "little")


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("how", READERS)
def test_reads_are_whole(watcher: ctypes.CDLL, memory: pm.GuestMemoryMmap, how: str, width: int) -> None:
    expected = set(values(width))
    memory.store(values(width)[0], ADDR, width)
    seen: set[int] = set()
    look = READERS[how]

    def work() -> None:
        for _ in range(rounds(1500)):
            seen.add(look(memory, width))

    watch(watcher, memory.get_host_address(ADDR), width, True, work)
    assert seen <= expected


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_the_window_in_python_is_as_whole(watcher: ctypes.CDLL, memory: pm.GuestMemoryMmap, width: int) -> None:
    low, high = values(width)
    window = Window(next(iter(memory)).view)
    window.store(low, 8, width)

    def work() -> None:
        for _ in range(rounds(800)):
            window.store(high, 8, width)
            window.store(low, 8, width)

    assert watch(watcher, memory.get_host_address(ADDR), width, False, work)[1] == 0
    window.release()


def test_the_watcher_sees_what_is_not_whole(watcher: ctypes.CDLL) -> None:
    # struct.pack_into zeroes its target first: the reason why it is forbidden on live memory
    with pm.GuestMemoryMmap.from_ranges([(0x1000, 0x1000)]) as memory:
        low, high = values(8)
        memory.store(low, ADDR, 8)
        with memory.get_slice(ADDR, 8) as view:

            def work() -> None:
                # the two threads may share a CPU for a while
                end = time.monotonic() + 30
                while not watcher.watch_wrong() and time.monotonic() < end:
                    for _ in range(10_000):
                        pack_into("<Q", view, 0, high)

            _, wrong = watch(watcher, memory.get_host_address(ADDR), 8, False, work)
    assert wrong > 0
