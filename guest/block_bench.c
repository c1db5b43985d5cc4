/*
 * A guest that does nothing but read 4 KiB blocks from a virtio disk: a benchmark of the machine around it.
 *
 * It enters by PVH, maps the first 4 GiB one to one, and runs its driver in ring 3, which KVM-PVM does not emulate; on
 * hardware KVM that makes no difference. It polls, so no interrupts are counted in. Where a phase begins or ends it
 * writes a letter to the first serial port, by an invalid instruction, since only ring 0 may use ports: A and B around
 * OPS_1 reads one at a time, C and D around OPS_32 reads, 32 at a time; X means that something went wrong.
 */
#include <stddef.h>
#include <stdint.h>

#define OPS_1 4000
#define DEPTH 32
#define OPS_32 (DEPTH * 400)
#define BLOCK 4096

__asm__(
    ".section .note.Xen, \"a\"\n"
    ".long 4, 4, 18\n .asciz \"Xen\"\n .long enter\n" /* XEN_ELFNOTE_PHYS32_ENTRY */
    ".section .bss\n .balign 4096\n"
    "pml4: .skip 4096\n pdpt: .skip 4096\n pd: .skip 4 * 4096\n .skip 8192\n stack: .skip 8192\n user_stack:\n"
    ".data\n .balign 8\n"
    "gdt: .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff, 0x00cff2000000ffff, 0x00affa000000ffff, 0, 0\n"
    "gdt_pointer: .word 55\n .quad gdt\n"
    ".text\n .code32\n"
    ".globl enter\n"
    "enter: cli\n mov $stack, %esp\n"
    " mov $pd, %edi\n mov $0x87, %eax\n mov $2048, %ecx\n" /* present, writable, for users, 2 MiB */
    "1: mov %eax, (%edi)\n add $0x200000, %eax\n add $8, %edi\n dec %ecx\n jnz 1b\n"
    " mov $pd + 7, %eax\n mov %eax, pdpt\n add $4096, %eax\n mov %eax, pdpt + 8\n"
    " add $4096, %eax\n mov %eax, pdpt + 16\n add $4096, %eax\n mov %eax, pdpt + 24\n"
    " movl $pdpt + 7, pml4\n mov $pml4, %eax\n mov %eax, %cr3\n"
    " mov %cr4, %eax\n or $0x20, %eax\n mov %eax, %cr4\n"
    " mov $0xc0000080, %ecx\n rdmsr\n or $0x100, %eax\n wrmsr\n"
    " mov %cr0, %eax\n or $0x80000001, %eax\n mov %eax, %cr0\n"
    " lgdt gdt_pointer\n ljmp $8, $long_mode\n"
    ".code64\n"
    "long_mode: mov $16, %eax\n mov %eax, %ds\n mov %eax, %es\n mov %eax, %ss\n mov $stack, %rsp\n call prepare\n"
    " push $0x1b\n push $user_stack\n push $2\n push $0x23\n push $measure\n iretq\n"
    /* an invalid instruction of ring 3: print the letter in its rdi, and go on behind it */
    "invalid: push %rax\n push %rdx\n mov $0x3f8, %edx\n mov %edi, %eax\n out %al, %dx\n pop %rdx\n pop %rax\n"
    " addq $2, (%rsp)\n iretq\n"
    "fault: mov $0x3f8, %edx\n mov $'X', %al\n out %al, %dx\n 1: hlt\n jmp 1b\n");

extern char gdt[], stack[], invalid[], fault[];

static struct {
    uint16_t low, selector;
    uint8_t stack, type;
    uint16_t middle;
    uint32_t high, reserved;
} idt[32];

static struct {
    uint32_t reserved;
    uint64_t rsp0;
    uint32_t more[23];
} __attribute__((packed)) tss;

__attribute__((used)) static void prepare(void)
{
    uint64_t base = (uint64_t)&tss;
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) pointer = {sizeof idt - 1, (uint64_t)idt};

    for (int vector = 0; vector < 32; vector++) {
        uint64_t handler = (uint64_t)(vector == 6 ? invalid : fault);
        idt[vector].low = handler;
        idt[vector].middle = handler >> 16;
        idt[vector].selector = 8;
        idt[vector].type = 0x8e;
    }
    tss.rsp0 = (uint64_t)stack;
    tss.more[22] = sizeof tss << 16; /* no I/O bitmap */
    *(uint64_t *)(gdt + 40) = (sizeof tss - 1) | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
    *(uint64_t *)(gdt + 48) = base >> 32;
    __asm__ volatile("lidt %0\n ltr %w1" : : "m"(pointer), "r"(40));
}

static void say(char letter)
{
    __asm__ volatile("ud2" : : "D"(letter) : "memory");
}

/* The registers of virtio-mmio (VIRTIO 1.3, 4.2.2) that it takes. */
enum {
    DEVICE_ID = 2,
    FEATURES = 8,
    FEATURES_SELECT = 9,
    QUEUE_NUM = 14,
    QUEUE_READY = 17,
    NOTIFY = 20,
    STATUS = 28,
    DESC = 32,
    AVAIL = 36,
    USED = 40,
    CONFIG = 64
};

static struct {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
} desc[4 * DEPTH] __attribute__((aligned(4096)));

static struct {
    volatile uint16_t flags, idx, ring[4 * DEPTH];
} avail __attribute__((aligned(4096)));

static struct {
    volatile uint16_t flags, idx;
    struct {
        volatile uint32_t id, len;
    } ring[4 * DEPTH];
} used __attribute__((aligned(4096)));

static struct {
    uint32_t type, reserved;
    uint64_t sector;
} headers[DEPTH];

static volatile uint8_t statuses[DEPTH];
static uint8_t data[DEPTH][BLOCK] __attribute__((aligned(4096)));
static volatile uint32_t *device;

static int find(uint64_t base, uint64_t step, int count)
{
    for (; count--; base += step) {
        device = (volatile uint32_t *)base;
        if (device[0] == 0x74726976 && device[1] == 2 && device[DEVICE_ID] == 2)
            return 1;
    }
    return 0;
}

static void set_address(int index, void *address)
{
    device[index] = (uint64_t)address;
    device[index + 1] = (uint64_t)address >> 32;
}

static void start(void)
{
    device[STATUS] = 0;
    device[STATUS] = 3;
    device[FEATURES_SELECT] = 0;
    device[FEATURES] = 0;
    device[FEATURES_SELECT] = 1;
    device[FEATURES] = 1; /* VERSION_1 and nothing else */
    device[STATUS] = 11;
    device[QUEUE_NUM] = 4 * DEPTH;
    set_address(DESC, desc);
    set_address(AVAIL, &avail);
    set_address(USED, &used);
    device[QUEUE_READY] = 1;
    device[STATUS] = 15;
    avail.flags = 1; /* no interrupts */
    for (int i = 0; i < DEPTH; i++) {
        desc[4 * i].addr = (uint64_t)&headers[i], desc[4 * i].len = 16;
        desc[4 * i].flags = 1, desc[4 * i].next = 4 * i + 1;
        desc[4 * i + 1].addr = (uint64_t)data[i], desc[4 * i + 1].len = BLOCK;
        desc[4 * i + 1].flags = 3, desc[4 * i + 1].next = 4 * i + 2;
        desc[4 * i + 2].addr = (uint64_t)&statuses[i], desc[4 * i + 2].len = 1;
        desc[4 * i + 2].flags = 2;
    }
}

static void run(unsigned int operations, unsigned int depth, uint64_t blocks)
{
    uint32_t seed = 1;
    for (unsigned int done = 0; done < operations; done += depth) {
        uint16_t idx = avail.idx;
        for (unsigned int i = 0; i < depth; i++) {
            seed = seed * 1664525 + 1013904223;
            headers[i].sector = (uint64_t)(seed >> 8) % blocks * (BLOCK / 512);
            statuses[i] = 0xff;
            avail.ring[(uint16_t)(idx + i) % (4 * DEPTH)] = 4 * i;
        }
        __asm__ volatile("" : : : "memory");
        avail.idx = idx + depth;
        __asm__ volatile("mfence" : : : "memory");
        if (!(used.flags & 1))
            device[NOTIFY] = 0;
        while (used.idx != (uint16_t)(idx + depth))
            __asm__ volatile("pause" : : : "memory");
        for (unsigned int i = 0; i < depth; i++)
            if (statuses[i])
                say('X');
    }
}

__attribute__((used, noreturn)) static void measure(void)
{
    /* where the example VMM has its devices, and where QEMU's microvm does */
    if (!find(0xd0000000, 0x1000, 8) && !find(0xfeb00000, 0x200, 24))
        say('X');
    start();
    uint64_t blocks = (device[CONFIG] | (uint64_t)device[CONFIG + 1] << 32) / (BLOCK / 512);
    for (;;) {
        say('A');
        run(OPS_1, 1, blocks);
        say('B');
        say('C');
        run(OPS_32, DEPTH, blocks);
        say('D');
    }
}
