/* A file that fails on command, for a process that this library is preloaded into.
 *
 * The file is named by FAILING_FILE. When there is a file FAILING_COMMAND, it is removed, what was written to the file
 * since the last flush is undone, and the flush that comes next fails with EIO: as when a kernel cannot write pages
 * back, drops them, and tells whoever asks first.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

typedef struct write {
    struct write *before;
    off_t offset;
    size_t length;
    char bytes[];
} write_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static write_t *last;

static int is_file(int fd)
{
    const char *name = getenv("FAILING_FILE");
    char link[64], path[PATH_MAX];
    if (!name)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    return length > 0 && (size_t)length == strlen(name) && !memcmp(path, name, (size_t)length);
}

/* Keeps what is there now, and writes, with nobody in between. */
static ssize_t replace(int fd, const struct iovec *parts, int count, off_t offset)
{
    size_t length = 0;
    for (int at = 0; at < count; at++)
        length += parts[at].iov_len;
    write_t *one = calloc(1, sizeof *one + length);
    if (!one)
        abort();
    one->offset = offset;
    one->length = length;
    pthread_mutex_lock(&lock);
    if (syscall(SYS_pread64, fd, one->bytes, length, offset) < 0)
        abort();
    one->before = last;
    last = one;
    ssize_t done = syscall(SYS_pwritev, fd, parts, (long)count, (long)offset, 0L);
    pthread_mutex_unlock(&lock);
    return done;
}

static void forget(write_t *writes)
{
    while (writes) {
        write_t *before = writes->before;
        free(writes);
        writes = before;
    }
}

/* Fails if that was commanded; else flushes what was written before. */
static int flush(int fd, long number)
{
    const char *command = getenv("FAILING_COMMAND");
    pthread_mutex_lock(&lock);
    write_t *writes = last;
    last = NULL;
    int failing = command && !unlink(command);
    if (failing)
        for (write_t *one = writes; one; one = one->before)
            if (syscall(SYS_pwrite64, fd, one->bytes, one->length, one->offset) < 0)
                abort();
    pthread_mutex_unlock(&lock);
    forget(writes);
    if (failing) {
        errno = EIO;
        return -1;
    }
    return (int)syscall(number, fd);
}

int fdatasync(int fd)
{
    return is_file(fd) ? flush(fd, SYS_fdatasync) : (int)syscall(SYS_fdatasync, fd);
}

int fsync(int fd)
{
    return is_file(fd) ? flush(fd, SYS_fsync) : (int)syscall(SYS_fsync, fd);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off_t offset)
{
    struct iovec part = {(void *)data, length};
    return is_file(fd) ? replace(fd, &part, 1, offset) : syscall(SYS_pwrite64, fd, data, length, offset);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    return pwrite64(fd, data, length, offset);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t offset)
{
    return is_file(fd) ? replace(fd, parts, count, offset) : syscall(SYS_pwritev, fd, parts, (long)count, (long)offset, 0L);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    return pwritev64(fd, parts, count, offset);
}

ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    return is_file(fd) ? replace(fd, parts, count, offset)
                       : syscall(SYS_pwritev2, fd, parts, (long)count, (long)offset, 0L, (long)flags);
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    return pwritev64v2(fd, parts, count, offset, flags);
}
