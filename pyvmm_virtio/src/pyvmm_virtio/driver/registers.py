"""A driver's way to a device: loads and stores on a bus, whatever the transport."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_device.io_manager import IoManager


class Port:
    """What a transport's registers allow a driver to do; all of it is bus accesses.

    Args:
        io: the bus.
    """

    device_type = 0

    def __init__(self, io: IoManager) -> None:
        self.io = io

    def load(self, addr: int, size: int) -> int:
        """Read from the bus."""
        data = bytearray(size)
        self.io.mmio_read(addr, memoryview(data))
        return int.from_bytes(data, "little")

    def store(self, addr: int, value: int, size: int) -> None:
        """Write to the bus."""
        self.io.mmio_write(addr, memoryview(value.to_bytes(size, "little")))

    if TYPE_CHECKING:

        def status(self) -> int:
            """Read the status."""
            ...

        def set_status(self, status: int) -> None:
            """Write the status."""
            ...

        def device_features(self) -> int:
            """Return what the device offers."""
            ...

        def set_driver_features(self, features: int) -> None:
            """Accept some of it."""
            ...

        def queue_max(self, index: int) -> int:
            """Return the largest size of a queue; 0 where there is none."""
            ...

        def queue_enabled(self, index: int) -> bool:
            """Say whether a queue is enabled."""
            ...

        def setup_queue(self, index: int, size: int, desc: int, driver_area: int, device_area: int) -> None:
            """Say how large a queue is and where, and enable it."""
            ...

        def reset_queue(self, index: int) -> None:
            """Reset a queue."""
            ...

        def notify(self, index: int, value: int, size: int) -> None:
            """Kick a queue with a value of 2 or 4 bytes."""
            ...

        def take_events(self) -> int:
            """Return why the device interrupts: 1 for queues, 2 for the configuration; and acknowledge it."""
            ...

        def generation(self) -> int:
            """Return the generation of the configuration."""
            ...

        def config_address(self) -> int:
            """Return where the configuration space is."""
            ...

        def shared_memory(self, id_: int) -> tuple[int, int] | None:
            """Return guest address and length of a shared memory region, or None."""
            ...
