"""The device status field (VIRTIO 1.3, 2.1 "Device Status Field"): how far the driver has come.

Names and values of ``linux/virtio_config.h``.
"""

VIRTIO_CONFIG_S_ACKNOWLEDGE = 0x1
VIRTIO_CONFIG_S_DRIVER = 0x2
VIRTIO_CONFIG_S_DRIVER_OK = 0x4
VIRTIO_CONFIG_S_FEATURES_OK = 0x8
VIRTIO_CONFIG_S_NEEDS_RESET = 0x40
VIRTIO_CONFIG_S_FAILED = 0x80
