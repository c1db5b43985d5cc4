"""A tap interface of the host: the guest's Ethernet card ends in the host's network stack.

Source: the kernel's Documentation/networking/tuntap.rst and linux/if_tun.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from pyvmm_virtio.backends.errors import NetError
from pyvmm_virtio.backends.net import HEADER_SIZE, nobody
from pyvmm_virtio.constants import net as c

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ, TUNSETQUEUE = 0x400454CA, 0x400454D0, 0x400454D8, 0x400454D9
TUNGETFEATURES = 0x800454CF
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE = 0x0200, 0x0400
SIOCGIFMTU = 0x8921
IFREQ = struct.Struct("16sH22x")
MAX_QUEUES = 256
"""The kernel's limit for one interface."""

TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN, TUN_F_USO4, TUN_F_USO6 = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
RECEIVE_OFFLOADS = {
    c.VIRTIO_NET_F_GUEST_CSUM: TUN_F_CSUM,
    c.VIRTIO_NET_F_GUEST_TSO4: TUN_F_TSO4,
    c.VIRTIO_NET_F_GUEST_TSO6: TUN_F_TSO6,
    c.VIRTIO_NET_F_GUEST_ECN: TUN_F_TSO_ECN,
}
SEND_OFFLOADS = (c.VIRTIO_NET_F_CSUM, c.VIRTIO_NET_F_HOST_TSO4, c.VIRTIO_NET_F_HOST_TSO6, c.VIRTIO_NET_F_HOST_ECN)
UNSENDABLE = (errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.ENOBUFS, errno.E2BIG, errno.EPROTO)
"""What the kernel says of a frame or header that makes no sense; such a frame is dropped."""


class Tap:
    """A tap interface with headers and offloads.

    It is created where it does not exist, which needs CAP_NET_ADMIN; one that was made for a user
    (``ip tuntap add NAME mode tap user USER``, with ``multi_queue`` for several queues) needs no privilege.

    Args:
        name: of the interface; ``%d`` in it lets the kernel choose a number.
        queue_pairs: how many queues to open.

    Raises:
        NetError: it cannot be opened; the message has the cure.
    """

    header_size = HEADER_SIZE

    def __init__(self, name: str, queue_pairs: int = 1) -> None:
        if not 1 <= queue_pairs <= MAX_QUEUES:
            raise NetError(errno.EINVAL, f"{queue_pairs} queues: an interface has 1 to {MAX_QUEUES}")
        # as Linux has it in dev_valid_name
        if not 1 <= len(name.encode()) < 16 or name in (".", "..") or any(c in "/:" or c.isspace() for c in name):
            reason = f"{name!r} is no interface: give a name of 1 to 15 bytes, without space, slash or colon"
            raise NetError(errno.EINVAL, reason)
        self.queue_pairs = queue_pairs
        self.name = name
        self.link_up = True
        self.on_link: Callable[[], object] = nobody
        self.dropped = 0
        self._fds: list[int] = []
        try:
            for _ in range(queue_pairs):
                self._fds.append(self._open())
            self._attached = queue_pairs
            self.features = self._probe_features()
            self.set_offloads(0)
            self.mtu = self._probe_mtu()
        except BaseException:
            self.close()
            raise

    def _open(self) -> int:
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE * (self.queue_pairs > 1)
        try:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise NetError(error.errno, f"/dev/net/tun does not open ({error.strerror}): load the module tun") from (
                error
            )
        try:
            answer = fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(self.name.encode(), flags))
            fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", HEADER_SIZE))
        except OSError as error:
            os.close(fd)
            raise NetError(error.errno, f"tap {self.name!r}: {error.strerror}{self._cure(error.errno)}") from error
        self.name = IFREQ.unpack(answer)[0].rstrip(b"\0").decode()
        return fd

    def _cure(self, number: int | None) -> str:
        queues = " multi_queue" * (self.queue_pairs > 1)
        if number == errno.EPERM:
            return f": make it first, as root: ip tuntap add {self.name} mode tap user $USER{queues}"
        if number == errno.EBUSY:
            return ": another process uses it; give each machine its own"
        if number == errno.EINVAL:
            return f": it exists with other properties; make it anew: ip tuntap add {self.name} mode tap{queues}"
        return ""

    def _probe_features(self) -> int:
        """See which offloads this kernel's taps have, by asking for them."""
        features = sum(1 << bit for bit in (*RECEIVE_OFFLOADS, *SEND_OFFLOADS))
        try:
            everything = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_USO4 | TUN_F_USO6
            fcntl.ioctl(self._fds[0], TUNSETOFFLOAD, everything)
        except OSError:
            return features  # before Linux 6.2
        uso = (c.VIRTIO_NET_F_GUEST_USO4, c.VIRTIO_NET_F_GUEST_USO6, c.VIRTIO_NET_F_HOST_USO)
        return features | sum(1 << bit for bit in uso)

    def _probe_mtu(self) -> int:
        import socket

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            answer = fcntl.ioctl(any_socket, SIOCGIFMTU, struct.pack("16si20x", self.name.encode(), 0))
        mtu: int = struct.unpack("16si20x", answer)[1]
        return mtu

    def fileno(self, pair: int) -> int:
        """Return the descriptor of one queue."""
        return self._fds[pair]

    def receive(self, pair: int, views: Sequence[memoryview]) -> int:
        """Read one frame; what does not fit into the views is lost, as the kernel does it."""
        try:
            return os.readv(self._fds[pair], views)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EBADFD):
                raise
            self._look_whether_it_is_gone(pair, error)
            return 0  # the interface is down, or this queue is detached

    def send(self, pair: int, views: Sequence[memoryview]) -> bool:
        """Write one frame."""
        try:
            os.writev(self._fds[pair], views)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in UNSENDABLE and error.errno != errno.EBADFD:
                raise
            self._look_whether_it_is_gone(pair, error)
            self.dropped += 1
        return True

    def _look_whether_it_is_gone(self, pair: int, error: OSError) -> None:
        """Find out whether the interface was deleted: its descriptors stay readable, and nothing can be read."""
        if error.errno == errno.EBADFD and pair < self._attached and self.link_up:
            self.link_up = False
            self.on_link()

    def set_offloads(self, features: int) -> None:
        """Tell the kernel which unfinished frames the guest takes."""
        wanted = sum(flag for bit, flag in RECEIVE_OFFLOADS.items() if features >> bit & 1)
        if features >> c.VIRTIO_NET_F_GUEST_USO4 & features >> c.VIRTIO_NET_F_GUEST_USO6 & 1:
            wanted |= TUN_F_USO4 | TUN_F_USO6
        for fd in self._fds:
            fcntl.ioctl(fd, TUNSETOFFLOAD, wanted)

    def set_queue_pairs(self, pairs: int) -> None:
        """Attach that many queues and detach the others, so that the kernel spreads frames over those in use."""
        if self.queue_pairs == 1 or pairs == self._attached:
            return
        # one by one, so that what the kernel refuses in between is known
        while self._attached < pairs:
            fcntl.ioctl(self._fds[self._attached], TUNSETQUEUE, IFREQ.pack(b"", IFF_ATTACH_QUEUE))
            self._attached += 1
        while self._attached > pairs:
            fcntl.ioctl(self._fds[self._attached - 1], TUNSETQUEUE, IFREQ.pack(b"", IFF_DETACH_QUEUE))
            self._attached -= 1

    def close(self) -> None:
        """Close the descriptors; an interface that was created by it vanishes. Idempotent."""
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Tap {self.name!r} with {self.queue_pairs} queues, {self.dropped} frames dropped>"
