"""Devices to try things on, by name: one of each kind with a back end in memory, or a class of somebody's own."""

from __future__ import annotations

from pyvmm_virtio.errors import VirtioUsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm_virtio.device import VirtioDevice

NAMES = ("block", "net", "console", "rng")
LEAST_SIZE = 16
"""Of a queue: requests of several buffers have to fit, several times."""


def make(name: str) -> VirtioDevice:
    """Return a device of a kind in `NAMES`, or of a class given as ``module:Class``, made without arguments.

    The module may be a file: ``lesson.py:Class``, ``lessons/lesson.py:Class``.

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
    from pyvmm_virtio.device import VirtioDevice

    module, _, path = name.partition(":")
    if not path:
        raise VirtioUsageError(f"{name!r} is no device: give one of {', '.join(NAMES)}, or module:Class")
    try:
        found = _import(module)
        for part in path.split("."):
            found = getattr(found, part)
        device = found() if callable(found) else found
    except (ImportError, AttributeError, TypeError, OSError) as error:
        raise VirtioUsageError(f"{name!r} cannot be made: {error}") from error
    if not isinstance(device, VirtioDevice):
        raise VirtioUsageError(f"{name!r} is no VirtioDevice but {type(device).__name__}")
    if not 0 < device.device_type < 0x40:
        raise VirtioUsageError(f"{name!r} has device_type {device.device_type}: a driver finds 1 to 63")
    if not device.queues:
        raise VirtioUsageError(f"{name!r} has no queues to try: give it queue_max_sizes")
    if any(queue.max_size() < LEAST_SIZE for queue in device.queues):
        raise VirtioUsageError(
            f"{name!r} has a queue of less than {LEAST_SIZE} descriptors, which are too few to try it"
        )
    return device


def _import(module: str) -> object:
    """Import a module by its name, or from its file, with those beside it in reach as for ``python FILE``."""
    from importlib import import_module

    if not module.endswith(".py"):
        return import_module(module)
    import os
    import sys
    from importlib.util import module_from_spec, spec_from_file_location

    folder, file = os.path.split(os.path.abspath(module))
    sys.path.insert(0, folder)
    spec = spec_from_file_location(file.removesuffix(".py"), module)
    if spec is None or spec.loader is None:
        raise ImportError(f"{module} is no module")
    found = module_from_spec(spec)
    sys.modules.setdefault(spec.name, found)
    spec.loader.exec_module(found)
    return found
