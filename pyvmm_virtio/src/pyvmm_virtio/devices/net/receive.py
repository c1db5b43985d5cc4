"""The receiving half of a network device's queue pair (VIRTIO 1.3, 5.1.6.3 and 5.1.6.4)."""

from __future__ import annotations

from pyvmm_virtio.backends.net import HEADER_SIZE, MAX_FRAME
from pyvmm_virtio.constants import net as c
from pyvmm_virtio.devices.failure import note_failure
from pyvmm_virtio.devices.watch import Watch
from pyvmm_virtio.memory import Seen
from pyvmm_virtio.turn import DESCRIPTOR_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_virtio.devices.net.device import Net
    from pyvmm_virtio.devices.throttle import Throttle
    from pyvmm_virtio.queue.buffers import Writer
    from pyvmm_virtio.queue.chain import DescriptorChain

GSO_TYPE, NUM_BUFFERS = 1, slice(10, 12)
ETHERNET_HEADER, VLAN_TAG, VLAN = 14, 4, b"\x81\x00"
FRAMES_PER_TURN = 256
"""Then others have their turn, whether anybody wanted these or not."""
FRAME_COST = 2048
"""What a frame counts for beside its bytes in a slice: about so many are moved in the time that it takes."""


class Receiver:
    """Takes frames from the network and puts them into the driver's buffers.

    A frame is taken out of the network only where the driver has a buffer. If the frame turns out to need more buffers
    than there are, it waits here, with those it has, for more. Where guest memory has changed meanwhile, they are
    looked up again.

    Args:
        device: the network device.
        pair: the number of the queue pair.
        throttle: how fast; all pairs of a device have one limit.
    """

    def __init__(self, device: Net, pair: int, throttle: Throttle) -> None:
        self._device = device
        self._pair = pair
        self._index = 2 * pair
        self.throttle = throttle
        self._buffer = memoryview(bytearray(HEADER_SIZE + MAX_FRAME))
        # where the network puts a frame: behind the header, where it brings none itself
        self._target = [self._buffer[HEADER_SIZE - device.backend.header_size :]]
        self._length = 0  # of the frame that waits, its header included
        self._paid = False
        self._chains: list[tuple[DescriptorChain, Writer, int]] = []  # with its buffers, and their size
        self._room = 0
        self._left = 0  # how many more frames are taken in this turn
        # that the buffers are of
        self._seen: Seen | None = None
        self._starved = False
        self._watch = Watch(device.loop, self._look_again)

    def pump(self) -> None:
        """Move frames until there are no more, or no more buffers."""
        device, dispatch = self._device, self._device.dispatch
        if not device.receives(self._pair):
            return
        self._starved = False
        if self._chains:
            self._look_up()
        # new buffers are news only where they were missed
        dispatch.hush(self._index)
        self._left = FRAMES_PER_TURN if dispatch.has_room() else 0
        while self._left > 0:
            if not self._length and not self._take():
                break
            if not self._paid:
                if self.throttle and not self.throttle.admit(self._index, self._length - HEADER_SIZE):
                    self._starved = True  # of tokens: nothing is read until the time has come
                    break
                self._paid = True
            if not self._deliver():
                self._starved = True
                break
        else:
            self._come_back()
        self.listen()

    def _come_back(self) -> None:
        """Go on after others: a back end may hold frames of which its descriptor says nothing."""
        device = self._device
        if device.loop is not None and device.receives(self._pair):
            device.dispatch.owe(self._index)

    def _look_again(self) -> None:
        self._watch.serve(self._device, self.pump)

    def _look_up(self) -> None:
        """Have the buffers in guest memory as it is now; raises InvalidBuffer where they are not there any more."""
        memory = self._device.memory
        if self._seen is not None and self._seen.has_changed(memory):
            self._chains = [(chain, chain.writer(memory), size) for chain, _, size in self._chains]

    def _take(self) -> bool:
        """Take the next frame that the driver wants out of the network, if the driver has a buffer."""
        device = self._device
        if not self._chains and not self._take_chain():
            self._starved = True
            return False
        bounded = device.loop is not None
        while self._left > 0:
            try:
                count = device.backend.receive(self._pair, self._target)
            except OSError as error:
                note_failure(device, "receive", error)
                self._watch.rest()
                return False
            if not count:
                return False
            self._left -= 1
            if bounded:
                device.dispatch.room -= count + FRAME_COST
                if device.dispatch.room <= 0:
                    self._left = 0  # this one is the last of the turn
            length = count + HEADER_SIZE - device.backend.header_size
            frame = self._buffer[HEADER_SIZE:length]
            if not device.link_up or length < HEADER_SIZE + ETHERNET_HEADER or not device.filter.wants(frame):
                continue
            if self._exceeds_mtu(frame):
                device.dropped += 1
                continue
            if device.capture is not None:
                device.capture.write([frame])
            self._length = length
            self._paid = False
            return True
        self._come_back()
        return False

    def _exceeds_mtu(self, frame: memoryview) -> bool:
        """Say whether a frame must not be passed: 5.1.4.1, those "that exceed mtu ... with gso_type NONE or ECN"."""
        mtu = self._device.negotiated_mtu
        if not mtu or self._buffer[GSO_TYPE] & ~c.VIRTIO_NET_HDR_GSO_ECN != c.VIRTIO_NET_HDR_GSO_NONE:
            return False
        tag = VLAN_TAG if frame[12:14] == VLAN else 0
        return len(frame) > mtu + ETHERNET_HEADER + tag

    def _take_chain(self) -> bool:
        device = self._device
        chain = device.dispatch.take(self._index)
        if chain is None:
            return False
        memory = device.memory
        if not self._chains:
            self._seen = Seen(memory)
        writer = chain.writer(memory)
        room = writer.available_bytes()
        self._chains.append((chain, writer, room))
        self._room += room
        # one buffer is what a frame costs in any case, as many as a ring has are more than the frame
        device.dispatch.room -= DESCRIPTOR_BYTES * (max(len(chain.raw), writer.pieces()) - 1)
        return True

    def _deliver(self) -> bool:
        """Put the frame that waits into buffers; false where there are too few."""
        device = self._device
        merge = device.negotiated(c.VIRTIO_NET_F_MRG_RXBUF)
        while merge and self._room < self._length:
            # 2.7.4.3 and 5.1.6.4: the number of buffers has to be known before the first is given back
            if len(self._chains) >= device.queues[self._index].size():
                return self._drop()
            if not self._take_chain():
                return False
        if self._room < self._length:
            return self._drop()
        header = self._buffer[:HEADER_SIZE]
        if not device.backend.header_size:
            header[:] = bytes(HEADER_SIZE)
        needed = room = 0
        while room < self._length:
            room += self._chains[needed][2]
            needed += 1
        # 5.1.6.4.1: "If VIRTIO_NET_F_MRG_RXBUF has not been negotiated, the device MUST set num_buffers to 1"
        header[NUM_BUFFERS] = needed.to_bytes(2, "little")
        used: list[tuple[int, int]] = []
        buffer, begin = self._buffer, 0
        for chain, writer, size in self._chains[:needed]:
            count = min(size, self._length - begin)
            for view in writer.views(count):
                end = begin + len(view)
                view[:] = buffer[begin:end]
                begin = end
            writer.advance(count)
            used.append((chain.head_index, count))
        del self._chains[:needed]
        self._room -= room
        self._length = 0
        device.complete_batch(self._index, used)
        return True

    def _drop(self) -> bool:
        """Lose the frame: the driver's buffers are too small for it."""
        self._device.dropped += 1
        self._length = 0
        return True

    def listen(self) -> None:
        """Wait for the network as long as it would be of use."""
        device = self._device
        wanted = device.receives(self._pair) and not self._starved and device.backend.link_up
        self._watch.listen(device.backend.fileno(self._pair) if wanted else -1)

    def put_back(self) -> None:
        """Put buffers back into the ring, and lose the frame that waited for more of them."""
        queue = self._device.queues[self._index]
        for _ in self._chains:
            queue.go_to_previous_position()
        self.forget_chains()

    def forget_chains(self) -> None:
        """Forget the buffers: the driver took them back."""
        self._chains.clear()
        self._room = self._length = 0

    def reset(self) -> None:
        """Forget the buffers and the frame, and listen to nobody."""
        self.forget_chains()
        self._starved = False
        self.listen()
