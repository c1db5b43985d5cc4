"""A driver's way to a device: loads and stores on a bus, whatever the transport."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm_device.io_manager import IoManager

RESET_SECONDS = 10.0
"""How long a driver waits for the end of a reset; a back end may hold a request that long."""


def wait_while(busy: Callable[[], object], pump: Callable[[], object] | None = None) -> bool:
    """Wait for a register to say that a reset is over; false where it does not in `RESET_SECONDS`."""
    end = 0.0
    while busy():
        now = time.monotonic()
        end = end or now + RESET_SECONDS
        if now > end:
            return False
        if pump is not None:
            pump()
        else:
            time.sleep(0.0005)
    return True


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
