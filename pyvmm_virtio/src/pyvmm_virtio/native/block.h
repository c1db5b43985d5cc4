/* The twin of devices/block for what a disk does nearly always: reads and writes, on a split ring, of a raw file.
 *
 * Nothing here raises or decides: at the first chain that is not such a request, laid out as drivers do it, or whose
 * system call fails, it stops in front of that chain, and Python takes it from the ring as if nobody had looked.
 */

#define MOST_BUFFERS 256      /* of one chain; a longer one is Python's */
#define FEW_BUFFERS 8         /* as many may a request have that another thread does */
#define MOST_JOBS 64          /* that wait for other threads at a time */
#define WORTH_A_THREAD 131072 /* bytes; a thread takes longer to wake up than the page cache to give less */

enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };
enum { BLK_IN = 0, BLK_OUT = 1 };

typedef struct {
    uint64_t guest, size, host;
    int writable;
} pyvmm_region;

typedef struct {
    uint64_t table, avail, used; /* where the ring's parts are in this process */
    uint32_t size;
    uint16_t next_avail, next_used;
    int indirect;
    const pyvmm_region *regions;
    uint32_t region_count;
    int disk, may_write;
    uint64_t capacity, limit, budget; /* sectors; bytes of one request, and of all before the last */
    uint32_t size_max, seg_max;       /* bytes of one buffer, and how many there are */
    const uint8_t *taken;             /* for each head whether the device has it; or NULL */
    uint64_t moved;                   /* bytes */
    int stopped;                      /* whether the next chain is for Python */
} pyvmm_block_queue;

typedef struct {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
} descriptor;

typedef struct {
    int write;
    uint64_t offset, length;
    uint8_t *status;
    struct iovec *buffers;
    int count;
} request;

typedef struct {
    request request;
    struct iovec buffers[FEW_BUFFERS];
    uint32_t position; /* among the chains of this batch */
    int failed;
} job;

typedef struct pyvmm_pool {
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    int disk, stopping;
    uint32_t offered, taken, finished; /* of `jobs` */
    job jobs[MOST_JOBS];
    uint32_t threads;
    pthread_t thread[];
} pyvmm_pool;

/* Where `length` bytes of guest memory are, or NULL where they are not in one region, or may not be written. */
static uint8_t *translate(const pyvmm_block_queue *queue, uint64_t addr, uint64_t length, int write)
{
    for (uint32_t at = 0; at < queue->region_count; at++) {
        const pyvmm_region *region = &queue->regions[at];
        uint64_t offset = addr - region->guest;
        if (addr >= region->guest && offset < region->size && length <= region->size - offset)
            return write && !region->writable ? NULL : (uint8_t *)(uintptr_t)(region->host + offset);
    }
    return NULL;
}

/* The compiler might read guest memory again rather than keep a copy, and find something else than was checked. */
static void keep_copies(void)
{
    __asm__ volatile("" ::: "memory");
}

/* Copies a descriptor out, once: the guest may change it meanwhile. */
static descriptor copy_descriptor(const uint8_t *table, uint32_t index)
{
    descriptor copy;
    memcpy(&copy, table + 16 * (size_t)index, sizeof copy);
    keep_copies();
    return copy;
}

/* Copies a chain out; returns how many descriptors it has, or 0 where it is for Python to say what is wrong. */
static uint32_t copy_chain(const pyvmm_block_queue *queue, uint16_t head, descriptor *chain)
{
    const uint8_t *table = (const uint8_t *)(uintptr_t)queue->table;
    uint32_t entries = queue->size, most = queue->size < MOST_BUFFERS ? queue->size : MOST_BUFFERS;
    uint32_t index = head, count = 0;
    if (index >= entries)
        return 0;
    descriptor one = copy_descriptor(table, index);
    if (one.flags & DESC_INDIRECT) {
        if (!queue->indirect || one.flags & DESC_NEXT || one.len % 16 || !one.len || one.len > 16 * 0xFFFF)
            return 0;
        table = translate(queue, one.addr, one.len, 0);
        if (!table)
            return 0;
        entries = one.len / 16;
        one = copy_descriptor(table, 0);
    }
    for (;;) {
        if (one.flags & DESC_INDIRECT || count >= most)
            return 0;
        chain[count++] = one;
        if (!(one.flags & DESC_NEXT))
            return count;
        index = one.next;
        if (index >= entries)
            return 0;
        one = copy_descriptor(table, index);
    }
}

/* Checks a request: a header of 16 bytes, data in one direction, a status of 1 byte. False where it is for Python. */
static int parse(const pyvmm_block_queue *queue, const descriptor *chain, uint32_t count, request *request)
{
    if (count < 3 || count - 2 > queue->seg_max || chain[0].len != 16 || chain[0].flags & DESC_WRITE)
        return 0;
    const descriptor *last = &chain[count - 1];
    if (last->len != 1 || !(last->flags & DESC_WRITE))
        return 0;
    const uint8_t *header = translate(queue, chain[0].addr, 16, 0);
    request->status = translate(queue, last->addr, 1, 1);
    if (!header || !request->status)
        return 0;
    uint32_t type;
    uint64_t sector, length = 0;
    memcpy(&type, header, 4);
    memcpy(&sector, header + 8, 8);
    keep_copies();
    if (type != BLK_IN && !(type == BLK_OUT && queue->may_write))
        return 0;
    request->write = type == BLK_OUT;
    request->count = (int)count - 2;
    for (uint32_t at = 0; at < count - 2; at++) {
        const descriptor *data = &chain[at + 1];
        int readable = !(data->flags & DESC_WRITE);
        if (readable != request->write || !data->len || data->len > queue->size_max)
            return 0;
        uint8_t *place = translate(queue, data->addr, data->len, !request->write);
        if (!place)
            return 0;
        request->buffers[at].iov_base = place;
        request->buffers[at].iov_len = data->len;
        length += data->len;
    }
    /* 5.2.6.1: whole sectors, and none beyond the capacity; subtracted, for the sum may overflow */
    if (length % 512 || length > queue->limit || sector > queue->capacity ||
        length / 512 > queue->capacity - sector || sector >> 54)
        return 0;
    request->offset = sector * 512;
    request->length = length;
    return 1;
}

/* Reads or writes all of it in one system call and says OK; false where that did not go well. */
static int carry_out(int disk, const request *request)
{
    ssize_t moved = request->write ? pwritev(disk, request->buffers, request->count, (off_t)request->offset)
                                   : preadv(disk, request->buffers, request->count, (off_t)request->offset);
    if (moved < 0 || (uint64_t)moved != request->length)
        return 0;
    *request->status = 0;
    return 1;
}

/* threads for large requests: two copy more in a second than one */

/* Does one job that nobody has taken; the lock is held at the beginning and at the end. */
static void take_job(pyvmm_pool *pool)
{
    job *job = &pool->jobs[pool->taken++];
    int disk = pool->disk;
    pthread_mutex_unlock(&pool->lock);
    int failed = !carry_out(disk, &job->request);
    pthread_mutex_lock(&pool->lock);
    job->failed = failed;
    if (++pool->finished == pool->offered)
        pthread_cond_signal(&pool->done);
}

static void *serve_pool(void *argument)
{
    pyvmm_pool *pool = argument;
    pthread_mutex_lock(&pool->lock);
    while (!pool->stopping) {
        if (pool->taken < pool->offered)
            take_job(pool);
        else
            pthread_cond_wait(&pool->work, &pool->lock);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

static void pyvmm_pool_stop(pyvmm_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    pool->stopping = 1;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (uint32_t at = 0; at < pool->threads; at++)
        pthread_join(pool->thread[at], NULL);
    pthread_cond_destroy(&pool->work);
    pthread_cond_destroy(&pool->done);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

/* Starts up to so many threads, with all signals blocked: those are Python's. NULL where there is no memory. */
static pyvmm_pool *pyvmm_pool_start(uint32_t threads)
{
    pyvmm_pool *pool = calloc(1, sizeof *pool + threads * sizeof pool->thread[0]);
    sigset_t all, before;
    if (!pool)
        return NULL;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->done, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool->threads < threads && !pthread_create(&pool->thread[pool->threads], NULL, serve_pool, pool))
        pool->threads++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pool;
}

/* Gives a request to the pool; false where it has to be done here. */
static int offer(pyvmm_pool *pool, const request *request, uint32_t position)
{
    if (!pool || request->length < WORTH_A_THREAD || request->count > FEW_BUFFERS)
        return 0;
    pthread_mutex_lock(&pool->lock);
    int room = pool->offered < MOST_JOBS;
    if (room) {
        job *job = &pool->jobs[pool->offered++];
        job->request = *request;
        memcpy(job->buffers, request->buffers, (size_t)request->count * sizeof job->buffers[0]);
        job->request.buffers = job->buffers;
        job->position = position;
        pthread_cond_signal(&pool->work);
    }
    pthread_mutex_unlock(&pool->lock);
    return room;
}

/* Helps until all jobs are done; returns the position of the first that failed, or `count`. */
static uint32_t finish(pyvmm_pool *pool, uint32_t count)
{
    pthread_mutex_lock(&pool->lock);
    while (pool->taken < pool->offered)
        take_job(pool);
    while (pool->finished < pool->offered)
        pthread_cond_wait(&pool->done, &pool->lock);
    for (uint32_t at = 0; at < pool->offered; at++)
        if (pool->jobs[at].failed && pool->jobs[at].position < count)
            count = pool->jobs[at].position;
    pool->offered = pool->taken = pool->finished = 0;
    pthread_mutex_unlock(&pool->lock);
    return count;
}

/* Does what is in the ring, until it has moved what it may, so that others have a turn, and a reset finds an end.
 * Returns how many chains it took and gave back, or -ENOMEM with nothing done. */
static int pyvmm_block_run(pyvmm_block_queue *queue, pyvmm_pool *pool)
{
    uint16_t *avail = (uint16_t *)(uintptr_t)queue->avail;
    uint8_t *used = (uint8_t *)(uintptr_t)queue->used;
    uint32_t mask = queue->size - 1, count = 0;
    struct iovec buffers[MOST_BUFFERS];
    descriptor chain[MOST_BUFFERS];
    queue->stopped = 0;
    queue->moved = 0;
    /* 2.7.13.3.1: the index is loaded before what it shows */
    uint16_t offered = (uint16_t)(__atomic_load_n(&avail[1], __ATOMIC_ACQUIRE) - queue->next_avail);
    if (offered > queue->size) {
        queue->stopped = 1;
        return 0;
    }
    if (!offered)
        return 0;
    /* heads and lengths, shown to the driver together; they are not kept in the used ring, which the guest may change */
    uint32_t (*given)[2] = malloc(offered * sizeof given[0]);
    if (!given)
        return -ENOMEM;
    if (pool)
        pool->disk = queue->disk;
    for (; count < offered && queue->moved < queue->budget; count++) {
        uint16_t head = __atomic_load_n(&avail[2 + ((queue->next_avail + count) & mask)], __ATOMIC_RELAXED);
        request request = {.buffers = buffers};
        uint32_t descriptors = copy_chain(queue, head, chain);
        /* 2.7.13: what the device has and did not give back is not offered again */
        if (!descriptors || (queue->taken && queue->taken[head]) || !parse(queue, chain, descriptors, &request) ||
            (!offer(pool, &request, count) && !carry_out(queue->disk, &request))) {
            queue->stopped = 1;
            break;
        }
        given[count][0] = head;
        given[count][1] = request.write ? 1 : (uint32_t)request.length + 1;
        queue->moved += request.length;
    }
    if (pool) {
        /* the driver does not know that those behind one that failed were done, so they may be done again */
        uint32_t whole = finish(pool, count);
        if (whole < count)
            queue->stopped = 1;
        count = whole;
    }
    for (uint32_t at = 0; at < count; at++)
        memcpy(used + 4 + 8 * (size_t)((queue->next_used + at) & mask), given[at], 8);
    free(given);
    queue->next_avail = (uint16_t)(queue->next_avail + count);
    queue->next_used = (uint16_t)(queue->next_used + count);
    /* 2.7.14: the elements are written before the index that shows them */
    if (count)
        __atomic_store_n((uint16_t *)(void *)(used + 2), queue->next_used, __ATOMIC_RELEASE);
    return (int)count;
}

/* Makes and fills holes, which Python's os.posix_fallocate has no mode for. */
static int pyvmm_fallocate(int fd, int mode, int64_t offset, int64_t length)
{
    return fallocate(fd, mode, offset, length);
}
