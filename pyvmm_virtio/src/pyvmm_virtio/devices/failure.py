"""What a back end cannot do: it is counted, the guest is answered, and the device goes on."""

from __future__ import annotations

from pyvmm_device.tally import ERROR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_virtio.device import VirtioDevice


def note_failure(device: VirtioDevice, what: str, error: OSError) -> None:
    """Count what a back end refused, by what it was asked for, and log the first of each kind."""
    message = "%r: the back end refuses (%s; others of this kind are only counted): %s"
    device.errors.count(what, message, device, what, error, level=ERROR)
