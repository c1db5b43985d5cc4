"""Devices inside the kernel, made by `VmFd.create_device`: VFIO groups, Arm's interrupt controllers and others."""

from __future__ import annotations

from pyvmm_kvm.device_attrs import DeviceAttrs

CREATE_DEVICE_TEST = 1


class DeviceFd(DeviceAttrs):
    """An in-kernel device's file descriptor. `type` is its KVM_DEV_TYPE_* number."""

    __slots__ = ("type",)

    VFIO = 4
    ARM_VGIC_V2 = 5
    ARM_VGIC_V3 = 7
    ARM_VGIC_ITS = 8
    RISCV_AIA = 11

    def __init__(self, fd: int, device_type: int) -> None:
        super().__init__(fd)
        self.type = device_type
