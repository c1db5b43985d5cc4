"""Virtio: what a guest's drivers and a machine's devices agree on.

This version holds the numbers of that agreement: device status and feature bits, device types, ring flags, the
registers of the MMIO transport, and those of the block, network and console devices. They are named as in Linux's
headers, which the tests compare them with, and follow the VIRTIO 1.3 specification.

>>> from pyvmm_virtio.constants import device_ids, status
>>> device_ids.VIRTIO_ID_BLOCK
2
>>> hex(status.VIRTIO_CONFIG_S_DRIVER_OK)
'0x4'
"""

__version__ = "0.1.0"
