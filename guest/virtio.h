/*
 * What the parts of virtio.c share: checksums, bytes to send, files, processors and waiting.
 */
#define _GNU_SOURCE
#include "init.h"

#define CHUNK 65536
#define MIB (1 << 20)
#define PATIENCE 600 /* rests */

static char buffer[CHUNK] __attribute__((aligned(4096)));
static char **environment;
static unsigned int crc_table[256];

void *memset(void *to, int value, size_t count)
{
    for (size_t i = 0; i < count; i++)
        ((char *)to)[i] = value;
    return to;
}

static void hex(unsigned long value)
{
    for (int shift = 28; shift >= 0; shift -= 4) {
        char digit[2] = {"0123456789abcdef"[value >> shift & 15], 0};
        text(digit);
    }
}

static unsigned long decimal(const char **at)
{
    unsigned long value = 0;
    for (; **at >= '0' && **at <= '9'; ++*at)
        value = value * 10 + **at - '0';
    return value;
}

static int begins(const char *word, const char *with)
{
    while (*with && *word == *with)
        word++, with++;
    return !*with;
}

static unsigned int crc32(unsigned int crc, const char *data, long count)
{
    if (!crc_table[1])
        for (unsigned int i = 0; i < 256; i++) {
            unsigned int value = i;
            for (int bit = 0; bit < 8; bit++)
                value = value & 1 ? value >> 1 ^ 0xedb88320 : value >> 1;
            crc_table[i] = value;
        }
    crc = ~crc;
    while (count-- > 0)
        crc = crc >> 8 ^ crc_table[(crc ^ *data++) & 255];
    return ~crc;
}

/* Bytes that look like nothing in particular, the same in each boot. */
static void fill(unsigned int *seed)
{
    for (int i = 0; i < CHUNK; i++) {
        *seed = *seed * 1664525 + 1013904223;
        buffer[i] = *seed >> 24;
    }
}

static void failed(const char *what, long error)
{
    text("failed: ");
    text(what);
    text(", error ");
    number(-error);
    text("\n");
    say();
}

static void sum_up(const char *what, unsigned long length, unsigned int crc)
{
    text(what);
    text(" ");
    number(length);
    text(" bytes, crc ");
    hex(crc);
    text("\n");
    say();
}

static long open_file(const char *path, int flags)
{
    long fd = open_path(path, flags, 0644);
    if (fd < 0)
        failed(path, fd);
    return fd;
}

/* Say what a small file holds, up to its first line's end. */
SHARED void quote(const char *path)
{
    long fd = open_path(path, O_RDONLY, 0);
    long count = fd < 0 ? 0 : CALL(SYS_read, fd, buffer, 256);
    if (fd >= 0)
        CALL(SYS_close, fd, 0, 0);
    buffer[count > 0 ? count : 0] = 0;
    for (char *at = buffer; *at; at++)
        if (*at == '\n')
            *at = 0;
    text(buffer);
}

/* Load what came along as /modules/00.ko, 01.ko and so on. */
SHARED void load_modules(void)
{
    char path[] = "/modules/00.ko";
    for (int which = 0; which < 100; which++) {
        path[9] = '0' + which / 10;
        path[10] = '0' + which % 10;
        if (!exists(path))
            break;
        long fd = open_path(path, O_RDONLY | O_CLOEXEC, 0);
        long error = CALL(SYS_finit_module, fd, "", 0);
        if (error)
            failed(path, error);
        CALL(SYS_close, fd, 0, 0);
    }
}

static void rest(void)
{
    struct timespec tenth = {0, 100000000};
    CALL(SYS_nanosleep, &tenth, 0, 0);
}

/* Tell the host that it is its turn. */
static void wait_for(const char *what)
{
    text(what);
    text(": now\n");
    say();
}

static long pin(int cpu)
{
    unsigned long one[16] = {1ul << cpu};
    return CALL(SYS_sched_setaffinity, 0, sizeof one, one);
}

/* The kernel may start this program on fewer: `isolcpus=` keeps the others for programs that ask for them. */
static int processors(void)
{
    static int count;
    if (!count) {
        while (pin(count) >= 0)
            count++;
        pin(0);
    }
    return count;
}
