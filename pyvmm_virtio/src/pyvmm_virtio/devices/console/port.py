"""One port of a console: the bytes of a guest, and of whoever is at the other end."""

from __future__ import annotations

from pyvmm_device.state import FLAG, choice, load_fields, uint
from pyvmm_virtio.devices.failure import note_failure
from pyvmm_virtio.devices.watch import Watch
from pyvmm_virtio.memory import Seen
from pyvmm_virtio.turn import SLICE_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from pyvmm_virtio.backends.port import PortBackend
    from pyvmm_virtio.devices.console.device import Console
    from pyvmm_virtio.memory import GuestMemory
    from pyvmm_virtio.queue.buffers import Reader
    from pyvmm_virtio.queue.chain import DescriptorChain

MAX_READ = 65536
"""The most that is read for one buffer, or written at once, whatever its size."""
STATE = {"ready": FLAG, "guest_open": FLAG, "opened": FLAG, "passed": uint(32)}


class Held:
    """A chain of which a part was written.

    Args:
        chain: the chain.
        reader: what is left of it, in guest memory as it was then.
        memory: that memory.
    """

    __slots__ = ("_seen", "chain", "reader")

    def __init__(self, chain: DescriptorChain, reader: Reader, memory: GuestMemory) -> None:
        self.chain = chain
        self.reader = reader
        self._seen = Seen(memory)

    def look_up(self, memory: GuestMemory) -> None:
        """Have what is left in guest memory as it is now; raises InvalidBuffer where it is not there any more."""
        if self._seen.has_changed(memory):
            passed = self.reader.bytes_read()
            self.reader = self.chain.reader(memory)
            self.reader.advance(passed)


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
        self._held: Held | None = None  # a chain of which the other end took only a part
        self._budget = 0  # how much more is written in this turn
        self._hungry = False  # whether there is room in the guest for what the other end says
        self._passed = 0  # how much of the next chain it took already, before that was put back
        self._watch = Watch(None, self._on_input, self._on_room)

    # called within a call of the device

    def plug(self, device: Console, number: int) -> None:
        """Be a device's port of this number: 5.3.2 says which queues that is."""
        self._device, self.number = device, number
        self._watch = Watch(device.loop, self._on_input, self._on_room)
        self.receive_queue = 0 if number == 0 else 2 + 2 * number
        self.transmit_queue = self.receive_queue + 1
        self.backend.on_change = lambda: device.on_backend(self)

    def unplug(self) -> None:
        """Be no device's port any more; what the other end did not take is lost."""
        if self._held is not None and self._device is not None and self._device.active:
            self._device.serve(
                self._give_back, self._device, self._device.epochs[self.transmit_queue], self._held.chain
            )
        self.give_up()
        self._device = None

    def _give_back(self, device: Console, epoch: int, chain: DescriptorChain) -> None:
        if device.is_current(self.transmit_queue, epoch):
            device.complete(self.transmit_queue, chain, 0)

    def give_up(self) -> None:
        """Forget what the driver gave: it took it back."""
        self.forget_held()
        self.ready = self.guest_open = self._hungry = False
        self._listen()

    def forget_held(self) -> None:
        """Forget the buffer of which the other end took only a part."""
        self._held = None
        self._passed = 0

    def put_back(self) -> None:
        """Put that buffer back into the ring, as if it had not been taken."""
        if self._held is not None and self._device is not None:
            self._passed = self._held.reader.bytes_read()
            self._held = None
            self._device.queues[self.transmit_queue].go_to_previous_position()

    def pump_out(self) -> None:
        """Hand on what the guest wrote, as far as the other end takes it; the rest stays in the guest's buffers."""
        device = self._device
        if device is None:
            return
        index, dispatch = self.transmit_queue, device.dispatch
        held = self._held
        if held is not None:
            # what comes now is a part of a chain that was charged for when it was taken, and was too much for a slice
            self._budget = dispatch.room if device.loop is not None else held.chain.length
            held.look_up(device.memory)
            before = held.reader.available_bytes()
            all_of_it = self._write(device, held.reader)
            dispatch.room -= before - held.reader.available_bytes()
            if not all_of_it:
                self._listen()
                return
            self._held = None
            device.complete(index, held.chain, 0)
        for chain in device.chains(index):
            memory = device.memory
            reader = chain.reader(memory)
            # the guest may have made it shorter since it was put back
            reader.advance(min(self._passed, reader.available_bytes()))
            self._passed = 0
            self._budget = SLICE_BYTES if device.loop is not None else chain.length
            if not self._write(device, reader):
                self._held = Held(chain, reader, memory)
                break
            device.complete(index, chain, 0)
        self._listen()

    def _write(self, device: Console, reader: Reader) -> bool:
        """Write as much as the other end takes, and the budget allows; false where something is left."""
        while left := reader.available_bytes():
            if self._budget <= 0 or not device.dispatch.open:
                device.dispatch.owe(self.transmit_queue)
                return False
            taken = self._give(device, reader.views(min(left, MAX_READ))[0])
            if not taken:
                return False
            self._budget -= taken
            reader.advance(taken)
        return True

    def _give(self, device: Console, data: bytes | memoryview) -> int:
        """Give the other end something; what it refuses is lost, or the guest would wait for ever."""
        try:
            return self.backend.write(data)
        except OSError as error:
            note_failure(device, "port output", error)
            return len(data)

    def _take(self, device: Console, room: int) -> bytes:
        """Take what the other end has to say, if it can say something."""
        try:
            return self.backend.read(room)
        except OSError as error:
            note_failure(device, "port input", error)
            self._watch.rest()
            return b""

    def pump_in(self) -> None:
        """Give the guest what the other end said, as far as there are buffers; the rest stays at the other end."""
        device = self._device
        if device is None:
            return
        if not self.hears:
            # until it does; what is said meanwhile would keep the loop awake
            self._hungry = False
            self._listen()
            return
        index = self.receive_queue
        self._hungry = False
        for chain in device.chains(index):
            writer = chain.writer(device.memory)
            room = min(writer.available_bytes(), MAX_READ)
            data = self._take(device, room) if room else b""
            if room and not data:
                device.queues[index].go_to_previous_position()
                self._hungry = True
                break
            writer.write(data)
            device.complete(index, chain, len(data))
        self._listen()

    @property
    def hears(self) -> bool:
        """Whether what is said to the guest now would be heard: Linux throws away what comes for a closed port."""
        device = self._device
        if device is None or not device.active:
            return False
        return not device.multiport or (self.ready and (self.console or self.guest_open))

    def cry(self, data: bytes) -> None:
        """Print what a driver without queues has to say, as far as the other end takes it."""
        if self._device is not None:
            self._give(self._device, data)

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

    def _listen(self) -> None:
        """Wait for the back end's descriptors, those that would be of use."""
        self._watch.listen(
            self.backend.read_fd if self._hungry else -1,
            self.backend.write_fd if self._held is not None else -1,
        )

    def _on_input(self) -> None:
        self._serve(self.pump_in)

    def _on_room(self) -> None:
        self._serve(self.pump_out)

    def _serve(self, pump: Callable[[], None]) -> None:
        device = self._device
        if device is not None:
            self._watch.serve(device, pump)

    def __repr__(self) -> str:
        return f"<Port {self.number} {self.name!r} {'console' if self.console else 'data'}, {self.backend!r}>"
