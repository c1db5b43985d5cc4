/*
 * What the guest's inits share beside system calls: words and numbers for the console.
 *
 * Static and small: on KVM-PVM each system call costs 0.3 ms, and each page it touches a page fault in an emulated
 * kernel.
 * An init defines `start`, which gets the stack as the kernel leaves it.
 */
#include "system.h"

/* The compiler may call this for what it copies itself. */
void *memcpy(void *to, const void *from, size_t count)
{
    for (size_t i = 0; i < count; i++)
        ((char *)to)[i] = ((const char *)from)[i];
    return to;
}

static char line[32768];
static size_t used;

SHARED void text(const char *word)
{
    while (*word && used < sizeof line)
        line[used++] = *word++;
}

SHARED void number(unsigned long value)
{
    char digits[20];
    int count = 0;
    do
        digits[count++] = '0' + value % 10;
    while (value /= 10);
    while (count && used < sizeof line)
        line[used++] = digits[--count];
}

SHARED void say(void)
{
    for (size_t done = 0; done < used;) {
        long count = CALL(SYS_write, 1, line + done, used - done);
        if (count <= 0)
            break;
        done += count;
    }
    used = 0;
}

/* The value of NAME in the environment, or what the caller would have without it. */
SHARED const char *setting(char **environment, const char *name, const char *otherwise)
{
    for (; *environment; environment++) {
        size_t i = 0;
        while (name[i] && (*environment)[i] == name[i])
            i++;
        if (!name[i] && (*environment)[i] == '=')
            return *environment + i + 1;
    }
    return otherwise;
}
