"""The exceptions of this package: everything the kernel refuses is a `KvmError`, which is an `OSError`."""

from __future__ import annotations

import errno as _errno
import os


class KvmError(OSError):
    """An ioctl on a KVM file descriptor failed.

    Attributes:
        ioctl: the name of the call in linux/kvm.h, such as `"KVM_CREATE_VCPU"`.
        errno: the kernel's answer, as in every `OSError`.
        cause: what the number most likely means here and how to get round it, or an empty string.

    >>> KvmError(17, "KVM_CREATE_VCPU")
    KvmError(EEXIST, 'KVM_CREATE_VCPU')

    """

    def __init__(self, errno: int, ioctl: str, cause: str | None = None) -> None:
        self.ioctl = ioctl
        if cause is None:
            from pyvmm_kvm._causes import likely_cause

            cause = likely_cause(ioctl, errno)
        self.cause = cause
        name = _errno.errorcode.get(errno, str(errno))
        text = f"{ioctl} failed with {name} ({os.strerror(errno)})"
        super().__init__(errno, f"{text}: {cause}" if cause else text)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_errno.errorcode.get(self.errno or 0, self.errno)}, {self.ioctl!r})"

    def __reduce__(self) -> tuple[type, tuple[int | None, str, str]]:
        return type(self), (self.errno, self.ioctl, self.cause)


class ClosedError(KvmError, ValueError):
    """A method was called on a file descriptor that this process has closed; no system call was made."""

    def __init__(self, what: str, ioctl: str) -> None:
        self.what = what
        super().__init__(_errno.EBADF, ioctl, f"this {what} is closed")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:  # type: ignore[override]  # arguments of its own
        return type(self), (self.what, self.ioctl)


class BusyError(KvmError, RuntimeError):
    """A call of a vCPU that is running in another thread; no system call was made, for it might wait for ever.

    Attributes:
        vcpu: the vCPU's id.

    """

    def __init__(self, vcpu: int, ioctl: str) -> None:
        self.vcpu = vcpu
        cause = f"vCPU {vcpu} is running in another thread: pause or stop it first (RunControl)"
        super().__init__(_errno.EBUSY, ioctl, cause)

    def __reduce__(self) -> tuple[type, tuple[int, str]]:  # type: ignore[override]  # arguments of its own
        return type(self), (self.vcpu, self.ioctl)


class MsrError(KvmError):
    """KVM stopped at a model-specific register that it does not know or whose value it refuses.

    Attributes:
        index: the register's number.
        done: how many registers before it were read or written.

    """

    def __init__(self, ioctl: str, index: int, done: int) -> None:
        self.index = index
        self.done = done
        super().__init__(_errno.EINVAL, ioctl, f"MSR {index:#x} was refused after {done} others were accepted")

    def __reduce__(self) -> tuple[type, tuple[str, int, int]]:  # type: ignore[override]  # arguments of its own
        return type(self), (self.ioctl, self.index, self.done)


class StateError(ValueError):
    """A saved state or a binary block does not have the form that this version reads."""
