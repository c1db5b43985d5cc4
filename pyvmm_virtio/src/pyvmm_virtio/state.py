"""The state of a device as JSON carries it, and what is accepted back."""

from __future__ import annotations

from pyvmm_device.errors import DeviceStateError
from pyvmm_device.state import FLAG, blob, load_fields, uint
from pyvmm_virtio.constants.features import VIRTIO_F_RING_PACKED
from pyvmm_virtio.queue.packed import PackedQueue
from pyvmm_virtio.queue.split import SplitQueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from pyvmm_virtio.device import VirtioDevice
    from pyvmm_virtio.queue.protocol import Queue

VERSION = 1


def save(device: VirtioDevice) -> dict[str, Any]:
    """Return the state of a device."""
    return {
        "device": type(device).__name__,
        "version": VERSION,
        "offered": device.device_features,
        "features": device.driver_features,
        "active": device.active,
        "needs_reset": device.needs_reset,
        "config": bytes(device.config).hex(),
        "config_generation": device.config_generation,
        "queues": [queue.state() for queue in device.queues],
        "own": device.device_state(),
    }


def check(device: VirtioDevice, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a state, with its queues made; raises DeviceStateError, and changes nothing."""
    name = type(device).__name__
    kinds = {
        "offered": uint(64),
        "features": uint(64),
        "active": FLAG,
        "needs_reset": FLAG,
        "config": blob(len(device.config)),
        "config_generation": uint(32),
    }
    fields = load_fields(name, kinds, state, version=VERSION)
    try:
        fields["own"] = state["own"]
        if not isinstance(fields["own"], dict):
            raise ValueError("what is the device's own is no dictionary")
        fields["queues"] = _queues(device, state["queues"], packed=bool(fields["features"] >> VIRTIO_F_RING_PACKED & 1))
    except (KeyError, ValueError, TypeError) as error:
        raise DeviceStateError(name, repr(error)) from None
    if fields["features"] & ~device.device_features or fields["offered"] != device.device_features:
        raise DeviceStateError(name, f"it offers {fields['offered']:#x}, here is {device.device_features:#x}")
    return fields


def _queues(device: VirtioDevice, states: object, *, packed: bool) -> list[Queue]:
    kind: type[Queue] = PackedQueue if packed else SplitQueue
    if not isinstance(states, list) or len(states) != len(device.queue_max_sizes):
        raise ValueError("it has another number of queues")
    queues = [kind.from_state(state) for state in states]
    if [(queue.index, queue.max_size()) for queue in queues] != list(enumerate(device.queue_max_sizes)):
        raise ValueError("its queues have other sizes")
    return queues
