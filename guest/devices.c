/*
 * An init that says what Linux's drivers made of the devices they found. `do=WORD,WORD,...` on the kernel command line
 * says what to look at, in order; then it powers off:
 *   pci      each PCI function: its configuration space, and the resources the kernel gave it
 *   plug     ask for a device to be plugged in, show it, ask for it to be taken out, wait until it has gone
 *   serial   read BYTES (`bytes=`) from the second serial port and say their checksum
 *   rtc      read, set and read back the clock, then wait for its alarm
 *   show     the content of each file in `show=PATH,PATH,...`
 *   crash    die, which is a kernel panic
 */
#include <dirent.h>
#include <linux/reboot.h>
#include <linux/rtc.h>
#include <sys/mount.h>

#include <asm/termbits.h>
#include <asm/ioctls.h>

#include "init.h"

static char buffer[32768];
static char **environment;

static void hex(unsigned long value, int digits)
{
    while (digits--) {
        char digit[2] = {"0123456789abcdef"[value >> 4 * digits & 15], 0};
        text(digit);
    }
}

static unsigned long decimal(const char *at)
{
    unsigned long value = 0;
    for (; *at >= '0' && *at <= '9'; at++)
        value = value * 10 + *at - '0';
    return value;
}

static void pause_ms(long milliseconds)
{
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    CALL(SYS_nanosleep, &time, 0, 0);
}

static const char *join(const char *folder, const char *name, const char *file)
{
    static char path[256];
    const char *parts[] = {folder, "/", name, file};
    size_t count = 0;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        for (const char *at = parts[i]; *at && count < sizeof path - 1;)
            path[count++] = *at++;
    path[count] = 0;
    return path;
}

/* Read a whole file into the buffer; returns its length, or the error. */
static long slurp(const char *path)
{
    long length = 0;
    long fd = open_path(path, 0, 0);
    if (fd < 0)
        return fd;
    for (long count; length < (long)sizeof buffer - 1; length += count) {
        count = CALL(SYS_read, fd, buffer + length, sizeof buffer - 1 - length);
        if (count <= 0)
            break;
    }
    CALL(SYS_close, fd, 0, 0);
    buffer[length] = 0;
    return length;
}

static const char PCI[] = "/sys/bus/pci/devices";

/* One function: "pci ADDRESS CONFIG", the configuration space without the zeros at its end, then what was assigned. */
static void show_function(const char *name)
{
    long length = slurp(join(PCI, name, "/config"));
    if (length < 0)
        return;
    text("pci ");
    text(name);
    text(" ");
    while (length > 64 && !buffer[length - 1])
        length--;
    for (long i = 0; i < length; i++)
        hex((unsigned char)buffer[i], 2);
    text("\n");
    slurp(join(PCI, name, "/resource"));
    /* lines of three numbers: first address, last address, flags */
    int index = 0;
    for (char *at = buffer; *at; index++) {
        char *end = at;
        while (*end && *end != '\n')
            end++;
        if (*end)
            *end++ = 0;
        const char *flags = at + 38;
        int given = 0;
        for (int i = 0; i < 18 && flags[i]; i++)
            given |= flags[i] != '0' && flags[i] != 'x';
        if (given) {
            text("resource ");
            number(index);
            text(" ");
            text(at);
            text("\n");
        }
        at = end;
    }
    say();
}

static void show_pci(void)
{
    static char names[8192];
    long fd = open_path(PCI, 0, 0);
    long count = fd < 0 ? 0 : CALL(SYS_getdents64, fd, names, sizeof names);
    /* struct linux_dirent64 is struct dirent of a 64-bit C library */
    for (long at = 0; at < count;) {
        struct dirent *entry = (struct dirent *)(names + at);
        if (entry->d_name[0] != '.')
            show_function(entry->d_name);
        at += entry->d_reclen;
    }
    CALL(SYS_close, fd, 0, 0);
}

static int wait_for_function(const char *name, int there)
{
    for (int tries = 0; tries < 600; tries++) {
        int found = slurp(join(PCI, name, "/vendor")) > 0;
        if (found == there)
            return 1;
        pause_ms(100);
    }
    return 0;
}

static void plug(void)
{
    const char *name = setting(environment, "slot", "0000:01:00.0");
    text("plug it in\n");
    say();
    if (wait_for_function(name, 1))
        show_function(name);
    text("take it out\n");
    say();
    text(wait_for_function(name, 0) ? "it has gone\n" : "it has stayed\n");
    say();
}

/* What cksum(1) would not say: FNV-1a, which needs neither a table nor a library. */
static void read_serial(void)
{
    unsigned long total = decimal(setting(environment, "bytes", "1024")), seen = 0, sum = 0xcbf29ce484222325;
    struct termios raw;
    long fd = open_path("/dev/ttyS1", 0x902 /* O_RDWR | O_NOCTTY | O_NONBLOCK */, 0);
    struct pollfd port = {.fd = fd, .events = POLLIN};

    CALL(SYS_ioctl, fd, TCGETS, &raw);
    raw.c_iflag = raw.c_oflag = raw.c_lflag = 0;
    raw.c_cflag = B115200 | CS8 | CREAD | CLOCAL;
    CALL(SYS_ioctl, fd, TCSETS, &raw);
    text("serial: ready\n");
    say();
    while (seen < total && poll_file(&port, 20000) > 0) {
        long count = CALL(SYS_read, fd, buffer, sizeof buffer);
        if (count <= 0)
            break;
        for (long i = 0; i < count; i++)
            sum = (sum ^ (unsigned char)buffer[i]) * 0x100000001b3;
        seen += count;
    }
    text("serial: ");
    number(seen);
    text(" bytes, checksum ");
    hex(sum, 16);
    text("\n");
    say();
    CALL(SYS_close, fd, 0, 0);
}

static void show_time(const char *what, const struct rtc_time *time)
{
    const int parts[] = {time->tm_year + 1900, time->tm_mon + 1, time->tm_mday,
                         time->tm_hour, time->tm_min, time->tm_sec};
    text(what);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        text(i ? " " : "");
        number(parts[i]);
    }
    text("\n");
}

static void try_rtc(void)
{
    struct rtc_time time = {0};
    struct rtc_wkalrm alarm = {.enabled = 1};
    unsigned long events = 0;
    long fd = open_path("/dev/rtc0", 0, 0);

    if (fd < 0) {
        text("rtc: none\n");
        say();
        return;
    }
    CALL(SYS_ioctl, fd, RTC_RD_TIME, &time);
    show_time("rtc: ", &time);
    time = (struct rtc_time){.tm_year = 133, .tm_mon = 10, .tm_mday = 12, .tm_hour = 23, .tm_min = 58, .tm_sec = 40};
    CALL(SYS_ioctl, fd, RTC_SET_TIME, &time);
    CALL(SYS_ioctl, fd, RTC_RD_TIME, &time);
    show_time("rtc: set to ", &time);
    alarm.time = time;
    alarm.time.tm_sec += 3;
    text(CALL(SYS_ioctl, fd, RTC_WKALM_SET, &alarm) < 0 ? "rtc: no alarm\n" : "rtc: waiting\n");
    say();
    struct pollfd rtc = {.fd = fd, .events = POLLIN};
    if (poll_file(&rtc, 20000) > 0)
        CALL(SYS_read, fd, &events, sizeof events);
    text("rtc: events ");
    hex(events, 8);
    CALL(SYS_ioctl, fd, RTC_RD_TIME, &time);
    show_time(" at ", &time);
    say();
}

static void show_files(void)
{
    const char *paths = setting(environment, "show", "");
    char path[256];
    while (*paths) {
        size_t count = 0;
        for (; *paths && *paths != ','; paths++)
            if (count < sizeof path - 1)
                path[count++] = *paths;
        path[count] = 0;
        paths += *paths == ',';
        long length = slurp(path);
        text("== ");
        text(path);
        text(length < 0 ? " is missing\n" : "\n");
        if (length > 0) {
            text(buffer);
            text("\n");
        }
        say();
    }
}

static int is(const char *word, const char *name)
{
    while (*name && *word == *name)
        word++, name++;
    return !*name && (!*word || *word == ',');
}

static void start(long *stack)
{
    static const char *const mounts[][2] = {{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}};
    static const struct { const char *name; void (*act)(void); } acts[] = {
        {"pci", show_pci}, {"plug", plug}, {"serial", read_serial}, {"rtc", try_rtc}, {"show", show_files},
    };
    environment = (char **)(stack + 1 + stack[0] + 1);
    for (size_t i = 0; i < sizeof mounts / sizeof mounts[0]; i++) {
        make_folder(mounts[i][1], 0755);
        CALL5(SYS_mount, mounts[i][0], mounts[i][1], mounts[i][0], 0, 0);
    }
    text("devices: begin\n");
    say();
    for (const char *word = setting(environment, "do", ""); *word;) {
        for (size_t i = 0; i < sizeof acts / sizeof acts[0]; i++)
            if (is(word, acts[i].name))
                acts[i].act();
        if (is(word, "crash"))
            CALL(SYS_exit, 1, 0, 0);
        while (*word && *word != ',')
            word++;
        word += *word == ',';
    }
    text("devices: end\n");
    say();
    CALL(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF);
    for (;;)
        CALL(SYS_exit, 1, 0, 0);
}
