"""The back end of vhost-user: our devices for drivers of other processes, which share their memory.

Source: QEMU's docs/interop/vhost-user.rst. As much as one front end needs that comes once and goes for ever.
"""

from __future__ import annotations

import os
import socket
import struct
import threading

from benchmarks import vhost_user as v

from pyvmm_memory import FileOffset, GuestMemoryMmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from pyvmm_device import EventLoop
    from pyvmm_virtio.device import VirtioDevice

GET_VRING_BASE, SET_VRING_ERR, GET_QUEUE_NUM = 11, 14, 17
PROTOCOL_F_REPLY_ACK = 3
NEEDS_REPLY, IS_REPLY = 8, 4
NO_FD = 1 << 8
WORD = struct.Struct("<Q")
STATE = struct.Struct("<II")
ADDRESSES = struct.Struct("<IIQQQQ")
REGION = struct.Struct("<QQQQ")


class VhostUserBackend:
    """Serves one front end at a socket, in a thread of its own, while its ``with`` block lasts.

    Args:
        device: what to serve; it uses `loop`.
        loop: where all of it happens.
        path: of the socket.
    """

    def __init__(self, device: VirtioDevice, loop: EventLoop, path: str) -> None:
        self.device = device
        self.loop = loop
        self.offered = device.device_features | 1 << v.PROTOCOL_FEATURES
        self.accepted = 0
        self.memory: GuestMemoryMmap | None = None
        self.regions: list[tuple[int, int, int]] = []  # address in the front end, size, guest address
        self.calls: dict[int, int] = {}
        self.kicks: dict[int, int] = {}
        self.enabled: set[int] = set()
        self.unknown: list[int] = []
        self.front: socket.socket | None = None
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        loop.add_reader(self.listener.fileno(), self._accept)
        self.thread = threading.Thread(target=loop.run, name="vhost-user")

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.loop.stop()
        self.thread.join()
        self._hang_up()
        self.loop.remove_reader(self.listener.fileno())
        self.listener.close()
        self.device.close()  # type: ignore[attr-defined] # every device that is served here has it
        self.loop.close()

    def _accept(self) -> None:
        self.front = self.listener.accept()[0]
        self.loop.add_reader(self.front.fileno(), self._message)

    def _hang_up(self) -> None:
        """Let the front end's memory go."""
        self.device.driver_reset()
        for fd in self.kicks.values():
            self.loop.remove_reader(fd)
        for fd in (*self.kicks.values(), *self.calls.values()):
            os.close(fd)
        self.kicks, self.calls, self.enabled = {}, {}, set()
        if self.front is not None:
            self.loop.remove_reader(self.front.fileno())
            self.front.close()
            self.front = None
        if self.memory is not None:
            self.memory.close()
            self.memory = None

    # messages

    def _message(self) -> None:
        assert self.front is not None
        header, fds, _, _ = socket.recv_fds(self.front, v.HEADER.size, 16)
        if not header:
            self._hang_up()
            return
        request, flags, size = v.HEADER.unpack(header)
        body = self.front.recv(size, socket.MSG_WAITALL) if size else b""
        answer = self._answer(request, body, fds)
        if answer is None and flags & NEEDS_REPLY:
            answer = WORD.pack(0)
        if answer is not None:
            self.front.sendall(v.HEADER.pack(request, v.VERSION | IS_REPLY, len(answer)) + answer)

    def _answer(self, request: int, body: bytes, fds: list[int]) -> bytes | None:
        if request == v.GET_FEATURES:
            return WORD.pack(self.offered)
        if request == v.GET_PROTOCOL_FEATURES:
            return WORD.pack(1 << v.PROTOCOL_F_MQ | 1 << PROTOCOL_F_REPLY_ACK | 1 << v.PROTOCOL_F_CONFIG)
        if request == GET_QUEUE_NUM:
            return WORD.pack(len(self.device.queue_max_sizes))
        if request == v.GET_CONFIG:
            return self._config(body)
        if request == GET_VRING_BASE:
            return self._stop(body)
        actions = {
            v.SET_FEATURES: self._negotiate,
            v.SET_VRING_NUM: self._set_size,
            v.SET_VRING_BASE: self._set_base,
            v.SET_VRING_ADDR: self._set_addresses,
            v.SET_VRING_ENABLE: self._enable,
        }
        if request == v.SET_MEM_TABLE:
            self._map(body, fds)
        elif request in (v.SET_VRING_KICK, v.SET_VRING_CALL, SET_VRING_ERR):
            self._take_fd(request, body, fds)
        elif request in actions:
            actions[request](body)
        elif request not in (v.SET_OWNER, v.SET_PROTOCOL_FEATURES):
            self.unknown.append(request)
        return None

    def _config(self, body: bytes) -> bytes:
        offset, size, flags = v.CONFIG.unpack_from(body)
        data = bytearray(size)
        self.device.driver_read_config(offset, memoryview(data))
        return v.CONFIG.pack(offset, size, flags) + data

    def _negotiate(self, body: bytes) -> None:
        accepted = WORD.unpack(body)[0] & ~(1 << v.PROTOCOL_FEATURES)
        if accepted != self.accepted or not self.device.driver_features:
            self.accepted = accepted
            reason = self.device.negotiate(accepted)
            assert reason is None, reason

    def _map(self, body: bytes, fds: list[int]) -> None:
        if self.memory is not None:
            for queue in self.device.queues:
                queue.release()
            self.memory.close()
        count = STATE.unpack_from(body)[0]
        ranges = []
        self.regions = []
        for number, fd in zip(range(count), fds, strict=True):
            guest, size, user, offset = REGION.unpack_from(body, STATE.size + number * REGION.size)
            ranges.append((guest, size, FileOffset(fd, offset)))
            self.regions.append((user, size, guest))
        self.memory = GuestMemoryMmap.from_ranges_with_files(ranges)
        for fd in fds:
            os.close(fd)
        self.device.attach(self.memory)

    def _guest(self, user: int) -> int:
        return next(guest + user - start for start, size, guest in self.regions if start <= user < start + size)

    # rings

    def _set_size(self, body: bytes) -> None:
        index, size = STATE.unpack(body)
        self.device.queues[index].try_set_size(size)

    def _set_base(self, body: bytes) -> None:
        index, base = STATE.unpack(body)
        queue = self.device.queues[index]
        queue.set_next_avail(base & 0xFFFF)
        queue.set_next_used(base & 0xFFFF)

    def _set_addresses(self, body: bytes) -> None:
        index, _, desc, device_area, driver_area, _ = ADDRESSES.unpack(body)
        queue = self.device.queues[index]
        queue.try_set_desc_table_address(self._guest(desc))
        queue.try_set_avail_ring_address(self._guest(driver_area))
        queue.try_set_used_ring_address(self._guest(device_area))

    def _take_fd(self, request: int, body: bytes, fds: list[int]) -> None:
        index = WORD.unpack(body)[0] & 0xFF
        fd = -1 if WORD.unpack(body)[0] & NO_FD else fds[0]
        if request == v.SET_VRING_CALL:
            self._replace(self.calls, index, fd)
        elif request == v.SET_VRING_KICK:
            if index in self.kicks:
                self.loop.remove_reader(self.kicks[index])
            self._replace(self.kicks, index, fd)
            if fd >= 0:
                self.loop.add_eventfd(fd, lambda _: self.device.kick(index))
            self._start(index)
        elif fd >= 0:
            os.close(fd)

    @staticmethod
    def _replace(table: dict[int, int], index: int, fd: int) -> None:
        if index in table:
            os.close(table.pop(index))
        if fd >= 0:
            table[index] = fd

    def _enable(self, body: bytes) -> None:
        index, on = STATE.unpack(body)
        (self.enabled.add if on else self.enabled.discard)(index)
        self._start(index)

    def _start(self, index: int) -> None:
        """Begin with a ring that has a kick and is enabled."""
        if index in self.kicks and index in self.enabled and not self.device.queues[index].ready():
            self.device.queues[index].set_ready(True)
            if not self.device.active:
                self.device.start(self)
            self.device.kick(index)

    def _stop(self, body: bytes) -> bytes:
        index = STATE.unpack(body)[0]
        self.device.quiesce()
        base = self.device.queues[index].next_avail()
        self.device.driver_queue_reset(index)
        self.enabled.discard(index)
        if index in self.kicks:
            self.loop.remove_reader(self.kicks[index])
            os.close(self.kicks.pop(index))
        if not self.kicks:
            self.device.driver_reset()
        return STATE.pack(index, base)

    # the device's way to the driver

    def signal_queue(self, index: int) -> None:
        """Call."""
        if index in self.calls:
            os.eventfd_write(self.calls[index], 1)

    def signal_config(self) -> None:
        """Nothing: no front end here listens."""
