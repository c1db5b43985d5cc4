"""What an errno most likely means for a given ioctl: the facts of the kernel's KVM API document, beside the cure."""

from __future__ import annotations

import errno

_ANY = {
    errno.ENOTTY: "this kernel or this kind of file descriptor does not know the call; see python -m pyvmm_kvm",
    errno.EBADF: "the file descriptor is closed",
    errno.ENOMEM: "the kernel had no memory for it",
}

_KNOWN = {
    ("open", errno.ENOENT): "no such device: load the kvm module of your processor, or run where /dev/kvm exists",
    ("open", errno.EACCES): "no permission: join the group that owns the device (usually kvm)",
    ("open", errno.ENODEV): "the kvm module is loaded but virtualization is switched off in the firmware",
    ("KVM_CREATE_VM", errno.EINVAL): "the machine type is not one of this architecture",
    ("KVM_CREATE_VM", errno.EBUSY): "another hypervisor holds the processor's virtualization extension",
    (
        "KVM_CREATE_VCPU",
        errno.EEXIST,
    ): "a vCPU with this id exists",
    ("KVM_CREATE_VCPU", errno.EINVAL): "the id is not below max_vcpu_id, or the VM has its largest number of vCPUs",
    ("KVM_CREATE_IRQCHIP", errno.EEXIST): "an interrupt controller exists, or a vCPU does: create the irqchip first",
    ("KVM_CREATE_IRQCHIP", errno.EINVAL): "the irqchip must be created before the first vCPU",
    ("KVM_CREATE_PIT2", errno.ENOENT): "the PIT needs the in-kernel irqchip: call create_irq_chip first",
    ("KVM_CREATE_PIT2", errno.EEXIST): "a PIT exists",
    ("KVM_SET_USER_MEMORY_REGION", errno.EEXIST): "it overlaps another slot in guest physical memory",
    ("KVM_SET_USER_MEMORY_REGION", errno.EINVAL): (
        "address, size and host address must be multiples of the page size, the slot number below get_nr_memslots, "
        "and an existing slot may change only its flags or move"
    ),
    ("KVM_SET_USER_MEMORY_REGION2", errno.EEXIST): "it overlaps another slot in guest physical memory",
    ("KVM_SET_USER_MEMORY_REGION2", errno.EINVAL): (
        "as for KVM_SET_USER_MEMORY_REGION; guest_memfd needs KVM_MEM_GUEST_MEMFD and a VM type with private memory"
    ),
    ("KVM_SET_IDENTITY_MAP_ADDR", errno.EINVAL): "it must be set before the first vCPU is created",
    ("KVM_SET_BOOT_CPU_ID", errno.EBUSY): "it must be set before the first vCPU is created",
    ("KVM_GET_DIRTY_LOG", errno.ENOENT): "the slot does not exist or was registered without KVM_MEM_LOG_DIRTY_PAGES",
    ("KVM_CLEAR_DIRTY_LOG", errno.ENXIO): "enable KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 first",
    ("KVM_IRQFD", errno.EBUSY): "this eventfd is registered already, for whichever interrupt",
    ("KVM_IRQFD", errno.EINVAL): "the interrupt number has no route, or there is no in-kernel irqchip",
    ("KVM_IOEVENTFD", errno.EEXIST): "an eventfd is registered for this address and data",
    ("KVM_IOEVENTFD", errno.ENOENT): "nothing is registered for exactly this eventfd, address and data",
    ("KVM_IRQ_LINE", errno.ENXIO): "there is no in-kernel irqchip: call create_irq_chip first",
    ("KVM_SET_CPUID2", errno.E2BIG): "too many entries for this kernel",
    ("KVM_SET_CPUID2", errno.EINVAL): "the table contradicts itself, or the vCPU has run already with another one",
    (
        "KVM_SET_SREGS",
        errno.EINVAL,
    ): "control registers, EFER and segments contradict each other",
    ("KVM_SET_REGS", errno.EINVAL): "the registers contradict the vCPU's mode",
    ("KVM_RUN", errno.EFAULT): "the guest touched memory whose host mapping is gone or protected",
    ("KVM_RUN", errno.EINVAL): "a state set before contradicts itself (registers, sync_regs or memory without a slot)",
    ("KVM_RUN", errno.EBADF): "the vCPU is closed",
    ("KVM_GET_LAPIC", errno.EINVAL): "there is no in-kernel LAPIC: create_irq_chip must come before the vCPU",
    ("KVM_SET_LAPIC", errno.EINVAL): "there is no in-kernel LAPIC: create_irq_chip must come before the vCPU",
    ("KVM_SIGNAL_MSI", errno.ENXIO): "there is no in-kernel irqchip",
    ("KVM_X86_SET_MSR_FILTER", errno.EINVAL): "deny-by-default without ranges, flags or sizes that KVM does not know",
    ("KVM_ENABLE_CAP", errno.EINVAL): "KVM does not know this capability here, or refuses its arguments at this moment",
}


def likely_cause(ioctl: str, error: int) -> str:
    """Return one sentence for this pair, or an empty string where nothing useful is known."""
    return _KNOWN.get((ioctl, error)) or _ANY.get(error, "")
