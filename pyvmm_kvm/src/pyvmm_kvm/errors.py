"""What can go wrong: the kernel refused a call, or the call came too late."""

from __future__ import annotations

import errno
import os

_CAUSES = {
    ("open", errno.ENOENT): "there is no such device: load the kvm module (kvm_intel, kvm_amd or kvm_pvm)",
    ("open", errno.EACCES): "no permission: join the group that owns it (usually kvm), or run as root",
    ("open", errno.EPERM): "no permission: join the group that owns it (usually kvm), or run as root",
    ("KVM_CREATE_VM", errno.EBUSY): "hardware virtualization is in use by another hypervisor",
    ("KVM_CREATE_VCPU", errno.EEXIST): "this VM has a vCPU with this id",
    ("KVM_CREATE_VCPU", errno.EINVAL): "the id is beyond KVM_CAP_MAX_VCPU_ID, or there are KVM_CAP_MAX_VCPUS already",
    ("KVM_CREATE_IRQCHIP", errno.EEXIST): "this VM has an interrupt controller, or it has vCPUs already",
    ("KVM_SET_USER_MEMORY_REGION", errno.EEXIST): "the range overlaps that of another slot",
    ("KVM_SET_USER_MEMORY_REGION", errno.EINVAL): "addresses and size must be multiples of the page size, slots valid",
    ("KVM_IRQFD", errno.EBUSY): "this eventfd is bound to an interrupt already",
    ("KVM_IOEVENTFD", errno.EEXIST): "this address and value are taken by another eventfd",
    ("KVM_RUN", errno.EFAULT): "the guest touched memory that KVM cannot reach",
}


class KvmError(OSError):
    """The kernel refused a KVM call.

    Attributes:
        call: the ioctl's name as in ``linux/kvm.h``, or ``open``.
        errno: why, as an ``errno`` number.
    """

    def __init__(self, call: str, number: int, detail: str = "", where: str = "") -> None:
        cause = detail or _CAUSES.get((call, number), "")
        what = f"{call} {where}" if where else call
        super().__init__(number, f"{what}: {os.strerror(number)}" + (f": {cause}" if cause else ""))
        self.call = call

    def __str__(self) -> str:
        return str(self.strerror)


class ClosedError(ValueError):
    """A call on something that has been closed; nothing reached the kernel."""
