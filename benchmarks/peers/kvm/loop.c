/* The peer without any language above it: KVM_RUN in a bare C loop. Usage: loop pio|mmio|ioeventfd|floor COUNT */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

int main(int argc, char **argv)
{
    static const uint8_t pio[] = {0xe6, 0x10, 0xeb, 0xfc};
    static const uint8_t mmio[] = {0xa2, 0x00, 0xf0, 0xeb, 0xfb};
    const char *kind = argc > 1 ? argv[1] : "pio";
    uint32_t count = argc > 2 ? strtoul(argv[2], 0, 0) : 20000;
    /* mov ecx,count; again: out 0x10,al; dec ecx; jnz again; hlt */
    uint8_t event[] = {0x66, 0xb9, 0, 0, 0, 0, 0xe6, 0x10, 0x66, 0x49, 0x75, 0xfa, 0xf4};
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm = ioctl(kvm, KVM_CREATE_VM, 0), vcpu;
    size_t size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    uint8_t *memory = mmap(0, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region region = {0, 0, 0, 0x10000, (uintptr_t)memory};
    struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};
    struct kvm_sregs sregs;
    struct kvm_run *run;
    struct timespec a, b;
    volatile uint64_t sum = 0;

    memcpy(event + 2, &count, 4);
    memcpy(memory + 0x1000, !strcmp(kind, "mmio") ? mmio : !strcmp(kind, "ioeventfd") ? event : pio, 13);
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
    vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    run = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    ioctl(vcpu, KVM_GET_SREGS, &sregs);
    sregs.cs.base = sregs.cs.selector = 0;
    sregs.ds.base = 0x20000;
    sregs.ds.selector = 0x2000;
    ioctl(vcpu, KVM_SET_SREGS, &sregs);
    ioctl(vcpu, KVM_SET_REGS, &regs);
    if (!strcmp(kind, "ioeventfd")) {
        struct kvm_ioeventfd io = {.addr = 0x10, .fd = eventfd(0, EFD_NONBLOCK), .flags = KVM_IOEVENTFD_FLAG_PIO};
        ioctl(vm, KVM_IOEVENTFD, &io);
    }
    run->immediate_exit = !strcmp(kind, "floor");
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (uint32_t i = 0; i < (!strcmp(kind, "ioeventfd") ? 1 : count); i++) {
        ioctl(vcpu, KVM_RUN, 0);
        switch (run->exit_reason) {
        case KVM_EXIT_IO: sum += *((uint8_t *)run + run->io.data_offset) + run->io.port; break;
        case KVM_EXIT_MMIO: sum += run->mmio.data[0] + run->mmio.phys_addr; break;
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &b);
    printf("%.0f\n", ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)));
    return 0;
}
