"""What checks have at hand: a new device as often as they like, and a driver around it."""

from __future__ import annotations

from contextlib import contextmanager
from random import Random

from pyvmm_virtio.constants import device_ids as ids
from pyvmm_virtio.driver import drive
from pyvmm_virtio.fuzz.recipes import recipe_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from pyvmm_virtio.device import VirtioDevice
    from pyvmm_virtio.driver import Driver, Request


class CheckFailed(AssertionError):
    """The device does not do what the clause says; the message says what it did."""


class NotHere(Exception):
    """The check cannot be made on this device, and the message says why."""


def ensure(condition: object, message: str) -> None:
    """Raise CheckFailed where something does not hold."""
    if not condition:
        raise CheckFailed(message)


class Bench:
    """One transport and one ring, and devices to try on them.

    Args:
        make: makes a device.
        transport: "mmio" or "pci".
        ring: "split" or "packed".
    """

    def __init__(self, make: Callable[[], VirtioDevice], transport: str, ring: str) -> None:
        self._make = make
        self._made: list[VirtioDevice] = []
        self.transport = transport
        self.ring = ring

    def make(self) -> VirtioDevice:
        """Return a new device."""
        self._made.append(self._make())
        return self._made[-1]

    def close(self) -> None:
        """Close every device that was made, with what hangs on it."""
        for device in self._made:
            dispose(device)

    @contextmanager
    def driver(self, device: VirtioDevice | None = None, *, plain: bool = True, **options: Any) -> Iterator[Any]:  # noqa: ANN401 - drive's options, and whatever driver it finds
        """Drive a device, a new one unless one is given.

        Args:
            device: what to drive.
            plain: whether the driver of the type offers no buffers by itself.
            options: of `drive`.
        """
        subject = device or self.make()
        driver = drive(subject, self.transport, self.ring, **{**options, "start": False})
        if plain:
            driver.after_start = _nothing
            driver.completed = _nothing
        if options.get("start", True):
            driver.start()
        try:
            yield driver
        finally:
            driver.close()

    def queue(self, driver: Driver) -> int:
        """Return a queue whose requests are answered at once."""
        return 1 if driver.port.device_type in (ids.VIRTIO_ID_NET, ids.VIRTIO_ID_CONSOLE) else 0

    def parts(self, driver: Driver, seed: int = 0) -> tuple[list[bytes], list[int]]:
        """Return what a right request of the device's type reads and has room for."""
        # any of those that were made will do: they are of one class
        parts = recipe_for(self._made[-1])(Random(seed), self.queue(driver), len(driver.queues))
        return [data for data, _ in parts if data is not None], [size for data, size in parts if data is None]

    def submit(self, driver: Driver, seed: int = 0, *, kick: bool = True) -> Request:
        """Put a right request on its way."""
        readable, writable = self.parts(driver, seed)
        return driver.submit(self.queue(driver), readable, writable, kick=kick)

    def request(self, driver: Driver, seed: int = 0) -> Request:
        """Have a right request answered; raises DriverError where it is not."""
        return driver.wait(self.submit(driver, seed), timeout=2)


def events_of_a_request(bench: Bench, driver: Driver) -> int:
    """Have a request answered; returns the events that go with it: used buffers, and a configuration that changed."""
    before = driver.port.generation()
    bench.request(driver)
    return 1 | 2 * (driver.port.generation() != before)


def dispose(device: VirtioDevice) -> None:
    """Close a device that was made to be tried."""
    for each in (device, getattr(device, "other_end", None)):
        getattr(each, "close", _nothing)()


def _nothing(*_: object) -> None:
    pass
