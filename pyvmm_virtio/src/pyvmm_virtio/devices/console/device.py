"""The console device: one console, or many ports with names that come and go (VIRTIO 1.3, 5.3)."""

from __future__ import annotations

import struct

from pyvmm_device.state import FLAG, PART, array, blob, load_fields, save_fields
from pyvmm_virtio.constants import console as c
from pyvmm_virtio.constants.device_ids import VIRTIO_ID_CONSOLE
from pyvmm_virtio.device import VirtioDevice
from pyvmm_virtio.devices.console.port import Port
from pyvmm_virtio.errors import InvalidChain, VirtioUsageError
from pyvmm_virtio.features import RING_FEATURES, mask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from pyvmm_device import EventLoop
    from pyvmm_virtio.backends.port import PortBackend
    from pyvmm_virtio.interrupt import VirtioInterrupt
    from pyvmm_virtio.memory import GuestMemory
    from pyvmm_virtio.queue.protocol import Queue

CONFIG = struct.Struct("<HHII")
"""Columns, rows, the most ports, the emergency write register."""
SIZE = struct.Struct("<HH")
CONTROL = struct.Struct("<IHH")
"""Port, event, value."""
EMERGENCY_OFFSET = 8
CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3
MAX_PORTS = 511
MAX_WAITING = 2048
"""Control messages that may wait for a driver that does not take them."""
MAX_MESSAGE = 4096
"""Bytes in one of them: the longest name of a port, and more."""
MAX_DISTRESS = 4096
"""Characters of a driver in distress that may wait to be printed."""
STATE = {"driver_ready": FLAG, "waiting": array(blob(CONTROL.size, MAX_MESSAGE), MAX_WAITING)}
ATTRIBUTES = {"driver_ready": "_driver_ready", "waiting": "_waiting"}


def check_size(columns: int, rows: int) -> None:
    """Raise VirtioUsageError where a console cannot have this size."""
    if not (0 <= columns <= 0xFFFF and 0 <= rows <= 0xFFFF):
        raise VirtioUsageError(f"{columns} columns and {rows} rows: a console has up to 65535 of each")


class Console(VirtioDevice):
    r"""A console and further ports.

    >>> from pyvmm_virtio.backends.port import CallablePort
    >>> Console(CallablePort(print), size=(80, 25))
    <Console inactive, 2 queues>

    Args:
        ports: port 0, then others: back ends, or `Port` objects where they have names. A back end alone is a console
            if it is the first, which is ``/dev/hvc0``.
        max_ports: how many ports there can be at once, for those added later; with more than one, or where port 0 is
            not just a console, the device is multiport.
        size: columns and rows, where they are known.
        loop: where back ends are listened to. Without it `poll` looks at them.
        queue_size: the largest size of each queue.

    Raises:
        VirtioUsageError: too many ports, or none, what is no back end, or a size that cannot be.
    """

    device_type = VIRTIO_ID_CONSOLE
    fixed_config = (range(SIZE.size, EMERGENCY_OFFSET),)  # how many ports
    # 5.3.5.1: "MUST allow a write to emerg_wr, even on an unconfigured device"
    early_config = range(EMERGENCY_OFFSET, EMERGENCY_OFFSET + 4)

    def __init__(
        self,
        *ports: Port | PortBackend,
        max_ports: int = 0,
        size: tuple[int, int] | None = None,
        loop: EventLoop | None = None,
        queue_size: int = 128,
        ring_features: int = RING_FEATURES,
    ) -> None:
        all_ports = [
            port if isinstance(port, Port) else Port(port, console=number == 0) for number, port in enumerate(ports)
        ]
        most = max(max_ports, len(all_ports))
        if not all_ports or most > MAX_PORTS:
            raise VirtioUsageError(f"{len(all_ports)} of {most} ports: a console has 1 to {MAX_PORTS}")
        for port in all_ports:
            if not hasattr(port.backend, "on_change"):
                raise VirtioUsageError(f"{port.backend!r} is no back end: give one, such as CallablePort(print)")
        check_size(*(size or (0, 0)))
        several = most > 1 or not all_ports[0].console or bool(all_ports[0].name)
        features = [c.VIRTIO_CONSOLE_F_EMERG_WRITE]
        features += [c.VIRTIO_CONSOLE_F_MULTIPORT] * several + [c.VIRTIO_CONSOLE_F_SIZE] * (size is not None)
        self.max_ports = most
        self.ports: dict[int, Port] = {}
        self._waiting: list[bytes] = []
        self._driver_ready = False
        self._sending = False  # whether control messages will be looked at
        self._news: set[Port] = set()  # whose back ends said something, and which will be looked at
        self._distress = bytearray()  # what a driver without queues wrote, and nobody has printed yet
        super().__init__(
            features=mask(*features),
            config=CONFIG.pack(*(size or (0, 0)), most, 0),
            queue_max_sizes=(queue_size,) * (2 * most + 2 if several else 2),
            ring_features=ring_features,
            loop=loop,
        )
        for number, port in enumerate(all_ports):
            self.ports[number] = port
            port.plug(self, number)

    @property
    def multiport(self) -> bool:
        """Whether the driver knows of ports other than the first."""
        return self.negotiated(c.VIRTIO_CONSOLE_F_MULTIPORT)

    # what the machine does

    def add_port(self, port: Port, number: int | None = None) -> int:
        """Plug a port in while the guest runs; returns its number. Raises VirtioUsageError, DeviceBusy."""
        return self.dispatch.ask(self._plug, port, number)

    def _plug(self, port: Port, number: int | None) -> int:
        free = (n for n in range(self.max_ports) if n not in self.ports)
        number = next(free, self.max_ports) if number is None else number
        if not 0 <= number < self.max_ports or number in self.ports:
            raise VirtioUsageError(f"there is no free port {number} of {self.max_ports}: give more max_ports")
        self.ports[number] = port
        port.plug(self, number)
        self._tell(number, c.VIRTIO_CONSOLE_PORT_ADD)
        return number

    def remove_port(self, number: int) -> Port:
        """Pull a port out; its back end stays open. Raises VirtioUsageError, DeviceBusy."""
        return self.dispatch.ask(self._unplug, number)

    def _unplug(self, number: int) -> Port:
        if number not in self.ports:
            raise VirtioUsageError(f"there is no port {number}: there are {sorted(self.ports)}")
        port = self.ports.pop(number)
        port.unplug()
        self.serve(self._drop_output, port.transmit_queue)
        self._tell(number, c.VIRTIO_CONSOLE_PORT_REMOVE)
        return port

    def resize(self, columns: int, rows: int, number: int = 0) -> None:
        """Say that a console has another size now. Raises VirtioUsageError."""
        check_size(columns, rows)
        if number == 0:
            self.update_config(0, SIZE.pack(columns, rows))
        self.dispatch.call(self._tell_size, number, SIZE.pack(columns, rows))

    def _tell_size(self, number: int, size: bytes) -> None:
        port = self.ports.get(number)
        if port is not None and port.ready and self.negotiated(c.VIRTIO_CONSOLE_F_SIZE):
            self._tell(number, c.VIRTIO_CONSOLE_RESIZE, more=size)

    def poll(self) -> None:
        """Look at every back end, for machines without a loop."""
        for port in list(self.ports.values()):
            self.on_backend(port)

    def on_backend(self, port: Port) -> None:
        """Take a back end's word that something changed: in its thread, so all is done in the loop's where there is.

        They say it, too, while they are read or written to, when the chain for that is taken and not yet given back; it
        is looked at after that. A port is looked at once, however often its back end says it meanwhile.
        """
        if port in self._news:
            return
        self._news.add(port)
        if self.loop is not None:
            self.loop.call_soon(lambda: self._attend(port))
        else:
            self._attend(port)

    def _attend(self, port: Port) -> None:
        self.dispatch.call(self._hear, port)

    def _hear(self, port: Port) -> None:
        # before it is looked at, and whether it is or not: what is said from now on is new
        self._news.discard(port)
        self.serve(self._look, port)

    def _look(self, port: Port) -> None:
        self._tell_if_changed(port)
        port.pump_out()
        port.pump_in()

    # the driver's side

    def activate(self, memory: GuestMemory, queues: Sequence[Queue], interrupt: VirtioInterrupt) -> None:  # noqa: ARG002 - its attributes say it
        """Begin to listen, where no control queue has to say so first."""
        if self.loop is not None:
            for port in self.ports.values():
                self.on_backend(port)

    def process_queue(self, index: int) -> None:
        """Move bytes of one port, or control messages."""
        if self.multiport and index in (CONTROL_RECEIVE, CONTROL_TRANSMIT):
            if index == CONTROL_TRANSMIT:
                self._take_control()
            for port in self.ports.values():
                self._tell_if_changed(port)
            self._send_control()
            return
        number = 0 if index < 2 else (index - 2) // 2
        if number and not self.multiport:
            return
        plugged = self.ports.get(number)
        if plugged is None:
            if index % 2:
                self._drop_output(index)
            return
        if index == plugged.transmit_queue:
            plugged.pump_out()
        else:
            plugged.pump_in()

    def _drop_output(self, index: int) -> None:
        """Take what is written to a port that was pulled out, or it would lie in the way of the next one."""
        for chain in self.chains(index):
            self.complete(index, chain, 0)

    def write_config(self, offset: int, data: memoryview) -> None:
        """Print a character of a driver in distress, which has no queues yet or any more."""
        if offset == EMERGENCY_OFFSET and len(self._distress) < MAX_DISTRESS:
            with self.lock:
                # 5.3.4: only the lower bits are a character
                self._distress += data[:1]
                self.lock.after(self.dispatch.call, self._cry)

    def _cry(self) -> None:
        with self.lock:
            said, self._distress = self._distress, bytearray()
        if said and 0 in self.ports:
            self.ports[0].cry(bytes(said))

    def _take_control(self) -> None:
        for chain in self.chains(CONTROL_TRANSMIT):
            number, event, value = chain.reader(self.memory).read_obj(CONTROL)
            self.complete(CONTROL_TRANSMIT, chain, 0)
            if event == c.VIRTIO_CONSOLE_DEVICE_READY:
                self._driver_ready = value == 1
                for each in self.ports if self._driver_ready else ():
                    self._tell(each, c.VIRTIO_CONSOLE_PORT_ADD)
                continue
            port = self.ports.get(number)
            if port is None:
                continue  # of a port that was just pulled out
            if event == c.VIRTIO_CONSOLE_PORT_READY and value == 1:
                self._introduce(port)
            elif event == c.VIRTIO_CONSOLE_PORT_READY:
                port.refusals += 1
                self.errors.count("port", "%r: the driver cannot use %r (others are only counted)", self, port)
            elif event == c.VIRTIO_CONSOLE_PORT_OPEN:
                port.guest_open = value == 1
                if port.guest_open:
                    port.pump_in()

    def _introduce(self, port: Port) -> None:
        """Tell the driver all about a port."""
        port.ready = True
        if port.console:
            self._tell(port.number, c.VIRTIO_CONSOLE_CONSOLE_PORT, 1)
            if self.negotiated(c.VIRTIO_CONSOLE_F_SIZE) and port.number == 0:
                self._tell(port.number, c.VIRTIO_CONSOLE_RESIZE, more=bytes(self.config[: SIZE.size]))
        if port.name:
            self._tell(port.number, c.VIRTIO_CONSOLE_PORT_NAME, 1, port.name.encode())
        self._tell_open(port)
        port.pump_in()

    def _tell_if_changed(self, port: Port) -> None:
        if port.ready and port.opened != port.backend.connected:
            self._tell_open(port)

    def _tell_open(self, port: Port) -> None:
        port.opened = port.backend.connected
        self._tell(port.number, c.VIRTIO_CONSOLE_PORT_OPEN, port.opened)

    def _tell(self, number: int, event: int, value: int = 0, more: bytes = b"") -> None:
        """Send a control message, now or when the driver has a buffer for it."""
        if not (self.active and self.multiport and self._driver_ready):
            return  # it asks for all ports when it is ready
        if len(self._waiting) >= MAX_WAITING:
            self.fail(InvalidChain(CONTROL_RECEIVE, 0, None, f"{MAX_WAITING} control messages wait for a buffer"))
            return
        self._waiting.append(CONTROL.pack(number, event, value) + more)
        if not self._sending:
            self._sending = self.serve(self._send_control)

    def _send_control(self) -> None:
        self._sending = False
        if not self._waiting:
            return
        for chain in self.chains(CONTROL_RECEIVE):
            message = self._waiting.pop(0)
            chain.writer(self.memory).write_all(message)
            self.complete(CONTROL_RECEIVE, chain, len(message))
            if not self._waiting:
                return

    def reset(self) -> None:
        """Forget what the driver said."""
        self._waiting.clear()
        self._driver_ready = self._sending = False
        self._news.clear()
        for port in self.ports.values():
            port.give_up()

    def queue_reset(self, index: int) -> None:
        """Forget the buffer of which a part was written."""
        for port in self.ports.values():
            if index == port.transmit_queue:
                port.forget_held()

    def quiesce(self) -> None:
        """Put back the buffers of which a part was written; the rest is written when they are taken again."""
        for port in self.ports.values():
            port.put_back()

    def device_state(self) -> dict[str, Any]:
        """Return what the driver knows of each port, and what it has not been told yet."""
        return {
            **save_fields(self, STATE, ATTRIBUTES),
            "ports": [port.state() for _, port in sorted(self.ports.items())],
        }

    def check_device_state(self, state: Mapping[str, Any], features: int) -> dict[str, Any]:  # noqa: ARG002 - nothing in it was negotiated
        """Return the fields of `device_state`, those of each port included, each checked."""
        ports = [port for _, port in sorted(self.ports.items())]
        kinds = {**STATE, "ports": array(PART, len(ports), len(ports))}
        fields = load_fields(type(self).__name__, kinds, state, others=())
        fields["ports"] = [port.check_state(each) for port, each in zip(ports, fields["ports"], strict=True)]
        return fields

    def restore_device(self, state: Mapping[str, Any]) -> None:
        """Become what a state says; the same ports have to be plugged in."""
        fields = self.check_device_state(state, 0)
        self._driver_ready = fields["driver_ready"]
        self._waiting = [bytes(message) for message in fields["waiting"]]
        for (_, port), values in zip(sorted(self.ports.items()), fields["ports"], strict=True):
            port.restore(values)

    def close(self) -> None:
        """Close every back end, and serve nobody any more; idempotent."""
        self.dispatch.end(self._close)

    def _close(self) -> None:
        for port in self.ports.values():
            port.give_up()
            port.backend.close()
