"""Mutated images of every format: typed errors only, in bounded time and memory, and no byte outside the target.

What is allocated for a file is at most four times its size, beside a floor for objects. A compressed file is the
exception that its purpose demands: `inspect`, `BootPlan` and `extract` unpack it, and stop where the content passes
`decompression.bound`, sixteen times the size of the file. xz and lzma files also name the size of their dictionary,
which the decompressor reserves, but touches only as far as there is content: at most
`decompression.DICTIONARY_LIMIT`. The loaders (`Elf.load`, ...) unpack nothing.

`PYVMM_MUTATIONS=1000000` runs the long campaign; a plain run is short.
"""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from contextlib import suppress
from functools import partial
from struct import pack
from typing import TYPE_CHECKING

import pytest
from tests.loader import images
from tests.loader.images import XEN_NOTE, bzimage, elf, multiboot2_header, tag

from pyvmm_loader import BootPlan, BzImage, Elf, Flat, Image, InvalidHeader, LoaderError, extract, inspect
from pyvmm_loader.compression import FORMS, CompressionUnavailable, compress
from pyvmm_loader.decompression import DICTIONARY_LIMIT, bound
from pyvmm_loader.firmware import Firmware
from pyvmm_loader.formats import compression

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Buffer

MUTATIONS = int(os.environ.get("PYVMM_MUTATIONS", "2400"))
SIZE = 16 << 20
FLOOR = 1 << 20
"""Memory that a plan may take for any file, however small: page tables, device trees and objects."""
EXTREMES = (b"\0" * 8, b"\xff" * 8, b"\0\0\0\x80", b"\xff\xff\xff\x7f", b"\0\0\0\0\1\0\0\0", b"\xff\xff")


def packed(form: str) -> bytes:
    try:
        return compress(elf(bytes(range(256)) * 8, notes=(XEN_NOTE,)), form)
    except CompressionUnavailable:
        return b""  # its library is an extra; the test is skipped


def payload() -> bytes:
    inside = compress(elf(bytes(range(256)) * 8), "gzip")
    return bzimage(b"code" + inside + pack("<I", 2168), payload_offset=4, payload_length=len(inside) + 4)


SEEDS: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "elf64": (lambda: elf(bss=0x2000), ("auto", "linux64")),
    "elf32": (lambda: elf(bss=0x2000, bits=32, machine=3), ("auto", "linux32")),
    "pvh64": (lambda: elf(notes=(XEN_NOTE, XEN_NOTE), bss=0x2000), ("auto", "pvh")),
    "pvh32": (lambda: elf(notes=(XEN_NOTE,), bits=32, machine=3), ("auto", "pvh")),
    "bzimage": (bzimage, ("linux64", "linux32", "linux16")),
    "bzimage with a payload": (payload, ("auto",)),
    "multiboot": (lambda: images.multiboot(bss=100), ("auto", "multiboot")),
    "multiboot2": (images.multiboot2, ("auto", "multiboot2")),
    "multiboot2 in elf": (
        lambda: elf(multiboot2_header(tag(10, pack("<IIII", 0x100000, 1 << 24, 4096, 1))) + b"\xf4" * 64),
        ("auto", "multiboot2"),
    ),
    "arm64": (images.arm64, ("auto",)),
    "riscv64": (images.riscv64, ("auto",)),
    "zboot": (lambda: images.zboot(compress(images.arm64(), "gzip")), ("auto",)),
    "firmware": (images.firmware, ("auto", "reset")),
    "flat": (lambda: b"\xfa\xf4" * 300, ("flat16", "flat32", "flat64")),
    **{form: (partial(packed, form), ("auto",)) for form in FORMS},
}


DICTIONARIES = ("xz", "lzma")


class Target:
    """Guest memory that holds nothing: it fails the test for any write outside of its ranges."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self.ranges = list(ranges)

    def check_range(self, addr: int, length: int, /) -> bool:
        return any(start <= addr and addr + length <= start + size for start, size in self.ranges)

    def write_slice(self, buffer: Buffer, addr: int, /) -> None:
        with memoryview(buffer) as view:
            assert not len(view) or self.check_range(addr, len(view)), f"a write at {addr:#x} of {len(view):#x} bytes"


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


def load_everything(image: bytes, entry: str) -> int:
    """Do all that a file can be given to; return how much of it was refused."""
    ram = Target([(0, SIZE)])
    refused = 0
    for load in (Elf.load, BzImage.load, Image.load, Flat.load, Firmware.load):
        try:
            load(ram, None, image)
        except LoaderError:
            refused += 1
    with suppress(LoaderError):
        inspect(image)
    with suppress(LoaderError):
        extract(image, bound(len(image)))
    try:
        with BootPlan(image, SIZE, "quiet" if entry == "auto" else "", entry=entry) as plan:
            plan.apply(Target([*plan.ranges, *plan.roms]))
            assert str(plan)
    except LoaderError:
        refused += 1
    return refused


def measure(image: bytes, entry: str) -> tuple[int, int]:
    """What `load_everything` returns, and the most bytes that were allocated at a time meanwhile."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    refused = load_everything(image, entry)
    return refused, tracemalloc.get_traced_memory()[1] - before


@pytest.mark.parametrize("name", SEEDS)
def test_mutations_raise_typed_errors_only(name: str) -> None:
    make, entries = SEEDS[name]
    seed = make()
    if not seed:
        pytest.skip(f"no library for {name} is installed")
    chance = random.Random(name)
    refused = 0
    load_everything(seed, entries[0])  # imports what it needs, which is no allocation for the file
    tracemalloc.start()
    try:
        for number in range(MUTATIONS // len(SEEDS)):
            image = mutate(seed, chance)
            begin = time.monotonic()
            turned_down, allocated = measure(image, entries[number % len(entries)])
            assert time.monotonic() - begin < 1, image.hex()
            refused += turned_down
            most = 4 * len(image) + FLOOR
            if compression(memoryview(image)) or name in ("zboot", "bzimage with a payload"):
                most += 2 * bound(len(image))  # `extract` returns bytes, a copy
            if name in DICTIONARIES:
                most += DICTIONARY_LIMIT
            if allocated > most:
                # what the interpreter keeps from the first time on, or another test's thread took, does not come again
                _, allocated = measure(image, entries[number % len(entries)])
            assert allocated <= most, image.hex()
    finally:
        tracemalloc.stop()
    assert refused


@pytest.mark.parametrize("form", FORMS)
def test_bombs_stop_at_their_bound(form: str) -> None:
    size = 24 << 20
    try:
        bomb = compress(bytes(size), form)
    except CompressionUnavailable as error:
        pytest.skip(str(error))
    tracemalloc.start()
    try:
        for use in (inspect, lambda image: BootPlan(image, SIZE), lambda image: extract(image, bound(len(image)))):
            with pytest.raises(InvalidHeader, match="unpacks to more than"):
                use(bomb)
        with pytest.raises(LoaderError):
            Elf.load(Target([(0, SIZE)]), None, bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20, "a block or a dictionary is 8 MiB at most"
