"""A model, a dict of bytes for each region, against the real thing: random operations, hotplug, two threads.

`PYVMM_ROUNDS=100000` and `--slow` ask for the full count; a run of a few thousand is part of the ordinary tests.
"""

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyvmm_memory as pm

from .backings import rounds

PAGE = 0x1000
SLOTS = 8


class Model:
    """Guest memory as regions of plain bytes."""

    def __init__(self) -> None:
        self.regions: dict[int, bytearray] = {}

    def at(self, addr: int) -> tuple[bytearray, int] | None:
        for start, data in self.regions.items():
            if start <= addr < start + len(data):
                return data, addr - start
        return None

    def reach(self, addr: int, length: int) -> int:
        """How many bytes up to the first hole."""
        done = 0
        while done < length and self.at(addr + done):
            found = self.at(addr + done)
            assert found is not None
            done += min(length - done, len(found[0]) - found[1])
        return done

    def write(self, data: bytes, addr: int) -> int:
        reach = self.reach(addr, len(data))
        for index in range(reach):
            found = self.at(addr + index)
            assert found is not None
            found[0][found[1]] = data[index]
        return reach

    def read(self, addr: int, length: int) -> bytes:
        return bytes(self.byte(addr + index) for index in range(self.reach(addr, length)))

    def byte(self, addr: int) -> int:
        found = self.at(addr)
        assert found is not None
        return found[0][found[1]]


class Pair:
    """The real thing and the model, doing the same."""

    def __init__(self, base: int = 0, *, bitmap: bool = False) -> None:
        self.base = base
        self.bitmap = pm.AtomicBitmap if bitmap else None
        self.model = Model()
        self.memory = pm.GuestMemoryMmap.new()
        self.cell = pm.GuestMemoryAtomic(self.memory)
        self.plug(0, 2)

    def plug(self, slot: int, pages: int) -> None:
        start = self.base + slot * PAGE
        region = pm.GuestRegionMmap(start, pages * PAGE, bitmap=self.bitmap)
        taken = any(self.model.at(start + page * PAGE) for page in range(pages))
        try:
            with self.cell.lock() as guard:
                guard.replace(self.cell.memory().insert_region(region))
            assert not taken
            self.model.regions[start] = bytearray(pages * PAGE)
        except pm.MemoryRegionOverlap:
            assert taken
            region.close()

    def unplug(self, slot: int) -> None:
        start = self.base + slot * PAGE
        size = len(self.model.regions.get(start, b""))
        with self.cell.lock() as guard:
            before = self.cell.memory()
            try:
                smaller, region = before.remove_region(start, size or PAGE)
            except pm.NoMemoryRegion:
                assert not size
                return
            guard.replace(smaller)
        # whoever still has the old collection keeps using it
        assert before.read_u8(start) == self.model.regions.pop(start)[0]
        region.close()

    def write(self, addr: int, data: bytes) -> None:
        memory = self.cell.memory()
        expected = self.model.write(data, addr)
        if expected or not data:
            assert memory.write(data, addr) == expected
        else:
            with pytest.raises(pm.InvalidGuestAddress):
                memory.write(data, addr)

    def read(self, addr: int, length: int) -> None:
        memory, target = self.cell.memory(), bytearray(length)
        expected = self.model.read(addr, length)
        if expected or not length:
            assert memory.read(target, addr) == len(expected)
            assert target[: len(expected)] == expected
        else:
            with pytest.raises(pm.InvalidGuestAddress):
                memory.read(target, addr)
        assert memory.check_range(addr, length) is (len(expected) == length)

    def scalar(self, addr: int, size: int, value: int) -> None:
        memory = self.cell.memory()
        data = value.to_bytes(size, "little")
        reach = self.model.reach(addr, size)
        if reach == size:
            getattr(memory, f"write_u{8 * size}")(value, addr)
            self.model.write(data, addr)
            assert getattr(memory, f"read_u{8 * size}")(addr) == value
        else:
            with pytest.raises(pm.PartialBuffer if reach else pm.InvalidGuestAddress):
                getattr(memory, f"write_u{8 * size}")(value, addr)
            self.model.write(data, addr)

    def slices(self, addr: int, length: int) -> None:
        memory = self.cell.memory()
        expected = self.model.read(addr, length)
        if len(expected) == length:
            views = memory.get_slices(addr, length)
            assert b"".join(views) == expected
            for view in views:
                view.release()
        else:
            with pytest.raises(pm.InvalidGuestAddress) as error:
                memory.get_slices(addr, length)
            assert error.value.address == addr + len(expected)

    def step(self, kind: int, at: int, length: int, value: int) -> None:
        addr = self.base + at
        if kind == 0:
            self.plug(at // PAGE, 1 + length % 2)
        elif kind == 1:
            self.unplug(at // PAGE)
        elif kind in (2, 3):
            self.write(addr, value.to_bytes(8, "little") * (length // 8 + 1))
        elif kind == 4:
            self.read(addr, length)
        elif kind == 5:
            self.slices(addr, length)
        elif kind == 6:
            self.cell.memory().mark_dirty(addr, length)
            assert self.cell.memory().address_in_range(addr) is bool(self.model.at(addr))
        else:
            self.scalar(addr, 1 << kind % 4, value % (1 << 8 * (1 << kind % 4)))

    def close(self) -> None:
        self.cell.memory().close()


STEPS = st.lists(
    st.tuples(
        st.integers(0, 11), st.integers(0, (SLOTS + 1) * PAGE), st.integers(0, 2 * PAGE), st.integers(0, 2**64 - 1)
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.booleans())
def test_nothing_differs(steps: list[tuple[int, int, int, int]], bitmap: bool) -> None:
    with ExitStack() as stack:
        pair = Pair(2**64 - (SLOTS + 4) * PAGE, bitmap=bitmap)
        stack.callback(pair.close)
        for step in steps:
            pair.step(*step)


def run(pair: Pair, seed: int, count: int) -> None:
    chance = random.Random(seed)
    for _ in range(count):
        # hotplug is rarer than access
        kind = chance.randrange(0, 12) if chance.random() < 0.3 else chance.randrange(2, 12)
        length = chance.choice((0, 1, 2, 4, 8, 9, 64, PAGE, 2 * PAGE)) if kind != 4 else chance.randrange(64)
        border = chance.randrange(1, SLOTS) * PAGE - chance.randrange(9)
        pair.step(kind, chance.choice((chance.randrange(SLOTS * PAGE), border)), length, chance.getrandbits(64))


def two_threads(count: int) -> None:
    """Each thread works in its own part of one address space, and both change the one collection."""
    pairs = [Pair(base) for base in (0, 1 << 40)]
    merged = pairs[0].cell.memory().insert_region(next(iter(pairs[1].cell.memory())))
    shared = pm.GuestMemoryAtomic(merged)
    for pair in pairs:
        pair.cell = shared
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(run, pair, seed, count // 2) for seed, pair in enumerate(pairs)]:
            done.result()
    shared.memory().close()


def test_two_threads() -> None:
    two_threads(rounds(1500))


@pytest.mark.slow
def test_a_hundred_thousand_operations_of_two_threads() -> None:
    two_threads(100_000)


@pytest.mark.slow
def test_a_hundred_thousand_operations() -> None:
    pair = Pair()
    run(pair, 7, 100_000)
    pair.close()
