"""Feature bits: what every device offers, and what is refused of what a driver accepts."""

from __future__ import annotations

from pyvmm_virtio.constants import features as f
from pyvmm_virtio.constants.ring import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC


def mask(*bits: int) -> int:
    """Return feature bits, given by number, as one number.

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


def refusal(offered: int, accepted: int) -> str | None:
    """Return why no device can work with what its driver accepts of what was offered, or None."""
    if unknown := accepted & ~offered:
        # 2.2.1: "The driver MUST NOT accept a feature which the device did not offer"
        return f"it accepts {unknown:#x}, which was not offered"
    if not accepted >> f.VIRTIO_F_VERSION_1 & 1:
        # 6.1: "A driver MUST accept VIRTIO_F_VERSION_1 if it is offered"; legacy drivers have another layout
        return "it does not accept VERSION_1: legacy drivers are not served"
    if offered & ~accepted & mask(f.VIRTIO_F_ACCESS_PLATFORM):
        # 6.2: "A device MAY fail to operate further if VIRTIO_F_ACCESS_PLATFORM is not accepted"
        return "it does not accept ACCESS_PLATFORM, and the device is behind an IOMMU"
    return None
