#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include <linux/kvm.h>

/* What came after Linux 6.1, for builds against older headers. */
#ifndef KVM_SET_USER_MEMORY_REGION2
struct kvm_userspace_memory_region2 {
    __u32 slot; __u32 flags; __u64 guest_phys_addr; __u64 memory_size; __u64 userspace_addr;
    __u64 guest_memfd_offset; __u32 guest_memfd; __u32 pad1; __u64 pad2[14];
};
#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
#endif
#ifndef KVM_SET_MEMORY_ATTRIBUTES
struct kvm_memory_attributes { __u64 address; __u64 size; __u64 attributes; __u64 flags; };
#define KVM_SET_MEMORY_ATTRIBUTES _IOW(KVMIO, 0xd2, struct kvm_memory_attributes)
#endif
#ifndef KVM_CREATE_GUEST_MEMFD
struct kvm_create_guest_memfd { __u64 size; __u64 flags; __u64 reserved[6]; };
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct kvm_create_guest_memfd)
#endif
#ifndef KVM_PRE_FAULT_MEMORY
struct kvm_pre_fault_memory { __u64 gpa; __u64 size; __u64 flags; __u64 padding[5]; };
#define KVM_PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
#endif

#ifdef __x86_64__
/* linux/kvm.h leaves these inner structures without a name. */
struct pyvmm_ioapic_state {
    __u64 base_address; __u32 ioregsel; __u32 id; __u32 irr; __u32 pad; __u64 redirtbl[24];
};
struct pyvmm_irqchip { __u32 chip_id; __u32 pad; __u8 chip[512]; };
struct pyvmm_vcpu_exception { __u8 injected; __u8 nr; __u8 has_error_code; __u8 pending; __u32 error_code; };
struct pyvmm_vcpu_interrupt { __u8 injected; __u8 nr; __u8 soft; __u8 shadow; };
struct pyvmm_vcpu_nmi { __u8 injected; __u8 pending; __u8 masked; __u8 pad; };
struct pyvmm_vcpu_smi { __u8 smm; __u8 pending; __u8 smm_inside_nmi; __u8 latched_init; };
struct pyvmm_vcpu_triple_fault { __u8 pending; };
struct pyvmm_vcpu_events {
    struct pyvmm_vcpu_exception exception;
    struct pyvmm_vcpu_interrupt interrupt;
    struct pyvmm_vcpu_nmi nmi;
    __u32 sipi_vector; __u32 flags;
    struct pyvmm_vcpu_smi smi;
    struct pyvmm_vcpu_triple_fault triple_fault;
    __u8 reserved[26]; __u8 exception_has_payload; __u64 exception_payload;
};
struct pyvmm_xen_attr { __u16 type; __u16 pad[3]; __u64 u[8]; };
struct pyvmm_pmu_event_filter { __u32 action; __u32 nevents; __u32 fixed_counter_bitmap; __u32 flags; __u32 pad[4]; };
_Static_assert(sizeof(struct pyvmm_ioapic_state) == sizeof(struct kvm_ioapic_state), "ioapic");
_Static_assert(sizeof(struct pyvmm_irqchip) == sizeof(struct kvm_irqchip), "irqchip");
_Static_assert(sizeof(struct pyvmm_vcpu_events) == sizeof(struct kvm_vcpu_events), "vcpu_events");
_Static_assert(offsetof(struct pyvmm_vcpu_events, exception_payload)
               == offsetof(struct kvm_vcpu_events, exception_payload), "vcpu_events payload");
_Static_assert(offsetof(struct pyvmm_vcpu_events, smi) == offsetof(struct kvm_vcpu_events, smi), "vcpu_events smi");
_Static_assert(sizeof(struct pyvmm_xen_attr) == sizeof(struct kvm_xen_hvm_attr), "xen_hvm_attr");
_Static_assert(sizeof(struct pyvmm_xen_attr) == sizeof(struct kvm_xen_vcpu_attr), "xen_vcpu_attr");
_Static_assert(sizeof(struct pyvmm_pmu_event_filter) == sizeof(struct kvm_pmu_event_filter), "pmu_event_filter");
#define PYVMM_RUN_SYNC_SREGS offsetof(struct kvm_run, s.regs.sregs)
#define PYVMM_RUN_SYNC_EVENTS offsetof(struct kvm_run, s.regs.events)
#endif

#define PYVMM_RUN_IMMEDIATE_EXIT offsetof(struct kvm_run, immediate_exit)
#define PYVMM_RUN_REQUEST_WINDOW offsetof(struct kvm_run, request_interrupt_window)
#define PYVMM_RUN_READY offsetof(struct kvm_run, ready_for_interrupt_injection)
#define PYVMM_RUN_IF_FLAG offsetof(struct kvm_run, if_flag)
#define PYVMM_RUN_EXIT_REASON offsetof(struct kvm_run, exit_reason)
#define PYVMM_RUN_FLAGS offsetof(struct kvm_run, flags)
#define PYVMM_RUN_CR8 offsetof(struct kvm_run, cr8)
#define PYVMM_RUN_APIC_BASE offsetof(struct kvm_run, apic_base)
#define PYVMM_RUN_PAYLOAD offsetof(struct kvm_run, hw)
#define PYVMM_RUN_MMIO_DATA offsetof(struct kvm_run, mmio.data)
#define PYVMM_RUN_VALID_REGS offsetof(struct kvm_run, kvm_valid_regs)
#define PYVMM_RUN_DIRTY_REGS offsetof(struct kvm_run, kvm_dirty_regs)
#define PYVMM_RUN_SYNC offsetof(struct kvm_run, s)

#define PYVMM_RING 16
#define PYVMM_EXIT_MEMORY_FAULT 39
/* pyvmm_run packs the commonest exits into its result; these low bytes are above every KVM_EXIT_*. */
#define PYVMM_IO_OUT 0xfe
#define PYVMM_IO_IN 0xfd
#define PYVMM_MMIO_WRITE 0xfc
#define PYVMM_MMIO_READ 0xfb
#define PYVMM_LARGE_REASON 0xfa

struct pyvmm_exit_record { __u32 reason; __s32 result; __u64 words[4]; };
struct pyvmm_vcpu { int fd; int running; __u64 exits; struct pyvmm_exit_record ring[PYVMM_RING]; };

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

/* Enters the guest once and returns -errno, or a packed description of the exit (see the PYVMM_* bytes above). */
static long long pyvmm_run(struct pyvmm_vcpu *vcpu, struct kvm_run *run)
{
    int error = 0;
    long page = 4096;
    struct pyvmm_exit_record *record;

    if (!vcpu)
        return -EBADF;
    /* the kernel sets 39 together with a failing ioctl, and nothing else may leave it behind for a later failure */
    if (run->exit_reason == PYVMM_EXIT_MEMORY_FAULT)
        run->exit_reason = KVM_EXIT_UNKNOWN;
    vcpu->running = 1;
    if (ioctl(vcpu->fd, KVM_RUN, 0) < 0)
        error = errno;
    vcpu->running = 0;

    /* a row of kicks is remembered as one, or a quiet guest's last exits would be nothing else */
    if (error == EINTR && vcpu->exits && vcpu->ring[(vcpu->exits - 1) % PYVMM_RING].result == -EINTR)
        return -EINTR;
    record = &vcpu->ring[vcpu->exits++ % PYVMM_RING];
    record->reason = run->exit_reason;
    record->result = -error;
    memcpy(record->words, &run->hw, sizeof record->words);
    if (error) {
        if ((error == EFAULT || error == EHWPOISON) && run->exit_reason == PYVMM_EXIT_MEMORY_FAULT)
            return PYVMM_EXIT_MEMORY_FAULT;
        return -error;
    }
    if (run->exit_reason == KVM_EXIT_IO) {
        unsigned long long length = (unsigned long long)run->io.size * run->io.count;
        memcpy(&record->words[2], (char *)run + run->io.data_offset, 8);
        if (run->io.count == 1 && length <= 8 && run->io.data_offset == (unsigned long long)page
            && run->io.direction <= KVM_EXIT_IO_OUT)
            return (long long)((length << 24) | ((unsigned long long)run->io.port << 8)
                               | (run->io.direction == KVM_EXIT_IO_OUT ? PYVMM_IO_OUT : PYVMM_IO_IN));
        return KVM_EXIT_IO;
    }
    if (run->exit_reason == KVM_EXIT_MMIO && run->mmio.len <= 8)
        return (run->mmio.len << 8) | (run->mmio.is_write ? PYVMM_MMIO_WRITE : PYVMM_MMIO_READ);
    return run->exit_reason < PYVMM_LARGE_REASON ? run->exit_reason : PYVMM_LARGE_REASON;
}

/* Kicks. The signal stays blocked in the vCPU's thread and KVM unblocks it only inside KVM_RUN (KVM_SET_SIGNAL_MASK):
 * it ends KVM_RUN, never another system call, and needs no handler. */
static int pyvmm_kick_enter(int vcpu_fd)
{
    struct { struct kvm_signal_mask mask; __u8 bits[8]; } argument;
    sigset_t kick, now;
    int error;

    sigemptyset(&kick);
    sigaddset(&kick, SIGRTMIN);
    error = pthread_sigmask(SIG_BLOCK, &kick, NULL);
    if (!error)
        error = pthread_sigmask(SIG_BLOCK, NULL, &now);
    if (error)
        return -error;
    sigdelset(&now, SIGRTMIN);
    argument.mask.len = 8;
    memcpy((char *)&argument + offsetof(struct kvm_signal_mask, sigset), &now, 8);
    return pyvmm_ioctl(vcpu_fd, KVM_SET_SIGNAL_MASK, &argument);
}

static int pyvmm_kick_consume(void)
{
    struct timespec none = {0, 0};
    sigset_t kick;
    int count = 0;

    sigemptyset(&kick);
    sigaddset(&kick, SIGRTMIN);
    /* real-time signals queue: take them all */
    while (sigtimedwait(&kick, NULL, &none) > 0)
        count++;
    return count;
}

static int pyvmm_kick_leave(int vcpu_fd)
{
    pyvmm_kick_consume();
    return pyvmm_ioctl(vcpu_fd, KVM_SET_SIGNAL_MASK, NULL);
}

static unsigned long pyvmm_thread_self(void)
{
    return (unsigned long)pthread_self();
}

static int pyvmm_kick(unsigned long thread)
{
    return -pthread_kill((pthread_t)thread, SIGRTMIN);
}

static void pyvmm_fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static unsigned int pyvmm_load_acquire(const void *address)
{
    return __atomic_load_n((const unsigned int *)address, __ATOMIC_ACQUIRE);
}

static void pyvmm_store_release(void *address, unsigned int value)
{
    __atomic_store_n((unsigned int *)address, value, __ATOMIC_RELEASE);
}
