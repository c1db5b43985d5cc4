"""The front end of vhost-user: how the guest-free driver drives a device of another process, such as QEMU's.

Source: QEMU's docs/interop/vhost-user.rst. Just enough for benchmarks and tests: no migration, no reconnection.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from typing import TYPE_CHECKING

from pyvmm_device import IoManager
from pyvmm_memory import FileOffset, GuestMemoryMmap
from pyvmm_virtio.constants.device_ids import VIRTIO_ID_BLOCK, VIRTIO_ID_NET
from pyvmm_virtio.constants.features import VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1
from pyvmm_virtio.constants.ring import VIRTIO_RING_F_EVENT_IDX
from pyvmm_virtio.driver.arena import Arena
from pyvmm_virtio.driver.block import BlockDriver
from pyvmm_virtio.driver.net import NetDriver
from pyvmm_virtio.driver.registers import Port

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL = 8, 9, 10, 12, 13
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, SET_VRING_ENABLE, GET_CONFIG = 15, 16, 18, 24
VERSION = 1
PROTOCOL_FEATURES = 30
PROTOCOL_F_MQ, PROTOCOL_F_CONFIG = 0, 9
HEADER = struct.Struct("<III")
CONFIG = struct.Struct("<III")
WRAP_COUNTERS = 1 << 15 | 1 << 31
"""A packed ring begins at position 0 of both sides, with both wrap counters 1."""
FIRST_ADDRESS, MEMORY_SIZE = 0x10000, 64 << 20


class VhostUserPort(Port):
    """A driver's way to a device behind a vhost-user socket."""

    def __init__(self, path: str, memory: GuestMemoryMmap, file: int, device_type: int, queues: int = 1) -> None:
        super().__init__(IoManager())
        self.device_type = device_type
        self.queues = queues
        self.memory = memory
        self.state = 0
        self.accepted = 0
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(queues)]
        self.send(SET_OWNER)
        self.offered = self.ask(GET_FEATURES)
        known = 1 << PROTOCOL_F_CONFIG | 1 << PROTOCOL_F_MQ
        self.send(SET_PROTOCOL_FEATURES, struct.pack("<Q", self.ask(GET_PROTOCOL_FEATURES) & known))
        region = next(iter(memory))
        self.host = region.get_host_address(0)
        table = struct.pack("<IIQQQQ", 1, 0, region.start, len(region), self.host, 0)
        self.send(SET_MEM_TABLE, table, [file])

    def send(self, request: int, body: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a message."""
        socket.send_fds(self.socket, [HEADER.pack(request, VERSION, len(body)) + body], fds)

    def ask(self, request: int) -> int:
        """Send a message and return the number that answers it."""
        self.send(request)
        return int.from_bytes(self.answer(8), "little")

    def answer(self, size: int) -> bytes:
        """Return what answers a message, without its header."""
        return self.socket.recv(HEADER.size + size, socket.MSG_WAITALL)[HEADER.size :]

    def status(self) -> int:
        """Read the status, which vhost-user leaves to us."""
        return self.state

    def set_status(self, status: int) -> None:
        """Note the status."""
        self.state = status

    def device_features(self) -> int:
        """Return what the device offers."""
        return self.offered & ~(1 << PROTOCOL_FEATURES)

    def set_driver_features(self, features: int) -> None:
        """Accept some of it."""
        self.accepted = features
        self.send(SET_FEATURES, struct.pack("<Q", features | 1 << PROTOCOL_FEATURES))

    def queue_max(self, index: int) -> int:
        """How large a queue is."""
        return 128 if index < self.queues else 0

    def setup_queue(self, index: int, size: int, desc: int, driver_area: int, device_area: int) -> None:
        """Hand a queue over, and enable it."""
        self.send(SET_VRING_NUM, struct.pack("<II", index, size))
        packed = self.accepted >> VIRTIO_F_RING_PACKED & 1
        self.send(SET_VRING_BASE, struct.pack("<II", index, WRAP_COUNTERS if packed else 0))
        addresses = (self.host + address for address in (desc, device_area, driver_area))
        self.send(SET_VRING_ADDR, struct.pack("<IIQQQQ", index, 0, *addresses, 0))
        self.send(SET_VRING_KICK, struct.pack("<Q", index), [self.kicks[index]])
        self.send(SET_VRING_CALL, struct.pack("<Q", index), [self.call])
        self.send(SET_VRING_ENABLE, struct.pack("<II", index, 1))
        self.ask(GET_FEATURES)  # messages are taken in order, so an answer means that all of this was

    def notify(self, index: int, value: int, size: int) -> None:  # noqa: ARG002 - the eventfd says it all
        """Kick a queue."""
        os.eventfd_write(self.kicks[index], 1)

    def take_events(self) -> int:
        """Nothing: `wait` takes them."""
        return 0

    def generation(self) -> int:
        """Ignore it: the configuration does not change here."""
        return 0

    def config_address(self) -> int:
        """Ignore it: the configuration is not on a bus: `load` asks for it."""
        return 0

    def load(self, addr: int, size: int) -> int:
        """Read from the configuration, of which libvhost-user gives the beginning whatever the offset."""
        size += addr
        self.send(GET_CONFIG, CONFIG.pack(0, size, 0) + bytes(size))
        return int.from_bytes(self.answer(CONFIG.size + size)[CONFIG.size + addr :], "little")

    def wait(self) -> None:
        """Sleep until the device calls."""
        select.select([self.call], [], [], 1)
        try:
            os.eventfd_read(self.call)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Hang up."""
        self.socket.close()
        for fd in (self.call, *self.kicks):
            os.close(fd)


def drive_behind(path: str, device_type: int = VIRTIO_ID_BLOCK, *, queues: int = 1, features: int | None = None) -> Any:  # noqa: ANN401 - the driver of whatever type the device has
    """Drive the device behind a vhost-user socket; close the driver at the end.

    Args:
        path: of the socket.
        device_type: block or network.
        queues: how many to use.
        features: those to accept, as a mask; None takes what the driver knows of the device type, and EVENT_IDX.
    """
    kind = {VIRTIO_ID_BLOCK: BlockDriver, VIRTIO_ID_NET: NetDriver}[device_type]
    file = os.memfd_create("guest")
    os.ftruncate(file, MEMORY_SIZE)
    memory = GuestMemoryMmap.from_ranges_with_files([(0, MEMORY_SIZE, FileOffset(file))])
    port = VhostUserPort(path, memory, file, device_type, queues)
    driver = kind(port, Arena(memory, FIRST_ADDRESS, MEMORY_SIZE), 0, pump=port.wait)
    if features is None:
        features = driver.known_features | 1 << VIRTIO_RING_F_EVENT_IDX
    driver.know(features | 1 << VIRTIO_F_VERSION_1)
    driver.on_close(lambda: os.close(file))
    driver.on_close(memory.close)
    driver.on_close(port.close)
    return driver.start()
