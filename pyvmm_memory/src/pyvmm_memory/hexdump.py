"""Guest memory for people: a hexdump that shows holes, and a search that skips what was never written."""

from __future__ import annotations

from pyvmm_memory.address import as_int
from pyvmm_memory.errors import InvalidLength, PartialBuffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvmm_memory.collection import GuestRegionCollection
    from pyvmm_memory.guest_memory import GuestMemory

MAX_DUMP = 1 << 20
CHUNK = 1 << 20


def hexdump(memory: GuestMemory, addr: int, length: int, width: int = 16) -> str:
    """Show `length` bytes at `addr`, `width` to a line; runs of equal lines are one `*`, holes are named.

    Raises InvalidLength for more than 1 MiB, which nobody reads.

    >>> from pyvmm_memory import GuestMemoryMmap
    >>> with GuestMemoryMmap.from_ranges([(0, 0x1000)]) as memory:
    ...     memory.write_slice(b"hello, guest", 0xFD0)
    ...     print(memory.hexdump(0xFD0, 0x40))
    00000fd0  68 65 6c 6c 6f 2c 20 67 75 65 73 74 00 00 00 00  |hello, guest....|
    00000fe0  00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  |................|
    *
    00001000  not mapped
    """
    addr, length = as_int(addr), as_int(length)
    if not 0 <= length <= MAX_DUMP or not 1 <= width <= 256:
        raise InvalidLength(length if 1 <= width <= 256 else width)
    lines: list[str] = []
    last = ""
    for at in range(addr, addr + length, width):
        text = _line(memory, at, min(width, addr + length - at), width)
        if text != last:
            lines.append(f"{at:08x}  {text}")
        elif lines[-1] != "*":
            lines.append("*")
        last = text
    return "\n".join(lines)


def _line(memory: GuestMemory, at: int, count: int, width: int) -> str:
    data = bytearray(count)
    try:
        got = memory.read(data, at)
    except LookupError:
        return "not mapped"
    shown = bytes(data[:got])
    cells = [f"{byte:02x}" for byte in shown] + ["??"] * (count - got)
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in shown)
    return f"{' '.join(cells):{3 * width - 1}}  |{text}|"


def search(memory: GuestRegionCollection, pattern: bytes, start: int, end: int | None, limit: int) -> list[int]:
    """Do what `GuestRegionCollection.search` does. Raises InvalidLength for an empty pattern."""
    pattern = bytes(pattern)
    if not pattern or limit < 0:
        raise InvalidLength(min(len(pattern), limit))
    found: list[int] = []
    tail, tail_end = b"", -1
    for at, data in _chunks(memory, start, end, len(pattern) if any(pattern) else -1):
        # what came just before may hold the beginning of a match
        before = tail if at == tail_end else b""
        text = before + data
        index = text.find(pattern)
        while index >= 0 and len(found) < limit:
            found.append(at - len(before) + index)
            index = text.find(pattern, index + 1)
        if len(found) >= limit:
            break
        tail, tail_end = text[max(len(text) - len(pattern) + 1, 0) :], at + len(data)
    return found


def _chunks(memory: GuestRegionCollection, start: int, end: int | None, margin: int) -> Iterator[tuple[int, bytes]]:
    for first, size in _ranges(memory, margin):
        low, high = max(first, start), first + size if end is None else min(first + size, end)
        for at in range(low, high, CHUNK):
            data = bytearray(min(CHUNK, high - at))
            try:
                memory.read_slice(data, at)
            except PartialBuffer as partial:
                del data[partial.completed :]
            yield at, bytes(data)


def _ranges(memory: GuestRegionCollection, margin: int) -> Iterator[tuple[int, int]]:
    """Yield ranges that may have a match: all, or what was written to and `margin` bytes at each side.

    The margin is for patterns that begin or end with zeros; -1 is for patterns that are nothing else.
    """
    from pyvmm_memory.pagemap import populated

    for region in memory:
        if margin < 0:
            yield region.start, region.size
            continue
        end = -1
        for offset, length in populated(region):
            low = max(offset - margin, end, 0)
            end = min(offset + length + margin, region.size)
            if low < end:
                yield region.start + low, end - low
