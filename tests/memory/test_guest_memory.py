"""Access by guest address: counts, holes, alignment, lifetimes and hostile numbers."""

import doctest
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyvmm_memory as pm


@pytest.fixture
def memory() -> Iterator[pm.GuestMemoryMmap]:
    # two adjacent regions, a hole, a third
    with pm.GuestMemoryMmap.from_ranges([(0x1000, 0x1000), (0x2000, 0x1000), (0x8000, 0x1000)]) as memory:
        yield memory


@pytest.mark.parametrize(
    ("addr", "length", "expected"),
    [
        (0, 0, True),
        (0x1000, 0x2000, True),
        (0x1000, 0x2001, False),
        (0, 2**64 - 1, False),
        (-1, 1, False),
        (0x1000, -1, False),
        (2**64 - 1, 2, False),
    ],
)
def test_check_range(memory: pm.GuestMemoryMmap, addr: int, length: int, expected: bool) -> None:
    assert memory.check_range(addr, length) is expected


def test_checked_offset_looks_only_at_the_end(memory: pm.GuestMemoryMmap) -> None:
    assert memory.checked_offset(0x1000, 0x7000) == 0x8000
    assert memory.checked_offset(0x1000, 0x3000) is None
    assert memory.checked_offset(0x1000, 2**64) is None


def test_regions_are_checked() -> None:
    for ranges, error in [
        ([], pm.NoMemoryRegion),
        ([(0, 0x1000), (0xFFF, 0x1000)], pm.MemoryRegionOverlap),
        ([(0x1000, 0x1000), (0, 0x1000)], pm.UnsortedMemoryRegions),
        ([(0, 0)], pm.InvalidRegion),
        ([(2**64 - 0x1000, 0x1001)], pm.InvalidRegion),
    ]:
        with pytest.raises(error):
            pm.GuestMemoryMmap.from_ranges(ranges)


def test_weakness_region_ending_at_the_top_of_the_address_space() -> None:
    with pm.GuestMemoryMmap.from_ranges([(2**64 - 0x1000, 0x1000)]) as memory:
        memory.write_u64(7, 2**64 - 8)
        assert memory.read_u64(2**64 - 8) == 7
        assert memory.last_addr() == 2**64 - 1


def test_insert_and_remove_leave_the_old_collection_alone(memory: pm.GuestMemoryMmap) -> None:
    larger = memory.insert_region(pm.GuestRegionMmap(0x4000, 0x1000))
    assert (memory.num_regions(), larger.num_regions()) == (3, 4)
    larger.write_u8(9, 0x4000)
    with pytest.raises(pm.MemoryRegionOverlap):
        memory.insert_region(next(iter(larger)))
    with pytest.raises(pm.NoMemoryRegion):
        larger.remove_region(0x4000, 0x800)
    smaller, region = larger.remove_region(0x4000, 0x1000)
    assert smaller.num_regions() == 3
    assert larger.read_u8(0x4000) == 9
    region.close()
    with pytest.raises(pm.MemoryClosed):
        larger.read_u8(0x4000)


def test_closing_waits_for_views() -> None:
    memory = pm.GuestMemoryMmap.from_ranges([(0, 0x1000)])
    view = memory.get_slice(0, 16)
    with pytest.raises(pm.MemoryInUse):
        memory.close()
    memory.write_u32(5, 0)
    view.release()
    memory.close()
    memory.close()
    with pytest.raises(pm.MemoryClosed):
        memory.get_slice(0, 16)


@pytest.mark.parametrize("name", sorted(module.name for module in pkgutil.iter_modules(pm.__path__)))
def test_doctests(name: str) -> None:
    module = importlib.import_module(f"pyvmm_memory.{name}")
    assert doctest.testmod(module).failed == 0


def test_every_public_name_is_there() -> None:
    assert len(set(pm.__all__)) == len(pm.__all__)
    for name in pm.__all__:
        assert getattr(pm, name) is not None
    assert doctest.testmod(pm).failed == 0


def test_tab_completion_knows_every_name_before_one_was_used() -> None:
    script = "import pyvmm_memory as pm; print(*sorted(set(pm.__all__) - set(dir(pm))), sorted(dir(pm)) == dir(pm))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True"]
    assert not hasattr(pm, "toaster")


def test_the_reference_has_every_name() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference.rst"
    assert ".. automodule:: pyvmm_memory\n   :members:\n\n" in page.read_text()
    # autodoc lists what `dir` has, and of that what says what it is
    assert set(pm.__all__) <= set(dir(pm))
    assert [name for name in pm.__all__ if not (getattr(pm, name).__doc__ or "").strip()] == []


def test_weakness_hotplug_goes_on_beside_accesses(memory: pm.GuestMemoryMmap) -> None:
    cell = pm.GuestMemoryAtomic(memory)
    before = cell.memory()
    with cell.lock() as guard:
        guard.replace(memory.insert_region(pm.GuestRegionMmap(0x4000, 0x1000)))
    assert not before.address_in_range(0x4000)
    with cell.memory() as after:
        after.write_u64(1, 0x4000)
    assert not hasattr(pm, "no_such_name")


def test_what_is_closed_says_so() -> None:
    memory = pm.GuestMemoryMmap.from_ranges([(0, 0x1000), (0x4000, 0x1000)])
    region = memory.find_region(0)
    assert region is not None
    part = memory.get_volatile_slice(0x10, 8)
    ref, array = part.get_ref("I", 0), part.get_array_ref("H", 0, 4)
    through = pm.IommuMemory(memory, pm.Iommu())
    views = (memory, region, region.mapping, part, ref, array, through, pm.GuestMemoryAtomic(memory))
    assert not any("closed" in repr(each) for each in views)
    region.close()
    assert repr(memory) == (
        "<GuestMemoryMmap 0x2000 bytes: 0x0-0xfff anonymous closed, hole of 0x3000, 0x4000-0x4fff anonymous>"
    )
    memory.close()
    assert repr(memory) == (
        "<GuestMemoryMmap 0x2000 bytes closed: 0x0-0xfff anonymous, hole of 0x3000, 0x4000-0x4fff anonymous>"
    )
    for each in views:
        assert "closed" in repr(each)
    for access in (
        lambda: memory[0:4],
        lambda: memory.__setitem__(slice(0, 4), b"1234"),
        lambda: part.read_bytes(0, 4),
    ):
        with pytest.raises(pm.MemoryClosed, match="closed"):
            access()
    guard = pm.VolatileSlice.from_buffer(bytearray(16)).ptr_guard()
    assert "16 bytes" in repr(guard)
    with guard:
        pass
    assert repr(guard) == "<PtrGuard released>"
