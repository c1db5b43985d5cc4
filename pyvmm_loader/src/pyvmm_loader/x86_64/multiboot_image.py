"""What both multiboot versions share: where the parts of the kernel go, and facts for the information it is given."""

from __future__ import annotations

from pyvmm_loader.errors import MemoryTooSmall
from pyvmm_loader.images.multiboot2_header import PREFER_HIGHEST
from pyvmm_loader.plan.placement import KERNEL
from pyvmm_loader.x86_64.layout import EBDA_START, HIMEM_START

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm_loader.images.multiboot2_header import Relocation
    from pyvmm_loader.images.pieces import Loadable
    from pyvmm_loader.plan.layout import Layout

LOADER_NAME = b"pyvmm\0"
CMDLINE_SIZE = 4095


def relocate(boot: Layout, name: str, loadable: Loadable, wish: Relocation) -> None:
    """Move a relocatable kernel when it cannot stay where it was linked."""
    size = loadable.end - loadable.start
    fits = any(start <= loadable.start and loadable.end <= start + length for start, length in boot.ranges)
    if fits and loadable.start >= wish.lowest and loadable.end - 1 <= wish.highest and loadable.start % wish.align == 0:
        return
    places = []
    for start, length in boot.ranges:
        low = -(-max(start, wish.lowest, 0x1000) // wish.align) * wish.align
        high = (min(start + length, wish.highest + 1) - size) // wish.align * wish.align
        # the memory between 640 KiB and 1 MiB is no kernel's
        if low < 0x100000 < low + size or 0x9F000 <= low < 0x100000:
            low = -(-0x100000 // wish.align) * wish.align
        if low <= high:
            places += [low, high]
    if not places:
        raise MemoryTooSmall(
            f"{name}: {size:#x} bytes between {wish.lowest:#x} and {wish.highest:#x} are not free RAM; "
            "give the guest more memory"
        )
    loadable.move(max(places) if wish.preference == PREFER_HIGHEST else min(places))


def add_pieces(boot: Layout, view: memoryview, loadable: Loadable) -> int:
    """Put the parts of a kernel into memory; return where they end."""
    for number, piece in enumerate(loadable.pieces):
        zeros = piece.memsz - piece.filesz
        why = f"where its headers ask{f', {zeros:#x} bytes of BSS zeroed' if zeros else ''}"
        data = view[piece.offset : piece.offset + piece.filesz]
        boot.add_slice(data, piece.start, f"kernel segment {number}", why, piece.memsz, KERNEL)
    return loadable.end


def amounts(ranges: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return KiB of RAM below 640 KiB and from 1 MiB to the first hole, as mem_lower and mem_upper want them."""
    upper = max([start + size - HIMEM_START for start, size in ranges if start <= HIMEM_START], default=0)
    return EBDA_START >> 10, max(0, upper) >> 10
