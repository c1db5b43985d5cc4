/*
 * An init that uses virtio devices as programs do, and says what it saw. `do=WORD,WORD,...` on the kernel command line
 * says what to use, in order; then it powers off:
 *   features  each virtio device: its type and the features that its driver took
 *   disk      mount /dev/vda, read `input`, write `output` and have it on the disk, unmount
 *   blocks    read /dev/vdb past the page cache on each processor, discard its second MiB, zero its third
 *   rng       read from /dev/hwrng
 *   console   write to /dev/hvc0, read a line from it, and write that back
 *   port      the same with the port named "lesson"
 *   net       ping `ping=A.B.C.D`, then fetch from `server=A.B.C.D:PORT` by HTTP, and send it `bytes=SIZE` bytes
 *   resize    wait until /dev/vda has another size
 * Checksums are those of zlib's crc32.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/reboot.h>
#include <netinet/in.h>
#include <sys/mount.h>

#include <asm/ioctls.h>
#include <asm/termbits.h>

#include "init.h"

#define CALL5(number, a, b, c, d, e) syscall5(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))
#define CHUNK 65536
#define MIB (1 << 20)

static char buffer[CHUNK] __attribute__((aligned(4096)));
static char **environment;
static unsigned int crc_table[256];

static long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
    register long r9 __asm__("r9") = f;
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

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
    while (count--)
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
    long fd = CALL(SYS_open, path, flags, 0644);
    if (fd < 0)
        failed(path, fd);
    return fd;
}

/* Say what a small file holds, up to its first line's end. */
static void quote(const char *path)
{
    long fd = CALL(SYS_open, path, O_RDONLY, 0);
    long count = fd < 0 ? 0 : CALL(SYS_read, fd, buffer, 256);
    if (fd >= 0)
        CALL(SYS_close, fd, 0, 0);
    buffer[count > 0 ? count : 0] = 0;
    for (char *at = buffer; *at; at++)
        if (*at == '\n')
            *at = 0;
    text(buffer);
}

static void features(void)
{
    char path[] = "/sys/bus/virtio/devices/virtio0/features";
    char type[] = "/sys/bus/virtio/devices/virtio0/device";
    for (char which = '0'; which <= '9'; which++) {
        path[30] = type[30] = which;
        if (CALL(SYS_access, path, 0, 0))
            break;
        text("virtio: type ");
        quote(type);
        text(" features ");
        quote(path);
        text("\n");
    }
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
    CALL(SYS_mkdir, "/mnt", 0755, 0);
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

static void blocks(void)
{
    unsigned long mask[16] = {0}, one[16] = {0};
    unsigned long second[2] = {MIB, MIB}, third[2] = {2 * MIB, MIB};
    long error;

    CALL(SYS_sched_getaffinity, 0, sizeof mask, mask);
    long fd = open_file("/dev/vdb", O_RDWR | O_DIRECT);
    for (int cpu = 0; mask[0] >> cpu & 1; cpu++) {
        one[0] = 1ul << cpu;
        CALL(SYS_sched_setaffinity, 0, sizeof one, one);
        long count = CALL5(SYS_pread64, fd, buffer, 4096, cpu * 4096, 0);
        text("blocks: processor ");
        number(cpu);
        sum_up(" read", count, crc32(0, buffer, count));
    }
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

static void rng(void)
{
    long fd = open_file("/dev/hwrng", O_RDONLY);
    long count = CALL(SYS_read, fd, buffer, 64);
    CALL(SYS_close, fd, 0, 0);
    text("rng: from ");
    quote("/sys/class/misc/hw_random/rng_current");
    sum_up("", count, crc32(0, buffer, count));
}

static void talk(const char *name, const char *path)
{
    static const char hello[] = "hello from the guest\n";
    struct termios terminal;
    long length = 0;

    long fd = open_file(path, O_RDWR | O_NOCTTY);
    if (!CALL(SYS_ioctl, fd, TCGETS, &terminal)) {
        terminal.c_lflag &= ~ECHO;
        CALL(SYS_ioctl, fd, TCSETS, &terminal);
    }
    CALL(SYS_write, fd, hello, sizeof hello - 1);
    while (length < 4096 && (!length || buffer[length - 1] != '\n')) {
        long count = CALL(SYS_read, fd, buffer + length, 4096 - length);
        if (count < 0)
            break;
        length += count;
    }
    CALL(SYS_write, fd, "it said: ", 9);
    CALL(SYS_write, fd, buffer, length);
    CALL(SYS_close, fd, 0, 0);
    text(name);
    sum_up(": got", length, crc32(0, buffer, length));
}

static void port(void)
{
    char path[] = "/dev/vport0p1";
    char name[] = "/sys/class/virtio-ports/vport0p1/name";
    for (char device = '0'; device <= '9'; device++)
        for (char which = '0'; which <= '9'; which++) {
            path[10] = name[29] = device;
            path[12] = name[31] = which;
            if (CALL(SYS_access, path, 0, 0))
                continue;
            quote(name);
            used = 0;
            if (begins(line, "lesson")) {
                talk("port", path);
                return;
            }
        }
    failed("no such port", 0);
}

static struct sockaddr_in address_of(const char *at)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    unsigned int address = 0;

    for (int i = 0; i < 4; i++, at += *at != 0)
        address = address << 8 | decimal(&at);
    to.sin_addr.s_addr = __builtin_bswap32(address);
    to.sin_port = __builtin_bswap16(decimal(&at));
    return to;
}

static void ping(struct sockaddr_in to)
{
    struct timeval patience = {20, 0};
    unsigned char packet[8 + 56] = {8, 0, 0, 0, 0x12, 0x34, 0, 1};
    unsigned long sum = 0;

    for (int i = 8; i < 64; i++)
        packet[i] = i;
    for (int i = 0; i < 64; i += 2)
        sum += packet[i] << 8 | packet[i + 1];
    sum = (sum & 0xffff) + (sum >> 16);
    packet[2] = ~sum >> 8;
    packet[3] = ~sum;
    long fd = CALL(SYS_socket, AF_INET, SOCK_RAW, IPPROTO_ICMP);
    CALL5(SYS_setsockopt, fd, SOL_SOCKET, 20 /* SO_RCVTIMEO */, &patience, sizeof patience);
    syscall6(SYS_sendto, fd, (long)packet, sizeof packet, 0, (long)&to, sizeof to);
    for (int tries = 0; tries < 8; tries++) {
        long count = CALL(SYS_read, fd, buffer, CHUNK);
        if (count < 0)
            break;
        if (count >= 28 && buffer[20] == 0 && buffer[24] == 0x12 && buffer[25] == 0x34) {
            text("net: ping came back with ");
            number(count - 28);
            text(" bytes\n");
            say();
            break;
        }
    }
    CALL(SYS_close, fd, 0, 0);
}

static long call_server(const struct sockaddr_in *to, const char *method, unsigned long length)
{
    long fd = CALL(SYS_socket, AF_INET, SOCK_STREAM, 0);
    long error = CALL(SYS_connect, fd, to, sizeof *to);
    if (error)
        failed("connect", error);
    text(method);
    text(" /data HTTP/1.0\r\nContent-Length: ");
    number(length);
    text("\r\n\r\n");
    CALL(SYS_write, fd, line, used);
    used = 0;
    return fd;
}

/* Read an answer to its end, and sum up what comes after its header. */
static void answer(long fd, const char *what)
{
    unsigned int crc = 0;
    unsigned long length = 0;
    int ends = 0;

    for (long count; (count = CALL(SYS_read, fd, buffer, CHUNK)) > 0;) {
        long at = 0;
        for (; ends < 4 && at < count; at++)
            ends = buffer[at] == "\r\n\r\n"[ends] ? ends + 1 : buffer[at] == '\r';
        crc = crc32(crc, buffer + at, count - at);
        length += count - at;
    }
    CALL(SYS_close, fd, 0, 0);
    sum_up(what, length, crc);
}

static void net(void)
{
    struct sockaddr_in to = address_of(setting(environment, "server", "10.0.0.1:80"));
    const char *bytes = setting(environment, "bytes", "65536");
    unsigned long size = decimal(&bytes);
    unsigned int crc = 0, seed = 2;

    text("net: address of ");
    quote("/sys/class/net/eth0/address");
    text(" mtu ");
    quote("/sys/class/net/eth0/mtu");
    text("\n");
    say();
    ping(address_of(setting(environment, "ping", "10.0.0.1")));
    answer(call_server(&to, "GET", 0), "net: fetched");
    long fd = call_server(&to, "PUT", size);
    for (unsigned long done = 0; done < size; done += CHUNK) {
        fill(&seed);
        crc = crc32(crc, buffer, CHUNK);
        for (long sent = 0; sent < CHUNK;) {
            long count = CALL(SYS_write, fd, buffer + sent, CHUNK - sent);
            if (count <= 0) {
                failed("send", count);
                return;
            }
            sent += count;
        }
    }
    sum_up("net: sent", size, crc);
    answer(fd, "net: answered");
}

static void resize(void)
{
    struct timespec pause = {0, 100000000};
    unsigned long before = 0, size = 0;

    long fd = open_file("/dev/vda", O_RDONLY);
    CALL(SYS_ioctl, fd, BLKGETSIZE64, &before);
    text("resize: now\n");
    say();
    for (int tries = 0; tries < 600; tries++) {
        CALL(SYS_ioctl, fd, BLKGETSIZE64, &size);
        if (size != before)
            break;
        CALL(SYS_nanosleep, &pause, 0, 0);
    }
    CALL(SYS_close, fd, 0, 0);
    text("resize: ");
    number(size);
    text(" bytes\n");
    say();
}

static void start(long *stack)
{
    static const struct {
        const char *word;
        void (*function)(void);
    } words[] = {{"features", features}, {"disk", disk}, {"blocks", blocks}, {"rng", rng}, {"port", port},
                 {"net", net}, {"resize", resize}, {"interrupts", interrupts}};

    environment = (char **)(stack + 1 + stack[0] + 1);
    CALL(SYS_mkdir, "/proc", 0555, 0);
    CALL(SYS_mkdir, "/sys", 0555, 0);
    CALL(SYS_mkdir, "/dev", 0755, 0);
    CALL5(SYS_mount, "proc", "/proc", "proc", 0, 0);
    CALL5(SYS_mount, "sysfs", "/sys", "sysfs", 0, 0);
    CALL5(SYS_mount, "devtmpfs", "/dev", "devtmpfs", 0, 0);
    for (const char *at = setting(environment, "do", "features"); *at;) {
        if (begins(at, "console"))
            talk("console", "/dev/hvc0");
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
