"""One port of a console: the bytes of a guest, and of whoever is at the other end."""

from __future__ import annotations

from pyvmm_device.state import FLAG, choice, load_fields, uint
from pyvmm_virtio.devices.watch import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from pyvmm_virtio.backends.port import PortBackend
    from pyvmm_virtio.devices.console.device import Console
    from pyvmm_virtio.queue.buffers import Reader

MAX_READ = 65536
"""The most that is read for one buffer, or written at once, whatever its size."""
MAX_WRITE = 1 << 20
"""The most that is written before others have their turn."""

STATE = {"ready": FLAG, "guest_open": FLAG, "opened": FLAG, "passed": uint(32)}


class Port:
    """A port and its other end.

    Args:
        backend: the other end.
        name: what the guest calls it, in ``/sys/class/virtio-ports/*/name``; programs look for it there.
        console: whether it is a console (``/dev/hvcN``) or a port for programs (``/dev/vportNpM``).

    Attributes:
        guest_open: whether a program of the guest has it open, as far as it said.
        ready: whether the guest's driver has taken it.
        opened: what the driver was told last of the other end being there.
    """

    def __init__(self, backend: PortBackend, name: str = "", *, console: bool = False) -> None:
        self.backend = backend
        self.name = name
        self.console = console
        self.guest_open = False
        self.ready = False
        self.opened = False
        self.refusals = 0  # how often the driver said that it cannot use it
        self.number = -1
        self.receive_queue = self.transmit_queue = -1
        self._device: Console | None = None
        self._held: tuple[int, Reader] | None = None  # a chain of which the other end took only a part
        self._budget = 0  # how much more is written in this turn
        self._passed = 0  # how much of the next chain it took already, before that was put back
        self._watch = Watch(None, self._on_input, self._on_room)

    # called by the device, under its lock

    def plug(self, device: Console, number: int) -> None:
        """Be a device's port of this number: 5.3.2 says which queues that is."""
        self._device, self.number = device, number
        self._watch = Watch(device.loop, self._on_input, self._on_room)
        self.receive_queue = 0 if number == 0 else 2 + 2 * number
        self.transmit_queue = self.receive_queue + 1
        self.backend.on_change = lambda: device.on_backend(self)

    def unplug(self) -> None:
        """Be no device's port any more; what the other end did not take is lost."""
        if self._held is not None and self._device is not None:
            self._device.serve(self._device.complete, self.transmit_queue, self._held[0], 0)
        self.give_up()
        self._device = None

    def give_up(self) -> None:
        """Forget what the driver gave: it took it back."""
        self.forget_held()
        self.ready = self.guest_open = False
        self.listen(want_input=False, want_room=False)

    def forget_held(self) -> None:
        """Forget the buffer of which the other end took only a part."""
        self._held = None
        self._passed = 0

    def put_back(self) -> None:
        """Put that buffer back into the ring, as if it had not been taken."""
        if self._held is not None and self._device is not None:
            _, reader = self._held
            self._held, self._passed = None, reader.bytes_read()
            self._device.queues[self.transmit_queue].go_to_previous_position()

    def pump_out(self) -> None:
        """Hand on what the guest wrote, as far as the other end takes it; the rest stays in the guest's buffers."""
        device = self._device
        if device is None:
            return
        index = self.transmit_queue
        self._budget = MAX_WRITE
        if self._held is not None:
            head, reader = self._held
            if not self._write(reader):
                self._listen_now()
                return
            self._held = None
            device.complete(index, head, 0)
        for chain in device.chains(index):
            reader = chain.reader(device.memory)
            if self._passed:
                reader.advance(self._passed)
                self._passed = 0
            if not self._write(reader):
                self._held = chain.head_index, reader
                break
            device.complete(index, chain, 0)
        self._listen_now()

    def _write(self, reader: Reader) -> bool:
        while left := reader.available_bytes():
            if self._budget <= 0 and self._device is not None:
                self._device.on_backend(self)  # which comes back to this
                return False
            taken = self.backend.write(reader.views(min(left, MAX_READ))[0])
            if not taken:
                return False
            self._budget -= taken
            reader.advance(taken)
        return True

    def pump_in(self) -> None:
        """Give the guest what the other end said, as far as there are buffers; the rest stays at the other end."""
        device = self._device
        if device is None:
            return
        if not self.hears:
            # until it does; what is said meanwhile would keep the loop awake
            self.listen(want_input=False, want_room=self._held is not None)
            return
        index = self.receive_queue
        starved = True
        for chain in device.chains(index):
            writer = chain.writer(device.memory)
            room = min(writer.available_bytes(), MAX_READ)
            data = self.backend.read(room) if room else b""
            if room and not data:
                device.queues[index].go_to_previous_position()
                starved = False
                break
            writer.write(data)
            device.complete(index, chain, len(data))
        self.listen(want_input=not starved, want_room=self._held is not None)

    @property
    def hears(self) -> bool:
        """Whether what is said to the guest now would be heard: Linux throws away what comes for a closed port."""
        device = self._device
        if device is None or not device.active:
            return False
        return not device.multiport or (self.ready and (self.console or self.guest_open))

    # state

    def state(self) -> dict[str, Any]:
        """Return what the driver knows of it, and how much of its next output is written already."""
        fields = {name: getattr(self, name) for name in ("number", "name", "console", "ready", "guest_open", "opened")}
        return {**fields, "passed": self._passed}

    def check_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a state of this port; raises DeviceStateError, and changes nothing."""
        same = {"number": choice(self.number), "name": choice(self.name), "console": choice(self.console)}
        return load_fields(type(self).__name__, {**same, **STATE}, state, others=())

    def restore(self, fields: Mapping[str, Any]) -> None:
        """Become what `check_state` returned."""
        self.ready, self.guest_open, self.opened = fields["ready"], fields["guest_open"], fields["opened"]
        self._passed = fields["passed"]

    # waiting

    def _listen_now(self) -> None:
        self.listen(want_input=self._watch.reading >= 0, want_room=self._held is not None)

    def listen(self, *, want_input: bool, want_room: bool) -> None:
        """Wait for the back end's descriptors, those that would be of use."""
        self._watch.listen(
            self.backend.read_fd if want_input else -1,
            self.backend.write_fd if want_room else -1,
        )

    def _on_input(self) -> None:
        self._serve(self.pump_in)

    def _on_room(self) -> None:
        self._serve(self.pump_out)

    def _serve(self, pump: Callable[[], None]) -> None:
        device = self._device
        if device is None:
            return
        with device.lock:
            if not device.serve(pump):
                # a descriptor that is ready for nobody would keep the loop awake; whatever ends this listens again
                self.listen(want_input=False, want_room=False)

    def __repr__(self) -> str:
        return f"<Port {self.number} {self.name!r} {'console' if self.console else 'data'}, {self.backend!r}>"
