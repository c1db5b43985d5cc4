"""How virtio devices meet KVM: what `--disk`, `--net`, `--console` and `--rng` ask for, and `--transport` where.

`VirtioMachine` makes the devices, puts each on a transport, and ties the two knots that make it fast: the guest's
notifications end in eventfds inside KVM (ioeventfd), and the device's interrupts begin there (irqfd), so that a vCPU
does not leave the guest for either.
"""

from __future__ import annotations

import os

from kvm_interrupts import KvmInterrupts
from pyvmm_device import BusRange
from pyvmm_kvm import IoEventAddress
from pyvmm_virtio.backends.port import CallablePort
from pyvmm_virtio.constants.features import VIRTIO_F_RING_PACKED
from pyvmm_virtio.device import RING_FEATURES
from pyvmm_virtio.errors import VirtioUsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

    from minimal_vmm import Machine
    from pyvmm_device import PciRoot
    from pyvmm_virtio.backends.net import NetBackend
    from pyvmm_virtio.device import VirtioDevice
    from pyvmm_virtio.transport import NotifyAddress, VirtioPci
    from terminal import Console

MMIO_START, MMIO_SIZE = 0xD0000000, 0x1000
MMIO_IRQS = (5, 6, 7, 9, 10, 11, 14, 15)
"""Of a PC's lines those that no device of ours has; a guest that is told of no others knows them."""
TYPED_AHEAD = 4096


class VirtioMachine:
    """The virtio devices of one machine.

    Args:
        machine: whose.
        root: the PCI bus for `--transport pci`, where the machine has one.

    Attributes:
        words: what the guest's kernel has to be told to find them.
        terminal: the console that takes what is typed, where `--console` asks for it.
    """

    def __init__(self, machine: Machine, root: PciRoot | None = None) -> None:
        self.machine = machine
        self.asked = machine.arguments
        self.interrupts = machine.own(KvmInterrupts(machine.vm, machine.loop))
        self.words: list[str] = []
        self.terminal: TerminalPort | None = None
        self.count = 0
        self.ring_features = RING_FEATURES
        if self.asked.ring == "split":
            self.ring_features &= ~(1 << VIRTIO_F_RING_PACKED)
        if self.asked.transport == "pci":
            from pyvmm_device import PciRoot

            self.root = root or PciRoot(machine.io, on_reset=machine.on_reset)
        self.add_devices()

    def add_devices(self) -> None:
        """Make what the command line asks for."""
        from pyvmm_virtio.devices import Block, Console, Net, Rng

        common: dict[str, Any] = {"loop": self.machine.loop, "ring_features": self.ring_features}
        own = self.machine.own
        for disk in self.asked.disk:
            from pyvmm_virtio.backends.disk import open_disk
            from pyvmm_virtio.backends.workers import WorkerDisk

            backend = own(open_disk(disk.path, disk.format, read_only=disk.ro))
            if not hasattr(backend, "submit"):
                # so that a flush, which takes its time, keeps no other device waiting
                backend = own(WorkerDisk(backend))
            queues = disk.queues or min(self.asked.cpus, 16)
            self.add(own(Block(backend, queues=queues, serial=disk.serial, **common)))
        for net in self.asked.net:
            capture = None
            if net.capture:
                from pyvmm_virtio.backends.pcap import PcapWriter

                capture = own(PcapWriter(net.capture))
            self.add(own(Net(own(open_net(net)), mac=net.mac, capture=capture, **common)))
        if self.asked.console:
            self.terminal = TerminalPort(self.machine.console)
            self.add(own(Console(self.terminal, **common)))
        if self.asked.rng:
            self.add(Rng(**common))

    def add(self, device: VirtioDevice) -> None:
        """Put a device on the transport that was asked for."""
        (self.add_pci if self.asked.transport == "pci" else self.add_mmio)(device)
        self.count += 1

    def add_mmio(self, device: VirtioDevice) -> None:
        """Give it a page and a line; the guest finds both on its kernel's command line."""
        from pyvmm_virtio.transport import VirtioMmio

        if self.count == len(MMIO_IRQS):
            raise VirtioUsageError(f"--transport mmio has lines for {self.count} devices: use --transport pci")
        base, irq = MMIO_START + self.count * MMIO_SIZE, MMIO_IRQS[self.count]
        transport = VirtioMmio(device, self.machine.memory, self.interrupts.edge(irq))
        self.machine.own(AtTheEnd(transport.reset))
        self.machine.io.register_mmio(transport, [BusRange(base, MMIO_SIZE)])
        self.words.append(f"virtio_mmio.device={MMIO_SIZE >> 10}K@{base:#x}:{irq}")
        for notify in transport.notify_addresses():
            self.register(self.eventfd(device, notify.queue), base, notify)

    def add_pci(self, device: VirtioDevice) -> None:
        """Make it a PCI function; the guest finds it on the bus, and moves its registers where it wants them."""
        from pyvmm_virtio.transport import VirtioPci

        transport = VirtioPci(
            device, self.machine.memory, self.interrupts.group(len(device.queues) + 1), interrupt_pin=0
        )
        transport.on_notify_moved = Notifications(self, transport).move
        self.machine.own(AtTheEnd(transport.reset))
        self.root.add(transport)

    def eventfd(self, device: VirtioDevice, queue: int) -> int:
        """An eventfd whose writes kick a queue, in the event loop's thread."""
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.machine.own(AtTheEnd(lambda: os.close(fd)))
        self.machine.loop.add_eventfd(fd, lambda _: device.kick(queue))
        return fd

    def register(self, fd: int, base: int, notify: NotifyAddress) -> None:
        """Let KVM write to the eventfd when the guest notifies."""
        self.machine.vm.register_ioevent(fd, IoEventAddress.Mmio(base + notify.offset), match_of(notify))

    def unregister(self, fd: int, base: int, notify: NotifyAddress) -> None:
        """Undo it."""
        self.machine.vm.unregister_ioevent(fd, IoEventAddress.Mmio(base + notify.offset), match_of(notify))


def match_of(notify: NotifyAddress) -> tuple[int, int] | None:
    """The value and width of a notification, as KVM wants to know them."""
    return None if notify.datamatch is None else (notify.datamatch, notify.length)


class Notifications:
    """The eventfds of a PCI function: they follow its registers wherever the guest moves them."""

    def __init__(self, virtio: VirtioMachine, transport: VirtioPci) -> None:
        self.virtio = virtio
        self.base: int | None = None
        addresses = transport.notify_addresses()
        self.fds = [(virtio.eventfd(transport.device, notify.queue), notify) for notify in addresses]

    def move(self, base: int | None) -> None:
        """Listen there from now on, or nowhere."""
        if self.base is not None:
            for fd, notify in self.fds:
                self.virtio.unregister(fd, self.base, notify)
        self.base = base
        if base is not None:
            for fd, notify in self.fds:
                self.virtio.register(fd, base, notify)


class AtTheEnd:
    """Something to do when the machine is closed: devices let go of the guest's memory, descriptors are closed."""

    def __init__(self, do: Callable[[], object]) -> None:
        self.close = do


class TerminalPort(CallablePort):
    """The person's end of the virtio console; `terminal.Terminal` takes it for a serial line's receiver."""

    def __init__(self, console: Console) -> None:
        super().__init__(self.show)
        self.console = console
        self.on_room: Callable[[], object] = lambda: None

    def show(self, data: bytes) -> None:
        """Print what the guest writes, a line at a time for whoever reads along."""
        for line in data.splitlines(keepends=True):
            text = line.rstrip(b"\n")
            if text:
                self.console.write(text)
            if line.endswith(b"\n"):
                self.console.write(b"\n")

    def enqueue(self, data: bytes) -> int:
        """Take what was typed, if there is room; returns how many bytes."""
        taken = data[: max(0, TYPED_AHEAD - len(self._input))]
        self.feed(taken)
        return len(taken)

    def read(self, limit: int) -> bytes:
        """Give it to the guest."""
        data = super().read(limit)
        if data:
            self.on_room()
        return data

    def send_break(self) -> None:
        """Do nothing: there is no line whose voltage could break."""


def open_net(net: argparse.Namespace) -> NetBackend:
    """Open the back end that `--net` names."""
    if net.kind == "user":
        from pyvmm_virtio.backends.passt import Passt

        return Passt()
    from pyvmm_virtio.backends.tap import Tap

    return Tap(net.tap, net.queues or 1)
