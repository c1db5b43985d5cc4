/*
 * What differs between processors for a program without a C library: how it asks the kernel for something, and how it
 * is entered. Numbers come from the C library's headers for the processor that the compiler compiles for; of calls that
 * newer ports of Linux have under another name only (open, mkdir, access, poll) that name is used on all.
 */
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>

/* No init needs all of it. */
#define SHARED __attribute__((unused)) static

#if defined __x86_64__

SHARED long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

#define ENTRY "_start: xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call start\n"

#elif defined __aarch64__

SHARED long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}

#define ENTRY "_start: mov x29, 0\n mov x30, 0\n mov x0, sp\n and sp, x0, -16\n b start\n"

#elif defined __riscv && __riscv_xlen == 64

SHARED long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
    register long a7 __asm__("a7") = number;
    register long a0 __asm__("a0") = a;
    register long a1 __asm__("a1") = b;
    register long a2 __asm__("a2") = c;
    register long a3 __asm__("a3") = d;
    register long a4 __asm__("a4") = e;
    register long a5 __asm__("a5") = f;
    __asm__ volatile("ecall" : "+r"(a0) : "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5) : "memory");
    return a0;
}

/* the linker reaches small data by gp, which has to be loaded without it */
#define ENTRY \
    ".option push\n .option norelax\n_start: la gp, __global_pointer$\n.option pop\n" \
    " li s0, 0\n li ra, 0\n mv a0, sp\n andi sp, sp, -16\n tail start\n"

#else
#error "no system calls for this processor"
#endif

#define CALL(number, a, b, c) syscall6(number, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define CALL5(number, a, b, c, d, e) syscall6(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)

SHARED long open_path(const char *path, int flags, int mode)
{
    return CALL5(SYS_openat, AT_FDCWD, path, flags, mode, 0);
}

SHARED long make_folder(const char *path, int mode)
{
    return CALL(SYS_mkdirat, AT_FDCWD, path, mode);
}

SHARED int exists(const char *path)
{
    return !CALL(SYS_faccessat, AT_FDCWD, path, 0);
}

/* Wait until a file can be read, or so many milliseconds; positive when it can. */
SHARED long poll_file(struct pollfd *file, long milliseconds)
{
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    return CALL5(SYS_ppoll, file, 1, &time, 0, 8);
}

__attribute__((noreturn, used)) static void start(long *stack);

__asm__(".text\n.globl _start\n" ENTRY);
