"""What a device offers besides its work: feature bits, and memory that its driver maps."""

from __future__ import annotations

from pyvmm_virtio.constants import features as f
from pyvmm_virtio.constants.ring import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC


def mask(*bits: int) -> int:
    """Feature bits, given by number, as one number.

    >>> hex(mask(f.VIRTIO_F_VERSION_1, 0))
    '0x100000001'
    """
    value = 0
    for bit in bits:
        value |= 1 << bit
    return value


RING_FEATURES = mask(
    f.VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_RING_F_INDIRECT_DESC,
    f.VIRTIO_F_RING_PACKED,
    f.VIRTIO_F_RING_RESET,
)
"""What every device offers unless it is told otherwise.

IN_ORDER is not among them, because a device that is slow with one request would keep the others back, nor is
NOTIFICATION_DATA, because a kick that carries data leaves KVM for us where an ioeventfd would not.
"""


class SharedMemory:
    """A region of a device's memory that its driver maps (VIRTIO 1.3, 2.10).

    Args:
        id: what the device type calls it.
        length: in bytes.
        base: its guest address, for MMIO.
        bar: the BAR it lies in, for PCI.
        offset: where in that BAR.
    """

    __slots__ = ("bar", "base", "id", "length", "offset")

    def __init__(self, id: int, length: int, base: int = 0, bar: int = 0, offset: int = 0) -> None:  # noqa: A002
        self.id = id
        self.length = length
        self.base = base
        self.bar = bar
        self.offset = offset
