"""The IOTLB and the view of memory through it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyvmm_memory as pm
from pyvmm_memory import IovaRange, MappedRange, Permissions

No, Read, Write, ReadWrite = Permissions.No, Permissions.Read, Permissions.Write, Permissions.ReadWrite


def test_permissions() -> None:
    assert (Read | Write, ReadWrite & Write, Read & Write) == (ReadWrite, Write, No)
    assert ReadWrite.has_write()
    assert not Read.has_write()
    assert Read.allow(No)
    assert not Read.allow(ReadWrite)
    assert repr([No, Read, Write, ReadWrite]) == (
        "[Permissions.No, Permissions.Read, Permissions.Write, Permissions.ReadWrite]"
    )


def test_lookup_lists_all_that_is_wrong_as_coalesced_ranges() -> None:
    tlb = pm.Iotlb()
    tlb.set_mapping(0x1000, 0x10000, 0x1000, Read)
    tlb.set_mapping(0x2000, 0x40000, 0x1000, Read)
    tlb.set_mapping(0x4000, 0x20000, 0x1000, ReadWrite)
    with pytest.raises(pm.IotlbFails) as fails:
        tlb.lookup(0, 0x6000, Write)
    assert fails.value.misses == [IovaRange(0, 0x1000), IovaRange(0x3000, 0x1000), IovaRange(0x5000, 0x1000)]
    assert fails.value.access_fails == [IovaRange(0x1000, 0x2000)]
    assert list(tlb.lookup(0x1800, 0x1000, Read)) == [MappedRange(0x10800, 0x800), MappedRange(0x40000, 0x800)]
    assert list(tlb.lookup(0x1000, 0x2000, No)) == [MappedRange(0x10000, 0x1000), MappedRange(0x40000, 0x1000)]
    assert list(tlb.lookup(0x9000, 0, Read)) == []
    assert len({IovaRange(0, 1), IovaRange(0, 1), MappedRange(0, 1)}) == 2
    assert "3 mappings" in repr(tlb)


def test_neighbours_merge_only_where_the_targets_continue() -> None:
    tlb = pm.Iotlb()
    tlb.set_mapping(0x1000, 0x10000, 0x1000, Read)
    tlb.set_mapping(0x2000, 0x11000, 0x1000, Read)
    assert len(tlb) == 1
    # both to one place: two mappings
    tlb.set_mapping(0x3000, 0x11000, 0x1000, Read)
    tlb.set_mapping(0x4000, 0x12000, 0x1000, Write)
    assert len(tlb) == 3


def test_invalidation_splits() -> None:
    tlb = pm.Iotlb()
    tlb.set_mapping(0, 0x10000, 0x3000, ReadWrite)
    tlb.invalidate_mapping(0x1000, 0x1000)
    assert list(tlb.lookup(0x2000, 0x1000, Read)) == [MappedRange(0x12000, 0x1000)]
    with pytest.raises(pm.IotlbFails):
        tlb.lookup(0, 0x3000, Read)
    tlb.set_mapping(0x0800, 0x50000, 0x2000, Read)
    assert list(tlb.lookup(0, 0x3000, Read)) == [
        MappedRange(0x10000, 0x800),
        MappedRange(0x50000, 0x2000),
        MappedRange(0x12800, 0x800),
    ]
    tlb.invalidate_all()
    assert len(tlb) == 0


def test_weakness_ranges_that_leave_64_bits() -> None:
    # vm-memory adds without a check
    tlb = pm.Iotlb()
    for change in (
        lambda: tlb.set_mapping(2**64 - 0x1000, 0, 0x1001, Read),
        lambda: tlb.set_mapping(0, 2**64 - 0x1000, 0x1001, Read),
        lambda: tlb.invalidate_mapping(2**64 - 1, 2),
        lambda: tlb.set_mapping(-1, 0, 1, Read),
        lambda: tlb.lookup(2**64 - 1, 2, Read),
    ):
        with pytest.raises(pm.Overflow):
            change()
    with pytest.raises(pm.InvalidLength):
        tlb.set_mapping(0, 0, 0, Read)
    with pytest.raises(pm.InvalidLength):
        tlb.lookup(0, -1, Read)
    tlb.set_mapping(2**64 - 0x1000, 0, 0x1000, Read)
    assert list(tlb.lookup(2**64 - 1, 1, Read)) == [MappedRange(0xFFF, 1)]
    with pm.IommuMemory(pm.GuestMemoryMmap.from_ranges([(0, 0x1000)]), pm.Iommu(tlb)) as memory:
        assert memory.read_u8(2**64 - 1) == 0
        with pytest.raises(pm.CannotResolve):
            memory.read(bytearray(2), 2**64 - 1)


def test_a_guest_that_maps_without_end_costs_a_bounded_amount() -> None:
    tlb = pm.Iotlb(capacity=8)
    for page in range(100):
        tlb.set_mapping(0x2000 * page, 0, 0x1000, Read)
        assert len(tlb) <= 8
        assert tlb.lookup(0x2000 * page, 0x1000, Read)


STEP = st.tuples(st.booleans(), st.integers(0, 30), st.integers(1, 12), st.integers(0, 100), st.integers(0, 3))


@given(st.lists(STEP, max_size=30))
def test_a_table_by_byte_agrees(steps: list[tuple[bool, int, int, int, int]]) -> None:
    tlb = pm.Iotlb()
    model: dict[int, tuple[int, int]] = {}
    for insert, start, length, target, permissions in steps:
        if insert:
            tlb.set_mapping(start, target, length, Permissions(permissions))
            model.update({start + n: (target + n, permissions) for n in range(length)})
        else:
            tlb.invalidate_mapping(start, length)
            for n in range(length):
                model.pop(start + n, None)
    for access in (No, Read, Write, ReadWrite):
        wrong = [at for at in range(45) if at not in model or model[at][1] & access != access]
        # the table has no more than 42 bytes
        with pytest.raises(pm.IotlbFails) as error:
            tlb.lookup(0, 45, access)
        fails = error.value.misses + error.value.access_fails
        assert wrong == sorted(part.base + n for part in fails for n in range(part.length))
        for at in model.keys() - set(wrong):
            assert list(tlb.lookup(at, 1, access)) == [MappedRange(model[at][0], 1)]


@pytest.fixture
def backend() -> pm.GuestMemoryMmap:
    return pm.GuestMemoryMmap.from_ranges([(0, 0x4000)], bitmap=pm.AtomicBitmap)


def test_weakness_rights_are_checked_before_the_first_byte(backend: pm.GuestMemoryMmap) -> None:
    # memory with permissions came to vm-memory in 0.18 only
    iommu = pm.Iommu()
    iommu.iotlb.set_mapping(0x10000, 0, 0x1000, ReadWrite)
    iommu.iotlb.set_mapping(0x11000, 0x1000, 0x1000, Read)
    iommu.iotlb.set_mapping(0x12000, 0x2000, 0x1000, Write)
    with pm.IommuMemory(backend, iommu) as memory:
        with pytest.raises(pm.CannotResolve, match="not allowed") as refused:
            memory.write(b"x" * 16, 0x10FF8)
        assert refused.value.iova_range == IovaRange(0x10FF8, 16)
        assert backend.read_u8(0xFF8) == 0
        with pytest.raises(pm.CannotResolve):
            memory.read_u8(0x12000)
        memory.write_u8(1, 0x12000)
        assert memory.check_range(0x10000, 0x3000)
        assert not memory.check_range(0x10000, 0x3000, Read)
        assert not memory.check_range(0x10000, -1)
        assert memory.address_in_range(0x12000)
        # without permissions: what the mapping allows
        for addr, readonly in ((0x10000, False), (0x11000, True), (0x12000, False)):
            with memory.get_slice(addr, 16) as view:
                assert view.readonly is readonly
        with memory.get_slice(0x10000, 16, Read) as view:
            assert view.readonly
        part = memory.get_volatile_slice(0x11000, 16, Read)
        for write in (lambda: part.write(b"x", 0), lambda: part.copy_from(b"x"), part.ptr_guard_mut):
            with pytest.raises(pm.ReadOnlyMemory):
                write()
        with part.as_view() as view:
            assert view.readonly
        iommu.iotlb.set_mapping(0x13000, 0, 0x1000, ReadWrite)
        with pytest.raises(pm.Fragmented) as fragmented:
            memory.get_slice(0x12FF0, 0x20, Write)
        assert fragmented.value.continuous_length == 0x10


def test_only_the_bitmap_of_its_own_addresses_is_marked(backend: pm.GuestMemoryMmap) -> None:
    seen = pm.AtomicBitmap(0x20000)
    iommu = pm.Iommu()
    iommu.iotlb.set_mapping(0x10000, 0x2000, 0x1000, ReadWrite)
    with pm.IommuMemory(backend, iommu, True, seen) as memory:
        assert memory.bitmap() is seen
        assert memory.dirty_tracking
        memory.write_u32(1, 0x10010)
        memory.get_volatile_slice(0x10000, 16).write(b"x", 0)
        memory.mark_dirty(0x11000, 1)
        assert list(seen.dirty_ranges()) == [(0x10000, 0x2000)]
        (region,) = backend
        bitmap = region.bitmap()
        assert isinstance(bitmap, pm.AtomicBitmap)
        assert not list(bitmap.dirty_ranges())
        assert memory.physical_memory() is None
        memory.set_iommu_enabled(False)
        assert not memory.get_iommu_enabled()
        assert memory.physical_memory() is memory.get_backend() is backend
        memory.write_u32(1, 0x1000)
        memory.mark_dirty(0x2000, 1)
        memory.get_volatile_slice(0x3000, 16).write(b"x", 0)
        assert list(bitmap.dirty_ranges()) == [(0x1000, 0x3000)]
        assert memory.dirty_tracking
        assert memory.check_range(0x1000, 0x3000)
        assert "past" in repr(memory)


def test_slices_are_checked_for_rights_before_a_byte_moves(backend: pm.GuestMemoryMmap) -> None:
    iommu = pm.Iommu()
    iommu.iotlb.set_mapping(0, 0x1000, 0x1000, ReadWrite)
    iommu.iotlb.set_mapping(0x1000, 0x2000, 0x1000, Read)
    iommu.iotlb.set_mapping(0x2000, 0x3000, 0x1000, Write)
    with pm.IommuMemory(backend, iommu) as memory:
        memory[0xFFC:0x1000] = b"abcd"
        assert memory[0xFFC:0x1004] == memory.read_bytes(0xFFC, 8) == b"abcd\0\0\0\0"
        with pytest.raises(pm.CannotResolve):
            memory[0xFFC:0x1004] = b"12345678"
        with pytest.raises(pm.CannotResolve):
            memory[0x1FFC:0x2004]
        assert memory[0xFFC:0x1000] == backend[0x1FFC:0x2000] == b"abcd"


def test_without_a_bitmap_nothing_is_marked(backend: pm.GuestMemoryMmap) -> None:
    iommu = pm.Iommu()
    iommu.iotlb.set_mapping(0, 0, 0x1000, ReadWrite)
    with pm.IommuMemory(backend, iommu) as memory:
        assert not memory.dirty_tracking
        memory.mark_dirty(0, 1)
        part = memory.get_volatile_slice(0, 16).subslice(4, 4)
        part.write(b"x", 0)
        bitmap = part.bitmap()
        assert bitmap is not None
        assert not bitmap.dirty_at(0)
        (region,) = backend
        assert not region.bitmap().dirty_at(0)  # type: ignore[union-attr]


def test_misses_are_resolved_once(backend: pm.GuestMemoryMmap) -> None:
    asked: list[tuple[list[IovaRange], Permissions]] = []

    def resolve(iotlb: pm.Iotlb, fails: pm.IotlbFails, access: Permissions) -> None:
        asked.append((fails.misses + fails.access_fails, access))
        if fails.misses and fails.misses[0].base < 0x2000:
            iotlb.set_mapping(fails.misses[0].base, 0, 0x1000, ReadWrite)

    with pm.IommuMemory(backend, pm.Iommu(resolve=resolve)) as memory:
        memory.write_u8(1, 0x1000)
        memory.write_u8(2, 0x1001)
        assert asked == [([IovaRange(0x1000, 1)], Write)]
        with pytest.raises(pm.CannotResolve):
            memory.read_u8(0x5000)
        assert len(asked) == 2


def test_hotplug_keeps_the_iommu(backend: pm.GuestMemoryMmap) -> None:
    iommu = pm.Iommu()
    iommu.iotlb.set_mapping(0x10000, 0x8000, 0x1000, ReadWrite)
    memory = pm.IommuMemory(backend, iommu)
    with pytest.raises(pm.InvalidGuestAddress):
        memory.read_u8(0x10000)
    larger = memory.with_replaced_backend(backend.insert_region(pm.GuestRegionMmap(0x8000, 0x1000)))
    larger.write_u8(1, 0x10000)
    assert larger.iommu() is iommu
    larger.close()


def test_the_generation_moves_when_something_is_taken_back() -> None:
    tlb = pm.Iotlb(capacity=2)
    seen = [tlb.generation]

    def moved() -> bool:
        seen.append(tlb.generation)
        assert seen[-1] >= seen[-2]
        return seen[-1] != seen[-2]

    tlb.set_mapping(0x1000, 0x10000, 0x2000, Read)
    assert not moved(), "nothing was there before"
    tlb.set_mapping(0x1000, 0x10000, 0x1000, ReadWrite)
    assert not moved(), "the same place with more rights"
    tlb.set_mapping(0x1000, 0x10000, 0x1000, Read)
    assert moved(), "fewer rights"
    tlb.set_mapping(0x1000, 0x20000, 0x800, ReadWrite)
    assert moved(), "another place"
    tlb.invalidate_mapping(0x9000, 0x1000)
    tlb.invalidate_mapping(0x1800, 0)
    assert not moved(), "nothing was there"
    tlb.invalidate_mapping(0x1800, 8)
    assert moved()
    tlb.set_mapping(0x8000, 0, 0x1000, Read)
    assert moved(), "a full table forgot"
    tlb.invalidate_all()
    assert moved()
    tlb.invalidate_all()
    assert not moved()


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(1, 4), st.integers(0, 3), st.booleans()), max_size=30))
def test_what_was_looked_up_stays_right_while_the_generation_does(
    changes: list[tuple[int, int, int, bool]],
) -> None:
    tlb = pm.Iotlb(capacity=5)
    known: dict[tuple[int, Permissions], int] = {}
    generation = tlb.generation
    for page, count, target, unmap in changes:
        if unmap:
            tlb.invalidate_mapping(page << 12, count << 12)
        else:
            tlb.set_mapping(page << 12, target << 12, count << 12, Permissions(target or 3))
        if tlb.generation != generation:
            generation = tlb.generation
            known.clear()
        for (at, access), base in known.items():
            assert [each.base for each in tlb.lookup(at, 1, access)] == [base]
        for at in range(0, 0xC000, 0x1000):
            for access in (Read, Write):
                try:
                    known[at, access] = next(iter(tlb.lookup(at, 1, access))).base
                except pm.IotlbFails:
                    assert (at, access) not in known


def test_every_kind_of_guest_memory_has_a_generation() -> None:
    with pm.GuestMemoryMmap.from_ranges([(0, 0x1000)]) as memory:
        assert memory.generation == memory.insert_region(pm.GuestRegionMmap(0x8000, 0x1000)).generation == 0
        iommu = pm.Iommu()
        behind = pm.IommuMemory(memory, iommu)
        cell = pm.GuestMemoryAtomic(memory)
        seen = [behind.generation]

        def moved() -> bool:
            seen.append(behind.generation)
            return seen[-1] > seen[-2]

        iommu.iotlb.set_mapping(0, 0, 0x1000, ReadWrite)
        assert not moved()
        iommu.iotlb.invalidate_all()
        assert moved()
        behind.set_iommu_enabled(False)
        assert moved()
        behind.set_iommu_enabled(False)
        assert not moved()
        iommu.iotlb = pm.Iotlb()
        assert moved()
        before = cell.generation
        with cell.lock() as guard:
            guard.replace(pm.GuestMemoryMmap([*memory]))
        assert cell.generation > before


def test_writers_of_an_iotlb_take_turns() -> None:
    from threading import Thread

    tlb = pm.Iotlb()

    def write(start: int) -> None:
        for page in range(start, start + 200):
            tlb.set_mapping(page << 16, page << 16, 0x1000, Read)
            if page % 2:
                tlb.invalidate_mapping(page << 16, 0x1000)

    threads = [Thread(target=write, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tlb) == 400
    assert tlb.generation == 400
