"""What a network has to be able to do for the network device."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    class NetBackend(Protocol):
        """Takes and gives Ethernet frames, without waiting.

        One that may take a part of a frame also has ``send_rest()``, which is called when there is room, and returns
        whether nothing is left.

        Attributes:
            header_size: bytes of ``struct virtio_net_hdr_v1`` before every frame in both directions: 12, or 0.
            features: the offloads it can do, as bits of the device's features; 0 without headers.
            queue_pairs: how many descriptors `fileno` can be asked for.
            mtu: the largest payload of a frame, or 0 where it does not say.
            link_up: whether there is somebody at the other end.
            on_link: set by the device, called when `link_up` changes.
        """

        header_size: int
        features: int
        queue_pairs: int
        mtu: int
        link_up: bool
        on_link: Callable[[], object]

        def fileno(self, pair: int) -> int:
            """Return what becomes readable when `receive` has a frame, and writable when `send` has room."""
            ...

        def receive(self, pair: int, views: Sequence[memoryview]) -> int:
            """Put the next frame, header first, into the views and return its length; 0 where there is none now."""
            ...

        def send(self, pair: int, views: Sequence[memoryview]) -> bool:
            """Take a frame, header first; false where there is no room for it now.

            A frame that the other end will never take is dropped, as networks do, and counts as taken.
            """
            ...

        def set_offloads(self, features: int) -> None:
            """Note which of the guest's receive offloads it agreed to: ``1 << VIRTIO_NET_F_GUEST_...``."""
            ...

        def set_queue_pairs(self, pairs: int) -> None:
            """Use so many of the descriptors for frames that come in."""
            ...

        def close(self) -> None:
            """Release it; idempotent."""
            ...


HEADER_SIZE = 12
"""``struct virtio_net_hdr_v1``, the only one of devices that follow the specification."""
MAX_FRAME = 65535 + 14 + 4
"""The largest packet that segmentation offload makes, its Ethernet header and a VLAN tag."""


def nobody() -> None:
    """Stand for `on_link` until a device sets it."""
