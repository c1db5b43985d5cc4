"""Mutated images: typed errors only, and nothing outside the memory that was checked.

`PYVMM_MUTATIONS=1000000` runs the long campaign; a plain run is short.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress

import pytest
from tests.loader.images import XEN_NOTE, FlatMemory, arm64, bzimage, elf

from pyvmm_loader import BootPlan, BzImage, Elf, Image, LoaderError, inspect

MUTATIONS = int(os.environ.get("PYVMM_MUTATIONS", "4000"))
SEEDS = {
    "elf64": elf(notes=(XEN_NOTE,), bss=0x2000),
    "elf32": elf(notes=(XEN_NOTE,), bits=32, machine=3),
    "bzimage": bzimage(),
    "arm64": arm64(),
}
EXTREMES = (b"\0" * 8, b"\xff" * 8, b"\0\0\0\x80", b"\xff\xff\xff\x7f", b"\0\0\0\0\1\0\0\0", b"\xff\xff")


def mutate(image: bytes, chance: random.Random) -> bytes:
    copy = bytearray(image)
    for _ in range(chance.randint(1, 4)):
        # headers decide; most mutations go there
        at = chance.randrange(min(len(copy), chance.choice((0x40, 0x280, len(copy)))))
        if chance.random() < 0.5:
            copy[at] = chance.randrange(256)
        else:
            value = chance.choice(EXTREMES)
            copy[at : at + len(value)] = value
    return bytes(copy[: chance.randint(1, len(copy))] if chance.random() < 0.1 else copy)


@pytest.mark.parametrize("name", SEEDS)
def test_mutations_raise_typed_errors_only(name: str) -> None:
    chance = random.Random(name)
    memory = FlatMemory(1 << 21)
    for _ in range(MUTATIONS // len(SEEDS)):
        image = mutate(SEEDS[name], chance)
        memory.written.clear()
        begin = time.monotonic()
        for load in (Elf.load, BzImage.load, Image.load):
            with suppress(LoaderError):
                load(memory, None, image)
        with suppress(LoaderError):
            inspect(image)
        with suppress(LoaderError), BootPlan(image, 1 << 21, "quiet") as plan:
            plan.apply(memory)
        assert time.monotonic() - begin < 1, image.hex()
