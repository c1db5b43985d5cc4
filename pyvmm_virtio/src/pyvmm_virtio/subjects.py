"""Devices to try things on, by name: one of each kind with a back end in memory, or a class of somebody's own."""

from __future__ import annotations

from pyvmm_virtio.errors import VirtioUsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm_virtio.device import VirtioDevice

NAMES = ("block", "net", "console", "rng")


def make(name: str) -> VirtioDevice:
    """Return a device of a kind in `NAMES`, or of a class given as ``module:Class``, made without arguments.

    Raises:
        VirtioUsageError: there is none such.
    """
    if name == "block":
        from pyvmm_virtio.backends.memory import MemoryDisk
        from pyvmm_virtio.devices import Block

        return Block(MemoryDisk(1 << 20), queues=2, serial="subject")
    if name == "net":
        return _net()
    if name == "console":
        from pyvmm_virtio.backends.port import CallablePort
        from pyvmm_virtio.devices import Console

        return Console(CallablePort(), CallablePort(), size=(80, 25))
    if name == "rng":
        from pyvmm_virtio.devices import Rng

        return Rng()
    return _load(name)


def _net() -> VirtioDevice:
    from pyvmm_virtio.backends.datagram import DatagramNet
    from pyvmm_virtio.devices import Net

    class Heard(DatagramNet):
        """An end whose other one takes every frame, so that a guest may send for ever."""

        def send(self, pair: int, views: Sequence[memoryview]) -> bool:
            while not super().send(pair, views):
                theirs.receive(0, [memoryview(bytearray(1))])  # what does not fit is lost
            return True

    ours, theirs = Heard.pair()
    device = Net(ours)
    device.other_end = theirs  # type: ignore[attr-defined] # kept open, and for whoever wants to look
    return device


def _load(name: str) -> VirtioDevice:
    from importlib import import_module

    from pyvmm_virtio.device import VirtioDevice

    module, _, path = name.partition(":")
    if not path:
        raise VirtioUsageError(f"{name!r} is no device: give one of {', '.join(NAMES)}, or module:Class")
    try:
        found: object = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        device = found() if callable(found) else found
    except (ImportError, AttributeError, TypeError) as error:
        raise VirtioUsageError(f"{name!r} cannot be made: {error}") from error
    if not isinstance(device, VirtioDevice):
        raise VirtioUsageError(f"{name!r} is no VirtioDevice but {type(device).__name__}")
    if not 0 < device.device_type < 0x40:
        raise VirtioUsageError(f"{name!r} has device_type {device.device_type}: a driver finds 1 to 63")
    if not device.queues:
        raise VirtioUsageError(f"{name!r} has no queues to try: give it queue_max_sizes")
    return device
