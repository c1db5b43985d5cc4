"""The network device's configuration space and features (VIRTIO 1.3, 5.1.3 and 5.1.4)."""

from __future__ import annotations

import struct

from pyvmm_virtio.constants import net as c
from pyvmm_virtio.features import mask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_virtio.backends.net import NetBackend

CONFIG = struct.Struct("<6sHHH")
"""struct virtio_net_config up to the speed: MAC, status, the most queue pairs, MTU."""
STATUS_OFFSET, MTU_OFFSET = 6, 10
FIXED = (range(8, CONFIG.size),)
"""What no driver and nobody else changes: how many pairs of queues there are, and the MTU."""
STATUS = MTU = struct.Struct("<H")
GUEST_OFFLOADS = mask(
    c.VIRTIO_NET_F_GUEST_CSUM,
    c.VIRTIO_NET_F_GUEST_TSO4,
    c.VIRTIO_NET_F_GUEST_TSO6,
    c.VIRTIO_NET_F_GUEST_ECN,
    c.VIRTIO_NET_F_GUEST_UFO,
    c.VIRTIO_NET_F_GUEST_USO4,
    c.VIRTIO_NET_F_GUEST_USO6,
)
"""What the driver may turn on and off while it runs."""
SEND_OFFLOADS = mask(
    c.VIRTIO_NET_F_CSUM,
    c.VIRTIO_NET_F_HOST_TSO4,
    c.VIRTIO_NET_F_HOST_TSO6,
    c.VIRTIO_NET_F_HOST_ECN,
    c.VIRTIO_NET_F_HOST_USO,
)
CONTROLS = (
    c.VIRTIO_NET_F_CTRL_RX,
    c.VIRTIO_NET_F_CTRL_VLAN,
    c.VIRTIO_NET_F_CTRL_MAC_ADDR,
    c.VIRTIO_NET_F_GUEST_ANNOUNCE,
)
DEPENDENCIES = {
    # 5.1.3.1, "Feature bit requirements"
    c.VIRTIO_NET_F_GUEST_TSO4: (c.VIRTIO_NET_F_GUEST_CSUM,),
    c.VIRTIO_NET_F_GUEST_TSO6: (c.VIRTIO_NET_F_GUEST_CSUM,),
    c.VIRTIO_NET_F_GUEST_UFO: (c.VIRTIO_NET_F_GUEST_CSUM,),
    c.VIRTIO_NET_F_GUEST_USO4: (c.VIRTIO_NET_F_GUEST_CSUM,),
    c.VIRTIO_NET_F_GUEST_USO6: (c.VIRTIO_NET_F_GUEST_CSUM,),
    c.VIRTIO_NET_F_HOST_TSO4: (c.VIRTIO_NET_F_CSUM,),
    c.VIRTIO_NET_F_HOST_TSO6: (c.VIRTIO_NET_F_CSUM,),
    c.VIRTIO_NET_F_HOST_USO: (c.VIRTIO_NET_F_CSUM,),
    c.VIRTIO_NET_F_CTRL_RX: (c.VIRTIO_NET_F_CTRL_VQ,),
    c.VIRTIO_NET_F_CTRL_RX_EXTRA: (c.VIRTIO_NET_F_CTRL_RX,),
    c.VIRTIO_NET_F_CTRL_VLAN: (c.VIRTIO_NET_F_CTRL_VQ,),
    c.VIRTIO_NET_F_CTRL_MAC_ADDR: (c.VIRTIO_NET_F_CTRL_VQ,),
    c.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS: (c.VIRTIO_NET_F_CTRL_VQ,),
    c.VIRTIO_NET_F_GUEST_ANNOUNCE: (c.VIRTIO_NET_F_CTRL_VQ,),
    c.VIRTIO_NET_F_MQ: (c.VIRTIO_NET_F_CTRL_VQ,),
}
ECN_NEEDS = {
    c.VIRTIO_NET_F_GUEST_ECN: mask(c.VIRTIO_NET_F_GUEST_TSO4, c.VIRTIO_NET_F_GUEST_TSO6),
    c.VIRTIO_NET_F_HOST_ECN: mask(c.VIRTIO_NET_F_HOST_TSO4, c.VIRTIO_NET_F_HOST_TSO6),
}
"""Here one of two will do."""


def net_features(backend: NetBackend, mtu: int) -> int:
    """Return what the device offers for a back end, and for an MTU unless it is 0."""
    bits = [c.VIRTIO_NET_F_MAC, c.VIRTIO_NET_F_STATUS, c.VIRTIO_NET_F_MRG_RXBUF, c.VIRTIO_NET_F_CTRL_VQ, *CONTROLS]
    bits.append(c.VIRTIO_NET_F_CTRL_RX_EXTRA)
    bits += [c.VIRTIO_NET_F_MTU] * (mtu > 0) + [c.VIRTIO_NET_F_MQ] * (backend.queue_pairs > 1)
    bits += [c.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS] * bool(backend.features & GUEST_OFFLOADS)
    return mask(*bits) | backend.features
