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

/* A vCPU and the threads that call it. One of them at a time is inside pyvmm_run (`running`), any number makes other
 * calls (`calls`), and neither waits for the other in the kernel, which would be for ever: a call that finds the vCPU
 * running is refused, and a run that finds calls lets those finish first, for none of them blocks. Of two that come at
 * once at least one sees the other, for both store before they load. `closed` is the end of both.
 *
 * What 8 bytes hold of an exit lies on a desk, apart from the run page, which the next exit overwrites; Python has one
 * exit object for each `code` and desk, whose data are a view of those bytes. A desk is used again only when nobody has
 * the last exit that was handed out, nor a view of the bytes, which reference counts tell (pyvmm_is_free), as they tell
 * CPython's zip whether it may fill its last tuple again. A loop has the last exit in a variable while it asks for the
 * next one, so two desks take turns. Where that does not do, PYVMM_TURN asks Python for another desk (pyvmm_swap), or to
 * see to the answer of a rarer exit (`waits`).
 *
 * `asked` is the desk on which the guest's question lies, NULL where it asked nothing: its answer goes into the run
 * page at the start of the next run. */
struct pyvmm_vcpu {
    int fd; int running; int closed; int calls; int waits; int turn; __u64 exits; struct kvm_run *run;
    struct pyvmm_desk *asked; struct pyvmm_desk *desks[2]; struct pyvmm_exit_record ring[PYVMM_RING];
};

/* The exit of a code and its view: Python's, which keeps them for as long as they are here. */
struct pyvmm_place { long long code; void *exit; void *data; };
#define PYVMM_PLACES 128

/* `page` in the run page, `length` and `given` (what was there) are those of a question. `lent` is what all views of
 * `data` have in common and `count` its references where none but the exits' own is left; `last` is the exit that was
 * handed out last, `unknown` whether Python has yet to say which that is. */
struct pyvmm_desk {
    __u8 *data; __u8 *page; __u64 given; __u64 length; void *lent; __u32 count; int unknown; struct pyvmm_place *last;
    struct pyvmm_place places[PYVMM_PLACES];
};
#define PYVMM_BUSY 4096
#define PYVMM_TURN 4097
#define PYVMM_DESK_SHIFT 60
#define PYVMM_UNKNOWN_SHIFT 61

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

/* 0, or why no call may be made now; after 0 comes pyvmm_call_done. */
static int pyvmm_call_begin(struct pyvmm_vcpu *vcpu)
{
    __atomic_add_fetch(&vcpu->calls, 1, __ATOMIC_SEQ_CST);
    /* pairs with the stores to running and closed and the loads of calls in pyvmm_run and pyvmm_close */
    if (!__atomic_load_n(&vcpu->running, __ATOMIC_SEQ_CST) && !__atomic_load_n(&vcpu->closed, __ATOMIC_SEQ_CST))
        return 0;
    __atomic_sub_fetch(&vcpu->calls, 1, __ATOMIC_SEQ_CST);
    return __atomic_load_n(&vcpu->closed, __ATOMIC_SEQ_CST) ? -EBADF : -PYVMM_BUSY;
}

static int pyvmm_call_done(struct pyvmm_vcpu *vcpu, int result)
{
    result = result < 0 ? -errno : result;
    __atomic_sub_fetch(&vcpu->calls, 1, __ATOMIC_SEQ_CST);
    return result;
}

static int pyvmm_vcpu_ioctl(struct pyvmm_vcpu *vcpu, unsigned long request, void *argument)
{
    int error = pyvmm_call_begin(vcpu);

    return error ? error : pyvmm_call_done(vcpu, ioctl(vcpu->fd, request, argument));
}

static int pyvmm_vcpu_ioctl_value(struct pyvmm_vcpu *vcpu, unsigned long request, unsigned long argument)
{
    int error = pyvmm_call_begin(vcpu);

    return error ? error : pyvmm_call_done(vcpu, ioctl(vcpu->fd, request, argument));
}

static void pyvmm_wait_for_calls(struct pyvmm_vcpu *vcpu)
{
    struct timespec moment = {0, 20000};

    while (__atomic_load_n(&vcpu->calls, __ATOMIC_SEQ_CST))
        nanosleep(&moment, NULL);
}

/* How many hold an object. Who asks does not hold the GIL, and need not: whoever else has a reference keeps the number
 * above that of nobody, and from none there is no way to one but through this vCPU. */
static __u32 pyvmm_references(void *object)
{
    /* the upper half has flags from CPython 3.14 on */
    return (__u32)__atomic_load_n(&((PyObject *)object)->ob_refcnt, __ATOMIC_ACQUIRE);
}

static int pyvmm_is_free(struct pyvmm_desk *desk)
{
    if (desk->unknown || pyvmm_references(desk->lent) != desk->count)
        return 0;
    /* the exit is held by VcpuFd's table, its data by the exit and by the pin of desk.py */
    return !desk->last || (pyvmm_references(desk->last->exit) == 1 && pyvmm_references(desk->last->data) == 2);
}

/* After the views of a desk have changed, with the GIL's holder holding none of them for himself. */
static void pyvmm_count(struct pyvmm_desk *desk)
{
    desk->count = pyvmm_references(desk->lent);
}

static struct pyvmm_place *pyvmm_place_of(struct pyvmm_desk *desk, long long code)
{
    unsigned long long mixed = (unsigned long long)code * 0x9E3779B97F4A7C15ULL;

    return &desk->places[mixed >> 32 & (PYVMM_PLACES - 1)];
}

/* Takes the exit of a code, which was handed out last, and returns the code that had its place, or 0. */
static long long pyvmm_learn(struct pyvmm_desk *desk, long long code, void *exit, void *data)
{
    struct pyvmm_place *place = pyvmm_place_of(desk, code);
    long long before = place->code;

    place->code = code;
    place->exit = exit;
    place->data = data;
    desk->last = place;
    desk->unknown = 0;
    return before == code ? 0 : before;
}

/* Puts the answer to the last exit's question where KVM looks for it. What nobody changed is not written, so that an
 * answer which was written into the run page itself stays. */
static void pyvmm_answer(struct pyvmm_vcpu *vcpu)
{
    struct pyvmm_desk *desk = vcpu->asked;

    vcpu->asked = NULL;
    if (desk && memcmp(desk->data, &desk->given, desk->length))
        memcpy(desk->page, desk->data, desk->length);
}

/* Puts another desk in the place of the one whose turn it is, and returns which that was, or -PYVMM_BUSY. */
static int pyvmm_swap(struct pyvmm_vcpu *vcpu, struct pyvmm_desk *desk)
{
    int idle = 0, turn;

    if (!__atomic_compare_exchange_n(&vcpu->running, &idle, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return -PYVMM_BUSY;
    turn = vcpu->turn;
    if (vcpu->asked == vcpu->desks[turn])
        pyvmm_answer(vcpu);
    vcpu->desks[turn] = desk;
    __atomic_store_n(&vcpu->running, 0, __ATOMIC_RELEASE);
    return turn;
}

static long long pyvmm_pack(long long kind, unsigned long long length, unsigned long long address)
{
    return (long long)(address << PYVMM_ADDRESS_SHIFT | length << PYVMM_LENGTH_SHIFT) | kind;
}

/* Lays `length` bytes of the run page on the desk, and says which exit that is. */
static long long pyvmm_lay(struct pyvmm_vcpu *vcpu, __u8 *page, unsigned long long length, long long code)
{
    struct pyvmm_desk *desk = vcpu->desks[vcpu->turn];
    struct pyvmm_place *place = pyvmm_place_of(desk, code);
    long long kind = code & ((1 << PYVMM_LENGTH_SHIFT) - 1);

    memcpy(desk->data, page, length);
    if (kind == PYVMM_IO_IN || kind == PYVMM_MMIO_READ) {
        desk->page = page;
        desk->length = length;
        memcpy(&desk->given, page, length);
        vcpu->asked = desk;
    }
    desk->unknown = place->code != code;
    desk->last = desk->unknown ? NULL : place;
    code |= (long long)vcpu->turn << PYVMM_DESK_SHIFT | (long long)desk->unknown << PYVMM_UNKNOWN_SHIFT;
    vcpu->turn ^= 1;
    return code;
}

/* Notes an exit and says what it was. */
static long long pyvmm_look(struct pyvmm_vcpu *vcpu, int error)
{
    struct kvm_run *run = vcpu->run;
    struct pyvmm_exit_record *record;
    long long kind;

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
        if (usual && run->io.count == 1 && length <= 8 && run->io.direction <= KVM_EXIT_IO_OUT) {
            kind = run->io.direction == KVM_EXIT_IO_OUT ? PYVMM_IO_OUT : PYVMM_IO_IN;
            return pyvmm_lay(vcpu, (__u8 *)run + PYVMM_PIO_OFFSET, length, pyvmm_pack(kind, length, run->io.port));
        }
    } else if (run->exit_reason == KVM_EXIT_MMIO && run->mmio.len <= 8 && !(run->mmio.phys_addr >> PYVMM_ADDRESS_BITS)) {
        kind = run->mmio.is_write ? PYVMM_MMIO_WRITE : PYVMM_MMIO_READ;
        return pyvmm_lay(vcpu, run->mmio.data, run->mmio.len, pyvmm_pack(kind, run->mmio.len, run->mmio.phys_addr));
    }
    return pyvmm_pack(PYVMM_OTHER, run->exit_reason, 0);
}

/* Enters the guest once. The vCPU comes as a number because that is the cheapest argument to convert; its owner keeps
 * the structure alive for as long as the method that calls this. */
static long long pyvmm_run(unsigned long address)
{
    struct pyvmm_vcpu *vcpu = (struct pyvmm_vcpu *)address;
    long long result;
    int idle = 0, error = 0;

    if (!vcpu)
        return -EBADF;
    /* pairs with pyvmm_close and pyvmm_call_begin: of two, the later one sees the store of the other */
    if (!__atomic_compare_exchange_n(&vcpu->running, &idle, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return -PYVMM_BUSY;
    if (__atomic_load_n(&vcpu->closed, __ATOMIC_SEQ_CST)) {
        result = -EBADF;
    } else if (vcpu->waits || !pyvmm_is_free(vcpu->desks[vcpu->turn])) {
        result = -PYVMM_TURN;
    } else {
        pyvmm_wait_for_calls(vcpu);
        pyvmm_answer(vcpu);
        /* the kernel sets 39 together with a failing ioctl, and nothing else may leave it behind for a later failure */
        if (vcpu->run->exit_reason == PYVMM_EXIT_MEMORY_FAULT)
            vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
        if (ioctl(vcpu->fd, KVM_RUN, 0) < 0)
            error = errno;
        result = pyvmm_look(vcpu, error);
    }
    /* pairs with the load of running in pyvmm_close: what is closed is not in use any more */
    __atomic_store_n(&vcpu->running, 0, __ATOMIC_RELEASE);
    return result;
}

/* 0, or -EBUSY while another thread is inside pyvmm_run; afterwards all calls are refused without a system call. */
static int pyvmm_close(struct pyvmm_vcpu *vcpu)
{
    /* pairs with the store to running and the load of closed at the start of pyvmm_run and in pyvmm_call_begin */
    __atomic_store_n(&vcpu->closed, 1, __ATOMIC_SEQ_CST);
    if (!__atomic_load_n(&vcpu->running, __ATOMIC_SEQ_CST)) {
        /* or a call would meet whoever gets the descriptor's number next */
        pyvmm_wait_for_calls(vcpu);
        return 0;
    }
    __atomic_store_n(&vcpu->closed, 0, __ATOMIC_SEQ_CST);
    return -EBUSY;
}

/* Kicks. The signal stays blocked in the vCPU's thread and KVM unblocks it only inside KVM_RUN (KVM_SET_SIGNAL_MASK):
 * it ends KVM_RUN, never another system call, and needs no handler. */
static long long pyvmm_kick_enter(void)
{
    sigset_t kick, now;
    long long bits;
    int error;

    sigemptyset(&kick);
    sigaddset(&kick, SIGRTMIN);
    error = pthread_sigmask(SIG_BLOCK, &kick, NULL);
    if (!error)
        error = pthread_sigmask(SIG_BLOCK, NULL, &now);
    if (error)
        return -error;
    sigdelset(&now, SIGRTMIN);
    memcpy(&bits, &now, 8);
    /* without the sign: nobody may block the last signal there is, or it would look like an error */
    return bits & (~0ULL >> 1);
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
