"""The front end of vhost-user: how the guest-free driver drives a device of another process, such as QEMU's.

Source: QEMU's docs/interop/vhost-user.rst. Just enough for a benchmark: split rings, no migration, no reconnection.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from typing import TYPE_CHECKING

from pyvmm_device import IoManager
from pyvmm_memory import FileOffset, GuestMemoryMmap
from pyvmm_virtio.driver.arena import Arena
from pyvmm_virtio.driver.block import BlockDriver
from pyvmm_virtio.driver.port import Port

if TYPE_CHECKING:
    from collections.abc import Sequence

GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL = 8, 9, 10, 12, 13
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, SET_VRING_ENABLE, GET_CONFIG = 15, 16, 18, 24
VERSION = 1
PROTOCOL_FEATURES = 30
PROTOCOL_F_CONFIG = 9
HEADER = struct.Struct("<III")
FIRST_ADDRESS, MEMORY_SIZE = 0x10000, 64 << 20


class VhostUserPort(Port):
    """A driver's way to a device behind a vhost-user socket."""

    def __init__(self, path: str, memory: GuestMemoryMmap, file: int, device_type: int, queues: int = 1) -> None:
        super().__init__(IoManager())
        self.device_type = device_type
        self.queues = queues
        self.memory = memory
        self.state = 0
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(queues)]
        self.send(SET_OWNER)
        self.offered = self.ask(GET_FEATURES)
        self.send(SET_PROTOCOL_FEATURES, struct.pack("<Q", self.ask(GET_PROTOCOL_FEATURES) & 1 << PROTOCOL_F_CONFIG))
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
        answer = self.socket.recv(HEADER.size + 8, socket.MSG_WAITALL)
        return int.from_bytes(answer[HEADER.size :], "little")

    def status(self) -> int:
        """Read the status, which vhost-user leaves to us."""
        return self.state

    def set_status(self, status: int) -> None:
        """Note the status."""
        self.state = status

    def device_features(self) -> int:
        """What the device offers."""
        return self.offered & ~(1 << PROTOCOL_FEATURES)

    def set_driver_features(self, features: int) -> None:
        """Accept some of it."""
        self.send(SET_FEATURES, struct.pack("<Q", features | 1 << PROTOCOL_FEATURES))

    def queue_max(self, index: int) -> int:
        """How large a queue is."""
        return 128 if index < self.queues else 0

    def setup_queue(self, index: int, size: int, desc: int, driver_area: int, device_area: int) -> None:
        """Hand a queue over, and enable it."""
        self.send(SET_VRING_NUM, struct.pack("<II", index, size))
        self.send(SET_VRING_BASE, struct.pack("<II", index, 0))
        addresses = (self.host + address for address in (desc, device_area, driver_area))
        self.send(SET_VRING_ADDR, struct.pack("<IIQQQQ", index, 0, *addresses, 0))
        self.send(SET_VRING_KICK, struct.pack("<Q", index), [self.kicks[index]])
        self.send(SET_VRING_CALL, struct.pack("<Q", index), [self.call])
        self.send(SET_VRING_ENABLE, struct.pack("<II", index, 1))
        self.ask(GET_FEATURES)  # messages are taken in order, so an answer means that all of this was

    def notify(self, index: int, value: int, size: int) -> None:  # noqa: ARG002 (the eventfd says it all)
        """Kick a queue."""
        os.eventfd_write(self.kicks[index], 1)

    def take_events(self) -> int:
        """Nothing: `wait` takes them."""
        return 0

    def generation(self) -> int:
        """The configuration does not change here."""
        return 0

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


def drive_block(path: str, device_type: int = 2) -> BlockDriver:
    """Drive the block device behind a vhost-user socket; close the driver at the end."""
    file = os.memfd_create("guest")
    os.ftruncate(file, MEMORY_SIZE)
    memory = GuestMemoryMmap.from_ranges_with_files([(0, MEMORY_SIZE, FileOffset(file))])
    port = VhostUserPort(path, memory, file, device_type)
    driver = BlockDriver(
        port, Arena(memory, FIRST_ADDRESS, MEMORY_SIZE), 0xFFFF_FFFF_FFFF_FFFF & ~(1 << 34), pump=port.wait
    )
    driver.know((1 << 32 | 1 << 29) | driver.known_features)
    driver.on_close(lambda: os.close(file))
    driver.on_close(memory.close)
    driver.on_close(port.close)
    driver.start()
    return driver
