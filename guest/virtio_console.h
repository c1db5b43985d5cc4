/*
 * The console device as programs see it: /dev/hvc0, and ports with names.
 */
#include <asm/termbits.h>
#include <signal.h>
#include <sys/ioctl.h>

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
        if (count <= 0)
            break;
        length += count;
    }
    CALL(SYS_write, fd, "it said: ", 9);
    CALL(SYS_write, fd, buffer, length);
    CALL(SYS_close, fd, 0, 0);
    text(name);
    sum_up(": got", length, crc32(0, buffer, length));
}

static void console(void)
{
    talk("console", "/dev/hvc0");
}

static void window(void)
{
    struct winsize size = {0};
    struct timespec patience = {PATIENCE / 10, 0};
    unsigned long changed = 1ul << (SIGWINCH - 1);

    /* blocked, it is kept for whoever waits for it, even by process 1 */
    CALL5(SYS_rt_sigprocmask, SIG_BLOCK, &changed, 0, sizeof changed, 0);
    CALL(SYS_setsid, 0, 0, 0);
    long fd = open_file("/dev/hvc0", O_RDWR | O_NOCTTY);
    CALL(SYS_ioctl, fd, TIOCSCTTY, 0);
    wait_for("window");
    long signal = CALL5(SYS_rt_sigtimedwait, &changed, 0, &patience, sizeof changed, 0);
    CALL(SYS_ioctl, fd, TIOCGWINSZ, &size);
    CALL(SYS_close, fd, 0, 0);
    text("window: signal ");
    number(signal < 0 ? 0 : signal);
    text(" columns ");
    number(size.ws_col);
    text(" rows ");
    number(size.ws_row);
    text("\n");
    say();
}

static char port_path[] = "/dev/vport0p1";

/* Look for a port by its name; its path is in `port_path` then. */
static int find_port(const char *wanted)
{
    char name[] = "/sys/class/virtio-ports/vport0p1/name";
    for (char device = '0'; device <= '9'; device++)
        for (char which = '0'; which <= '9'; which++) {
            port_path[10] = name[29] = device;
            port_path[12] = name[31] = which;
            if (!exists(name))
                continue;
            quote(name);
            used = 0;
            if (begins(line, wanted))
                return 1;
        }
    return 0;
}

static void await_port(const char *name, int there)
{
    for (int tries = 0; tries < PATIENCE; tries++) {
        if (find_port(name) == there)
            return;
        rest();
    }
    failed(there ? "no such port" : "the port is still there", 0);
}

static void port(void)
{
    await_port("lesson", 1);
    talk("port", port_path);
}

static void late(void)
{
    wait_for("late");
    await_port("late", 1);
    talk("late", port_path);
    await_port("late", 0);
    text("late: gone\n");
    say();
}
