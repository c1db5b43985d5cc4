"""Both ring formats, one suite: what a driver may do, and what happens when it does what it must not."""

from collections.abc import Iterator

import pytest

from pyvmm_memory import GuestMemoryMmap

from .rings import (
    DATA,
    MEMORY,
    RINGS,
    WRITE,
    Ring,
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
