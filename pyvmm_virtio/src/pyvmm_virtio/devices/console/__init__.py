"""The console device (VIRTIO 1.3, 5.3)."""

from pyvmm_virtio.devices.console.device import Console
from pyvmm_virtio.devices.console.port import Port

__all__ = ["Console", "Port"]
