"""What right requests look like, for each type of device: buffers as (bytes to read, or None; size to write)."""

from __future__ import annotations

from struct import Struct

from pyvmm_virtio.constants import block as b
from pyvmm_virtio.constants import device_ids as ids

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from random import Random

    from pyvmm_virtio.device import VirtioDevice

    Sample = Callable[[int, Random], tuple[Iterable[bytes], Iterable[int]]]

    Part = tuple[bytes | None, int]
    """Bytes for the device to read and their length, or None and a size for it to write."""
    Recipe = Callable[[Random, int, int], list[Part]]
    """Takes a source of chance, the queue and how many queues there are."""

_block = Struct("<IIQ").pack
_segment = Struct("<QII").pack
_control = Struct("<IHH").pack
_offload = Struct("<BBHHHHH").pack
BLOCK_TYPES = (
    b.VIRTIO_BLK_T_IN,
    b.VIRTIO_BLK_T_IN,
    b.VIRTIO_BLK_T_OUT,
    b.VIRTIO_BLK_T_OUT,
    b.VIRTIO_BLK_T_FLUSH,
    b.VIRTIO_BLK_T_GET_ID,
    b.VIRTIO_BLK_T_DISCARD,
    b.VIRTIO_BLK_T_WRITE_ZEROES,
    b.VIRTIO_BLK_T_SECURE_ERASE,
    77,
)


def _read(data: bytes) -> Part:
    return data, len(data)


def block(chance: Random, queue: int, queues: int) -> list[Part]:  # noqa: ARG001 - all queues are alike
    """Make a block request: header, data, status."""
    kind = chance.choice(BLOCK_TYPES)
    sector = chance.choice((0, 1, 7, chance.randrange(2048), 2047, 2048, 1 << 55, (1 << 64) - 1))
    parts: list[Part] = [_read(_block(kind, 0, sector))]
    if kind == b.VIRTIO_BLK_T_IN:
        parts += [(None, 512 * chance.randrange(1, 5)) for _ in range(chance.randrange(1, 4))]
    elif kind == b.VIRTIO_BLK_T_OUT:
        parts += [_read(chance.randbytes(512 * chance.randrange(1, 5))) for _ in range(chance.randrange(1, 4))]
    elif kind == b.VIRTIO_BLK_T_GET_ID:
        parts.append((None, 20))
    elif kind in (b.VIRTIO_BLK_T_DISCARD, b.VIRTIO_BLK_T_WRITE_ZEROES):
        parts.append(
            _read(_segment(sector, chance.choice((0, 1, 8, 1 << 31, (1 << 32) - 1)), chance.choice((0, 1, 2))))
        )
    return [*parts, (None, 1)]


def net(chance: Random, queue: int, queues: int) -> list[Part]:
    """Make a buffer to receive in, a frame to send, or a command."""
    if queues % 2 and queue == queues - 1:
        data = chance.randbytes(chance.choice((1, 2, 4, 6, 10)))
        return [_read(bytes([chance.randrange(7), chance.randrange(3)])), _read(data), (None, 1)]
    if queue % 2 == 0:
        return [(None, size) for size in chance.choice(((12, 1514), (2048,), (100,), (64, 64)))]
    header = chance.choice((bytes, bytes, chance.randbytes, lambda _: _offloads(chance)))(12)
    frame = chance.randbytes(chance.choice((14, 60, 60, 200, 1514)))
    return [_read(header), _read(frame)] if chance.randrange(2) else [_read(header + frame)]


def _offloads(chance: Random) -> bytes:
    """Make a header that asks for offloads as a driver does: what is wrong in it then stands beside what is right."""
    flags, kind = chance.randrange(4), chance.choice((0, 1, 3, 4, 5, 0x81))
    start, offset = chance.choice((14, 34, 54)), chance.choice((6, 16))
    return _offload(flags, kind, chance.choice((0, 54, 66)), chance.choice((1, 536, 1448)), start, offset, 0)


def console(chance: Random, queue: int, queues: int) -> list[Part]:  # noqa: ARG001 - how many does not matter
    """Make a buffer to receive in, something to print, or a control message."""
    if queue % 2 == 0:
        return [(None, chance.choice((1, 16, 256)))]
    if queue == 3:
        port = chance.choice((0, 1, 2, 0xFFFFFFFF))
        return [_read(_control(port, chance.randrange(9), chance.randrange(3)))]
    return [_read(chance.randbytes(chance.choice((1, 10, 200))))]


def entropy(chance: Random, queue: int, queues: int) -> list[Part]:  # noqa: ARG001 - there is one queue
    """Make room for random bytes."""
    return [(None, chance.choice((1, 8, 64, 500))) for _ in range(chance.randrange(1, 4))]


def anything(chance: Random, queue: int, queues: int) -> list[Part]:  # noqa: ARG001 - nothing is known
    """Make some to read, then some to write."""
    parts: list[Part] = [_read(chance.randbytes(chance.randrange(1, 200))) for _ in range(chance.randrange(0, 4))]
    parts += [(None, chance.randrange(1, 400)) for _ in range(chance.randrange(0, 4))]
    return parts or [(None, 1)]


RECIPES: dict[int, Recipe] = {
    ids.VIRTIO_ID_BLOCK: block,
    ids.VIRTIO_ID_NET: net,
    ids.VIRTIO_ID_CONSOLE: console,
    ids.VIRTIO_ID_RNG: entropy,
}


def recipe_for(device: VirtioDevice) -> Recipe:
    """Return what makes requests for a device: its own, its type's, or for an unknown type anything."""
    sample: Sample | None = getattr(device, "sample_request", None)
    if sample is None:
        return RECIPES.get(device.device_type, anything)

    def own(chance: Random, queue: int, queues: int) -> list[Part]:  # noqa: ARG001 - it knows how many it has
        readable, writable = sample(queue, chance)
        return [*map(_read, readable), *((None, size) for size in writable)]

    return own
