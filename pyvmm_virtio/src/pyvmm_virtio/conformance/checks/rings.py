"""Virtqueues: chapters 2.7 and 2.8."""

from __future__ import annotations

from pyvmm_virtio.conformance.bench import Bench, ensure
from pyvmm_virtio.conformance.checks.registry import check
from pyvmm_virtio.constants import device_ids as ids
from pyvmm_virtio.driver.rings import INDIRECT, NEXT, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SPLIT, PACKED = ("split",), ("packed",)
GUARD = bytes(range(0xA0, 0xB0))


def placed(bench: Bench, driver: Any, seed: int = 0) -> list[tuple[int, int, int]]:  # noqa: ANN401 - any driver
    """Put the buffers of a right request into memory."""
    readable, writable = bench.parts(driver, seed)
    buffers = [(driver.arena.put(data), len(data), 0) for data in readable]
    return buffers + [(driver.arena.zeroed(size), size, WRITE) for size in writable]


def shattered(buffers: list[tuple[int, int, int]], pieces: int) -> list[tuple[int, int, int]]:
    """Lay the same bytes out in more buffers: so many, and at most one more for each that there was."""
    step = max(1, -(-sum(length for _, length, _ in buffers) // pieces))
    return [
        (addr + at, min(step, length - at), flags) for addr, length, flags in buffers for at in range(0, length, step)
    ]


@check()
def any_layout(bench: Bench) -> None:
    """Send the same request in few buffers and in many."""
    for seed in range(6):
        answers = []
        for pieces in (0, 30):
            with bench.driver() as driver:
                buffers = placed(bench, driver, seed)
                queue = bench.queue(driver)
                # a chain has as many as the queue at most
                most = max(1, min(pieces, driver.queues[queue].size - len(buffers)))
                request = driver.submit_buffers(queue, shattered(buffers, most) if pieces else buffers)
                driver.wait(request, timeout=2)
                answers.append((request.length, request.written()))
        random = driver.port.device_type == ids.VIRTIO_ID_RNG
        same = answers[0][0] == answers[1][0] if random else answers[0] == answers[1]
        ensure(same, f"request {seed} is answered differently in pieces: {answers[0][0]} and {answers[1][0]} bytes")


@check()
def readable_buffers_stay(bench: Bench) -> None:
    """Compare what the device read, and what lies around each buffer, with what it was."""
    with bench.driver() as driver:
        for seed in range(12):
            readable, writable = bench.parts(driver, seed)
            buffers, kept = [], []
            for data, flags in [*((data, 0) for data in readable), *((bytes(size), WRITE) for size in writable)]:
                addr, length = driver.arena.put(GUARD + data + GUARD) + len(GUARD), len(data)
                buffers.append((addr, length, flags))
                kept += [(addr - len(GUARD), len(GUARD)), (addr + length, len(GUARD))] + [(addr, length)] * (not flags)
            before = [bytes(driver.memory.get_slice(*piece)) for piece in kept]
            driver.wait(driver.submit_buffers(bench.queue(driver), buffers), timeout=2)
            after = [bytes(driver.memory.get_slice(*piece)) for piece in kept]
            ensure(before == after, "a readable buffer was written, or what lies beside a buffer")


@check()
def descriptors_stay(bench: Bench) -> None:
    """Compare descriptors before and after: in a split ring all of them, in a packed one those that were used."""
    with bench.driver(indirect=False) as driver:
        queue = bench.queue(driver)
        ring = driver.queues[queue]
        if bench.ring == "split":
            request = bench.submit(driver, kick=False)
            before = bytes(driver.memory.get_slice(ring.desc, 16 * ring.size))
            driver.kick(queue, always=True)
            driver.wait(request, timeout=2)
        else:
            for seed in range(3):
                bench.request(driver, seed)
            before = bytes(driver.memory.get_slice(ring.desc, 16 * ring.size))
            driver.kick(queue, always=True)
        after = bytes(driver.memory.get_slice(ring.desc, 16 * ring.size))
        ensure(before == after, "a descriptor was changed that is not the device's to change")


@check()
def indirect_tables(bench: Bench) -> None:
    """WRITE beside INDIRECT; in a split ring a table after a direct descriptor, in a packed one flags in a table."""
    with bench.driver() as driver:
        queue = bench.queue(driver)
        ring = driver.queues[queue]
        buffers = placed(bench, driver)
        if bench.ring == "packed":
            buffers = [(addr, length, flags | NEXT) for addr, length, flags in buffers]
            addr, length = ring.write_table(buffers, links=False)
        else:
            addr, length = ring.write_table(buffers, links=True)
        ring.indirect = False
        driver.wait(driver.submit_buffers(queue, [(addr, length, INDIRECT | WRITE)]), timeout=2)
        if bench.ring == "split" and len(buffers := placed(bench, driver)) > 1:
            addr, length = ring.write_table(buffers[1:], links=True)
            driver.wait(driver.submit_buffers(queue, [buffers[0], (addr, length, INDIRECT)]), timeout=2)


@check()
def suppression_by_flags(bench: Bench) -> None:
    """Without EVENT_IDX: flags 0 asks for a notification, whatever stands in used_event."""
    with bench.driver(event_idx=False) as driver:
        ring = driver.queues[bench.queue(driver)]
        if bench.ring == "split":
            with driver.memory.get_slice(ring.driver_area + 4 + 2 * ring.size, 2) as used_event:
                used_event[:] = b"\x00\x40"
        before = driver.interrupts
        bench.request(driver)
        ensure(driver.interrupts > before, "no notification, though flags is 0")


@check()
def suppression_by_event(bench: Bench) -> None:
    """With EVENT_IDX: a notification when used_event is reached, whatever flags says."""
    with bench.driver() as driver:
        ring = driver.queues[bench.queue(driver)]
        if bench.ring == "split":
            with driver.memory.get_slice(ring.driver_area, 2) as flags:
                flags[:] = b"\1\0"
        for seed in range(3):
            before = driver.interrupts
            bench.request(driver, seed)
            ensure(driver.interrupts > before, "no notification, though used_event was reached")


@check()
def lengths_are_honest(bench: Bench) -> None:
    """Fill buffers with something else three times: what is counted as written must have changed in one of them."""
    for seed in range(6):
        answers = []
        for fill in (0x00, 0xA5, 0x5A):
            with bench.driver() as driver:
                buffers = placed(bench, driver, seed)
                for addr, length, flags in buffers:
                    if flags:
                        with driver.memory.get_slice(addr, length) as view:
                            view[:] = bytes([fill]) * length
                request = driver.wait(driver.submit_buffers(bench.queue(driver), buffers), timeout=2)
                room = sum(length for _, length, flags in buffers if flags)
                ensure(request.length <= room, f"{request.length} bytes of {room} were written, it says")
                answers.append(request.written())
        shortest = min(map(len, answers))
        for at in range(shortest):
            ensure(
                (answers[0][at], answers[1][at], answers[2][at]) != (0x00, 0xA5, 0x5A),
                f"byte {at} of {shortest} counts as written and was not",
            )


@check(rings=SPLIT)
def used_flags(bench: Bench) -> None:
    """Look at the used ring's flags after work."""
    for event_idx in (False, True):
        with bench.driver(event_idx=event_idx) as driver:
            bench.request(driver)
            for ring in driver.queues:
                flags = int.from_bytes(bytes(driver.memory.get_slice(ring.device_area, 2)), "little")
                ensure(flags in ((0,) if event_idx else (0, 1)), f"the used ring's flags are {flags:#x}")


@check()
def spurious_notifications(bench: Bench) -> None:
    """Notify every queue with nothing in it, and one that does not exist."""
    with bench.driver() as driver:
        for _ in range(3):
            for index in range(len(driver.queues)):
                driver.kick(index, always=True)
        ensure(not driver.needs_reset, "it needs a reset after a notification without reason")
        bench.request(driver)


@check(rings=PACKED)
def order_of_the_ring(bench: Bench) -> None:
    """Send many at once, three times round the ring: each answer is where the ring has it."""
    with bench.driver(queue_size=16, indirect=False) as driver:
        for turn in range(12):
            requests = [bench.submit(driver, seed + turn, kick=False) for seed in range(2)]
            driver.kick(requests[0].queue, always=True)
            for request in requests:
                driver.wait(request, timeout=2)


@check(rings=PACKED)
def marks_of_another_turn(bench: Bench) -> None:
    """Offer with the marks of the turn after this: nobody offered anything yet."""
    with bench.driver() as driver:
        ring = driver.queues[bench.queue(driver)]
        ring.wrap ^= 1
        request = bench.submit(driver, kick=False)
        driver.kick(request.queue, always=True)
        driver.poll()
        ensure(not request.done, "a descriptor was used whose AVAIL mark had not changed")
