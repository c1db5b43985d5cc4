"""The example's VMM, whose devices change while the guest runs: when it says that it waits for that.

Run it as the example is run: ``python -m tests.vmm.changing_vmm --kernel ...``.
"""

from __future__ import annotations

import os
import sys
from typing import TypeVar

from minimal_vmm import Machine, main
from pyvmm_virtio.backends.port import CallablePort
from pyvmm_virtio.devices import Block, Console, Net
from pyvmm_virtio.devices.console import Port
from terminal import Console as Screen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from pyvmm_virtio.device import VirtioDevice

GROWN = 1 << 20
COLUMNS, ROWS = 132, 43
SAID = b"good night\n"
Kind = TypeVar("Kind")


class Listener(Screen):
    """Prints what the guest says, and does in the loop's thread what a line asks for."""

    def __init__(self, machine: ChangingMachine) -> None:
        super().__init__(machine.output)
        self.machine = machine

    def read_line(self, line: bytes) -> None:
        super().read_line(line)
        reaction = self.machine.reactions.get(line.strip())
        if reaction is not None:
            self.machine.loop.call_soon(reaction)


class ChangingMachine(Machine):
    """Grows its first disk, resizes its console, plugs a port in and out, pulls a cable, announces an address."""

    def build(self, arguments: Namespace) -> None:
        self.reactions: dict[bytes, Callable[[], object]] = {
            b"grow: now": self.grow,
            b"window: now": lambda: self.device(Console).resize(COLUMNS, ROWS),
            b"late: now": self.plug,
            b"link: now": lambda: self.device(Net).set_link(False),
            b"link: carrier 0": lambda: self.device(Net).set_link(True),
            b"link: carrier 1": lambda: self.device(Net).announce(),
            b"virtio: done": self.tell_use,
        }
        self.seen: dict[VirtioDevice, list[set[int]]] = {}
        super().build(arguments)

    def make_console(self) -> Screen:
        return Listener(self)

    def devices(self) -> list[VirtioDevice]:
        assert self.virtio is not None, "none was asked for"
        return self.virtio.devices

    def device(self, kind: type[Kind]) -> Kind:
        return next(device for device in self.devices() if isinstance(device, kind))

    def grow(self) -> None:
        path = self.arguments.disk[0].path
        os.truncate(path, os.path.getsize(path) + GROWN)
        self.device(Block).resize()

    def plug(self) -> None:
        heard = bytearray()

        def hear(data: bytes) -> None:
            heard.extend(data)
            if heard.endswith(SAID):
                self.loop.call_soon(lambda: console.remove_port(number))
            elif heard.endswith(b"hello from the guest\n"):
                backend.feed(SAID)

        backend, console = CallablePort(hear), self.device(Console)
        number = console.add_port(Port(backend, "late"))

    def check(self) -> None:
        super().check()
        self.look()

    def look(self) -> None:
        """See how far each queue is; more than once, for a ring comes by the same places again and again."""
        for device in self.devices():
            seen = self.seen.setdefault(device, [{0} for _ in device.queues])
            for places, queue in zip(seen, device.queues, strict=True):
                places.add(queue.next_used() & 0x7FFF)

    def tell_use(self) -> None:
        self.look()
        for device, seen in self.seen.items():
            print(f"{type(device).__name__} used", *(len(places) - 1 for places in seen), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(ChangingMachine))
