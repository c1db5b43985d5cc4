/*
 * The demo guest's only process. It says one line about the machine it finds itself on, echoes what is typed
 * on the console, and powers off.
 *
 * Static, without a C library and with few system calls: on KVM-PVM each one costs 0.3 ms and each page it
 * touches a page fault in an emulated kernel. The environment comes from the kernel command line:
 *   wait=SECONDS   how long to wait for (more) console input before powering off; 3 unless given
 *   end=reboot     restart instead of powering off, to see that a VMM tells the two apart
 *   end=crash      let process 1 die, which is a kernel panic
 */
#include <linux/reboot.h>
#include <linux/sysinfo.h>
#include <linux/utsname.h>

#include "init.h"

static unsigned long hexadecimal(const char **at)
{
    unsigned long value = 0;
    for (;; ++*at) {
        char c = **at;
        if (c >= '0' && c <= '9')
            value = value * 16 + c - '0';
        else if (c >= 'a' && c <= 'f')
            value = value * 16 + c - 'a' + 10;
        else
            return value;
    }
}

/* The machine's RAM in bytes. What sysinfo calls total has lost the kernel itself, so add up /proc/iomem. */
static unsigned long ram(void)
{
    static char map[16384];
    static const char label[] = " : System RAM\n";
    unsigned long total = 0;

    make_folder("/proc", 0555);
    CALL5(SYS_mount, "proc", "/proc", "proc", 0, 0);
    long fd = open_path("/proc/iomem", 0, 0);
    if (fd < 0)
        return 0;
    size_t length = 0;
    for (long count; length < sizeof map - 1; length += count) {
        count = CALL(SYS_read, fd, map + length, sizeof map - 1 - length);
        if (count <= 0)
            break;
    }
    CALL(SYS_close, fd, 0, 0);
    for (const char *at = map; *at; at++) {
        unsigned long first = hexadecimal(&at);
        if (*at == '-') {
            at++;
            unsigned long last = hexadecimal(&at);
            size_t i = 0;
            while (label[i] && at[i] == label[i])
                i++;
            if (!label[i])
                total += last - first + 1;
        }
        while (*at && *at != '\n')
            at++;
        if (!*at)
            break;
    }
    return total;
}

static unsigned long cpus(void)
{
    unsigned long mask[128];
    unsigned long total = 0;
    long bytes = CALL(SYS_sched_getaffinity, 0, sizeof mask, mask);
    for (long i = 0; i < bytes / 8; i++)
        for (unsigned long bits = mask[i]; bits; bits &= bits - 1)
            total++;
    return total;
}

static void introduce(void)
{
    struct new_utsname kernel;
    struct sysinfo memory;
    struct timespec since_boot = {0, 0};

    CALL(SYS_uname, &kernel, 0, 0);
    CALL(SYS_sysinfo, &memory, 0, 0);
    CALL(SYS_clock_gettime, 7 /* CLOCK_BOOTTIME */, &since_boot, 0);
    text("guest: ");
    text(kernel.sysname);
    text(" ");
    text(kernel.release);
    text(", ");
    unsigned long count = cpus();
    number(count);
    text(count == 1 ? " CPU, " : " CPUs, ");
    number((ram() + (1 << 19)) >> 20);
    text(" MiB of memory (");
    number(memory.freeram * memory.mem_unit >> 20);
    text(" MiB free), up ");
    number(since_boot.tv_sec);
    text(".");
    number(since_boot.tv_nsec / 100000000);
    text(" s\n");
    say();
}

/* Returns when nothing was typed for so many seconds, at end of input, or when asked to power off. */
static void echo(unsigned long seconds)
{
    static char typed[4096];
    struct pollfd console = {.fd = 0, .events = POLLIN};

    if (!seconds)
        return;
    text("guest: type a line and it comes back; poweroff, Ctrl-D or ");
    number(seconds);
    text(" s of silence end this\n");
    say();
    while (poll_file(&console, seconds * 1000) > 0) {
        long count = CALL(SYS_read, 0, typed, sizeof typed - 1);
        if (count <= 0)
            return;
        typed[count] = 0;
        const char *farewell = "poweroff\n";
        for (long i = 0; typed[i] == farewell[i]; i++)
            if (!farewell[i + 1])
                return;
        text("echo: ");
        text(typed);
        say();
    }
}

__attribute__((noreturn, used)) static void start(long *stack)
{
    char **environment = (char **)(stack + 1 + stack[0] + 1);
    const char *wait = setting(environment, "wait", "3");
    const char *end = setting(environment, "end", "poweroff");
    unsigned long seconds = 0;

    introduce();
    for (; *wait >= '0' && *wait <= '9' && seconds < 100000; wait++)
        seconds = seconds * 10 + *wait - '0';
    echo(seconds);
    if (end[0] != 'c')
        CALL(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2,
             end[0] == 'r' ? LINUX_REBOOT_CMD_RESTART : LINUX_REBOOT_CMD_POWER_OFF);
    for (;;)
        CALL(SYS_exit, 1, 0, 0);
}
