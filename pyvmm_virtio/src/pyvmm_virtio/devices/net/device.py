"""The network device: frames between a driver and a network (VIRTIO 1.3, 5.1)."""

from __future__ import annotations

from functools import partial

from pyvmm_virtio.backends.net import HEADER_SIZE, MAX_FRAME
from pyvmm_virtio.constants import net as c
from pyvmm_virtio.constants.device_ids import VIRTIO_ID_NET
from pyvmm_virtio.device import VirtioDevice
from pyvmm_virtio.devices.failure import note_failure
from pyvmm_virtio.devices.net.config import (
    CONFIG,
    DEPENDENCIES,
    ECN_NEEDS,
    FIXED,
    GUEST_OFFLOADS,
    MTU,
    MTU_OFFSET,
    SEND_OFFLOADS,
    STATUS,
    STATUS_OFFSET,
    net_features,
)
from pyvmm_virtio.devices.net.control import COMMAND_BYTES, MAX_COMMAND, Control
from pyvmm_virtio.devices.net.filter import ReceiveFilter
from pyvmm_virtio.devices.net.receive import Receiver
from pyvmm_virtio.devices.throttle import Throttle
from pyvmm_virtio.devices.watch import Watch
from pyvmm_virtio.errors import BufferTooShort, VirtioUsageError
from pyvmm_virtio.features import RING_FEATURES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from pyvmm_device import EventLoop
    from pyvmm_virtio.backends.net import NetBackend
    from pyvmm_virtio.backends.pcap import PcapWriter
    from pyvmm_virtio.interrupt import VirtioInterrupt
    from pyvmm_virtio.memory import GuestMemory
    from pyvmm_virtio.queue.chain import DescriptorChain
    from pyvmm_virtio.queue.protocol import Queue
    from pyvmm_virtio.rate_limiter import RateLimiter

ETHERNET_HEADER = 14
LEAST_MTU = 68
MAX_PIECES = 512
"""A frame in more than these is put together first: a system call takes at most 1024 (IOV_MAX), headers included."""
EMPTY_HEADER = bytes(HEADER_SIZE)


class Net(VirtioDevice):
    """An Ethernet card.

    >>> from pyvmm_virtio.backends.datagram import DatagramNet
    >>> ours, theirs = DatagramNet.pair()
    >>> Net(ours, mac="52:54:00:12:34:56").mac
    '52:54:00:12:34:56'
    >>> ours.close(), theirs.close()
    (None, None)

    Args:
        backend: the network, such as `Tap`, `Passt` or `DatagramNet`; `close` closes it. Its offloads are offered to
            the driver, and it has a queue pair for each of the back end's.
        mac: the address; a random one of those that anybody may use where none is given.
        mtu: the largest payload of a frame, which the driver is told; the back end's where 0.
        receive_limiter: how many bytes and frames may come in in a time; what is too much waits in the back end.
        send_limiter: the same for what goes out; it waits in the driver's queue.
        capture: where to write every frame of both directions.
        loop: where the back end is listened to. Without it `poll` looks at it.
        queue_size: the largest size of each queue.

    Raises:
        VirtioUsageError: the back end, the MAC address or the MTU is none, or a limit has no loop.

    Attributes:
        dropped: frames nobody could take: too long for the driver's buffers, or no frames at all.
        filter: what the driver wants to receive.
    """

    device_type = VIRTIO_ID_NET
    fixed_config = FIXED
    feature_dependencies = DEPENDENCIES

    def __init__(
        self,
        backend: NetBackend,
        *,
        mac: str = "",
        mtu: int = 0,
        receive_limiter: RateLimiter | None = None,
        send_limiter: RateLimiter | None = None,
        capture: PcapWriter | None = None,
        loop: EventLoop | None = None,
        queue_size: int = 256,
        ring_features: int = RING_FEATURES,
    ) -> None:
        if not hasattr(backend, "queue_pairs"):
            raise VirtioUsageError(f"{backend!r} is no network: give a back end, such as Tap('tap0') or Passt()")
        mtu = mtu or backend.mtu
        if mtu and not LEAST_MTU <= mtu <= 0xFFFF:
            # 5.1.4.1: "The device MUST set mtu to between 68 and 65535 inclusive"
            raise VirtioUsageError(f"an MTU of {mtu}: give {LEAST_MTU} to 65535, or 0 to say nothing")
        self.backend = backend
        self.capture = capture
        self.dropped = 0
        self._first_mac = parse_mac(mac) if mac else random_mac()
        self.filter = ReceiveFilter(self._first_mac)
        self._control = Control(self)
        self._send_throttle = Throttle(self, send_limiter, loop)
        self._offloads = 0
        self._link = True
        self._set_before = False  # by the driver of a state that was restored
        pairs = backend.queue_pairs
        super().__init__(
            features=net_features(backend, mtu),
            config=CONFIG.pack(self._first_mac, 0, pairs, mtu),
            queue_max_sizes=(*(queue_size,) * (2 * pairs), 64),
            ring_features=ring_features,
            loop=loop,
        )
        self._receivers = [Receiver(self, pair, Throttle(self, receive_limiter, loop)) for pair in range(pairs)]
        # of a frame of which the network took only a part, where it does that
        self._send_rest: Callable[[], bool] = getattr(backend, "send_rest", _nothing_left)
        self._room = [Watch(loop, partial(self._on_room, pair)) for pair in range(pairs)]
        self._paid: set[int] = set()  # queues whose next frame has paid for its rate, and then found no room
        self._pairs = 1
        self.set_status(c.VIRTIO_NET_S_LINK_UP, backend.link_up)
        backend.on_link = self._on_link

    @property
    def mac(self) -> str:
        """The address as the guest has set it."""
        return self.config[:6].hex(":")

    # what the machine does

    def set_link(self, up: bool) -> None:
        """Pull the cable, or plug it in; frames are lost meanwhile, in both directions."""
        self._link = up
        self._on_link()

    def announce(self) -> None:
        """Have the driver tell the network where it is, as after it was moved to another host."""
        if self.negotiated(c.VIRTIO_NET_F_GUEST_ANNOUNCE):
            self.set_status(c.VIRTIO_NET_S_ANNOUNCE, True)

    def poll(self) -> None:
        """Look at the back end, for machines without a loop."""
        for receiver in self._receivers[: self._pairs]:
            self.serve(receiver.pump)

    def _on_link(self) -> None:
        # a back end says it in the middle of a call of ours, or in a thread of its own
        self.dispatch.call(self._settle_link)

    def _settle_link(self) -> None:
        self.set_status(c.VIRTIO_NET_S_LINK_UP, self.link_up)
        self._listen()

    def _listen(self) -> None:
        for receiver in self._receivers:
            receiver.listen()

    @property
    def link_up(self) -> bool:
        """Whether the cable is plugged in at both ends."""
        return self._link and self.backend.link_up

    @property
    def negotiated_mtu(self) -> int:
        """The largest payload of a frame, or 0 where the driver did not ask."""
        mtu: int = MTU.unpack_from(self.config, MTU_OFFSET)[0]
        return mtu if self.negotiated(c.VIRTIO_NET_F_MTU) else 0

    # what commands of the driver do

    def set_status(self, bit: int, on: bool) -> None:
        """Change a bit of the status and tell the driver."""
        with self.lock:
            old = STATUS.unpack_from(self.config, STATUS_OFFSET)[0]
            new = old | bit if on else old & ~bit
            if new != old:
                self.update_config(STATUS_OFFSET, STATUS.pack(new))

    def set_mac(self, mac: bytes) -> None:
        """Be at another address."""
        with self.lock:
            self.config[:6] = mac
        self.filter.mac = mac

    def set_queue_pairs(self, pairs: int) -> bool:
        """Use so many queue pairs; false where there are not so many."""
        if not 1 <= pairs <= self.backend.queue_pairs:
            return False
        try:
            self.backend.set_queue_pairs(pairs)
        except OSError as error:
            note_failure(self, "queue pairs", error)
            return False
        self._pairs = pairs
        self._listen()
        return True

    def set_offloads(self, offloads: int) -> bool:
        """Use these of the driver's receive offloads; false where it may not, or the network refuses."""
        # 5.1.6.5.6.2: none that was not negotiated, nor without what it needs: 5.1.3.1
        if offloads & ~(self.driver_features & GUEST_OFFLOADS) or self.check_features(offloads) is not None:
            return False
        return self._agree(offloads)

    def _agree(self, offloads: int) -> bool:
        """Have the network take these offloads; where it refuses, it goes on as before, and this is false."""
        try:
            self.backend.set_offloads(offloads)
        except OSError as error:
            note_failure(self, "offloads", error)
            if offloads != self._offloads:
                self._agree(self._offloads)  # of several queues some may have taken it
            return False
        self._offloads = offloads
        return True

    # the driver's side

    def check_features(self, features: int) -> str | None:
        """Return what is missing: 5.1.3.1."""
        for feature, one_of in ECN_NEEDS.items():
            if features >> feature & 1 and not features & one_of:
                return f"feature {feature} needs segmentation offload"
        return super().check_features(features)

    def activate(self, memory: GuestMemory, queues: Sequence[Queue], interrupt: VirtioInterrupt) -> None:  # noqa: ARG002 - its attributes say it
        """Set the back end up for what was negotiated, and listen to it."""
        if self._set_before:
            self._set_before = False
            self.filter.mac = bytes(self.config[:6])
            self.set_status(c.VIRTIO_NET_S_LINK_UP, self.link_up)  # of this back end, not of the one it had
            wanted = self._offloads
        else:
            wanted = self.driver_features & GUEST_OFFLOADS
            self.filter.vlans = set() if self.negotiated(c.VIRTIO_NET_F_CTRL_VLAN) else None
        # a network that does not send unfinished frames after all is one that the driver can do with
        self._offloads = 0
        self._agree(wanted)
        self.set_queue_pairs(self._pairs)
        if self.loop is not None:
            self.loop.call_soon(partial(self.dispatch.call, self._listen))

    def receives(self, pair: int) -> bool:
        """Say whether frames for a queue pair are wanted now."""
        return self.dispatch.open and pair < self._pairs

    @property
    def control_queue(self) -> int:
        """The number of the control queue: 5.1.2, "N=1 if neither VIRTIO_NET_F_MQ nor VIRTIO_NET_F_RSS"."""
        return 2 * self.backend.queue_pairs if self.negotiated(c.VIRTIO_NET_F_MQ) else 2

    def process_queue(self, index: int) -> None:
        """Send, receive, or carry out commands."""
        if index == self.control_queue:
            if self.negotiated(c.VIRTIO_NET_F_CTRL_VQ):
                self._take_commands(index)
        elif index >= 2 * self.backend.queue_pairs:
            return
        elif index & 1:
            self._transmit(index)
        else:
            self._receivers[index >> 1].pump()

    def _take_commands(self, index: int) -> None:
        for chain in self.chains(index):
            reader, writer = chain.reader(self.memory), chain.writer(self.memory)
            if not writer.available_bytes():
                raise BufferTooShort(index, chain.head_index, 1, 0)
            fits = reader.available_bytes() <= MAX_COMMAND
            answer = self._control.run(reader.read()) if fits else c.VIRTIO_NET_ERR
            self.dispatch.room -= COMMAND_BYTES
            writer.write(bytes([answer]))
            self.complete(index, chain, 1)

    def _transmit(self, index: int) -> None:
        pair = index >> 1
        queue, backend, memory = self.queues[index], self.backend, self.memory
        throttle = self._send_throttle
        # 5.1.6.2: what was not negotiated is not there, and the field for merged buffers is not used for sending
        keep_header = backend.header_size and self.driver_features & SEND_OFFLOADS
        used: list[tuple[int, int]] = []
        try:
            for chain in self.chains(index):
                views = frame_of(memory, chain)
                length = sum(map(len, views)) - HEADER_SIZE
                if length < ETHERNET_HEADER or length > MAX_FRAME or not self.link_up:
                    self.dropped += 1
                    used.append((chain.head_index, 0))
                    continue
                if throttle and index not in self._paid and not throttle.admit(index, length):
                    queue.go_to_previous_position()
                    break
                self._paid.discard(index)
                header, frame = split(views)
                if len(frame) > MAX_PIECES:
                    frame = [memoryview(b"".join(frame))]
                if backend.header_size:
                    # a copy: the driver cannot change it between our look at it and the network's
                    first = header[:10] + b"\0\0" if keep_header else EMPTY_HEADER
                    frame.insert(0, memoryview(first))
                if not send(self, pair, frame):
                    queue.go_to_previous_position()
                    self._paid.add(index)
                    self._wait_for_room(index)
                    break
                if self.capture is not None:
                    self.capture.write(frame[bool(backend.header_size) :])
                used.append((chain.head_index, 0))
        finally:
            if used:
                self.complete_batch(index, used)
        if not self._send_rest():
            # the driver may have nothing more to say that would push it out
            self._wait_for_room(index)

    def _wait_for_room(self, index: int) -> None:
        self._room[index >> 1].listen(writing=self.backend.fileno(index >> 1))

    def _on_room(self, pair: int) -> None:
        self._room[pair].listen()
        self.kick(2 * pair + 1)

    # the end of things

    def reset(self) -> None:
        """Forget what the driver wanted."""
        self._pairs = 1
        self._paid.clear()
        self.filter.reset(self._first_mac)
        self.set_mac(self._first_mac)
        self.set_status(c.VIRTIO_NET_S_ANNOUNCE, False)
        for receiver in self._receivers:
            receiver.reset()

    def queue_reset(self, index: int) -> None:
        """Forget the buffers of a receive queue that were taken for a frame."""
        self._paid.discard(index)
        if index < 2 * self.backend.queue_pairs and not index & 1:
            self._receivers[index >> 1].forget_chains()

    def quiesce(self) -> None:
        """Give back the buffers that were taken for a frame that needs more."""
        for receiver in self._receivers:
            receiver.put_back()

    def device_state(self) -> dict[str, Any]:
        """Return what the driver has set, and how much of its rates it has used."""
        rates = {"send_rate": self._send_throttle.state(), "receive_rate": self._receivers[0].throttle.state()}
        return {"pairs": self._pairs, "offloads": self._offloads, "filter": self.filter.state(), **rates}

    def check_device_state(self, state: Mapping[str, Any], features: int) -> dict[str, Any]:
        """Return the fields of `device_state`, each checked: nothing is in use that was not negotiated."""
        from pyvmm_device.errors import DeviceStateError
        from pyvmm_device.state import PART, load_fields, number, optional, uint

        most = self.backend.queue_pairs if features >> c.VIRTIO_NET_F_MQ & 1 else 1
        kinds = {"pairs": number(1, most), "offloads": uint(64), "filter": PART}
        kinds |= {"send_rate": optional(PART), "receive_rate": optional(PART)}
        fields = load_fields(type(self).__name__, kinds, state, others=())
        if fields["offloads"] & ~(features & GUEST_OFFLOADS):
            reason = (
                f"offloads {fields['offloads']:#x} are in use, of which {features & GUEST_OFFLOADS:#x} are negotiated"
            )
            raise DeviceStateError(type(self).__name__, reason)
        self.filter.check_state(fields["filter"])
        self._send_throttle.check_state(fields["send_rate"])
        self._receivers[0].throttle.check_state(fields["receive_rate"])
        return fields

    def restore_device(self, state: Mapping[str, Any]) -> None:
        """Become what a state says."""
        fields = self.check_device_state(state, GUEST_OFFLOADS | 1 << c.VIRTIO_NET_F_MQ)
        self.filter.restore(state["filter"])
        self._send_throttle.restore(fields["send_rate"])
        # one limit for all pairs
        self._receivers[0].throttle.restore(fields["receive_rate"])
        self._pairs, self._offloads = fields["pairs"], fields["offloads"]
        self._set_before = True

    def close(self) -> None:
        """Close the back end and the capture, and serve nobody any more; idempotent."""
        self.dispatch.end(self._close)

    def _close(self) -> None:
        for receiver in self._receivers:
            receiver.reset()
        for room in self._room:
            room.listen()
        self.backend.close()
        if self.capture is not None:
            self.capture.close()


def _nothing_left() -> bool:
    return True


def send(device: Net, pair: int, frame: list[memoryview]) -> bool:
    """Give the network a frame; one that it refuses is lost, as networks do. False where it has no room now."""
    try:
        return device.backend.send(pair, frame)
    except OSError as error:
        note_failure(device, "send", error)
        device.dropped += 1
        return True


def frame_of(memory: GuestMemory, chain: DescriptorChain) -> list[memoryview]:
    """Return what the driver sends, its header first."""
    reader = chain.reader(memory)
    if reader.available_bytes() < HEADER_SIZE:
        raise BufferTooShort(chain.queue_index, chain.head_index, HEADER_SIZE, reader.available_bytes())
    return reader.views()


def split(views: list[memoryview]) -> tuple[bytes, list[memoryview]]:
    """Cut the header off a frame: its bytes, and views of the rest."""
    first = views[0]
    if len(first) == HEADER_SIZE:
        return bytes(first), views[1:]
    if len(first) > HEADER_SIZE:
        return bytes(first[:HEADER_SIZE]), [first[HEADER_SIZE:], *views[1:]]
    header, rest = b"", list(views)
    while len(header) < HEADER_SIZE:
        missing = HEADER_SIZE - len(header)
        header += bytes(rest[0][:missing])
        rest[:1] = [rest[0][missing:]] if len(rest[0]) > missing else []
    return header, rest


def parse_mac(text: str) -> bytes:
    """Read an address as ``52:54:00:12:34:56``; raises VirtioUsageError where it is not that of one card."""
    parts = text.split(":")
    hexadecimal = all(len(part) == 2 and not set(part.lower()) - set("0123456789abcdef") for part in parts)
    if len(parts) != 6 or not hexadecimal or int(parts[0], 16) & 1 or parts == ["00"] * 6:
        raise VirtioUsageError(f"{text!r} is no address of a network card: give six bytes, as 52:54:00:12:34:56")
    return bytes.fromhex("".join(parts))


def random_mac() -> bytes:
    """Make up an address: locally administered, unicast."""
    import os

    return b"\x52\x54\x00" + os.urandom(3)
