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
#define PYVMM_PIO_OFFSET 4096

#define PYVMM_RING 16
#define PYVMM_EXIT_MEMORY_FAULT 39
/* What pyvmm_run returns: an errno below zero, or a kind of exit in bits 0-2, a length in bits 3-6 and a port or guest
 * physical address from bit 7 on; for PYVMM_OTHER the exit reason from bit 3 on. */
#define PYVMM_OTHER 0
#define PYVMM_IO_OUT 1
#define PYVMM_IO_IN 2
#define PYVMM_MMIO_WRITE 3
#define PYVMM_MMIO_READ 4
#define PYVMM_LENGTH_SHIFT 3
#define PYVMM_ADDRESS_SHIFT 7
#define PYVMM_ADDRESS_BITS 52

struct pyvmm_exit_record { __u32 reason; __s32 result; __u64 words[4]; };
struct pyvmm_vcpu {
    int fd; int running; int closed; __u64 exits; struct kvm_run *run; struct pyvmm_exit_record ring[PYVMM_RING];
};

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

static long long pyvmm_pack(long long kind, unsigned long long length, unsigned long long address)
{
    return (long long)(address << PYVMM_ADDRESS_SHIFT | length << PYVMM_LENGTH_SHIFT) | kind;
}

/* Enters the guest once. The vCPU comes as a number because that is the cheapest argument to convert; its owner keeps
 * the structure alive for as long as the method that calls this. */
static long long pyvmm_run(unsigned long address)
{
    struct pyvmm_vcpu *vcpu = (struct pyvmm_vcpu *)address;
    struct kvm_run *run;
    struct pyvmm_exit_record *record;
    int error = 0;

    if (!vcpu)
        return -EBADF;
    /* pairs with pyvmm_close: of the two, the later one sees the store of the other */
    __atomic_store_n(&vcpu->running, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&vcpu->closed, __ATOMIC_SEQ_CST)) {
        vcpu->running = 0;
        return -EBADF;
    }
    run = vcpu->run;
    /* the kernel sets 39 together with a failing ioctl, and nothing else may leave it behind for a later failure */
    if (run->exit_reason == PYVMM_EXIT_MEMORY_FAULT)
        run->exit_reason = KVM_EXIT_UNKNOWN;
    if (ioctl(vcpu->fd, KVM_RUN, 0) < 0)
        error = errno;
    /* pairs with the load of running in pyvmm_close: what is closed is not in use any more */
    __atomic_store_n(&vcpu->running, 0, __ATOMIC_RELEASE);

    /* a row of kicks is remembered as one, or a quiet guest's last exits would be nothing else */
    if (error == EINTR && vcpu->exits && vcpu->ring[(vcpu->exits - 1) % PYVMM_RING].result == -EINTR)
        return -EINTR;
    record = &vcpu->ring[vcpu->exits++ % PYVMM_RING];
    record->reason = run->exit_reason;
    record->result = -error;
    memcpy(record->words, &run->hw, sizeof record->words);
    if (error) {
        if ((error == EFAULT || error == EHWPOISON) && run->exit_reason == PYVMM_EXIT_MEMORY_FAULT)
            return pyvmm_pack(PYVMM_OTHER, PYVMM_EXIT_MEMORY_FAULT, 0);
        return -error;
    }
    if (run->exit_reason == KVM_EXIT_IO) {
        unsigned long long length = (unsigned long long)run->io.size * run->io.count;
        /* x86 puts port data right behind the run page; anything else is decoded field by field */
        int usual = run->io.data_offset == PYVMM_PIO_OFFSET;
        record->words[2] = 0;
        if (usual)
            memcpy(&record->words[2], (char *)run + PYVMM_PIO_OFFSET, 8);
        if (usual && run->io.count == 1 && length <= 8 && run->io.direction <= KVM_EXIT_IO_OUT)
            return pyvmm_pack(run->io.direction == KVM_EXIT_IO_OUT ? PYVMM_IO_OUT : PYVMM_IO_IN, length, run->io.port);
    } else if (run->exit_reason == KVM_EXIT_MMIO && run->mmio.len <= 8 && !(run->mmio.phys_addr >> PYVMM_ADDRESS_BITS)) {
        return pyvmm_pack(run->mmio.is_write ? PYVMM_MMIO_WRITE : PYVMM_MMIO_READ, run->mmio.len, run->mmio.phys_addr);
    }
    return pyvmm_pack(PYVMM_OTHER, run->exit_reason, 0);
}

/* 0, or -EBUSY while another thread is inside pyvmm_run; afterwards pyvmm_run refuses without a system call. */
static int pyvmm_close(struct pyvmm_vcpu *vcpu)
{
    /* pairs with the store to running and the load of closed at the start of pyvmm_run */
    __atomic_store_n(&vcpu->closed, 1, __ATOMIC_SEQ_CST);
    if (!__atomic_load_n(&vcpu->running, __ATOMIC_SEQ_CST))
        return 0;
    __atomic_store_n(&vcpu->closed, 0, __ATOMIC_SEQ_CST);
    return -EBUSY;
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
