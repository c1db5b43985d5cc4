/* Page faults of one range, served by a thread that never takes the GIL: the thread that faults may well hold it. */
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1 << 12)
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFDIO_POISON
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct uffdio_poison)
struct uffdio_poison { struct uffdio_range range; __u64 mode; __s64 updated; };
#endif

typedef struct {
    int uffd, stop, file, write_protect;
    uint64_t base, size, page, chunk, file_offset, file_size;
    uint64_t *dirty;
    char *bounce;
    uint64_t served, copied, writes;
    int error, poisoned, running;
    pthread_t thread;
} pyvmm_userfault;

/* Place whole pages; 0 also where another thread was faster. */
static int place_pages(pyvmm_userfault *self, uint64_t at, const char *source, uint64_t length)
{
    while (length) {
        struct uffdio_copy copy = {
            .dst = at, .src = (uintptr_t)source, .len = length,
            /* whoever waits is woken by wake(), after everything was counted */
            .mode = UFFDIO_COPY_MODE_DONTWAKE | (self->write_protect ? UFFDIO_COPY_MODE_WP : 0),
        };
        if (!ioctl(self->uffd, UFFDIO_COPY, &copy)) {
            __atomic_fetch_add(&self->copied, length, __ATOMIC_RELAXED);
            return 0;
        }
        int error = errno;
        uint64_t done = copy.copy > 0 ? (uint64_t)copy.copy : 0;
        __atomic_fetch_add(&self->copied, done, __ATOMIC_RELAXED);
        if (error == EEXIST)
            done += done < length ? self->page : 0;
        else if (error != EAGAIN)
            return error;
        if (done > length)
            done = length;
        at += done;
        source += done;
        length -= done;
    }
    return 0;
}

static void wake(pyvmm_userfault *self, uint64_t at, uint64_t length)
{
    struct uffdio_range range = {.start = at, .len = length};
    ioctl(self->uffd, UFFDIO_WAKE, &range);
}

/* What cannot be had must not look like zeros: a touch of a poisoned page is SIGBUS, as for a broken disk. */
static void poison(pyvmm_userfault *self, uint64_t at, int error)
{
    struct uffdio_poison bad = {.range = {.start = at, .len = self->page}};
    __atomic_store_n(&self->error, error, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&self->poisoned, 1, __ATOMIC_SEQ_CST);
    if (ioctl(self->uffd, UFFDIO_POISON, &bad) && errno != ENOENT && errno != ESRCH) {
        /* before Linux 6.6 there is no poison, and a guest that goes on with zeros for its memory is worse than none */
        fprintf(stderr, "pyvmm_memory: lazy memory cannot be read: %s\n", strerror(error));
        abort();
    }
    wake(self, at, self->page);
}

/* Bring in [offset, offset + length) of the region; both whole pages, at most a chunk. Needs a buffer of a chunk. */
static int fill(pyvmm_userfault *self, char *buffer, uint64_t offset, uint64_t length)
{
    uint64_t have = 0, want = offset >= self->file_size ? 0 : self->file_size - offset;
    if (want > length)
        want = length;
    while (have < want) {
        ssize_t got = pread(self->file, buffer + have, want - have, (off_t)(self->file_offset + offset + have));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got ? errno : EIO; /* the file became shorter than it was */
        have += (uint64_t)got;
    }
    memset(buffer + want, 0, length - want);
    return place_pages(self, self->base + offset, buffer, length);
}

static void missing(pyvmm_userfault *self, uint64_t at)
{
    uint64_t offset = (at - self->base) & ~(self->page - 1), start = offset - offset % self->chunk;
    uint64_t length = self->size - start < self->chunk ? self->size - start : self->chunk;
    int error = fill(self, self->bounce, start, length);
    /* a broken neighbour is no reason to lose this page */
    if (error && length > self->page)
        error = fill(self, self->bounce, offset, self->page);
    if (error)
        poison(self, self->base + offset, error);
    else
        wake(self, self->base + offset, self->page);
}

/* The mark comes before the right to write: nobody who was let through is without one (see UserFault.collect). */
static void written(pyvmm_userfault *self, uint64_t at)
{
    uint64_t page = (at - self->base) / self->page;
    struct uffdio_writeprotect allow = {.range = {.start = self->base + page * self->page, .len = self->page}};
    __atomic_fetch_add(&self->writes, 1, __ATOMIC_RELAXED);
    __atomic_fetch_or(self->dirty + page / 64, 1ull << page % 64, __ATOMIC_SEQ_CST);
    if (ioctl(self->uffd, UFFDIO_WRITEPROTECT, &allow))
        __atomic_store_n(&self->error, errno, __ATOMIC_SEQ_CST);
}

static void *serve(void *argument)
{
    pyvmm_userfault *self = argument;
    struct pollfd fds[2] = {{.fd = self->uffd, .events = POLLIN}, {.fd = self->stop, .events = POLLIN}};
    struct uffd_msg message;
    while (poll(fds, 2, -1) >= 0 || errno == EINTR) {
        if (fds[1].revents)
            break;
        if (!(fds[0].revents & POLLIN) || read(self->uffd, &message, sizeof message) != sizeof message)
            continue;
        if (message.event != UFFD_EVENT_PAGEFAULT)
            continue;
        __atomic_fetch_add(&self->served, 1, __ATOMIC_RELAXED);
        if (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP)
            written(self, message.arg.pagefault.address);
        else
            missing(self, message.arg.pagefault.address);
    }
    return NULL;
}

static void pyvmm_userfault_stop(pyvmm_userfault *self)
{
    uint64_t one = 1;
    if (!self)
        return;
    if (self->running && write(self->stop, &one, sizeof one) == sizeof one)
        pthread_join(self->thread, NULL);
    if (self->uffd >= 0)
        close(self->uffd);
    if (self->stop >= 0)
        close(self->stop);
    if (self->file >= 0)
        close(self->file);
    free(self->bounce);
    free(self);
}

/* Serve the range; -errno where it cannot be, and what `step` was refused: 1 userfaultfd, 2 the API, 3 registering. */
static int pyvmm_userfault_start(pyvmm_userfault **result, uint64_t base, uint64_t size, uint64_t page, uint64_t chunk,
                                 int file, uint64_t file_offset, uint64_t file_size, uint64_t *dirty, int *step)
{
    struct uffdio_api api = {.api = UFFD_API, .features = dirty ? UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM : 0};
    struct uffdio_register range = {
        .range = {.start = base, .len = size},
        .mode = (file >= 0 ? UFFDIO_REGISTER_MODE_MISSING : 0) | (dirty ? UFFDIO_REGISTER_MODE_WP : 0),
    };
    pyvmm_userfault *self = calloc(1, sizeof *self);
    int error;
    *step = 0;
    if (!self)
        return -ENOMEM;
    *self = (pyvmm_userfault){
        .uffd = -1, .stop = eventfd(0, EFD_CLOEXEC), .file = file < 0 ? -1 : fcntl(file, F_DUPFD_CLOEXEC, 0),
        .write_protect = dirty != NULL, .base = base, .size = size, .page = page, .chunk = chunk,
        .file_offset = file_offset, .file_size = file_size, .dirty = dirty, .bounce = malloc(chunk),
    };
    if (self->stop < 0 || (file >= 0 && self->file < 0) || !self->bounce)
        goto fail;
    *step = 1;
    /* faults in the kernel, such as a read() into the range, need a privilege; KVM's do not count as such */
    self->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (self->uffd < 0 && errno == EPERM) {
        int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
        if (device >= 0) {
            self->uffd = ioctl(device, _IO(0xAA, 0), O_CLOEXEC | O_NONBLOCK);
            close(device);
        } else
            errno = EPERM;
    }
    if (self->uffd < 0)
        goto fail;
    *step = 2;
    if (ioctl(self->uffd, UFFDIO_API, &api))
        goto fail;
    *step = 3;
    if (ioctl(self->uffd, UFFDIO_REGISTER, &range))
        goto fail;
    *step = 4;
    errno = pthread_create(&self->thread, NULL, serve, self);
    if (errno)
        goto fail;
    self->running = 1;
    *result = self;
    return 0;
fail:
    error = errno ? errno : ENOMEM;
    pyvmm_userfault_stop(self);
    return -error;
}

/* Bring in what nobody asked for yet, from another thread than the server's. */
static int pyvmm_userfault_fill(pyvmm_userfault *self, uint64_t offset, uint64_t length)
{
    char *buffer = malloc(self->chunk);
    int error = buffer ? 0 : ENOMEM;
    for (uint64_t done = 0; !error && done < length; done += self->chunk)
        error = fill(self, buffer, offset + done, length - done < self->chunk ? length - done : self->chunk);
    free(buffer);
    return -error;
}

/* Take or give back the right to write, so that the next write of each page is seen. */
static int pyvmm_userfault_protect(pyvmm_userfault *self, uint64_t offset, uint64_t length, int protect)
{
    struct uffdio_writeprotect change = {
        .range = {.start = self->base + offset, .len = length}, .mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
    };
    return ioctl(self->uffd, UFFDIO_WRITEPROTECT, &change) ? -errno : 0;
}

/* The partners are the additions of the serving thread in place_pages(), poison(), written() and serve(). `poisoned`
 * is added after `error` is stored and read before it, so it never comes without its reason. */
static void pyvmm_userfault_counters(pyvmm_userfault *self, uint64_t *counters)
{
    counters[0] = __atomic_load_n(&self->served, __ATOMIC_SEQ_CST);
    counters[1] = __atomic_load_n(&self->copied, __ATOMIC_SEQ_CST);
    counters[2] = __atomic_load_n(&self->writes, __ATOMIC_SEQ_CST);
    counters[3] = (uint64_t)__atomic_load_n(&self->poisoned, __ATOMIC_SEQ_CST);
    counters[4] = (uint64_t)__atomic_load_n(&self->error, __ATOMIC_SEQ_CST);
}
