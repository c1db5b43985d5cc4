"""The block device's configuration space, and the features that go with its fields (VIRTIO 1.3, 5.2.4)."""

from __future__ import annotations

import struct

from pyvmm_virtio.constants import block as c

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_virtio.backends.block import BlockBackend

SECTOR_SHIFT = 9
SECTOR = 1 << SECTOR_SHIFT
LAYOUT = struct.Struct("<QIIHBBIBBHIBBHIIIIIB3x")
"""struct virtio_blk_config, up to the fields for erasing securely and for zones, which we do not offer."""
CAPACITY = struct.Struct("<Q")
WRITEBACK_OFFSET = 32
FIXED = range(8, 16), range(34, 36)
"""What no driver and nobody else changes: size_max and seg_max, and num_queues."""
MAX_SECTORS = 1 << 22
"""The largest discard, or write of zeros, in sectors: 2 GiB, so that one request does not take long."""
MAX_SEGMENTS = 128
"""How many ranges one such request may name."""


def block_config(disk: BlockBackend, queues: int, seg_max: int, size_max: int, *, writeback: bool) -> bytes:
    """Lay the configuration space out for a disk."""
    topology = disk.topology
    block = topology.logical_block_size
    align = max(1, topology.discard_alignment // SECTOR)
    return LAYOUT.pack(
        disk.size >> SECTOR_SHIFT,
        size_max,
        seg_max,
        *(0, 0, 0),  # a geometry that nobody needs
        block,
        (topology.physical_block_size // block).bit_length() - 1,
        0,
        min(topology.minimum_io_size // block, 0xFFFF),
        topology.optimal_io_size // block,
        writeback,
        0,
        queues,
        MAX_SECTORS,
        MAX_SEGMENTS,
        align,
        MAX_SECTORS,
        MAX_SEGMENTS,
        disk.can_discard,
    )


def other_disk(config: bytearray, size: int) -> str | None:
    """Return why the configuration space of a state is none of this disk's, or None.

    A guest that was told of more than there is would write behind the end, where a file becomes longer by it. Where the
    disk is larger now, and how it likes to be used, the guest may go on to believe what it was told.

    Args:
        config: of the state.
        size: of the disk, in bytes.
    """
    capacity = CAPACITY.unpack_from(config)[0]
    if capacity > size >> SECTOR_SHIFT:
        return f"it is of a disk of {capacity} sectors, and this one has {size >> SECTOR_SHIFT}"
    if config[WRITEBACK_OFFSET] > 1:
        return f"its cache mode is {config[WRITEBACK_OFFSET]}, and not 0 or 1"
    return None


def block_features(disk: BlockBackend, queues: int, size_max: int) -> int:
    """Return what the device offers for a disk."""
    bits = [c.VIRTIO_BLK_F_SEG_MAX, c.VIRTIO_BLK_F_BLK_SIZE, c.VIRTIO_BLK_F_TOPOLOGY, c.VIRTIO_BLK_F_FLUSH]
    bits += [c.VIRTIO_BLK_F_SIZE_MAX] * (size_max > 0)
    bits += [c.VIRTIO_BLK_F_MQ] * (queues > 1)
    if disk.read_only:
        bits.append(c.VIRTIO_BLK_F_RO)
    else:
        bits += [c.VIRTIO_BLK_F_CONFIG_WCE, c.VIRTIO_BLK_F_WRITE_ZEROES]
        bits += [c.VIRTIO_BLK_F_DISCARD] * disk.can_discard
    return sum(1 << bit for bit in bits)
