"""The block device (VIRTIO 1.3, 5.2)."""

from pyvmm_virtio.devices.block.device import Block

__all__ = ["Block"]
