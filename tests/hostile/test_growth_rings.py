"""What a guest can make a device hold is bounded by its rings: chains under way, and bytes that are copied."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any

import pytest
from tests.hostile.subjects import kinds_of_queues
from tests.virtio import rings

from pyvmm_virtio.device import VirtioDevice
from pyvmm_virtio.driver import drive
from pyvmm_virtio.errors import ChainInFlight, RequestTooLarge, VirtqueueError
from pyvmm_virtio.queue.buffers import COPY_LIMIT

if TYPE_CHECKING:
    from pyvmm_memory import GuestMemoryMmap
    from pyvmm_virtio.queue.chain import DescriptorChain

RINGS = [each for each in vars(rings).values() if isinstance(each, type) and hasattr(each, "kind")]


def test_every_kind_of_ring_is_attacked() -> None:
    assert {each.kind for each in RINGS} == set(kinds_of_queues())


@pytest.mark.parametrize("ring_kind", RINGS, ids=lambda each: each.__name__)
@pytest.mark.parametrize("in_order", [False, True])
def test_never_more_chains_are_under_way_than_the_ring_has_descriptors(ring_kind: Any, in_order: bool) -> None:  # noqa: ANN401 - one of two classes
    memory = rings.memory()
    ring = ring_kind(memory, 16)
    queue = ring.queue()
    queue.set_in_order(in_order)
    taken = 0
    refused = False
    for _ in range(40):
        ring.offer((rings.DATA, 16, rings.WRITE))
        try:
            taken += queue.pop_descriptor_chain(memory) is not None
        except VirtqueueError:
            refused = True
        assert len(queue.in_flight) == taken <= 16
    assert refused
    assert taken == 16
    memory_close(queue, memory)


@pytest.mark.parametrize("in_order", [False, True])
def test_a_head_that_is_offered_again_is_the_drivers_mistake(in_order: bool) -> None:
    memory = rings.memory()
    ring = rings.SplitRing(memory, 16)
    queue = ring.queue()
    queue.set_in_order(in_order)
    head = ring.offer((rings.DATA, 16, rings.WRITE))
    chain = queue.pop_descriptor_chain(memory)
    assert chain is not None
    ring.offer_head(head)
    with pytest.raises(ChainInFlight):
        queue.pop_descriptor_chain(memory)
    # given back, it may be offered again
    queue.add_used(memory, head, 0)
    ring.offer_head(head)
    again = queue.pop_descriptor_chain(memory)
    assert again is not None
    assert again.head_index == head
    # and put back, it was not taken
    queue.go_to_previous_position()
    assert not queue.in_flight
    assert queue.pop_descriptor_chain(memory) is not None
    memory_close(queue, memory)


def memory_close(queue: Any, memory: GuestMemoryMmap) -> None:  # noqa: ANN401 - of either kind
    queue.release()
    memory.close()


class Reads(VirtioDevice):
    """A device as the documentation has it, which says nothing of how much a request may have."""

    device_type = 42
    queue_max_sizes = (256,)

    def process_queue(self, index: int) -> None:
        for chain in self.chains(index):
            self.complete(index, chain, len(self.read(chain)))

    def read(self, chain: DescriptorChain) -> bytes:
        return chain.reader(self.memory).read()


class Peeks(Reads):
    def read(self, chain: DescriptorChain) -> bytes:
        return chain.reader(self.memory).peek()


class Limits(Reads):
    def read(self, chain: DescriptorChain) -> bytes:
        return chain.reader(self.memory).read(64)


@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize("kind", [Reads, Peeks, Limits])
def test_a_request_makes_a_device_hold_what_it_said(kind: type[Reads], ring: str) -> None:
    device = kind()
    with drive(device, ring=ring) as driver:
        driver.wait(driver.submit_buffers(0, [(0x100000, COPY_LIMIT, 0)]))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        huge = [(0x100000, 8 << 20, 0)] * 250
        request = driver.submit_buffers(0, huge)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
        if kind is Limits:
            driver.wait(request)
            assert request.length == 64
        else:
            assert device.errors == {RequestTooLarge.__name__: 1}
            driver.reset()
            driver.wait(driver.submit_buffers(0, [(0x100000, 16, 0)]))
