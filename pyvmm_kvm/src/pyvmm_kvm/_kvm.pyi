# Kept by hand, since cffi modules carry no types; a test compares it with dir(lib).
from typing import Any

class _FFI:
    NULL: Any
    def from_buffer(self, cdecl: str, python_buffer: object, require_writable: bool = False) -> Any: ...
    def cast(self, cdecl: str, source: object) -> Any: ...
    def release(self, cdata: object) -> None: ...

class _Lib:
    KVM_GET_API_VERSION: int
    KVM_CREATE_VM: int
    KVM_CHECK_EXTENSION: int
    KVM_GET_VCPU_MMAP_SIZE: int
    KVM_GET_SUPPORTED_CPUID: int
    KVM_SET_USER_MEMORY_REGION: int
    KVM_CREATE_VCPU: int
    KVM_CREATE_IRQCHIP: int
    KVM_CREATE_PIT2: int
    KVM_SET_TSS_ADDR: int
    KVM_SET_IDENTITY_MAP_ADDR: int
    KVM_IRQ_LINE: int
    KVM_IRQFD: int
    KVM_IOEVENTFD: int
    KVM_GET_DIRTY_LOG: int
    KVM_ENABLE_CAP: int
    KVM_GET_REGS: int
    KVM_SET_REGS: int
    KVM_GET_SREGS: int
    KVM_SET_SREGS: int
    KVM_SET_CPUID2: int
    KVM_GET_CPUID2: int
    KVM_GET_MSRS: int
    KVM_SET_MSRS: int
    KVM_GET_MP_STATE: int
    KVM_SET_MP_STATE: int
    KVM_API_VERSION: int
    KVM_CAP_NR_VCPUS: int
    KVM_CAP_MAX_VCPUS: int
    KVM_CAP_MAX_VCPU_ID: int
    KVM_CAP_NR_MEMSLOTS: int
    KVM_MEM_LOG_DIRTY_PAGES: int
    KVM_MEM_READONLY: int
    KVM_IRQFD_FLAG_DEASSIGN: int
    KVM_IRQFD_FLAG_RESAMPLE: int
    KVM_IOEVENTFD_FLAG_DATAMATCH: int
    KVM_IOEVENTFD_FLAG_PIO: int
    KVM_IOEVENTFD_FLAG_DEASSIGN: int
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX: int
    KVM_MP_STATE_RUNNABLE: int
    KVM_MP_STATE_UNINITIALIZED: int
    KVM_MP_STATE_INIT_RECEIVED: int
    KVM_MP_STATE_HALTED: int
    KVM_EXIT_UNKNOWN: int
    KVM_EXIT_IO: int
    KVM_EXIT_HLT: int
    KVM_EXIT_MMIO: int
    KVM_EXIT_IRQ_WINDOW_OPEN: int
    KVM_EXIT_SHUTDOWN: int
    KVM_EXIT_FAIL_ENTRY: int
    KVM_EXIT_INTR: int
    KVM_EXIT_INTERNAL_ERROR: int
    KVM_EXIT_SYSTEM_EVENT: int
    KVM_EXIT_IO_OUT: int
    PYVMM_RUN_IMMEDIATE_EXIT: int
    PYVMM_RUN_EXIT_REASON: int
    PYVMM_RUN_PAYLOAD: int
    def pyvmm_ioctl(self, fd: int, request: int, argument: object) -> int: ...
    def pyvmm_ioctl_value(self, fd: int, request: int, argument: int) -> int: ...
    def pyvmm_run(self, fd: int) -> int: ...
    def pyvmm_ignore_signal(self, number: int) -> int: ...

ffi: _FFI
lib: _Lib
