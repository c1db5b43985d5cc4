"""The network device (VIRTIO 1.3, 5.1)."""

from pyvmm_virtio.devices.net.device import Net

__all__ = ["Net"]
