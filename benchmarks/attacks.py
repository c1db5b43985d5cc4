"""Attacks of a guest on its own devices, for `benchmarks/hostile.py`: each does again and again what costs most.

An attack plays a guest with 64 MiB of memory and one device. `turn` is one step of it, called as fast as it returns by
a thread that stands for a vCPU; what the device does about it is measured elsewhere.
"""

from __future__ import annotations

import os
import struct
import tempfile
from typing import TYPE_CHECKING, Any

from pyvmm_device import BusRange, Cmos, EventLoop, IoManager, PciBridge, PciFunction, PciRoot
from pyvmm_virtio.backends.memory import MemoryDisk
from pyvmm_virtio.backends.port import FdPort
from pyvmm_virtio.backends.raw import RawFile
from pyvmm_virtio.constants import block as b
from pyvmm_virtio.devices import Block, Console, Rng
from pyvmm_virtio.driver import drive
from pyvmm_virtio.driver.rings import RingFull

if TYPE_CHECKING:
    from pyvmm_virtio.device import VirtioDevice

WRITE = 2  # VRING_DESC_F_WRITE
BUFFERS = 254
BUFFER = 16 << 20
DISK = 8 << 30
HEADER = struct.Struct("<IIQ")
RANGE = struct.Struct("<QII")


class Nothing:
    """An interrupt that nobody waits for."""

    def trigger(self) -> None:
        """Do nothing."""

    def assert_(self) -> None:
        """Do nothing."""

    def clear(self) -> None:
        """Do nothing."""


class Attack:
    """One of them; a subclass has `start` and `turn`.

    Args:
        loop: where the device does its work.
    """

    threads = 1
    """How many vCPUs call `turn` at the same time."""
    grows = False
    """Whether it is an attack on the memory that the VMM holds."""

    def __init__(self, loop: EventLoop) -> None:
        self.loop = loop
        self.folder = tempfile.TemporaryDirectory()
        self.start()

    def start(self) -> None:
        """Make the device."""

    def turn(self, vcpu: int) -> None:
        """Attack once."""
        raise NotImplementedError

    def drive(self, device: VirtioDevice, **options: Any) -> Any:  # noqa: ANN401 - a driver of the device's type
        """Drive a device without ever waiting for it."""
        return drive(device, **options)

    def raw_disk(self) -> RawFile:
        """Return a sparse disk, so that its back end is as fast as can be."""
        path = f"{self.folder.name}/disk"
        with open(path, "wb") as file:
            file.truncate(DISK)
        return RawFile(path)


class Overlapping(Attack):
    """Chains whose 254 buffers are one and the same 16 MiB, 4 GiB in all, 256 of them at a time."""

    kind = b.VIRTIO_BLK_T_IN

    def start(self) -> None:
        """Describe one chain; it is offered as often as there is room."""
        self.driver = self.drive(Block(self.raw_disk(), loop=self.loop))
        arena = self.driver.arena
        flags = WRITE if self.kind != b.VIRTIO_BLK_T_OUT else 0
        header, status = arena.put(HEADER.pack(self.kind, 0, 0)), arena.alloc(1)
        data = arena.alloc(BUFFER, 4096)
        self.chain = [(header, 16, 0), *[(data, BUFFER, flags)] * BUFFERS, (status, 1, WRITE)]

    def turn(self, vcpu: int) -> None:  # noqa: ARG002 - there is one
        """Fill the ring."""
        self.driver.poll()
        try:
            while True:
                self.driver.submit_buffers(0, self.chain, kick=False)
        except RingFull:
            self.driver.kick(0, always=True)


class OverlappingWrites(Overlapping):
    """The same, written."""

    kind = b.VIRTIO_BLK_T_OUT


class UnknownRequests(Overlapping):
    """The same, of a type that there is not: it is answered, and the 4 GiB are left alone."""

    kind = 0x1234


class WriteZeroes(Attack):
    """Requests to fill the whole disk with zeros."""

    def start(self) -> None:
        """Describe one."""
        self.driver = self.drive(Block(self.raw_disk(), loop=self.loop))
        arena = self.driver.arena
        ranges = RANGE.pack(0, (1 << 21) - 1, 0) * 8
        header, status = arena.put(HEADER.pack(b.VIRTIO_BLK_T_WRITE_ZEROES, 0, 0)), arena.alloc(1)
        self.chain = [(header, 16, 0), (arena.put(ranges), len(ranges), 0), (status, 1, WRITE)]

    turn = Overlapping.turn


class RandomNumbers(Attack):
    """Chains of 4 GiB to be filled with random bytes."""

    def start(self) -> None:
        """Describe one."""
        self.driver = self.drive(Rng(loop=self.loop))
        self.chain = [(self.driver.arena.alloc(BUFFER, 4096), BUFFER, WRITE)] * BUFFERS

    turn = Overlapping.turn


class SameHead(Attack):
    """A head that is offered again while it is the device's, and a reset whenever the device has had enough."""

    grows = True

    def start(self) -> None:
        """Make a disk whose requests stay under way, as those of a server that does not answer."""
        self.driver = self.drive(Block(MemoryDisk(1 << 20), loop=self.loop))
        arena = self.driver.arena
        header, status = arena.put(HEADER.pack(b.VIRTIO_BLK_T_IN, 0, 0)), arena.alloc(1)
        self.chain = [(header, 16, 0), (arena.alloc(512), 512, WRITE), (status, 1, WRITE)]
        self.reset = 0

    def turn(self, vcpu: int) -> None:  # noqa: ARG002 - there is one
        """Offer it as often as the ring has room, behind the driver's back."""
        ring = self.driver.queues[0]
        head = ring.add(self.chain)
        position = self.driver.memory.read_u16(ring.driver_area + 2)
        for number in range(ring.size):
            self.driver.memory.write_u16(head, ring.driver_area + 4 + 2 * ((position + number) % ring.size))
        self.driver.memory.write_u16((position + ring.size) & 0xFFFF, ring.driver_area + 2)
        self.driver.kick(0, always=True)
        self.driver.reset()


class Violations(Attack):
    """A chain that is none, an error of the driver, and a reset, round and round: an attack on the log."""

    grows = True

    def start(self) -> None:
        """Make a device."""
        self.driver = self.drive(Block(MemoryDisk(1 << 20), loop=self.loop))
        self.status = self.driver.arena.alloc(1)

    def turn(self, vcpu: int) -> None:  # noqa: ARG002 - there is one
        """Offer it."""
        self.driver.submit_buffers(0, [(self.status, 1, 0)], kick=False)
        self.driver.kick(0, always=True)
        self.driver.reset()


class Resets(Overlapping):
    """Resets while gigabytes are under way."""

    def turn(self, vcpu: int) -> None:
        """Fill the ring, and reset."""
        super().turn(vcpu)
        self.driver.reset()


class Alarms(Attack):
    """The alarm of a real-time clock, set to another time as often as can be."""

    grows = True

    def start(self) -> None:
        """Make the clock, with alarms by interrupt."""
        self.io = IoManager()
        self.io.register_pio(Cmos(Nothing(), self.loop), [BusRange(0x70, 2)])
        self.minute = 0
        self.put(0x0B, 0x22)

    def put(self, register: int, value: int) -> None:
        """Write a register of the clock."""
        self.io.pio_write(0x70, memoryview(bytes([register])))
        self.io.pio_write(0x71, memoryview(bytes([value])))

    def turn(self, vcpu: int) -> None:  # noqa: ARG002 - there is one
        """Set it."""
        self.minute = (self.minute + 1) % 8
        self.put(3, 0x10 + self.minute)


class FullConsole(Attack):
    """A console port that nobody reads, written to as fast as can be."""

    grows = True

    def start(self) -> None:
        """Make a console whose output goes where nothing is taken."""
        self.ends = os.pipe2(os.O_NONBLOCK)
        self.driver = self.drive(Console(FdPort(write_fd=self.ends[1]), loop=self.loop))
        self.chain = [(self.driver.arena.put(bytes(65536)), 65536, 0)]

    def turn(self, vcpu: int) -> None:  # noqa: ARG002 - there is one
        """Write."""
        self.driver.poll()
        try:
            while True:
                self.driver.submit_buffers(1, self.chain, kick=False)
        except RingFull:
            self.driver.kick(1, always=True)


class Bridge(Attack):
    """One vCPU writes a bridge's command register while another moves the interrupt of what is behind it."""

    threads = 2

    def start(self) -> None:
        """Make a bridge with a function behind it."""
        self.io = IoManager()
        root = PciRoot(self.io, [Nothing()] * 4)
        bridge = PciBridge(self.io)
        assert bridge.secondary is not None
        behind = PciFunction(0x1234, 1, 0xFF0000, interrupt_pin=1)
        bridge.secondary.add(behind, 0)
        root.add(bridge, 1)
        self.behind, self.bridge = behind, bridge
        self.level = False

    def turn(self, vcpu: int) -> None:
        """Do one of both."""
        if vcpu:
            self.level = not self.level
            self.behind.set_intx(self.level)
        else:
            for command in (0, 0x407):
                self.bridge.config_write(4, memoryview(struct.pack("<H", command)))


ATTACKS: dict[str, type[Attack]] = {
    kind.__name__: kind
    for kind in (
        Overlapping, OverlappingWrites, UnknownRequests, WriteZeroes, RandomNumbers, SameHead, Violations, Resets,
        Alarms, FullConsole, Bridge,
    )
}  # fmt: skip
