"""Attributes by group and number: what KVM itself, VMs, vCPUs and in-kernel devices are asked and told besides ioctls.

The kernel describes them, and the size of each, in Documentation/virt/kvm/devices.
"""

from __future__ import annotations

import errno

from pyvmm_kvm._kvm import ffi
from pyvmm_kvm.errors import KvmError, StateError
from pyvmm_kvm.fd import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer


class ReadableAttrs(Fd):
    """Attributes that can only be read: those of KVM as a whole (x86: 0, 0 is the extended states guests can have)."""

    __slots__ = ()

    def has_device_attr(self, group: int, attr: int) -> bool:
        """Say whether this attribute exists; what has no attributes at all does not have it."""
        # ENXIO is the answer of what has attributes; a descriptor without any does not know the call, and which of the
        # two others says that depends on the architecture and the kernel
        try:
            _call(self, "KVM_HAS_DEVICE_ATTR", group, attr, None)
        except KvmError as error:
            if error.errno in (errno.ENXIO, errno.ENOTTY, errno.EINVAL):
                return False
            raise
        return True

    def get_device_attr(self, group: int, attr: int, size: int = 8) -> bytes:
        """Read an attribute of `size` bytes. `StateError` where KVM wrote more than that."""
        data = bytearray(size) + _MARK
        _call(self, "KVM_GET_DEVICE_ATTR", group, attr, data)
        if data[size:] != _MARK:
            raise StateError(f"attribute {group}, {attr} has more than {size} bytes")
        return bytes(data[:size])


class DeviceAttrs(ReadableAttrs):
    """Attributes of a device, a VM (arm64: 0, 0 is the SMCCC filter) or a vCPU (x86: 0, 0 is the TSC offset)."""

    __slots__ = ()

    def set_device_attr(self, group: int, attr: int, data: Buffer | None = None) -> None:
        """Write an attribute from a buffer of its size, or set off what has no value."""
        if data is not None and not memoryview(data).nbytes:
            raise ValueError("an attribute without a value is set by None, and others have at least one byte")
        padded = None if data is None else bytearray(memoryview(data).cast("B")) + bytes(_LARGEST)
        _call(self, "KVM_SET_DEVICE_ATTR", group, attr, padded)


# KVM takes no length: it reads and writes as much as the attribute has, of which none has more than this
_LARGEST = 256
_MARK = b"\xa5" * _LARGEST


def _call(fd: Fd, name: str, group: int, attr: int, data: Buffer | None) -> None:
    if data is None:
        fd.ioctl(name, ffi.new("struct kvm_device_attr *", (0, group, attr, 0)))
        return
    with ffi.from_buffer("char[]", data) as content:
        address = int(ffi.cast("unsigned long", content))
        fd.ioctl(name, ffi.new("struct kvm_device_attr *", (0, group, attr, address)))
