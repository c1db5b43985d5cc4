"""Wild arguments for everything compiled: run under ASan by test_sanitizer.py, or alone with a count and a seed."""

import mmap
import os
import random
import sys

import pyvmm_memory as pm
from pyvmm_memory._memory import ffi, lib
from pyvmm_memory._window import FastAccess, Window

NUMBERS = [0, 1, 2, 3, 4, 7, 8, 9, 63, 64, 65, 0xFFF, 0x1000, 0x1001, 0x1FF8, 0x1FFF, 2**31, 2**32, 2**62]
NUMBERS += [2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1, 2**64, 2**70]
EXPECTED = (pm.GuestMemoryError, ValueError, TypeError, OverflowError, BufferError, AttributeError, OSError)


def number(chance: random.Random) -> object:
    value: object = chance.choice(NUMBERS) + chance.choice((0, 0, 0, 1, -1))
    return chance.choice((value, value, value, -1, 1.5, "x", None, b"", pm.GuestAddress(chance.getrandbits(13))))


def buffer(chance: random.Random) -> object:
    size = chance.choice((0, 1, 2, 3, 4, 8, 9, 16, 512, 0x1000, 0x3000))
    return chance.choice((bytearray(size), bytes(size), memoryview(bytearray(2 * size))[::2], "text", None, 5))


def attack(chance: random.Random, count: int) -> None:
    layouts = [[(0, 0x1000), (0x1000, 0x1000), (0x4000, 0x1000)], [(2**64 - 0x2000, 0x2000)]]
    memories = [
        pm.GuestMemoryMmap.from_ranges(layout, bitmap=kind) for layout in layouts for kind in (None, pm.AtomicBitmap)
    ]
    names = [f"{verb}_u{bits}" for verb in ("read", "write") for bits in (8, 16, 32, 64)]
    names += ["load", "store", "read", "write", "read_slice", "write_slice", "get_slice", "mark_dirty", "fill_zero"]
    windows = [Window(bytearray(size)) for size in (0, 1, 7, 64)]
    bitmaps = [pm.AtomicBitmap(size, page) for size, page in ((0, 1), (1, 1), (64, 1), (65, 1), (0x10000, 0x1000))]
    for _ in range(count):
        target = chance.choice((chance.choice(memories), chance.choice(windows), chance.choice(bitmaps)))
        if isinstance(target, pm.GuestMemoryMmap):
            method = getattr(target, chance.choice(names))
        elif isinstance(target, Window):
            method = getattr(target, chance.choice(("load", "store", "release", "reopen", "load", "store")))
        else:
            actions = (
                "set_addr_range",
                "reset_addr_range",
                "set_bit",
                "reset_bit",
                "is_addr_set",
                "get_and_reset",
                "mark_dirty",
            )
            method = getattr(target, chance.choice(actions))
        arguments = [chance.choice((number, number, buffer))(chance) for _ in range(chance.randrange(4))]
        try:
            result = method(*arguments)
        except EXPECTED:
            continue
        if isinstance(result, memoryview):
            result.release()
    for memory in memories:
        memory.close()


def lifetimes(chance: random.Random, count: int) -> None:
    """Close and reopen under the feet of collections that share a region."""
    for _ in range(count):
        region = pm.GuestRegionMmap(0, 0x2000)
        memories = [pm.GuestMemoryMmap([region]) for _ in range(3)]
        view = memories[0].get_slice(0x1FF0, 16)
        try:
            region.close()
        except pm.MemoryInUse:
            memories[1].write_u64(chance.getrandbits(64), 0x1FF8)
        view.release()
        del memories[0]
        region.close()
        for memory in memories:
            try:
                memory.read_u64(0)
            except pm.MemoryClosed:
                continue
    fast = FastAccess()
    fast.attach_windows([(0, Window(bytearray(8)))])
    fast.attach_windows([])


def faults(chance: random.Random, count: int) -> None:
    fd = os.memfd_create("source")
    os.ftruncate(fd, 0x23000)
    for _ in range(count):
        memory = pm.GuestMemoryMmap.from_ranges([(0, chance.randrange(1, 64) * mmap.PAGESIZE)])
        (region,) = memory
        try:
            fault = pm.UserFault(region, pm.FileOffset(fd), track_writes=chance.random() < 0.5)
        except pm.HostRefused as error:
            print(f"no userfaultfd: {error}")
            memory.close()
            break
        for _ in range(20):
            memory.write_u8(1, chance.randrange(region.size))
        if fault.bitmap is not None:
            fault.collect()
        fault.populate()
        (fault.close, memory.close)[chance.randrange(2)]()
        memory.close()
        fault.close()
    os.close(fd)
    lib.pyvmm_userfault_stop(ffi.NULL)


def main() -> None:
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(seed)
    attack(chance, count)
    lifetimes(chance, max(count // 1000, 10))
    faults(chance, max(count // 2000, 5))
    with pm.HostReservation(0x10000) as reservation:
        reservation.map(0x1000, 0x1000).close()
    print("survived", count)


if __name__ == "__main__":
    main()
