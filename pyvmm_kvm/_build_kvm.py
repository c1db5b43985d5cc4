"""Builds pyvmm_kvm._kvm with cffi in API mode: the compiler takes every number from linux/kvm.h and checks sizes.

Only the calls are compiled. Fixed arguments, because a variadic call costs twice as much; the errno comes back in the
result, because by the time Python could ask for it another thread may have changed it.
"""

from cffi import FFI

REQUESTS = """
KVM_GET_API_VERSION KVM_CREATE_VM KVM_CHECK_EXTENSION KVM_GET_VCPU_MMAP_SIZE KVM_GET_SUPPORTED_CPUID
KVM_SET_USER_MEMORY_REGION KVM_CREATE_VCPU KVM_CREATE_IRQCHIP KVM_CREATE_PIT2 KVM_SET_TSS_ADDR
KVM_SET_IDENTITY_MAP_ADDR KVM_IRQ_LINE KVM_IRQFD KVM_IOEVENTFD KVM_GET_DIRTY_LOG KVM_ENABLE_CAP
KVM_GET_REGS KVM_SET_REGS KVM_GET_SREGS KVM_SET_SREGS KVM_SET_CPUID2 KVM_GET_CPUID2 KVM_GET_MSRS KVM_SET_MSRS
KVM_GET_MP_STATE KVM_SET_MP_STATE
""".split()

CONSTANTS = """
KVM_API_VERSION KVM_CAP_NR_VCPUS KVM_CAP_MAX_VCPUS KVM_CAP_MAX_VCPU_ID KVM_CAP_NR_MEMSLOTS
KVM_MEM_LOG_DIRTY_PAGES KVM_MEM_READONLY
KVM_IRQFD_FLAG_DEASSIGN KVM_IRQFD_FLAG_RESAMPLE
KVM_IOEVENTFD_FLAG_DATAMATCH KVM_IOEVENTFD_FLAG_PIO KVM_IOEVENTFD_FLAG_DEASSIGN
KVM_CPUID_FLAG_SIGNIFCANT_INDEX
KVM_MP_STATE_RUNNABLE KVM_MP_STATE_UNINITIALIZED KVM_MP_STATE_INIT_RECEIVED KVM_MP_STATE_HALTED
KVM_EXIT_UNKNOWN KVM_EXIT_IO KVM_EXIT_HLT KVM_EXIT_MMIO KVM_EXIT_IRQ_WINDOW_OPEN KVM_EXIT_SHUTDOWN
KVM_EXIT_FAIL_ENTRY KVM_EXIT_INTR KVM_EXIT_INTERNAL_ERROR KVM_EXIT_SYSTEM_EVENT KVM_EXIT_IO_OUT
""".split()

OFFSETS = {
    "PYVMM_RUN_IMMEDIATE_EXIT": "immediate_exit",
    "PYVMM_RUN_EXIT_REASON": "exit_reason",
    "PYVMM_RUN_PAYLOAD": "hw",
}

SIZES = {"kvm_regs": 144, "kvm_sregs": 312, "kvm_segment": 24, "kvm_cpuid_entry2": 40, "kvm_msr_entry": 16}

ffibuilder = FFI()
ffibuilder.cdef(
    "\n".join(f"#define {name} ..." for name in [*REQUESTS, *CONSTANTS, *OFFSETS])
    + """
    int pyvmm_ioctl(int fd, unsigned long request, void *argument);
    int pyvmm_ioctl_value(int fd, unsigned long request, unsigned long argument);
    int pyvmm_run(int fd);
    int pyvmm_ignore_signal(int number);
    """
)
ffibuilder.set_source(
    "pyvmm_kvm._kvm",
    """
    #include <errno.h>
    #include <signal.h>
    #include <stddef.h>
    #include <sys/ioctl.h>
    #include <linux/kvm.h>
    """
    + "\n".join(f"#define {name} offsetof(struct kvm_run, {field})" for name, field in OFFSETS.items())
    + "\n"
    + "\n".join(f'_Static_assert(sizeof(struct {name}) == {size}, "{name}");' for name, size in SIZES.items())
    + """
    static int pyvmm_ioctl(int fd, unsigned long request, void *argument)
    {
        int result = ioctl(fd, request, argument);
        return result < 0 ? -errno : result;
    }

    static int pyvmm_ioctl_value(int fd, unsigned long request, unsigned long argument)
    {
        int result = ioctl(fd, request, argument);
        return result < 0 ? -errno : result;
    }

    /* Never retries: EINTR is how a kick comes back. */
    static int pyvmm_run(int fd)
    {
        return ioctl(fd, KVM_RUN, 0) < 0 ? -errno : 0;
    }

    static void pyvmm_do_nothing(int number)
    {
        (void)number;
    }

    /* A handler that does nothing, without SA_RESTART, so that the signal's only effect is EINTR. */
    static int pyvmm_ignore_signal(int number)
    {
        struct sigaction action = {0};
        action.sa_handler = pyvmm_do_nothing;
        sigemptyset(&action.sa_mask);
        return sigaction(number, &action, NULL) < 0 ? -errno : 0;
    }
    """,
    py_limited_api=True,
    define_macros=[("Py_LIMITED_API", "0x030b0000")],
    extra_compile_args=["-Wall", "-Wextra"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
