"""Every virtio device that there is a class for, made with a loop and back ends in memory."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from pyvmm_virtio import devices
from pyvmm_virtio.backends.datagram import DatagramNet
from pyvmm_virtio.backends.memory import MemoryDisk
from pyvmm_virtio.backends.port import CallablePort
from pyvmm_virtio.device import VirtioDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from pyvmm_device import EventLoop

MADE_OF: dict[str, Callable[[], Sequence[object]]] = {
    "disk": lambda: [MemoryDisk(1 << 20)],
    "backend": lambda: DatagramNet.pair(),
    "ports": lambda: [CallablePort(), CallablePort()],
}
"""What is given for a device's first argument, by its name."""


def device_classes() -> list[type[Any]]:
    """All classes of `pyvmm_virtio.devices` that are devices."""
    found: set[type[Any]] = set()
    for module in pkgutil.walk_packages(devices.__path__, "pyvmm_virtio.devices."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(kind, VirtioDevice) and kind is not VirtioDevice:
                found.add(kind)
    return sorted(found, key=lambda kind: kind.__name__)


def make_device(kind: type[Any], loop: EventLoop) -> Any:  # noqa: ANN401 - a device
    """Make a device of a class."""
    first = next(iter(inspect.signature(kind).parameters.values()))
    if first.kind is first.KEYWORD_ONLY or first.default is not first.empty:
        return kind(loop=loop)
    if first.name not in MADE_OF:
        raise AssertionError(f"{kind.__name__}({first.name}, ...): say in MADE_OF what it is made of")
    given = MADE_OF[first.name]()
    if first.kind is first.VAR_POSITIONAL:
        return kind(*given, loop=loop)
    device = kind(given[0], loop=loop)
    device.other_end = given[-1]  # kept open
    return device


def dispose(device: Any) -> None:  # noqa: ANN401 - a device
    """Close a device, and the other end of its back end."""
    for each in (device, getattr(device, "other_end", None)):
        getattr(each, "close", int)()
