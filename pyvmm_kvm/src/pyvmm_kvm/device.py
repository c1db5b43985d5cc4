"""Devices inside the kernel, made by `VmFd.create_device`: VFIO groups, Arm's interrupt controllers and others."""

from __future__ import annotations

import errno

from pyvmm_kvm._kvm import ffi
from pyvmm_kvm.errors import KvmError
from pyvmm_kvm.fd import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

CREATE_DEVICE_TEST = 1


def device_attr(fd: Fd, name: str, group: int, attr: int, data: Buffer | None) -> int:
    """One of the three device-attribute calls, which VMs and vCPUs understand too."""
    if data is None:
        return fd.ioctl(name, ffi.new("struct kvm_device_attr *", (0, group, attr, 0)))
    with ffi.from_buffer("char[]", data) as content:
        address = int(ffi.cast("unsigned long", content))
        return fd.ioctl(name, ffi.new("struct kvm_device_attr *", (0, group, attr, address)))


def has_device_attr(fd: Fd, group: int, attr: int) -> bool:
    """Whether a device, VM or vCPU knows an attribute; one that has no attributes at all does not."""
    try:
        device_attr(fd, "KVM_HAS_DEVICE_ATTR", group, attr, None)
    except KvmError as error:
        if error.errno in (errno.ENXIO, errno.ENOTTY):
            return False
        raise
    return True


def get_device_attr(fd: Fd, group: int, attr: int, size: int) -> bytes:
    """The value of an attribute of `size` bytes."""
    data = bytearray(size)
    device_attr(fd, "KVM_GET_DEVICE_ATTR", group, attr, data)
    return bytes(data)


class DeviceFd(Fd):
    """An in-kernel device's file descriptor. `type` is its KVM_DEV_TYPE_* number."""

    __slots__ = ("type",)

    VFIO = 4
    ARM_VGIC_V2 = 5
    ARM_VGIC_V3 = 7
    ARM_VGIC_ITS = 8
    RISCV_AIA = 13

    def __init__(self, fd: int, device_type: int) -> None:
        super().__init__(fd)
        self.type = device_type

    def has_device_attr(self, group: int, attr: int) -> bool:
        """Whether the device knows this attribute."""
        return has_device_attr(self, group, attr)

    def set_device_attr(self, group: int, attr: int, data: Buffer | None = None) -> None:
        """Write an attribute from a buffer of the size that the device's documentation gives."""
        device_attr(self, "KVM_SET_DEVICE_ATTR", group, attr, data)

    def get_device_attr(self, group: int, attr: int, size: int = 8) -> bytes:
        """Read an attribute of `size` bytes."""
        return get_device_attr(self, group, attr, size)
