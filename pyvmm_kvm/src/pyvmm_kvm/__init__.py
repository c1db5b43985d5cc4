"""The Linux KVM API, typed: system, VM, vCPU and device file descriptors, every exit as an object.

One class owns each kind of file descriptor - `Kvm`, `VmFd`, `VcpuFd`, `DeviceFd` - and its methods are named after
the ioctls, as rust-vmm's kvm-ioctls names them. `VcpuFd.run()` enters the guest and returns a typed exit for `match`::

    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.set_user_memory_region(0, 0x1000, memory)
        with vm.create_vcpu(0) as vcpu:
            match vcpu.run():
                case IoOut(port, data): ...

What the kernel refuses is a `KvmError`, an `OSError` that names the ioctl and the likely cause. Memory given to a VM
stays alive as long as the VM. Nothing here starts a thread or handles a signal unless `RunControl` is asked to.

The names below load their modules when they are first used: a VMM pays at start-up for what it touches. Those of
`x86_64` come from `aarch64` or `riscv64` on such a host, and those that its architecture does not have are not among
`__all__` there. Each of the three packages imports on any host.
"""

from __future__ import annotations

from os import uname

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_kvm.cap import Cap as Cap
    from pyvmm_kvm.crash import crash_report as crash_report
    from pyvmm_kvm.device import CREATE_DEVICE_TEST as CREATE_DEVICE_TEST
    from pyvmm_kvm.device import DeviceFd as DeviceFd
    from pyvmm_kvm.dirty_ring import DirtyRing as DirtyRing
    from pyvmm_kvm.errors import BusyError as BusyError
    from pyvmm_kvm.errors import ClosedError as ClosedError
    from pyvmm_kvm.errors import KvmError as KvmError
    from pyvmm_kvm.errors import MsrError as MsrError
    from pyvmm_kvm.errors import StateError as StateError
    from pyvmm_kvm.exits.foreign import ArmDebug as ArmDebug
    from pyvmm_kvm.exits.foreign import ArmNisv as ArmNisv
    from pyvmm_kvm.exits.foreign import ArmSea as ArmSea
    from pyvmm_kvm.exits.foreign import Dcr as Dcr
    from pyvmm_kvm.exits.foreign import Epr as Epr
    from pyvmm_kvm.exits.foreign import LoongarchIocsr as LoongarchIocsr
    from pyvmm_kvm.exits.foreign import Osi as Osi
    from pyvmm_kvm.exits.foreign import PaprHcall as PaprHcall
    from pyvmm_kvm.exits.foreign import RiscvCsr as RiscvCsr
    from pyvmm_kvm.exits.foreign import RiscvDebug as RiscvDebug
    from pyvmm_kvm.exits.foreign import RiscvSbi as RiscvSbi
    from pyvmm_kvm.exits.foreign import S390Reset as S390Reset
    from pyvmm_kvm.exits.foreign import S390Sieic as S390Sieic
    from pyvmm_kvm.exits.foreign import S390Stsi as S390Stsi
    from pyvmm_kvm.exits.foreign import S390Tsch as S390Tsch
    from pyvmm_kvm.exits.foreign import S390Ucontrol as S390Ucontrol
    from pyvmm_kvm.exits.foreign import Watchdog as Watchdog
    from pyvmm_kvm.exits.hot import Again as Again
    from pyvmm_kvm.exits.hot import Hlt as Hlt
    from pyvmm_kvm.exits.hot import Intr as Intr
    from pyvmm_kvm.exits.hot import IoIn as IoIn
    from pyvmm_kvm.exits.hot import IoOut as IoOut
    from pyvmm_kvm.exits.hot import MmioRead as MmioRead
    from pyvmm_kvm.exits.hot import MmioWrite as MmioWrite
    from pyvmm_kvm.exits.hot import Shutdown as Shutdown
    from pyvmm_kvm.exits.hot import StringIn as StringIn
    from pyvmm_kvm.exits.hot import StringOut as StringOut
    from pyvmm_kvm.exits.hot import Unknown as Unknown
    from pyvmm_kvm.exits.hot import VcpuExit as VcpuExit
    from pyvmm_kvm.exits.rare import ApResetHold as ApResetHold
    from pyvmm_kvm.exits.rare import Debug as Debug
    from pyvmm_kvm.exits.rare import DirtyRingFull as DirtyRingFull
    from pyvmm_kvm.exits.rare import FailEntry as FailEntry
    from pyvmm_kvm.exits.rare import GuestException as GuestException
    from pyvmm_kvm.exits.rare import Hypercall as Hypercall
    from pyvmm_kvm.exits.rare import Hyperv as Hyperv
    from pyvmm_kvm.exits.rare import InternalError as InternalError
    from pyvmm_kvm.exits.rare import IoapicEoi as IoapicEoi
    from pyvmm_kvm.exits.rare import IrqWindowOpen as IrqWindowOpen
    from pyvmm_kvm.exits.rare import MemoryFault as MemoryFault
    from pyvmm_kvm.exits.rare import Nmi as Nmi
    from pyvmm_kvm.exits.rare import Notify as Notify
    from pyvmm_kvm.exits.rare import SetTpr as SetTpr
    from pyvmm_kvm.exits.rare import SystemEvent as SystemEvent
    from pyvmm_kvm.exits.rare import Tdx as Tdx
    from pyvmm_kvm.exits.rare import TprAccess as TprAccess
    from pyvmm_kvm.exits.rare import X86BusLock as X86BusLock
    from pyvmm_kvm.exits.rare import X86Rdmsr as X86Rdmsr
    from pyvmm_kvm.exits.rare import X86Wrmsr as X86Wrmsr
    from pyvmm_kvm.exits.rare import Xen as Xen
    from pyvmm_kvm.gsi_router import GsiRouter as GsiRouter
    from pyvmm_kvm.ioevent import IoEventAddress as IoEventAddress
    from pyvmm_kvm.memory_slot import GUEST_MEMFD_INIT_SHARED as GUEST_MEMFD_INIT_SHARED
    from pyvmm_kvm.memory_slot import GUEST_MEMFD_MMAP as GUEST_MEMFD_MMAP
    from pyvmm_kvm.memory_slot import MEM_GUEST_MEMFD as MEM_GUEST_MEMFD
    from pyvmm_kvm.memory_slot import MEM_LOG_DIRTY_PAGES as MEM_LOG_DIRTY_PAGES
    from pyvmm_kvm.memory_slot import MEM_READONLY as MEM_READONLY
    from pyvmm_kvm.memory_slot import MEMORY_ATTRIBUTE_PRIVATE as MEMORY_ATTRIBUTE_PRIVATE
    from pyvmm_kvm.memory_slot import MemorySlot as MemorySlot
    from pyvmm_kvm.mp_state import MpState as MpState
    from pyvmm_kvm.one_reg import RegList as RegList
    from pyvmm_kvm.routing import IrqRoute as IrqRoute
    from pyvmm_kvm.routing import IrqRouting as IrqRouting
    from pyvmm_kvm.run_control import RunControl as RunControl
    from pyvmm_kvm.stats import Statistic as Statistic
    from pyvmm_kvm.stats import Stats as Stats
    from pyvmm_kvm.system import Kvm as Kvm
    from pyvmm_kvm.trace import ExitTrace as ExitTrace
    from pyvmm_kvm.trace import read_trace as read_trace
    from pyvmm_kvm.vcpu import VcpuFd as VcpuFd
    from pyvmm_kvm.vm import VmFd as VmFd
    from pyvmm_kvm.x86_64.cpuid import CpuId as CpuId
    from pyvmm_kvm.x86_64.cpuid import CpuIdEntry as CpuIdEntry
    from pyvmm_kvm.x86_64.cpuid_policy import CpuidPolicy as CpuidPolicy
    from pyvmm_kvm.x86_64.cpuid_policy import Template as Template
    from pyvmm_kvm.x86_64.debug import GuestDebug as GuestDebug
    from pyvmm_kvm.x86_64.modes import code_segment as code_segment
    from pyvmm_kvm.x86_64.modes import data_segment as data_segment
    from pyvmm_kvm.x86_64.modes import descriptor as descriptor
    from pyvmm_kvm.x86_64.modes import setup_long_mode as setup_long_mode
    from pyvmm_kvm.x86_64.modes import setup_protected_mode as setup_protected_mode
    from pyvmm_kvm.x86_64.modes import setup_real_mode as setup_real_mode
    from pyvmm_kvm.x86_64.msr_filter import MsrFilterRange as MsrFilterRange
    from pyvmm_kvm.x86_64.msrs import MsrList as MsrList
    from pyvmm_kvm.x86_64.msrs import Msrs as Msrs
    from pyvmm_kvm.x86_64.page_walk import Mapping as Mapping
    from pyvmm_kvm.x86_64.page_walk import mappings as mappings
    from pyvmm_kvm.x86_64.page_walk import walk as walk
    from pyvmm_kvm.x86_64.platform import ClockData as ClockData
    from pyvmm_kvm.x86_64.platform import IoApicState as IoApicState
    from pyvmm_kvm.x86_64.platform import IrqChip as IrqChip
    from pyvmm_kvm.x86_64.platform import PicState as PicState
    from pyvmm_kvm.x86_64.platform import PitChannelState as PitChannelState
    from pyvmm_kvm.x86_64.platform import PitState2 as PitState2
    from pyvmm_kvm.x86_64.state import VcpuState as VcpuState
    from pyvmm_kvm.x86_64.state import VmState as VmState
    from pyvmm_kvm.x86_64.structs import DebugRegs as DebugRegs
    from pyvmm_kvm.x86_64.structs import Dtable as Dtable
    from pyvmm_kvm.x86_64.structs import Fpu as Fpu
    from pyvmm_kvm.x86_64.structs import LapicState as LapicState
    from pyvmm_kvm.x86_64.structs import Regs as Regs
    from pyvmm_kvm.x86_64.structs import Segment as Segment
    from pyvmm_kvm.x86_64.structs import Sregs as Sregs
    from pyvmm_kvm.x86_64.structs import Sregs2 as Sregs2
    from pyvmm_kvm.x86_64.structs import VcpuEvents as VcpuEvents
    from pyvmm_kvm.x86_64.structs import Xcr as Xcr
    from pyvmm_kvm.x86_64.xsave import NestedState as NestedState
    from pyvmm_kvm.x86_64.xsave import Xsave2 as Xsave2

_HOMES = {
    "cap": "Cap",
    "crash": "crash_report",
    "device": "CREATE_DEVICE_TEST DeviceFd",
    "dirty_ring": "DirtyRing",
    "errors": "BusyError ClosedError KvmError MsrError StateError",
    "exits.hot": "Again Hlt Intr IoIn IoOut MmioRead MmioWrite Shutdown StringIn StringOut Unknown VcpuExit",
    "exits.foreign": (
        "ArmDebug ArmNisv ArmSea Dcr Epr LoongarchIocsr Osi PaprHcall RiscvCsr RiscvDebug RiscvSbi S390Reset "
        "S390Sieic S390Stsi S390Tsch S390Ucontrol Watchdog"
    ),
    "exits.rare": (
        "ApResetHold Debug DirtyRingFull FailEntry GuestException Hypercall Hyperv InternalError "
        "IoapicEoi IrqWindowOpen MemoryFault Nmi Notify SetTpr SystemEvent Tdx TprAccess X86BusLock "
        "X86Rdmsr X86Wrmsr Xen"
    ),
    "gsi_router": "GsiRouter",
    "ioevent": "IoEventAddress",
    "memory_slot": (
        "GUEST_MEMFD_INIT_SHARED GUEST_MEMFD_MMAP MEM_GUEST_MEMFD MEM_LOG_DIRTY_PAGES MEM_READONLY "
        "MEMORY_ATTRIBUTE_PRIVATE MemorySlot"
    ),
    "mp_state": "MpState",
    "one_reg": "RegList",
    "routing": "IrqRoute IrqRouting",
    "run_control": "RunControl",
    "stats": "Statistic Stats",
    "system": "Kvm",
    "trace": "ExitTrace read_trace",
    "vcpu": "VcpuFd",
    "vm": "VmFd",
}
# names of an architecture: the modules of the three have the same names, and no other has all that x86_64 has
_ARCHITECTURES = {
    "x86_64": {
        "x86_64.cpuid": "CpuId CpuIdEntry",
        "x86_64.cpuid_policy": "CpuidPolicy Template",
        "x86_64.debug": "GuestDebug",
        "x86_64.modes": "code_segment data_segment descriptor setup_long_mode setup_protected_mode setup_real_mode",
        "x86_64.msr_filter": "MsrFilterRange",
        "x86_64.msrs": "MsrList Msrs",
        "x86_64.page_walk": "Mapping mappings walk",
        "x86_64.platform": "ClockData IoApicState IrqChip PicState PitChannelState PitState2",
        "x86_64.state": "VcpuState VmState",
        "x86_64.structs": "DebugRegs Dtable Fpu LapicState Regs Segment Sregs Sregs2 VcpuEvents Xcr",
        "x86_64.xsave": "NestedState Xsave2",
    },
    "aarch64": {
        "aarch64.debug": "GuestDebug",
        "aarch64.state": "VcpuState VmState",
        "aarch64.structs": "Regs VcpuEvents",
    },
    "riscv64": {
        "riscv64.debug": "GuestDebug",
        "riscv64.state": "VcpuState VmState",
        "riscv64.structs": "Regs",
    },
}
_HOMES |= _ARCHITECTURES.get(uname().machine, {})


def _elsewhere(name: str) -> str:
    where = [machine for machine, homes in _ARCHITECTURES.items() if name in " ".join(homes.values()).split()]
    return f": it exists on {' and '.join(where)} hosts only" if where else ""


_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{_elsewhere(name)}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
