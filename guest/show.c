/*
 * An init that shows files. It prints what the environment asks for, which comes from the kernel command line, and
 * powers off:
 *   show=PATH,PATH,...   a file's content, or a folder's names; /proc, /sys and /dev are mounted
 *   button=PATH          first wait until the power button is pressed, read from this input device
 *
 * Static and without a C library, as init.c is.
 */
#include <dirent.h>
#include <linux/input.h>
#include <linux/reboot.h>
#include <sys/mount.h>

#include "init.h"

static char buffer[32768];

static void put(const char *at, size_t count)
{
    while (count) {
        long done = CALL(SYS_write, 1, at, count);
        if (done <= 0)
            return;
        at += done;
        count -= done;
    }
}

static void say_text(const char *word)
{
    text(word);
    say();
}

/* struct linux_dirent64 is struct dirent of a 64-bit C library. */
static void show_folder(long fd)
{
    long count;
    while ((count = CALL(SYS_getdents64, fd, buffer, sizeof buffer)) > 0)
        for (long at = 0; at < count;) {
            struct dirent *entry = (struct dirent *)(buffer + at);
            if (entry->d_name[0] != '.') {
                say_text(entry->d_name);
                say_text(" ");
            }
            at += entry->d_reclen;
        }
    say_text("\n");
}

static void show(const char *path)
{
    say_text("== ");
    say_text(path);
    say_text("\n");
    long fd = open_path(path, 0, 0);
    if (fd < 0) {
        say_text("missing\n");
        return;
    }
    long count = CALL(SYS_read, fd, buffer, sizeof buffer);
    if (count < 0)
        show_folder(fd);
    for (; count > 0; count = CALL(SYS_read, fd, buffer, sizeof buffer))
        put(buffer, count);
    CALL(SYS_close, fd, 0, 0);
}

static void await_button(const char *path)
{
    struct input_event event;
    long fd = open_path(path, 0, 0);
    say_text(fd < 0 ? "no button\n" : "press the button\n");
    while (fd >= 0 && CALL(SYS_read, fd, &event, sizeof event) == sizeof event)
        if (event.type == EV_KEY && event.code == KEY_POWER && event.value) {
            say_text("the button was pressed\n");
            return;
        }
}

static void start(long *stack)
{
    static const char *const mounts[][2] = {{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}};
    char **environment = (char **)(stack + 1 + stack[0] + 1);
    const char *button = setting(environment, "button", "");
    const char *paths = setting(environment, "show", "");
    char path[256];

    for (size_t i = 0; i < sizeof mounts / sizeof mounts[0]; i++) {
        make_folder(mounts[i][1], 0755);
        CALL5(SYS_mount, mounts[i][0], mounts[i][1], mounts[i][0], 0, 0);
    }
    if (*button)
        await_button(button);
    while (*paths) {
        size_t count = 0;
        for (; *paths && *paths != ','; paths++)
            if (count < sizeof path - 1)
                path[count++] = *paths;
        path[count] = 0;
        show(path);
        if (*paths)
            paths++;
    }
    say_text("== end\n");
    CALL(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF);
    for (;;)
        CALL(SYS_exit, 1, 0, 0);
}
