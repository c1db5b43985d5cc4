"""The virtio devices that `--disk`, `--net`, `--console`, `--port` and `--rng` ask for, each with its back end."""

from __future__ import annotations

import errno
import os
from functools import partial

from pyvmm_virtio.backends.port import CallablePort
from pyvmm_virtio.errors import VirtioUsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from typing import Any

    from minimal_vmm import Machine
    from pyvmm_device import EventLoop
    from pyvmm_virtio.backends.net import NetBackend
    from pyvmm_virtio.device import VirtioDevice
    from terminal import Console as Screen

TYPED_AHEAD = 4096
UNKNOWN_SIZE = (0, 0)
SPARE_PORTS = 1
"""For what a machine of your own plugs in while the guest runs: `Console.add_port`."""


class DeviceMaker:
    """Makes what a machine's command line asks for.

    Args:
        machine: of which these are the devices; it closes all of them.
        ring_features: what the devices' queues may offer.

    Attributes:
        terminal: the console that takes what is typed, where there is one.
    """

    def __init__(self, machine: Machine, ring_features: int) -> None:
        self.machine = machine
        self.asked = machine.arguments
        self.common: dict[str, Any] = {"loop": machine.loop, "ring_features": ring_features}
        self.terminal: TerminalPort | None = None

    def wanted(self) -> Iterator[tuple[str, Callable[[], VirtioDevice]]]:
        """Yield the option that asks for each device, and what makes it."""
        for disk in self.asked.disk:
            yield f"--disk {disk.path}", partial(self.block, disk)
        for net in self.asked.net:
            yield f"--net {net.name}", partial(self.net, net)
        if self.asked.console or self.asked.port:
            yield "--port" if self.asked.port else "--console", self.console
        if self.asked.rng:
            yield "--rng", self.rng

    def block(self, disk: argparse.Namespace) -> VirtioDevice:
        """Make a disk, with a queue for each processor."""
        from pyvmm_virtio.backends.disk import open_disk
        from pyvmm_virtio.backends.workers import WorkerDisk
        from pyvmm_virtio.devices import Block

        try:
            backend = self.machine.own(open_disk(disk.path, disk.format, read_only=disk.ro))
        except OSError as error:
            error.filename = None  # the message names it already
            raise VirtioUsageError(f"{explain(error)}{cure_of_disk(error, disk)}") from error
        if not hasattr(backend, "submit"):
            # so that a flush, which takes its time, keeps no other device waiting
            backend = self.machine.own(WorkerDisk(backend))
        queues = disk.queues or min(self.asked.cpus, 16)
        options = {**self.common, "loop": self.beside(f"disk {disk.path}")}
        device: VirtioDevice = self.machine.own(Block(backend, queues=queues, serial=disk.serial, **options))
        return device

    def net(self, net: argparse.Namespace) -> VirtioDevice:
        """Make an Ethernet card."""
        from pyvmm_virtio.devices import Net

        capture = None
        if net.capture:
            from pyvmm_virtio.backends.pcap import PcapWriter

            capture = self.machine.own(PcapWriter(net.capture))
        backend = self.machine.own(open_net(net))
        options = {**self.common, "loop": self.beside(f"net {net.name}")}
        device: VirtioDevice = self.machine.own(Net(backend, mac=net.mac, capture=capture, **options))
        return device

    def beside(self, name: str) -> EventLoop:
        """Return an event loop in a thread of its own: whatever a guest has its disk do, the serial line goes on."""
        from pyvmm_device.io_thread import IoThread

        thread: IoThread = self.machine.own(IoThread(name))
        return thread.loop

    def console(self) -> VirtioDevice:
        """Make a console at this terminal, of its size, and ports for programs, each a socket of the host."""
        from pyvmm_virtio.backends.port import SocketPort
        from pyvmm_virtio.devices import Console
        from pyvmm_virtio.devices.console import Port

        ports = []
        if self.asked.console:
            self.terminal = TerminalPort(self.machine.console)
            ports.append(Port(self.terminal, console=True))
        for port in self.asked.port:
            ports.append(Port(self.machine.own(SocketPort(port.path)), port.name))
        most = len(ports) + SPARE_PORTS * bool(self.asked.port)
        console: Console = self.machine.own(Console(*ports, max_ports=most, size=terminal_size(), **self.common))
        if self.asked.console and terminal_size() != UNKNOWN_SIZE:
            self.machine.own(TerminalWatch(self.machine.loop, console.resize))
        return console

    def rng(self) -> VirtioDevice:
        """Make a source of random numbers."""
        from pyvmm_virtio.devices import Rng

        return Rng(**self.common)


class TerminalPort(CallablePort):
    """The person's end of the virtio console; `terminal.Terminal` takes it for a serial line's receiver."""

    def __init__(self, console: Screen) -> None:
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
        taken = data[: max(0, TYPED_AHEAD - self.waiting())]
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


def terminal_size() -> tuple[int, int]:
    """Columns and rows of this terminal, where the output goes to one."""
    try:
        size = os.get_terminal_size(1)
    except OSError:
        return UNKNOWN_SIZE
    return size.columns, size.lines


class TerminalWatch:
    """Passes on the terminal's size whenever it changes, until it is closed."""

    def __init__(self, loop: EventLoop, resize: Callable[[int, int], object]) -> None:
        import signal

        self.resize = resize
        # a handler may come between any two steps of this thread; what it asks the loop for does not
        before = signal.signal(signal.SIGWINCH, lambda *_: loop.call_soon(self.on_change))
        self.close = partial(signal.signal, signal.SIGWINCH, before)

    def on_change(self) -> None:
        """Look how large it is now."""
        self.resize(*terminal_size())


def explain(error: Exception) -> str:
    """Say what is wrong as one sentence, without the number that `str` of a system error begins with."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def cure_of_disk(error: OSError, disk: argparse.Namespace) -> str:
    """Say what to do about an image that does not open, where the message does not say it."""
    path, comma, option = disk.path.rpartition(",")
    if disk.path.startswith("nbd"):
        return ": is there a server? 'qemu-nbd --socket=SOCKET IMAGE' is one"
    if comma and os.path.exists(path.partition(",")[0]):
        return f", and {option!r} is no option: those are ro, format=FORMAT, queues=1 to 256, serial=TEXT"
    if isinstance(error, FileNotFoundError):
        return f": 'truncate -s 1G {disk.path}' makes an empty disk"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and not disk.ro:
        return f": '--disk {disk.path},ro' opens it for reading only"
    return ""


def open_net(net: argparse.Namespace) -> NetBackend:
    """Open the back end that `--net` names."""
    if net.kind == "user":
        from pyvmm_virtio.backends.passt import Passt

        if net.queues > 1:
            raise VirtioUsageError(f"queues={net.queues}: passt has one; tap=NAME can have several")
        return Passt()
    from pyvmm_virtio.backends.tap import Tap

    return Tap(net.tap, net.queues or 1)
