"""The Linux KVM API, typed.

One class for each kind of file descriptor, as in the kernel's own document: `Kvm` is ``/dev/kvm``, `VmFd` a machine,
`VcpuFd` a processor. Their methods are named after the ioctls. `VcpuFd.run` returns why the guest stopped as an
object made for ``match``:

    match vcpu.run():
        case IoOut(port, data): ...
        case MmioRead(address, data): ...
        case Hlt() | Shutdown(): ...

An exit's ``data`` is a live view into the page shared with the kernel. Errors are `KvmError`, which names the ioctl
and the likely cause. `VcpuThreads` runs a set of vCPUs in threads and stops them without losing a wake-up.
"""

from pyvmm_kvm.errors import ClosedError, KvmError
from pyvmm_kvm.exits import (
    Again,
    Exit,
    FailEntry,
    Hlt,
    InternalError,
    Intr,
    IoIn,
    IoOut,
    IrqWindowOpen,
    MmioRead,
    MmioWrite,
    Shutdown,
    SystemEvent,
    Unknown,
)
from pyvmm_kvm.ioevent import IoEventAddress
from pyvmm_kvm.system import Kvm
from pyvmm_kvm.vcpu import VcpuFd, ignore_signal
from pyvmm_kvm.vm import VmFd
from pyvmm_kvm.x86_64.registers import Dtable, Regs, Segment, Sregs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_kvm.run_control import VcpuThreads
    from pyvmm_kvm.x86_64.cpuid import CpuId, CpuIdEntry

__version__ = "0.1.0"

__all__ = [
    "Again",
    "ClosedError",
    "CpuId",
    "CpuIdEntry",
    "Dtable",
    "Exit",
    "FailEntry",
    "Hlt",
    "InternalError",
    "Intr",
    "IoEventAddress",
    "IoIn",
    "IoOut",
    "IrqWindowOpen",
    "Kvm",
    "KvmError",
    "MmioRead",
    "MmioWrite",
    "Regs",
    "Segment",
    "Shutdown",
    "Sregs",
    "SystemEvent",
    "Unknown",
    "VcpuFd",
    "VcpuThreads",
    "VmFd",
    "ignore_signal",
]

_LATER = {
    "CpuId": "pyvmm_kvm.x86_64.cpuid",
    "CpuIdEntry": "pyvmm_kvm.x86_64.cpuid",
    "VcpuThreads": "pyvmm_kvm.run_control",
}


def __getattr__(name: str) -> object:
    # threads and tables cost imports that a program of ten instructions does not need
    if name in _LATER:
        import importlib

        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
