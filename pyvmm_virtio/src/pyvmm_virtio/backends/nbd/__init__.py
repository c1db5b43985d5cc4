"""Disks behind NBD: any image format, and any storage somewhere else, through a server that knows it."""

from pyvmm_virtio.backends.nbd.client import NbdDisk
from pyvmm_virtio.backends.nbd.server import QemuNbdServer

__all__ = ["NbdDisk", "QemuNbdServer"]
