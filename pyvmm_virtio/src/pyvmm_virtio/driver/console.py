"""A driver of console devices (VIRTIO 1.3, 5.3)."""

from __future__ import annotations

from struct import Struct

from pyvmm_virtio.constants import console as c
from pyvmm_virtio.driver.driver import Driver
from pyvmm_virtio.features import mask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_virtio.driver.driver import Request

CONTROL = Struct("<IHH")
"""``virtio_console_control``: id, event, value."""
RECEIVE_CONTROL, SEND_CONTROL = 2, 3


class ConsoleDriver(Driver):
    """Writes to ports and reads from them; with MULTIPORT it also says to the device what a guest's driver says.

    Attributes:
        buffer_size: of the buffers to receive in, in bytes; set before `start`.
        input: what came in, for each port.
        events: control messages from the device, as (port, event, value, what follows).
    """

    known_features = mask(c.VIRTIO_CONSOLE_F_SIZE, c.VIRTIO_CONSOLE_F_MULTIPORT, c.VIRTIO_CONSOLE_F_EMERG_WRITE)
    buffer_size = 256
    buffer_count = 16

    def after_start(self) -> None:
        """Offer buffers to receive in, and say that the driver is ready."""
        self.multiport = self.has(c.VIRTIO_CONSOLE_F_MULTIPORT)
        self.events: list[tuple[int, int, int, bytes]] = []
        self.input: dict[int, bytes] = {}
        for queue in range(0, len(self.queues), 2):
            if queue < 2 or self.multiport:
                for _ in range(min(self.buffer_count, self.queues[queue].size)):
                    self.submit(queue, (), (self.buffer_size,), kick=False)
                self.kick(queue)
        if self.multiport:
            self.control(c.VIRTIO_CONSOLE_BAD_ID, c.VIRTIO_CONSOLE_DEVICE_READY, 1)

    def receive_queue(self, port: int) -> int:
        """Return the number of the queue that a port's input comes by; the next one takes its output."""
        return 0 if port == 0 else 2 + 2 * port

    def completed(self, request: Request) -> None:
        """Take what came in, and offer its buffer again."""
        if request.queue % 2:
            request.release()
            return
        data = request.written()
        if self.multiport and request.queue == RECEIVE_CONTROL:
            port, event, value = CONTROL.unpack_from(data)
            self.events.append((port, event, value, data[CONTROL.size :]))
            if event == c.VIRTIO_CONSOLE_PORT_ADD:
                self.control(port, c.VIRTIO_CONSOLE_PORT_READY, 1)
                self.control(port, c.VIRTIO_CONSOLE_PORT_OPEN, 1)
        else:
            port = 0 if request.queue < 2 else request.queue // 2 - 1
            self.input[port] = self.input.get(port, b"") + data
        self.submit_buffers(request.queue, request.buffers, request.owned)

    def control(self, port: int, event: int, value: int) -> None:
        """Send a control message."""
        self.submit(SEND_CONTROL, (CONTROL.pack(port, event, value),))

    def write(self, data: bytes, port: int = 0) -> None:
        """Write to a port and wait until the device has taken it."""
        self.wait(self.submit(self.receive_queue(port) + 1, (data,)))

    def read(self, count: int, port: int = 0, timeout: float = 10.0) -> bytes:
        """Wait for so many bytes from a port; raises DriverError where they do not come."""
        self.wait_until(lambda: len(self.input.get(port, b"")) >= count, timeout)
        data = self.input[port]
        self.input[port] = data[count:]
        return data[:count]

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        return self.config_value(0, 2), self.config_value(2, 2)
