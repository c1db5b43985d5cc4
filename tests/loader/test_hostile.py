"""Mutated images of every format: typed errors only, in bounded time and memory, and no byte outside the target.

What is allocated for a file is at most four times its size, beside a floor for objects and one block of a compression.
Content that has to be unpacked is streamed: `extract_pieces`, and with it the command, passes it on; `Image.load`
writes it into guest memory; `inspect` and `BootPlan`, which must look around in it, keep it in a mapping of its own,
which ends at `decompression.bound`, sixteen times the size of the file (kernels shrink to a sixth) and 16 MiB. Only
`extract` returns it as one object. xz, lzma and zstd files also name the size of a dictionary, 128 MiB in kernels of
any size; it is reserved up to that limit, and touched only as far as there is content, which a test of its own shows.

`PYVMM_MUTATIONS=1000000 PYVMM_MEASURED=20` runs the long campaign, and measures the allocations of every twentieth
mutation only, which takes several times as long as the rest; a plain run is short and measures them all. Time is that
of the thread, so that a busy machine fails no test.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import tracemalloc
from collections import deque
from contextlib import suppress
from functools import partial
from struct import pack
from typing import TYPE_CHECKING

import pytest
from tests.loader import images
from tests.loader.images import XEN_NOTE, bzimage, elf, multiboot2_header, patch_dictionary, tag

from pyvmm_loader import BootPlan, BzImage, Elf, Flat, Image, InvalidHeader, LoaderError, inspect
from pyvmm_loader.compression.compress import FORMS, CompressionUnavailable, compress
from pyvmm_loader.compression.decompress import DICTIONARY_LIMIT, LZO_MAGIC, zstd_module
from pyvmm_loader.images.extraction import extract_pieces
from pyvmm_loader.images.firmware import Firmware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from typing_extensions import Buffer

MUTATIONS = int(os.environ.get("PYVMM_MUTATIONS", "2400"))
MEASURED = int(os.environ.get("PYVMM_MEASURED", "1"))
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


def lzop(content: bytes) -> bytes:
    """A file of lzop's in blocks that do not shrink, which need no library."""
    head = LZO_MAGIC + pack(">HHHBBI", 0x1030, 0x20A0, 0x940, 1, 9, 0) + bytes(12) + b"\4name" + bytes(4)
    blocks = [content[at : at + 1000] for at in range(0, len(content), 1000)]
    return head + b"".join([pack(">II", len(block), len(block)) + block for block in blocks]) + bytes(4)


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
    "lzo": (lambda: lzop(elf(bytes(range(256)) * 8, notes=(XEN_NOTE,))), ("auto",)),
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


def load_everything(image: bytes | Path, entry: str) -> int:
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
        for _ in extract_pieces(image):
            pass
    try:
        with BootPlan(image, SIZE, "quiet" if entry == "auto" else "", entry=entry) as plan:
            plan.apply(Target([*plan.ranges, *plan.roms]))
            assert str(plan)
    except LoaderError:
        refused += 1
    return refused


def allocated(work: Callable[[], object]) -> int:
    """Return the most bytes that the work allocates at a time.

    Do it once before: what is allocated once, as for imports, does not belong to an image.
    """
    tracemalloc.start()
    try:
        with suppress(LoaderError):
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", SEEDS)
def test_mutations_raise_typed_errors_only(name: str, tmp_path: Path) -> None:
    make, entries = SEEDS[name]
    seed = make()
    if not seed:
        pytest.skip(f"no library for {name} is installed")
    chance = random.Random(name)
    refused = 0
    file = tmp_path / "image"
    load_everything(seed, entries[0])  # imports what it needs, which is no allocation for the file
    for number in range(MUTATIONS // len(SEEDS)):
        image = mutate(seed, chance)
        entry = entries[number % len(entries)]
        if number % 4 == 0:
            file.unlink(missing_ok=True)  # ext4 writes to the disk what is truncated and written again
            file.write_bytes(image)  # is mapped, and must be free to be unmapped whatever is wrong with it
        work = partial(load_everything, image if number % 4 else file, entry)
        begin = time.thread_time()
        refused += work()
        assert time.thread_time() - begin < 1, image.hex()
        if number % MEASURED == 0:
            most = 4 * len(image) + FLOOR + (DICTIONARY_LIMIT if name in DICTIONARIES else 0)
            assert allocated(work) <= most, image.hex()
    assert refused


@pytest.mark.parametrize("form", FORMS)
def test_bombs_stop_at_their_bound(form: str) -> None:
    size = 32 << 20
    try:
        bomb = compress(bytes(size), form)
    except CompressionUnavailable as error:
        pytest.skip(str(error))
    tracemalloc.start()
    try:
        for use in (
            inspect,
            lambda image: BootPlan(image, SIZE),
            lambda image: deque(extract_pieces(image), 0),
        ):
            with pytest.raises(InvalidHeader, match="unpacks to more than"):
                use(bomb)
        with pytest.raises(LoaderError):
            Elf.load(Target([(0, SIZE)]), None, bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 25 << 20, (
        "a dictionary of 8 MiB, or such a block of lz4 three times: the last, the next, the library's"
    )


RESIDENT = """
import sys
from pathlib import Path
from pyvmm_loader import LoaderError, inspect


def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


for number, path in enumerate([sys.argv[1], *sys.argv[1:]]):
    if number == 1:  # the first one has imported what is needed
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
    try:
        inspect(path)
    except LoaderError as error:
        sys.exit(str(error))
print(resident("VmHWM") - before)
"""


def zstd_with_window(content: bytes, log: int) -> bytes:
    """A frame of stored blocks, RFC 8878: no content size, then the window's logarithm above 10 in five bits."""
    blocks = [content[at : at + 1000] for at in range(0, len(content), 1000)]
    heads = [(len(block) << 3 | (at == len(blocks) - 1)).to_bytes(3, "little") for at, block in enumerate(blocks)]
    return b"\x28\xb5\x2f\xfd\0" + bytes([log - 10 << 3]) + b"".join(map(bytes.__add__, heads, blocks))


@pytest.mark.parametrize("form", ["xz", "lzma", "zstd"])
def test_a_dictionary_is_reserved_and_not_touched(form: str, tmp_path: Path) -> None:
    pytest.importorskip(zstd_module() if form == "zstd" else "lzma", reason=f"no library for {form} is installed")
    content = elf(bytes(range(256)) * 8, notes=(XEN_NOTE,))
    image = tmp_path / form
    if form == "zstd":
        image.write_bytes(zstd_with_window(content, 27))
    else:
        image.write_bytes(patch_dictionary(bytearray(compress(content, form)), 128 << 20))
    done = subprocess.run([sys.executable, "-c", RESIDENT, image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4 << 20, "of 128 MiB that it asks for"


def test_no_more_than_the_kernels_window_is_reserved() -> None:
    pytest.importorskip(zstd_module(), reason="no library for zstd is installed")
    for log in range(10, 42):
        frame = zstd_with_window(elf(), log)
        if log <= 27:
            assert inspect(frame)["compression"] == "zstd"
        else:
            with pytest.raises(InvalidHeader, match="damaged"):
                inspect(frame)
