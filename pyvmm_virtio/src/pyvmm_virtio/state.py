"""The state of a device as JSON carries it, and what is accepted back."""

from __future__ import annotations

from pyvmm_device.errors import DeviceStateError
from pyvmm_device.state import FLAG, PART, array, blob, load_fields, uint
from pyvmm_virtio.constants.features import VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED
from pyvmm_virtio.constants.ring import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from pyvmm_virtio.features import refusal
from pyvmm_virtio.queue.packed import PackedQueue
from pyvmm_virtio.queue.split import SplitQueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from pyvmm_virtio.device import VirtioDevice
    from pyvmm_virtio.queue.protocol import Queue

VERSION = 1
NEGOTIATED = {
    "event_idx": VIRTIO_RING_F_EVENT_IDX,
    "indirect": VIRTIO_RING_F_INDIRECT_DESC,
    "in_order": VIRTIO_F_IN_ORDER,
}
"""What a queue does only where the driver said so."""


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
        "queues": array(PART, len(device.queue_max_sizes), len(device.queue_max_sizes)),
    }
    fields = load_fields(name, kinds, state, version=VERSION, others=["own"])
    fields["own"] = state.get("own")
    if not isinstance(fields["own"], dict):
        raise DeviceStateError(name, "what is the device's own is no dictionary")
    features = fields["features"]
    if features & ~device.device_features or fields["offered"] != device.device_features:
        raise DeviceStateError(name, f"it offers {fields['offered']:#x}, here is {device.device_features:#x}")
    # no features are those of a device that no driver has negotiated with
    reason = refusal(device.device_features, features) or device.check_features(features) if features else None
    if reason is not None:
        raise DeviceStateError(name, f"features {features:#x}: {reason}")
    if fields["active"] and not features:
        raise DeviceStateError(name, "it is active, and nothing was negotiated")
    fields["queues"] = _queues(device, fields["queues"], features)
    check_own = getattr(device, "check_device_state", None)
    if check_own is not None:
        check_own(fields["own"], features)
    for part in device.fixed_config:
        if fields["config"][part.start : part.stop] != device.config[part.start : part.stop]:
            raise DeviceStateError(name, f"bytes {part.start} to {part.stop - 1} of its configuration are not as here")
    contradiction = getattr(device, "contradiction", None)
    if contradiction is not None and (wrong := contradiction(fields)) is not None:
        raise DeviceStateError(name, wrong)
    return fields


def _queues(device: VirtioDevice, states: list[Any], features: int) -> list[Queue]:
    kind: type[Queue] = PackedQueue if features >> VIRTIO_F_RING_PACKED & 1 else SplitQueue
    queues = [kind.from_state(state) for state in states]
    name = type(device).__name__
    for number, queue in enumerate(queues):
        if (queue.index, queue.max_size()) != (number, device.queue_max_sizes[number]):
            raise DeviceStateError(name, f"its queue {number} is of another number or size")
        for attribute, feature in NEGOTIATED.items():
            # set when the driver says FEATURES_OK, or a queue is reset: never more than was negotiated, once that is so
            if features and getattr(queue, attribute) and not features >> feature & 1:
                raise DeviceStateError(name, f"its queue {number} uses {attribute}, which is not negotiated")
    return queues
