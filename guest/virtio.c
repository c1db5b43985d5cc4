/*
 * An init that uses virtio devices as programs do, and says what it saw. `do=WORD,WORD,...` on the kernel command line
 * says what to use, in order, once the modules that came along are loaded; then it powers off:
 *   features  each virtio device: its type and the features that its driver took
 *   online    start the processors that `maxcpus=` left alone, and have eth0 use a pair of queues for each
 *   queues    how many queues the drivers of /dev/vda and eth0 use
 *   disk      mount /dev/vda, read `input`, write `output` and have it on the disk, unmount
 *   blocks    on each processor read from /dev/vdb past the page cache, and write; discard its second MiB, zero its third
 *   grow      wait until /dev/vda has another size
 *   rng       read from /dev/hwrng
 *   console   write to /dev/hvc0, read a line from it, and write that back
 *   window    wait for the signal that says that /dev/hvc0 has another size, and say which
 *   port      the same as "console" with the port named "lesson"
 *   late      the same with a port named "late" that comes and goes meanwhile
 *   link      wait until eth0's link is down, and up again
 *   net       ping `ping=A.B.C.D`; then on each processor fetch from `server=A.B.C.D:PORT` by HTTP, and send it
 *             `bytes=SIZE` bytes
 *   interrupts  what /proc/interrupts says of virtio devices
 * What waits says "WORD: now" first. Checksums are those of zlib's crc32.
 */
#include "virtio.h"

#include <linux/fs.h>
#include <linux/reboot.h>
#include <sys/mount.h>

#include "virtio_console.h"
#include "virtio_net.h"

static void features(void)
{
    char path[] = "/sys/bus/virtio/devices/virtio0/features";
    char type[] = "/sys/bus/virtio/devices/virtio0/device";
    for (char which = '0'; which <= '9'; which++) {
        path[30] = type[30] = which;
        if (!exists(path))
            break;
        text("virtio: type ");
        quote(type);
        text(" features ");
        quote(path);
        text("\n");
    }
    say();
}

static int count(char *path, char *digit)
{
    int found = 0;
    for (*digit = '0'; *digit <= '9' && exists(path); ++*digit)
        found++;
    return found;
}

static void online(void)
{
    char path[] = "/sys/devices/system/cpu/cpu1/online";

    for (char *digit = path + 27; *digit <= '9'; ++*digit) {
        long fd = open_path(path, O_WRONLY, 0);
        if (fd < 0)
            break;
        long length = CALL(SYS_write, fd, "1", 1);
        if (length != 1)
            failed(path, length);
        CALL(SYS_close, fd, 0, 0);
    }
    text("online: ");
    number(processors());
    text("\n");
    say();
    use_queue_pairs(processors());
}

static void queues(void)
{
    char disk[] = "/sys/block/vda/mq/0";
    char receive[] = "/sys/class/net/eth0/queues/rx-0", transmit[] = "/sys/class/net/eth0/queues/tx-0";

    text("queues: block ");
    number(count(disk, disk + sizeof disk - 2));
    text(" receive ");
    number(count(receive, receive + sizeof receive - 2));
    text(" transmit ");
    number(count(transmit, transmit + sizeof transmit - 2));
    text("\n");
    say();
}

static void interrupts(void)
{
    long fd = open_file("/proc/interrupts", O_RDONLY);
    long length = 0;
    for (long count; (count = CALL(SYS_read, fd, buffer + length, CHUNK - 1 - length)) > 0; length += count)
        ;
    CALL(SYS_close, fd, 0, 0);
    buffer[length] = 0;
    for (char *at = buffer, *begin = at; *at; at++)
        if (*at == '\n') {
            *at = 0;
            for (char *word = begin; word < at; word++)
                if (begins(word, "virtio")) {
                    text("interrupt: ");
                    text(begin);
                    text("\n");
                    break;
                }
            begin = at + 1;
        }
    say();
}

static void disk(void)
{
    unsigned int crc = 0, seed = 1;
    unsigned long length = 0;

    text("disk: serial ");
    quote("/sys/block/vda/serial");
    text(" sectors ");
    quote("/sys/block/vda/size");
    text(" cache ");
    quote("/sys/block/vda/cache_type");
    text("\n");
    say();
    make_folder("/mnt", 0755);
    long error = CALL5(SYS_mount, "/dev/vda", "/mnt", "ext2", 0, 0);
    if (error) {
        failed("mount", error);
        return;
    }
    long fd = open_file("/mnt/input", O_RDONLY);
    for (long count; (count = CALL(SYS_read, fd, buffer, CHUNK)) > 0; length += count)
        crc = crc32(crc, buffer, count);
    CALL(SYS_close, fd, 0, 0);
    sum_up("disk: read", length, crc);

    crc = 0;
    fd = open_file("/mnt/output", O_WRONLY | O_CREAT | O_TRUNC);
    for (length = 0; length < MIB; length += CHUNK) {
        fill(&seed);
        crc = crc32(crc, buffer, CHUNK);
        if (CALL(SYS_write, fd, buffer, CHUNK) != CHUNK)
            failed("write", -5);
    }
    if ((error = CALL(SYS_fsync, fd, 0, 0)))
        failed("fsync", error);
    CALL(SYS_close, fd, 0, 0);
    sum_up("disk: wrote", length, crc);
    if ((error = CALL(SYS_umount2, "/mnt", 0, 0)))
        failed("umount", error);
}

/* One processor's requests go through one queue, which is its own where there are enough. */
static void blocks_of(long fd, int cpu)
{
    unsigned int seed = 100 + cpu;
    long at = 3 * MIB + cpu * CHUNK;

    pin(cpu);
    long length = CALL5(SYS_pread64, fd, buffer, 4096, cpu * 4096, 0);
    text("blocks: processor ");
    number(cpu);
    sum_up(" read", length, crc32(0, buffer, length));
    fill(&seed);
    length = CALL5(SYS_pwrite64, fd, buffer, CHUNK, at, 0);
    if (length != CHUNK)
        failed("write", length);
    memset(buffer, 0, CHUNK);
    length = CALL5(SYS_pread64, fd, buffer, CHUNK, at, 0);
    text("blocks: processor ");
    number(cpu);
    sum_up(" wrote", length, crc32(0, buffer, length));
}

static void blocks(void)
{
    unsigned long second[2] = {MIB, MIB}, third[2] = {2 * MIB, MIB};
    long error;

    long fd = open_file("/dev/vdb", O_RDWR | O_DIRECT);
    for (int cpu = 0; cpu < processors(); cpu++)
        blocks_of(fd, cpu);
    if ((error = CALL(SYS_ioctl, fd, BLKDISCARD, second)))
        failed("discard", error);
    if ((error = CALL(SYS_ioctl, fd, BLKZEROOUT, third)))
        failed("zero out", error);
    if ((error = CALL(SYS_fsync, fd, 0, 0)))
        failed("fsync", error);
    CALL(SYS_close, fd, 0, 0);
    text("blocks: done\n");
    say();
}

static void grow(void)
{
    unsigned long before = 0, size = 0;

    long fd = open_file("/dev/vda", O_RDONLY);
    CALL(SYS_ioctl, fd, BLKGETSIZE64, &before);
    wait_for("grow");
    for (int tries = 0; tries < PATIENCE; tries++) {
        CALL(SYS_ioctl, fd, BLKGETSIZE64, &size);
        if (size != before)
            break;
        rest();
    }
    CALL(SYS_close, fd, 0, 0);
    text("grow: from ");
    number(before);
    text(" to ");
    number(size);
    text(" bytes, sectors ");
    quote("/sys/block/vda/size");
    text("\n");
    say();
}

static void rng(void)
{
    long fd = open_file("/dev/hwrng", O_RDONLY);
    long count = CALL(SYS_read, fd, buffer, 64);
    CALL(SYS_close, fd, 0, 0);
    text("rng: from ");
    quote("/sys/class/misc/hw_random/rng_current");
    sum_up("", count, crc32(0, buffer, count));
}

static void start(long *stack)
{
    static const struct {
        const char *word;
        void (*function)(void);
    } words[] = {{"features", features}, {"online", online}, {"queues", queues}, {"disk", disk}, {"blocks", blocks}, {"grow", grow},
                 {"rng", rng}, {"console", console}, {"window", window}, {"port", port}, {"late", late},
                 {"link", cable}, {"net", net}, {"interrupts", interrupts}};

    environment = (char **)(stack + 1 + stack[0] + 1);
    make_folder("/proc", 0555);
    make_folder("/sys", 0555);
    make_folder("/dev", 0755);
    CALL5(SYS_mount, "proc", "/proc", "proc", 0, 0);
    CALL5(SYS_mount, "sysfs", "/sys", "sysfs", 0, 0);
    CALL5(SYS_mount, "devtmpfs", "/dev", "devtmpfs", 0, 0);
    load_modules();
    for (const char *at = setting(environment, "do", "features"); *at;) {
        for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
            if (begins(at, words[i].word))
                words[i].function();
        while (*at && *at++ != ',')
            ;
    }
    text("virtio: done\n");
    say();
    CALL(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF);
    for (;;)
        CALL(SYS_exit, 1, 0, 0);
}
