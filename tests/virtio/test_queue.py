"""Both ring formats, one suite: what a driver may do, and what happens when it does what it must not."""

import json
from collections.abc import Iterator
from struct import Struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm_device import DeviceStateError
from pyvmm_memory import AtomicBitmap, GuestMemoryMmap, Iommu, IommuMemory, Permissions
from pyvmm_virtio import errors
from pyvmm_virtio.queue import DescriptorChain, PackedQueue, SplitQueue

from .rings import (
    AVAIL,
    DATA,
    DESC,
    INDIRECT,
    MEMORY,
    NEXT,
    RINGS,
    TABLE,
    USED,
    WRITE,
    Buffer,
    PackedRing,
    Ring,
    SplitRing,
    place,
)


@pytest.fixture
def memory() -> Iterator[GuestMemoryMmap]:
    with GuestMemoryMmap.from_ranges([(0, MEMORY)]) as made:
        yield made


@pytest.fixture(params=RINGS, ids=["split", "packed"])
def ring(request: pytest.FixtureRequest, memory: GuestMemoryMmap) -> Ring:
    made: Ring = request.param(memory)
    return made


def test_a_chain_and_back(ring: Ring, memory: GuestMemoryMmap) -> None:
    queue = ring.queue()
    memory.write_slice(b"question", DATA)
    head = ring.offer((DATA, 8, 0), (DATA + 0x1000, 4, WRITE), (DATA + 0x2000, 4, WRITE))
    chain = queue.pop_descriptor_chain(memory)
    assert chain is not None
    assert chain.head_index == head
    assert [(d.addr, d.len, d.is_write_only()) for d in chain] == [
        (DATA, 8, False),
        (DATA + 0x1000, 4, True),
        (DATA + 0x2000, 4, True),
    ]
    assert len(chain) == 3
    assert [d.addr for d in chain.readable()] == [DATA]
    assert [d.addr for d in chain.writable()] == [DATA + 0x1000, DATA + 0x2000]
    assert chain.reader(memory).read() == b"question"
    writer = chain.writer(memory)
    assert writer.write(b"answer") == 6
    assert writer.bytes_written() == 6
    queue.add_used(memory, chain.head_index, 6)
    assert ring.used() == [(head, 6)]
    assert bytes(memory.get_slice(DATA + 0x1000, 4)) + bytes(memory.get_slice(DATA + 0x2000, 2)) == b"answer"
    assert queue.pop_descriptor_chain(memory) is None
    queue.release()


def test_indices_as_both_sides_see_them(memory: GuestMemoryMmap) -> None:
    ring = SplitRing(memory)
    queue = ring.queue()
    ring.offer((DATA, 8, 0))
    head = ring.offer((DATA, 8, 0), (DATA, 8, 0))
    assert (queue.avail_idx(memory), queue.used_idx(memory)) == (2, 0)
    pop(queue, memory)
    chain = pop(queue, memory)
    assert [(each.has_next(), each.next) for each in chain] == [(True, head + 1), (False, 0)]
    queue.add_used(memory, head, 0)
    assert (queue.avail_idx(memory), queue.used_idx(memory)) == (2, 1)
    queue.set_ready(False)
    for index in (queue.avail_idx, queue.used_idx):
        with pytest.raises(errors.QueueNotReady):
            index(memory)


def shown(ring: Ring) -> int:
    """How many used elements there are; a packed batch is seen with its first, which is written last."""
    if ring.kind is SplitQueue:
        return ring.memory.read_u16(USED + 2)
    return sum(ring.memory.read_u16(DESC + 16 * at + 14) & 0x8080 == 0x8080 for at in range(ring.size))


def test_where_stores_may_pass_each_other_there_are_barriers(
    ring: Ring, memory: GuestMemoryMmap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on arm64: what a barrier has before it is there when it is called, and what it has behind it is not."""
    module = f"pyvmm_virtio.queue.{ring.kind.ring}"
    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(f"{module}.IS_WEAK", True)
    for name in ("acquire", "release", "full"):
        monkeypatch.setattr(f"{module}.{name}", lambda name=name: seen.append((name, shown(ring))))
    queue = ring.queue()
    queue.set_event_idx(True)
    heads = [ring.offer((DATA, 8, WRITE)) for _ in range(3)]
    for _ in heads:
        pop(queue, memory)
    # a split ring's index is loaded once for all that it shows
    assert seen == [("acquire", 0)] * (1 if ring.kind is SplitQueue else 3)
    seen.clear()
    queue.add_used(memory, heads[0], 8)
    queue.add_used_batch(memory, [(head, 8) for head in heads[1:]])
    assert seen == [("release", 0), ("release", 1 if ring.kind is SplitQueue else 2)]
    assert shown(ring) == 3
    seen.clear()
    queue.enable_notification(memory)
    queue.needs_notification(memory)
    assert [name for name, _ in seen if name != "release"] == ["full", "full"]
    queue.release()


def test_a_queue_looks_again_when_it_comes_to_what_it_saw(ring: Ring, memory: GuestMemoryMmap) -> None:
    queue = ring.queue()
    first = [ring.offer((DATA, 8, WRITE)) for _ in range(2)]
    assert pop(queue, memory).head_index == first[0]
    later = ring.offer((DATA, 8, WRITE))
    assert pop(queue, memory).head_index == first[1]
    assert pop(queue, memory).head_index == later
    assert queue.pop_descriptor_chain(memory) is None
    if isinstance(queue, SplitQueue):
        queue.go_to_previous_position()
        assert pop(queue, memory).head_index == later
        assert queue.pop_descriptor_chain(memory) is None
        # what is behind a position to which somebody goes was not seen
        queue.set_next_avail(queue.next_avail() + 1)
        with pytest.raises(errors.InvalidAvailRingIndex):
            queue.pop_descriptor_chain(memory)
        queue.set_next_avail(queue.next_avail() - 1)
        last = ring.offer((DATA, 8, WRITE))
        queue.advance(1)
        assert queue.pop_descriptor_chain(memory) is None
        assert last not in queue.in_flight
    queue.release()


def pop(queue: SplitQueue | PackedQueue, memory: GuestMemoryMmap) -> DescriptorChain:
    chain = queue.pop_descriptor_chain(memory)
    assert chain is not None
    return chain


# sizes and addresses


def test_sizes(ring: Ring) -> None:
    queue = ring.kind(32)
    for size in (0, 33, 64, -1, *((3, 31) if ring.kind is SplitQueue else ())):
        queue.set_size(size)
        assert queue.size() == 32
        with pytest.raises(errors.InvalidSize):
            queue.try_set_size(size)
    queue.try_set_size(16)
    assert (queue.size(), queue.max_size()) == (16, 32)
    for size in (0, 65536, *((48,) if ring.kind is SplitQueue else ())):
        with pytest.raises(errors.InvalidMaxSize):
            ring.kind(size)
    assert ring.kind(32768).max_size() == 32768


def test_packed_sizes_need_not_be_powers_of_two() -> None:
    queue = PackedQueue(48)
    queue.try_set_size(47)
    assert queue.size() == 47


def test_addresses_in_halves(ring: Ring) -> None:
    queue = ring.kind(16)
    queue.set_desc_table_address(0x1000, 0x2)
    queue.set_avail_ring_address(0x2000)
    queue.set_avail_ring_address(None, 0x3)
    queue.set_used_ring_address(0x4_0000_3000)
    assert (queue.desc_table(), queue.avail_ring(), queue.used_ring()) == (0x2_0000_1000, 0x3_0000_2000, 0x4_0000_3000)
    queue.set_desc_table_address(0x1008)
    queue.set_avail_ring_address(0x2001)
    queue.set_used_ring_address(0x3002)
    assert (queue.desc_table(), queue.avail_ring(), queue.used_ring()) == (0x2_0000_1000, 0x3_0000_2000, 0x4_0000_3000)
    for setter, error in (
        (queue.try_set_desc_table_address, errors.InvalidDescTableAlign),
        (queue.try_set_avail_ring_address, errors.InvalidAvailRingAlign),
        (queue.try_set_used_ring_address, errors.InvalidUsedRingAlign),
    ):
        for addr in (1, 1 << 64):
            with pytest.raises(error):
                setter(addr)
            with pytest.raises(ValueError, match="aligned"):
                setter(addr)


def test_validity(ring: Ring, memory: GuestMemoryMmap) -> None:
    queue = ring.kind(16)
    assert not queue.is_valid(memory)
    assert queue.pop_descriptor_chain(memory) is None
    with pytest.raises(errors.QueueNotReady):
        list(queue.iter(memory))
    with pytest.raises(errors.QueueNotReady):
        queue.add_used(memory, 0, 0)
    place(queue)
    assert queue.is_valid(memory)
    for setter, good in (
        (queue.set_desc_table_address, DESC),
        (queue.set_avail_ring_address, AVAIL),
        (queue.set_used_ring_address, USED),
    ):
        setter(MEMORY)
        assert not queue.is_valid(memory)
        with pytest.raises(errors.InvalidRing):
            queue.pop_descriptor_chain(memory)
        setter(0xFFFFFFF0, 0xFFFFFFFF)
        assert not queue.is_valid(memory)
        setter(good, 0)
        assert queue.is_valid(memory)
    queue.set_avail_ring_address(0)
    assert not queue.is_valid(memory)
    queue.reset()
    assert not queue.is_valid(memory)
    assert queue.pop_descriptor_chain(memory) is None


def test_memory_can_be_closed_after_a_reset_and_replaced(ring: Ring) -> None:
    with GuestMemoryMmap.from_ranges([(0, MEMORY)]) as first:
        ring.memory = first
        queue = ring.queue()
        ring.offer((DATA, 4, 0))
        assert pop(queue, first).raw
        queue.set_ready(False)
    queue.set_ready(True)
    with GuestMemoryMmap.from_ranges([(0, MEMORY)]) as second:
        assert queue.is_valid(second)
        queue.release()
    assert repr(queue).startswith(f"<{type(queue).__name__} 0: 16 of at most 16")


# chains that are wrong


def chain_error(ring: Ring, memory: GuestMemoryMmap, **options: bool) -> errors.VirtqueueError:
    queue = ring.queue(**options)
    with pytest.raises(errors.VirtqueueError) as caught:
        queue.pop_descriptor_chain(memory)
    queue.release()
    error = caught.value
    assert (error.queue, bool(error.reason)) == (0, True)
    assert error.reason in str(error)
    return error


def test_available_index_beyond_the_queue(memory: GuestMemoryMmap) -> None:
    ring = SplitRing(memory)
    queue = ring.queue()
    for index, wrong in ((17, True), (16, False), (0xFFFF, True)):
        queue.set_next_avail(0)
        memory.write_u16(index, AVAIL + 2)
        if wrong:
            with pytest.raises(errors.InvalidAvailRingIndex) as caught:
                queue.pop_descriptor_chain(memory)
            assert caught.value.index == index
        else:
            assert pop(queue, memory)
    queue.release()


def test_head_beyond_the_table(memory: GuestMemoryMmap) -> None:
    ring = SplitRing(memory)
    ring.offer_head(16)
    error = chain_error(ring, memory)
    assert isinstance(error, errors.InvalidDescriptorIndex)
    assert (error.head, error.index) == (16, 16)


def test_link_beyond_the_table(memory: GuestMemoryMmap) -> None:
    ring = SplitRing(memory)
    ring.describe(3, DATA, 4, NEXT, 16)
    ring.offer_head(3)
    error = chain_error(ring, memory)
    assert isinstance(error, errors.InvalidDescriptorIndex)
    assert (error.head, error.index) == (3, 16)


@pytest.mark.parametrize("loop", [0, 3])
def test_loop(memory: GuestMemoryMmap, loop: int) -> None:
    ring = SplitRing(memory)
    for index in range(4):
        ring.describe(index, DATA, 4, NEXT, index + 1 if index < 3 else loop)
    ring.offer_head(0)
    assert isinstance(chain_error(ring, memory), errors.InvalidChain)


def test_a_wrong_chain_was_taken_and_the_next_is_fine(memory: GuestMemoryMmap) -> None:
    ring = SplitRing(memory)
    queue = ring.queue()
    ring.describe(5, DATA, 4, NEXT, 99)
    ring.offer_head(5)
    ring.offer((DATA, 4, 0))
    with pytest.raises(errors.InvalidDescriptorIndex) as caught:
        queue.pop_descriptor_chain(memory)
    assert caught.value.head == 5
    assert pop(queue, memory).head_index == 0
    queue.release()


def test_chains_of_the_whole_queue(ring: Ring, memory: GuestMemoryMmap) -> None:
    queue = ring.queue()
    ring.offer(*[(DATA + 16 * index, 16, 0) for index in range(16)])
    assert len(pop(queue, memory)) == 16
    queue.release()


def test_packed_chain_without_end(memory: GuestMemoryMmap) -> None:
    ring = PackedRing(memory)
    for index in range(16):
        ring.describe(index, DATA, 4, NEXT | 1 << 7, 0)
    assert isinstance(chain_error(ring, memory), errors.InvalidChain)


def test_packed_buffer_id_twice_and_descriptors_in_use(memory: GuestMemoryMmap) -> None:
    ring = PackedRing(memory)
    queue = ring.queue()
    ring.offer((DATA, 4, 0), id_=7)
    assert pop(queue, memory).head_index == 7
    ring.offer((DATA, 4, 0), id_=7)
    with pytest.raises(errors.InvalidChain, match="buffer id"):
        queue.pop_descriptor_chain(memory)
    queue.release()
    ring = PackedRing(memory)
    queue = ring.queue()
    ring.offer(*[(DATA, 1, 0)] * 10)
    pop(queue, memory)
    ring.offer(*[(DATA, 1, 0)] * 7)
    with pytest.raises(errors.InvalidChain, match="not given back"):
        queue.pop_descriptor_chain(memory)
    queue.release()


def test_indirect(ring: Ring, memory: GuestMemoryMmap) -> None:
    queue = ring.queue()
    table = ring.indirect([(DATA, 3, 0), (DATA + 16, 4, WRITE)], TABLE + 1)  # it need not be aligned
    ring.offer((table[0], table[1], table[2] | WRITE))  # WRITE is ignored here
    chain = pop(queue, memory)
    assert [(d.addr, d.len, d.flags & WRITE) for d in chain] == [(DATA, 3, 0), (DATA + 16, 4, WRITE)]
    assert not any(d.refers_to_indirect_table() for d in chain)
    queue.add_used(memory, chain.head_index, 0)
    queue.set_indirect(False)
    ring.offer(table)
    with pytest.raises(errors.InvalidIndirectDescriptor, match="negotiated"):
        queue.pop_descriptor_chain(memory)
    queue.release()


def test_indirect_after_a_direct_one(memory: GuestMemoryMmap) -> None:
    split = SplitRing(memory)
    queue = split.queue()
    split.offer((DATA, 5, 0), split.indirect([(DATA, 3, 0), (DATA, 4, 0)]))
    assert [d.len for d in pop(queue, memory)] == [5, 3, 4]
    queue.release()
    # in a packed ring a list has descriptors of one kind
    packed = PackedRing(memory)
    packed.offer((DATA, 5, 0), packed.indirect([(DATA, 3, 0)]))
    assert isinstance(chain_error(packed, memory), errors.InvalidIndirectDescriptor)


@pytest.mark.parametrize("length", [0, 8, 17, 16 * 65536, 0xFFFFFFF0])
def test_indirect_tables_of_impossible_lengths(ring: Ring, memory: GuestMemoryMmap, length: int) -> None:
    ring.offer((TABLE, length, INDIRECT))
    assert isinstance(chain_error(ring, memory), errors.InvalidIndirectDescriptorTable)


@pytest.mark.parametrize("addr", [MEMORY, MEMORY - 8, (1 << 64) - 16])
def test_indirect_tables_elsewhere(ring: Ring, memory: GuestMemoryMmap, addr: int) -> None:
    ring.offer((addr, 32, INDIRECT))
    assert isinstance(chain_error(ring, memory), errors.InvalidIndirectDescriptorTable)


def test_indirect_within_indirect(ring: Ring, memory: GuestMemoryMmap) -> None:
    ring.offer(ring.indirect([(DATA, 16, INDIRECT)]))
    assert isinstance(chain_error(ring, memory), errors.InvalidIndirectDescriptor)


def test_indirect_with_a_link(ring: Ring, memory: GuestMemoryMmap) -> None:
    table = ring.indirect([(DATA, 16, 0)])
    ring.offer(table, (DATA, 4, 0))
    assert isinstance(chain_error(ring, memory), errors.InvalidIndirectDescriptor)


def test_errors_of_indirect_descriptors_say_which_one(memory: GuestMemoryMmap) -> None:
    """Wherever it is: as the head, or behind others, in whatever order their places are."""
    wrong: list[tuple[Buffer, type[errors.InvalidChain]]] = [
        ((TABLE, 32, INDIRECT | NEXT), errors.InvalidIndirectDescriptor)
    ]
    wrong += [
        ((addr, length, INDIRECT), errors.InvalidIndirectDescriptorTable) for addr, length in ((0, 17), (MEMORY, 16))
    ]
    for (addr, length, flags), kind in wrong:
        ring = SplitRing(memory)
        ring.describe(3, addr, length, flags, 9)
        ring.offer_head(3)
        error = chain_error(ring, memory)
        assert isinstance(error, kind)
        assert (error.head, error.index) == (3, 3)
        ring = SplitRing(memory)
        ring.describe(3, DATA, 4, NEXT, 7)
        ring.describe(7, addr, length, flags, 9)
        ring.offer_head(3)
        error = chain_error(ring, memory)
        assert isinstance(error, kind)
        assert (error.head, error.index) == (3, 7)
    packed = PackedRing(memory)
    packed.offer((DATA, 4, 0))
    packed.offer(packed.indirect([(DATA, 1, 0)] * 17))
    queue = packed.queue()
    pop(queue, memory)
    with pytest.raises(errors.InvalidChain) as caught:
        queue.pop_descriptor_chain(memory)
    assert caught.value.index == 1
    queue.release()


def test_indirect_links_stay_in_the_table(memory: GuestMemoryMmap) -> None:
    ring = SplitRing(memory)
    table = ring.indirect([(DATA, 4, 0)])
    ring.describe(0, DATA, 4, NEXT, 1, TABLE)
    ring.offer(table)
    error = chain_error(ring, memory)
    assert isinstance(error, errors.InvalidDescriptorIndex)
    assert error.index == 1
    # in a packed ring's table there are no links: NEXT is ignored
    packed = PackedRing(memory)
    queue = packed.queue()
    packed.offer(packed.indirect([(DATA, 4, NEXT), (DATA, 5, 0)]))
    assert [d.len for d in pop(queue, memory)] == [4, 5]
    queue.release()


def test_the_limit_of_a_chain_is_the_queue_size_indirect_or_not(ring: Ring, memory: GuestMemoryMmap) -> None:
    queue = ring.queue()
    ring.offer(ring.indirect([(DATA, 1, 0)] * 16))
    chain = pop(queue, memory)
    assert len(chain) == 16
    queue.add_used(memory, chain.head_index, 0)
    queue.release()
    fresh = type(ring)(memory)
    fresh.index, fresh.free = 0, 0  # type: ignore[union-attr] # the split one has both
    fresh.offer(fresh.indirect([(DATA, 1, 0)] * 17))
    assert isinstance(chain_error(fresh, memory), errors.InvalidChain)


def test_an_indirect_table_may_have_spare_entries(memory: GuestMemoryMmap) -> None:
    ring = SplitRing(memory)
    queue = ring.queue()
    ring.indirect([(DATA, 1, 0)] * 3)
    ring.offer((TABLE, 16 * 1000, INDIRECT))
    assert len(pop(queue, memory)) == 3
    queue.release()


@pytest.mark.parametrize("indirect", [False, True])
def test_at_most_two_to_the_32_bytes(ring: Ring, memory: GuestMemoryMmap, indirect: bool) -> None:
    whole = [(0, 0xFFFFFFFF, 0), (0, 1, 0)]
    queue = ring.queue()
    ring.offer(*([ring.indirect(whole)] if indirect else whole))
    assert len(pop(queue, memory)) == 2
    queue.release()
    fresh = type(ring)(memory)
    more = [(0, 0xFFFFFFFF, 0), (0, 2, 0)]
    fresh.offer(*([fresh.indirect(more)] if indirect else more))
    error = chain_error(fresh, memory)
    assert isinstance(error, errors.DescriptorChainOverflow)
    assert error.index == 1


def test_order_of_buffers_is_an_option(ring: Ring, memory: GuestMemoryMmap) -> None:
    ring.offer((DATA, 4, WRITE), (DATA, 4, 0))
    queue = ring.queue()
    assert len(pop(queue, memory)) == 2
    queue.release()
    error = chain_error(ring, memory, strict_order=True)
    assert isinstance(error, errors.InvalidChain)
    assert error.index == 1


def test_a_driver_that_changes_its_chain_changes_nothing(ring: Ring, memory: GuestMemoryMmap) -> None:
    queue = ring.queue()
    memory.write_slice(b"right", DATA)
    ring.offer((DATA, 5, 0), (DATA + 0x100, 5, WRITE))
    chain = pop(queue, memory)
    memory.fill_zero(DESC, 16 * 16)
    assert [d.addr for d in chain] == [DATA, DATA + 0x100]
    assert chain.reader(memory).read() == b"right"
    queue.release()


# giving back


def test_heads_that_cannot_be_given_back(ring: Ring, memory: GuestMemoryMmap) -> None:
    queue = ring.queue()
    ring.offer((DATA, 4, 0))
    before = bytes(memory.get_slice(USED, 0x100)) + bytes(memory.get_slice(DESC, 0x100))
    for head in (16, 99, 1 << 20, -1):
        with pytest.raises(errors.InvalidDescriptorIndex):
            queue.add_used(memory, head, 1)
    with pytest.raises(errors.InvalidDescriptorIndex):
        queue.add_used_batch(memory, [(99, 1)])
    with pytest.raises(errors.InvalidDescriptorIndex):
        queue.add_used_batch(memory, [(0, 1)] * 17)
    assert bytes(memory.get_slice(USED, 0x100)) + bytes(memory.get_slice(DESC, 0x100)) == before
    queue.release()


def test_a_chain_filled_to_the_last_byte_has_one_more_than_can_be_said(ring: Ring, memory: GuestMemoryMmap) -> None:
    queue = ring.queue()
    heads = [ring.offer((0, 0xFFFFFFFF, WRITE), (0, 1, WRITE)) for _ in range(2)]
    for _ in heads:
        pop(queue, memory)
    queue.add_used(memory, heads[0], 1 << 32)
    queue.add_used_batch(memory, [(heads[1], 1 << 32)])
    assert ring.used() == [(head, 0xFFFFFFFF) for head in heads]
    queue.release()


def test_batches_appear_at_once(ring: Ring, memory: GuestMemoryMmap) -> None:
    queue = ring.queue()
    heads = [ring.offer((DATA, 4, WRITE)) for _ in range(3)]
    for _ in heads:
        pop(queue, memory)
    queue.add_used_batch(memory, [(head, 4) for head in heads])
    assert ring.used() == [(head, 4) for head in heads]
    queue.add_used_batch(memory, [])
    queue.release()


def test_a_chain_given_back_twice_in_a_batch(memory: GuestMemoryMmap) -> None:
    ring = PackedRing(memory)
    queue = ring.queue()
    head = ring.offer((DATA, 4, 0))
    pop(queue, memory)
    with pytest.raises(errors.InvalidDescriptorIndex, match="twice"):
        queue.add_used_batch(memory, [(head, 0), (head, 0)])
    queue.add_used(memory, head, 0)
    with pytest.raises(errors.InvalidDescriptorIndex):
        queue.add_used(memory, head, 0)
    queue.release()


def test_indices_wrap(ring: Ring, memory: GuestMemoryMmap) -> None:
    queue = ring.queue()
    for number in range(0x10000 // 16 + 20 if ring.kind is SplitQueue else 100):
        heads = [ring.offer((DATA, 4, WRITE)) for _ in range(16)]
        taken = [pop(queue, memory).head_index for _ in heads]
        assert taken == heads
        queue.add_used_batch(memory, [(head, number) for head in heads])
        assert sorted(ring.used()) == sorted((head, number) for head in heads)
    queue.release()


def test_chains_can_be_put_back(ring: Ring, memory: GuestMemoryMmap) -> None:
    queue = ring.queue()
    heads = [ring.offer((DATA, 4, 0), (DATA, 4, 0)) for _ in range(3)]
    for _ in range(20):
        assert [pop(queue, memory).head_index for _ in heads] == heads
        queue.go_to_previous_position()
        queue.go_to_previous_position()
        assert [pop(queue, memory).head_index for _ in heads[1:]] == heads[1:]
        for _ in heads:
            queue.go_to_previous_position()
    queue.release()
    if ring.kind is PackedQueue:
        with pytest.raises(errors.VirtioUsageError):
            queue.go_to_previous_position()


def test_put_back_over_the_end_of_the_ring(memory: GuestMemoryMmap) -> None:
    ring = PackedRing(memory)
    queue = ring.queue()
    for _ in range(40):
        head = ring.offer((DATA, 1, 0), (DATA, 1, 0), (DATA, 1, 0))
        before = queue.next_avail()
        assert pop(queue, memory).head_index == head
        queue.go_to_previous_position()
        assert queue.next_avail() == before
        assert pop(queue, memory).head_index == head
        queue.add_used(memory, head, 0)
        assert ring.used() == [(head, 0)]
    queue.release()


def test_in_order_holds_back_what_comes_too_early(ring: Ring, memory: GuestMemoryMmap) -> None:
    queue = ring.queue()
    queue.set_in_order(True)
    heads = [ring.offer((DATA, 4, WRITE)) for _ in range(4)]
    assert [pop(queue, memory).head_index for _ in heads] == heads
    queue.add_used(memory, heads[2], 2)
    queue.add_used(memory, heads[1], 1)
    assert ring.used() == []
    state = json.loads(json.dumps(queue.state()))
    queue.release()
    queue = type(queue).from_state(state)
    queue.add_used(memory, heads[0], 0)
    assert ring.used() == [(heads[0], 0), (heads[1], 1), (heads[2], 2)]
    with pytest.raises(errors.InvalidDescriptorIndex):
        queue.add_used(memory, heads[0], 0)
    queue.add_used(memory, heads[3], 3)
    assert ring.used()[-1] == (heads[3], 3)
    queue.release()


def test_in_order_refuses_a_head_that_is_still_out(memory: GuestMemoryMmap) -> None:
    ring = SplitRing(memory)
    queue = ring.queue()
    queue.set_in_order(True)
    ring.offer((DATA, 4, 0))
    pop(queue, memory)
    ring.offer_head(0)
    with pytest.raises(errors.InvalidChain):
        queue.pop_descriptor_chain(memory)
    queue.release()


# notifications


def test_the_driver_can_be_left_alone(ring: Ring, memory: GuestMemoryMmap) -> None:
    queue = ring.queue()
    assert queue.needs_notification(memory)
    ring.suppress(no_interrupt=True)
    assert not queue.needs_notification(memory)
    ring.suppress(no_interrupt=False)
    assert queue.needs_notification(memory)
    queue.release()


def test_the_device_can_be_left_alone(ring: Ring, memory: GuestMemoryMmap) -> None:
    queue = ring.queue()
    assert ring.wants_kick()
    queue.disable_notification(memory)
    assert not ring.wants_kick()
    ring.offer((DATA, 4, 0))
    assert queue.enable_notification(memory)  # something came meanwhile: look again
    assert ring.wants_kick()
    pop(queue, memory)
    assert not queue.enable_notification(memory)
    queue.release()


def needs(new: int, old: int, event: int) -> bool:
    """Linux's vring_need_event."""
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


def test_event_idx_says_when_the_driver_wants_to_hear(memory: GuestMemoryMmap) -> None:
    ring = SplitRing(memory)
    queue = ring.queue()
    queue.set_event_idx(True)
    assert queue.event_idx_enabled()
    for start in (0, 5, 0xFFFA, 0x7FFE):
        for event in (start, start + 1, start + 3, start - 1, start + 7):
            queue.set_next_used(start)
            queue.needs_notification(memory)
            memory.write_u16(event & 0xFFFF, AVAIL + 4 + 2 * 16)
            for _ in range(4):
                queue.add_used(memory, 0, 0)
            assert queue.needs_notification(memory) == needs(start + 4, start, event), (start, event)
            assert not queue.needs_notification(memory)  # nothing was added since
    queue.disable_notification(memory)
    queue.set_next_avail(3)
    memory.write_u16(3, AVAIL + 2)
    assert not queue.enable_notification(memory)
    assert memory.read_u16(USED + 4 + 8 * 16) == 3
    queue.release()


def test_more_was_added_than_the_index_can_say(memory: GuestMemoryMmap) -> None:
    ring = SplitRing(memory)
    queue = ring.queue()
    queue.set_event_idx(True)
    memory.write_u16(5, AVAIL + 4 + 2 * 16)
    for _ in range(0x10000):
        queue.add_used(memory, 0, 0)
    queue = SplitQueue.from_state(queue.state())
    assert queue.needs_notification(memory)
    queue.release()


def test_packed_event_suppression(memory: GuestMemoryMmap) -> None:
    ring = PackedRing(memory, 16)
    queue = ring.queue()
    memory.write_u16(2, AVAIL + 2)
    assert queue.needs_notification(memory)  # DESC without EVENT_IDX: better once too often
    queue.set_event_idx(True)
    for turn in range(5):
        for offset, wrap in ((0, 1), (3, 1), (15, 1), (0, 0), (3, 0), (15, 0)):
            memory.write_u16(offset | wrap << 15, AVAIL)
            before = queue.next_used()
            old = (before & 0x7FFF) + (0 if before >> 15 else 16)
            for _ in range(3 + turn):
                head = ring.offer((DATA, 4, WRITE))
                pop(queue, memory)
                queue.add_used(memory, head, 4)
            passed = {(old + step) % 32 for step in range(3 + turn)}
            assert queue.needs_notification(memory) == (offset + (0 if wrap else 16) in passed)
    memory.write_u16(3, AVAIL + 2)  # reserved
    assert queue.needs_notification(memory)
    assert not queue.enable_notification(memory)
    assert memory.read_u16(USED) == queue.next_avail()
    assert memory.read_u16(USED + 2) == 2
    queue.release()


# state


def test_state_is_whole(ring: Ring, memory: GuestMemoryMmap) -> None:
    queue = ring.queue()
    queue.set_event_idx(True)
    for _ in range(5):
        ring.offer((DATA, 4, WRITE), (DATA, 4, WRITE))
    chains = [pop(queue, memory) for _ in range(5)]
    queue.add_used(memory, chains[0].head_index, 8)
    state = json.loads(json.dumps(queue.state()))
    other = type(queue).from_state(state)
    assert other.state() == state
    assert other.is_valid(memory)
    # what was not announced before is announced now
    assert other.needs_notification(memory) == queue.needs_notification(memory)
    other.add_used(memory, chains[1].head_index, 8)
    assert ring.used()[-1] == (chains[1].head_index, 8)
    queue.release()
    other.release()


BAD: dict[str, tuple[object, ...]] = {
    "max_size": (0, 65536, -1, "16", None, True),
    "size": (0, 32, 1 << 20),
    "ready": (1, None),
    "desc_table": (8, 1 << 64, -16),
    "avail_ring": (1,),
    "used_ring": (2,),
    "next_avail": (1 << 16, -1),
    "num_added": (1 << 20,),
    "in_flight": ([[1]], [[0, 1], [0, 1]], {}, [[70000, 1]], [1], [[0, 1]] * 40000),
    "done": ([[3, 4]],),
    "device": ("Serial",),
    "version": (2,),
}


@pytest.mark.parametrize("field", sorted(BAD))
def test_states_that_are_none(ring: Ring, field: str) -> None:
    state = ring.kind(16).state()
    for value in BAD[field]:
        with pytest.raises(DeviceStateError):
            ring.kind.from_state({**state, field: value})
    with pytest.raises(DeviceStateError):
        ring.kind.from_state({name: value for name, value in state.items() if name != field})


def test_packed_states_that_contradict_themselves() -> None:
    state = PackedQueue(16).state()
    for change in (
        {"next_avail": 16},
        {"next_used": 0x8010},
        {"in_flight": [[1, 9], [2, 8]]},
        {"in_flight": [[1, 0]]},
    ):
        with pytest.raises(DeviceStateError):
            PackedQueue.from_state({**state, **change})


# readers and writers


def test_reader_and_writer(ring: Ring, memory: GuestMemoryMmap) -> None:
    queue = ring.queue()
    memory.write_slice(bytes(range(20)), DATA)
    pieces = [(DATA + at, 1, 0) for at in range(4)] + [(DATA + 4, 0, 0), (DATA + 4, 16, 0)]
    ring.offer(*pieces, (DATA + 0x100, 3, WRITE), (DATA + 0x200, 0, WRITE), (DATA + 0x300, 5, WRITE))
    chain = pop(queue, memory)
    reader = chain.reader(memory)
    assert (reader.available_bytes(), len(reader), bool(reader)) == (20, 20, True)
    assert reader.peek(6) == bytes(range(6))
    assert reader.peek(1) == b"\0"
    assert reader.peek(-1) == reader.peek() == bytes(range(20))
    assert reader.read_obj(Struct("<IH")) == (0x03020100, 0x0504)
    assert reader.bytes_read() == 6
    rest = reader.split_at(4)
    assert reader.read() == bytes(range(6, 10))
    assert rest.bytes_read() == 0
    with pytest.raises(errors.SplitOutOfBounds):
        rest.split_at(11)
    assert rest.split_at(10).available_bytes() == 0
    with pytest.raises(errors.BufferTooShort) as caught:
        rest.read_exact(11)
    assert (caught.value.expected, caught.value.available, caught.value.head) == (11, 10, chain.head_index)
    buffer = bytearray(6)
    assert rest.readinto(buffer) == 6
    assert buffer == bytes(range(10, 16))
    assert [bytes(view) for view in rest.views()] == [bytes(range(16, 20))]
    assert [bytes(view) for view in rest.views(2)] == [b"\x10\x11"]
    assert rest.read(100) == bytes(range(16, 20))
    assert rest.read(1) == rest.peek(1) == b""
    writer = chain.writer(memory)
    with pytest.raises(errors.BufferTooShort):
        writer.write_all(bytes(9))
    assert writer.bytes_written() == 0
    status = writer.split_at(7)
    writer.write_obj(Struct("<HH"), 1, 2)
    assert writer.write(b"too long") == 3
    status.views()[0][0] = 0x55
    status.advance(1)
    assert (writer.bytes_written(), status.bytes_written()) == (7, 1)
    assert bytes(memory.get_slice(DATA + 0x100, 3)) == b"\1\0\2"
    assert bytes(memory.get_slice(DATA + 0x300, 5)) == b"\0too\x55"
    with pytest.raises(errors.BufferTooShort):
        status.advance(1)
    assert "7 bytes passed" in repr(writer)
    with writer, reader, rest:
        pass
    assert writer.available_bytes() == 0
    assert "DescriptorChain" in repr(chain)
    assert chain
    queue.release()


def test_buffers_outside_memory(ring: Ring, memory: GuestMemoryMmap) -> None:
    queue = ring.queue()
    for addr, length in ((MEMORY, 1), (MEMORY - 4, 8), ((1 << 64) - 4, 8), (1 << 40, 1)):
        ring.offer((addr, length, 0), (addr, length, WRITE))
        chain = pop(queue, memory)
        for make in (chain.reader, chain.writer):
            with pytest.raises(errors.InvalidBuffer) as caught:
                make(memory)
            assert caught.value.head == chain.head_index
            assert caught.value.index == (make == chain.writer)
        queue.add_used(memory, chain.head_index, 0)
    queue.release()


def test_buffers_and_tables_may_cross_regions(ring: Ring) -> None:
    with GuestMemoryMmap.from_ranges([(0, DATA), (DATA, MEMORY - DATA)]) as memory:
        ring.memory = memory
        queue = ring.queue()
        memory.write_slice(b"aaaabbbb", DATA - 4)
        ring.offer((DATA - 4, 8, 0), (DATA - 20, 40, WRITE))
        chain = pop(queue, memory)
        assert chain.reader(memory).read() == b"aaaabbbb"
        writer = chain.writer(memory)
        assert len(writer.views()) == 2
        writer.write_all(b"x" * 40)
        assert b"".join(bytes(view) for view in memory.get_slices(DATA - 20, 40)) == b"x" * 40
        queue.add_used(memory, chain.head_index, 40)
        del writer, chain
        ring.used()
        ring.offer(ring.indirect([(DATA + 0x100, 8, 0), (DATA + 0x200, 4, 0)], DATA - 24))
        assert [descriptor.len for descriptor in pop(queue, memory)] == [8, 4]
        # and run into nothing
        ring.offer((MEMORY - 4, 4, WRITE), (DATA - 4, MEMORY, WRITE))
        chain = pop(queue, memory)
        with pytest.raises(errors.InvalidBuffer):
            chain.writer(memory)
        queue.release()


class Tracked:
    """Memory that tracks writes, around one that does not."""

    dirty_tracking = True

    def __init__(self, memory: GuestMemoryMmap) -> None:
        self.get_slice, self.get_slices = memory.get_slice, memory.get_slices
        self.marked: list[tuple[int, int]] = []

    def mark_dirty(self, addr: int, length: int) -> None:
        self.marked.append((addr, length))


def test_what_is_written_is_marked_dirty(ring: Ring, memory: GuestMemoryMmap) -> None:
    tracked = Tracked(memory)
    queue = ring.queue()
    queue.disable_notification(tracked)
    ring.offer((DATA, 16, WRITE), (DATA + 0x1000, 16, WRITE))
    queue.enable_notification(tracked)
    chain = queue.pop_descriptor_chain(tracked)
    assert chain is not None
    tracked.marked.clear()
    writer = chain.writer(tracked)
    status = writer.split_at(31)
    assert tracked.marked == []  # cutting writes nothing
    writer.write(b"x" * 20)
    status.write(b"s")
    assert tracked.marked == [(DATA, 16), (DATA + 0x1000, 4), (DATA + 0x100F, 1)]
    tracked.marked.clear()
    queue.add_used(tracked, chain.head_index, 20)
    area = (USED, USED + 0x100) if ring.kind is SplitQueue else (DESC, DESC + 0x100)
    assert tracked.marked
    assert all(area[0] <= addr < area[1] for addr, _ in tracked.marked)
    queue.release()


# the largest


def test_the_largest_queue(ring: Ring) -> None:
    with GuestMemoryMmap.from_ranges([(0, MEMORY)]) as memory:
        big = type(ring)(memory, 32768)
        queue = big.queue()
        queue.set_used_ring_address(0x200000)
        heads = [big.offer((0x300000, 4, WRITE)) for _ in range(100)]
        assert [pop(queue, memory).head_index for _ in heads] == heads
        queue.release()


# against a naive model


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_against_a_model(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(RINGS))
    in_order = data.draw(st.booleans())
    with GuestMemoryMmap.from_ranges([(0, MEMORY)]) as memory:
        ring = kind(memory, data.draw(st.sampled_from([1, 2, 4, 16])))
        queue = ring.queue()
        queue.set_in_order(in_order)
        offered: list[tuple[int, int]] = []
        taken: list[tuple[int, int]] = []
        early: dict[int, int] = {}
        expected: list[tuple[int, int]] = []
        seen: list[tuple[int, int]] = []
        room = ring.size
        for step in data.draw(st.lists(st.sampled_from(["offer", "take", "give", "back", "save"]), max_size=60)):
            if step == "offer":
                count = data.draw(st.integers(1, 3))
                if count <= room and not (kind is SplitRing and len(offered) + len(taken) and room < ring.size):
                    room -= count
                    offered.append((ring.offer(*[(DATA, 1, WRITE)] * count), count))
            elif step == "take":
                chain = queue.pop_descriptor_chain(memory)
                assert (chain is None) == (not offered)
                if chain is not None:
                    assert (chain.head_index, len(chain)) == offered[0]
                    taken.append(offered.pop(0))
            elif step == "give" and [each for each in taken if each[0] not in early]:
                head, _ = data.draw(st.sampled_from([each for each in taken if each[0] not in early]))
                length = data.draw(st.integers(0, 9))
                queue.add_used(memory, head, length)
                early[head] = length
                while taken and (in_order and taken[0][0] in early):
                    first, count = taken.pop(0)
                    expected.append((first, early.pop(first)))
                    room += count
                if not in_order:
                    expected.append((head, early.pop(head)))
                    (index,) = [number for number, each in enumerate(taken) if each[0] == head]
                    room += taken.pop(index)[1]
            elif step == "back" and taken and not early:
                queue.go_to_previous_position()
                offered.insert(0, taken.pop())
            elif step == "save":
                state = queue.state()
                queue.release()
                queue = type(queue).from_state(state)
            seen = [*seen, *ring.used()] if kind is PackedRing else ring.used()
            assert seen[-ring.size :] == expected[-len(seen[-ring.size :]) :] if seen else not expected
        queue.release()


# behind an IOMMU, and with a real bitmap


def test_an_iommu_says_what_the_device_may(ring: Ring) -> None:
    with GuestMemoryMmap.from_ranges([(0, MEMORY)]) as backend:
        iommu = Iommu()
        memory = IommuMemory(backend, iommu, True)
        ring.memory = backend
        iommu.iotlb.set_mapping(0, 0, DATA, Permissions.ReadWrite)
        iommu.iotlb.set_mapping(DATA, DATA, 0x1000, Permissions.Read)
        iommu.iotlb.set_mapping(DATA + 0x1000, DATA + 0x8000, 0x1000, Permissions.Write)
        iommu.iotlb.set_mapping(DATA + 0x2000, DATA + 0x4000, 0x1000, Permissions.ReadWrite)
        backend.write_slice(b"translated", DATA + 0x4000 - 0)
        queue = ring.queue()
        ring.offer((DATA + 0x2000, 10, 0), (DATA + 0x1FFC, 8, WRITE))
        chain = queue.pop_descriptor_chain(memory)
        assert chain is not None
        assert chain.reader(memory).read() == b"translated"
        assert chain.writer(memory).write(b"in pairs") == 8
        assert bytes(backend.get_slice(DATA + 0x8FFC, 4)) == b"in p"
        assert bytes(backend.get_slice(DATA + 0x4000, 4)) == b"airs"
        for buffer in ((DATA, 4, WRITE), (DATA + 0x1000, 4, 0), (DATA + 0x3000, 4, 0), (DATA + 0x3000, 4, WRITE)):
            queue.add_used(memory, chain.head_index, 0)
            ring.used()
            ring.offer(buffer)
            chain = queue.pop_descriptor_chain(memory)
            assert chain is not None
            with pytest.raises(errors.InvalidBuffer):
                (chain.writer if buffer[2] else chain.reader)(memory)
        queue.release()
        iommu.iotlb.invalidate_mapping(USED & ~0xFFF, 0x1000)
        iommu.iotlb.set_mapping(USED & ~0xFFF, USED & ~0xFFF, 0x1000, Permissions.Read)
        assert not queue.is_valid(memory)
        del chain


def test_pages_that_were_written(ring: Ring) -> None:
    with GuestMemoryMmap.from_ranges([(0, MEMORY)], bitmap=AtomicBitmap) as memory:
        assert memory.dirty_tracking
        ring.memory = memory
        queue = ring.queue()
        ring.offer((DATA, 100, 0), (DATA + 0x3000, 0x1800, WRITE))
        chain = pop(queue, memory)
        bitmap = next(iter(memory)).bitmap()
        assert isinstance(bitmap, AtomicBitmap)
        bitmap.reset()
        writer = chain.writer(memory)
        writer.write(bytes(0x1001))
        queue.add_used(memory, chain.head_index, 0x1001)
        page = USED if ring.kind is SplitQueue else DESC
        dirty = [at for at in range(0, MEMORY, 4096) if bitmap.dirty_at(at)]
        assert dirty == sorted([page, DATA + 0x3000, DATA + 0x4000])
        del writer, chain
        queue.release()
