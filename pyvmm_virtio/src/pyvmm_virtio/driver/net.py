"""A driver of network devices (VIRTIO 1.3, 5.1)."""

from __future__ import annotations

from struct import Struct

from pyvmm_virtio.constants import net as n
from pyvmm_virtio.driver.driver import Driver, DriverError
from pyvmm_virtio.features import mask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm_virtio.driver.driver import Request

HEADER = Struct("<BBHHHHH")
"""``virtio_net_hdr_v1``: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers."""


class NetDriver(Driver):
    """Sends and receives frames. Queue pairs count from 0; the control queue is found by itself.

    Attributes:
        buffer_size: of the buffers to receive in, in bytes; set before `start`.
        buffer_count: how many of them each pair has.
        received: frames as (header, frame), oldest first, of each pair.
    """

    known_features = mask(
        n.VIRTIO_NET_F_MAC,
        n.VIRTIO_NET_F_STATUS,
        n.VIRTIO_NET_F_MTU,
        n.VIRTIO_NET_F_MRG_RXBUF,
        n.VIRTIO_NET_F_CSUM,
        n.VIRTIO_NET_F_HOST_TSO4,
        n.VIRTIO_NET_F_HOST_TSO6,
        n.VIRTIO_NET_F_CTRL_VQ,
        n.VIRTIO_NET_F_CTRL_RX,
        n.VIRTIO_NET_F_CTRL_VLAN,
        n.VIRTIO_NET_F_CTRL_MAC_ADDR,
        n.VIRTIO_NET_F_GUEST_ANNOUNCE,
        n.VIRTIO_NET_F_MQ,
    )
    buffer_size = 2048
    buffer_count = 64

    def after_start(self) -> None:
        """Offer buffers to receive in."""
        has_control = self.has(n.VIRTIO_NET_F_CTRL_VQ)
        self.pairs = (len(self.queues) - has_control) // 2 if self.has(n.VIRTIO_NET_F_MQ) else 1
        # 5.1.2: "N=1 if neither VIRTIO_NET_F_MQ nor VIRTIO_NET_F_RSS are negotiated", however many there are
        self.control_queue = 2 * self.pairs
        self.received: list[list[tuple[tuple[int, ...], bytes]]] = [[] for _ in range(self.pairs)]
        # of each pair, the frame of which some buffers are still to come: header, parts, how many
        self._partial: list[tuple[tuple[int, ...], list[bytes], int]] = [((), [], 0)] * self.pairs
        for pair in range(self.pairs):
            for _ in range(min(self.buffer_count, self.queues[2 * pair].size // 2)):
                self.submit(2 * pair, (), (self.buffer_size,), kick=False)
            self.kick(2 * pair)

    def completed(self, request: Request) -> None:
        """Take what was received, and offer its buffer again; free what was sent."""
        pair, direction = divmod(request.queue, 2)
        if pair >= self.pairs:
            return
        if direction:
            request.release()
            return
        data = request.written()
        header, parts, left = self._partial[pair]
        if left:
            parts.append(data)
            left -= 1
        else:
            header, parts = HEADER.unpack_from(data), [data[HEADER.size :]]
            left = header[6] - 1 if self.has(n.VIRTIO_NET_F_MRG_RXBUF) else 0
        self._partial[pair] = header, parts, left
        if not left:
            self.received[pair].append((header, b"".join(parts)))
        self.submit_buffers(request.queue, request.buffers, request.owned)

    def send(self, frame: bytes, *, pair: int = 0, header: Sequence[int] = (0,) * 7, kick: bool = True) -> Request:
        """Put a frame on its way, with a header (`HEADER`) that asks for no offload by default."""
        return self.submit(2 * pair + 1, (HEADER.pack(*header), frame), kick=kick)

    def receive(self, *, pair: int = 0, timeout: float = 10.0) -> bytes:
        """Wait for a frame and return it; raises DriverError where none comes."""
        self.wait_until(lambda: bool(self.received[pair]), timeout)
        return self.received[pair].pop(0)[1]

    def command(self, class_: int, command: int, data: bytes = b"") -> None:
        """Send a command by the control queue; raises DriverError where the device refuses."""
        answer = self.request(self.control_queue, bytes([class_, command]), *([data] if data else []), into=1)
        if answer != bytes([n.VIRTIO_NET_OK]):
            raise DriverError(f"the device refuses command {class_}, {command}: {answer!r}")

    @property
    def mac(self) -> bytes:
        """The device's hardware address."""
        return self.config(0, 6)

    @property
    def link_up(self) -> bool:
        """Whether the link is up, as far as the device says."""
        return not self.has(n.VIRTIO_NET_F_STATUS) or bool(self.config_value(6, 2) & n.VIRTIO_NET_S_LINK_UP)
