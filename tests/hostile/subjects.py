"""What of virtio is attacked, found in the code: devices, back ends, kinds of rings."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING

import pyvmm_virtio
from pyvmm_virtio.device import VirtioDevice
from pyvmm_virtio.queue.base import BaseQueue
from pyvmm_virtio.samples import NAMES, make

if TYPE_CHECKING:
    from collections.abc import Iterator


def classes(package: str) -> Iterator[type]:
    """All classes that a package of ours defines, each once."""
    top = importlib.import_module(package)
    modules = [
        top,
        *(importlib.import_module(each.name) for each in pkgutil.walk_packages(top.__path__, f"{package}.")),
    ]
    for module in modules:
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__ == module.__name__:
                yield value


def device_classes() -> set[type[VirtioDevice]]:
    return {each for each in classes("pyvmm_virtio.devices") if issubclass(each, VirtioDevice)}


def net_backends() -> list[type]:
    return [each for each in classes("pyvmm_virtio.backends") if hasattr(each, "set_queue_pairs")]


def port_backends() -> list[type]:
    from pyvmm_virtio.backends.port import BasePort

    return [each for each in classes("pyvmm_virtio.backends") if issubclass(each, BasePort) and each is not BasePort]


def kinds_of_queues() -> list[type[BaseQueue]]:
    return [each for each in classes("pyvmm_virtio.queue") if issubclass(each, BaseQueue) and each is not BaseQueue]


def dispose(device: VirtioDevice) -> None:
    for each in (device, getattr(device, "other_end", None)):
        getattr(each, "close", int)()


DEVICES = NAMES
COMBINATIONS = [
    (device, transport, ring) for device in DEVICES for transport in ("mmio", "pci") for ring in ("split", "packed")
]

__all__ = [
    "COMBINATIONS",
    "DEVICES",
    "device_classes",
    "dispose",
    "kinds_of_queues",
    "make",
    "net_backends",
    "port_backends",
    "pyvmm_virtio",
]
