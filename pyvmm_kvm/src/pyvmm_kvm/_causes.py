"""What an errno most likely means for a given ioctl: the facts of the kernel's KVM API document, beside the cure."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    Causes: TypeAlias = dict[tuple[str, int], str]

_ANY = {
    errno.ENOTTY: "this kernel or this kind of file descriptor does not know the call; see python -m pyvmm_kvm",
    errno.EBADF: "the file descriptor is closed",
    errno.ENOMEM: "the kernel had no memory for it",
}

_KNOWN: Causes = {
    ("open", errno.ENOENT): "no such device: load the kvm module of your processor, or run where /dev/kvm exists",
    ("open", errno.EACCES): "no permission: join the group that owns the device (usually kvm)",
    ("open", errno.ENODEV): "the kvm module is loaded but virtualization is switched off in the firmware",
    ("KVM_CREATE_VM", errno.EINVAL): "the machine type is not one of this architecture",
    ("KVM_CREATE_VM", errno.EBUSY): "another hypervisor holds the processor's virtualization extension",
    ("KVM_CREATE_VCPU", errno.EEXIST): "a vCPU with this id exists",
    ("KVM_CREATE_VCPU", errno.EINVAL): "the id is not below max_vcpu_id, or the VM has its largest number of vCPUs",
    ("KVM_CREATE_DEVICE", errno.ENODEV): "this host's KVM has no device of that type",
    ("KVM_CREATE_DEVICE", errno.EEXIST): "the VM has one of that kind",
    ("KVM_SET_USER_MEMORY_REGION", errno.EEXIST): "it overlaps another slot in guest physical memory",
    ("KVM_SET_USER_MEMORY_REGION", errno.EINVAL): (
        "address, size and host address must be multiples of the page size, the slot number below get_nr_memslots, "
        "and an existing slot may change only its flags or move"
    ),
    ("KVM_SET_USER_MEMORY_REGION2", errno.EEXIST): "it overlaps another slot in guest physical memory",
    ("KVM_SET_USER_MEMORY_REGION2", errno.EINVAL): (
        "as for KVM_SET_USER_MEMORY_REGION; guest_memfd needs KVM_MEM_GUEST_MEMFD and a VM type with private memory"
    ),
    ("KVM_GET_DIRTY_LOG", errno.ENOENT): "the slot does not exist or was registered without KVM_MEM_LOG_DIRTY_PAGES",
    ("KVM_CLEAR_DIRTY_LOG", errno.ENXIO): "enable KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 first",
    ("KVM_IRQFD", errno.EBUSY): "this eventfd is registered already, for whichever interrupt",
    ("KVM_IRQFD", errno.EINVAL): "the interrupt number has no route, or there is no in-kernel irqchip",
    ("KVM_IOEVENTFD", errno.EEXIST): "an eventfd is registered for this address and data",
    ("KVM_IOEVENTFD", errno.ENOENT): "nothing is registered for exactly this eventfd, address and data",
    ("KVM_RUN", errno.EFAULT): "the guest touched memory whose host mapping is gone or protected",
    ("KVM_RUN", errno.EINVAL): "a state set before contradicts itself (registers, sync_regs or memory without a slot)",
    ("KVM_RUN", errno.EBADF): "the vCPU is closed",
    ("KVM_SIGNAL_MSI", errno.ENXIO): "there is no in-kernel irqchip",
    ("KVM_ENABLE_CAP", errno.EINVAL): "KVM does not know this capability here, or refuses its arguments at this moment",
    ("KVM_GET_ONE_REG", errno.ENOENT): "this vCPU has no such register: get_reg_list says which",
    ("KVM_SET_ONE_REG", errno.ENOENT): "this vCPU has no such register: get_reg_list says which",
}

_X86: Causes = {
    ("KVM_CREATE_IRQCHIP", errno.EEXIST): "an interrupt controller exists, or a vCPU does: create the irqchip first",
    ("KVM_CREATE_IRQCHIP", errno.EINVAL): "the irqchip must be created before the first vCPU",
    ("KVM_CREATE_PIT2", errno.ENOENT): "the PIT needs the in-kernel irqchip: call create_irq_chip first",
    ("KVM_CREATE_PIT2", errno.EEXIST): "a PIT exists",
    ("KVM_SET_IDENTITY_MAP_ADDR", errno.EINVAL): "it must be set before the first vCPU is created",
    ("KVM_SET_BOOT_CPU_ID", errno.EBUSY): "it must be set before the first vCPU is created",
    ("KVM_IRQ_LINE", errno.ENXIO): "there is no in-kernel irqchip: call create_irq_chip first",
    ("KVM_SET_CPUID2", errno.E2BIG): "too many entries for this kernel",
    ("KVM_SET_CPUID2", errno.EINVAL): "the table contradicts itself, or the vCPU has run already with another one",
    ("KVM_SET_SREGS", errno.EINVAL): "control registers, EFER and segments contradict each other",
    ("KVM_SET_REGS", errno.EINVAL): "the registers contradict the vCPU's mode",
    ("KVM_GET_LAPIC", errno.EINVAL): "there is no in-kernel LAPIC: create_irq_chip must come before the vCPU",
    ("KVM_SET_LAPIC", errno.EINVAL): "there is no in-kernel LAPIC: create_irq_chip must come before the vCPU",
    ("KVM_X86_SET_MSR_FILTER", errno.EINVAL): "deny-by-default without ranges, flags or sizes that KVM does not know",
}

_RAN_ALREADY = "a vCPU has run already: create the interrupt controller before"
_GIC_INCOMPLETE = "the GIC is not complete: call its init() when all vCPUs are created"
_BEFORE_INIT = "the vCPU is no processor yet: call vcpu_init first"
_BEFORE_FINALIZE = "the vCPU has a feature that is not settled yet, such as SVE: call vcpu_finalize first"
_ARM64: Causes = {
    ("KVM_CREATE_VM", errno.EINVAL): (
        "guest physical addresses can have 32 to get_host_ipa_limit() bits on this host, or just the default of 40"
    ),
    ("KVM_CREATE_VCPU", errno.EBUSY): "the GIC is complete already: create all vCPUs before its init()",
    # this call makes a GICv2, and most hosts have another one
    ("KVM_CREATE_IRQCHIP", errno.ENODEV): "this host's GIC cannot be a GICv2: make an aarch64.platform.VgicV3 instead",
    ("KVM_CREATE_IRQCHIP", errno.EEXIST): "the VM has an interrupt controller",
    ("KVM_CREATE_IRQCHIP", errno.EBUSY): _RAN_ALREADY,
    ("KVM_CREATE_DEVICE", errno.ENODEV): (
        "this host's KVM has no device of that type: a GICv2 needs a host whose GIC has such a mode, a GICv3 and an "
        "ITS one with a GICv3"
    ),
    ("KVM_CREATE_DEVICE", errno.EBUSY): _RAN_ALREADY,
    ("KVM_SET_USER_MEMORY_REGION", errno.EFAULT): (
        "it ends beyond the VM's guest physical addresses: create_vm_with_ipa_size says how many bits they have"
    ),
    ("KVM_IRQ_LINE", errno.ENXIO): "there is no in-kernel GIC: make an aarch64.platform.VgicV3 first",
    ("KVM_IRQ_LINE", errno.EINVAL): "the number is not one that irq_number makes, or beyond the GIC's interrupts",
    ("KVM_ARM_VCPU_INIT", errno.EINVAL): (
        "the target is not get_preferred_target()'s, a feature is missing here, or the vCPU was another processor "
        "before"
    ),
    ("KVM_ARM_VCPU_INIT", errno.ENOENT): "this kernel does not know one of the features",
    ("KVM_RUN", errno.ENOEXEC): _BEFORE_INIT,
    ("KVM_RUN", errno.EPERM): _BEFORE_FINALIZE,
    ("KVM_RUN", errno.ENXIO): "the GIC has no address for its distributor or for a redistributor of each vCPU",
    ("KVM_RUN", errno.EBUSY): _GIC_INCOMPLETE,
    ("KVM_RUN", errno.ENODEV): _GIC_INCOMPLETE,
    ("KVM_RUN", errno.EINVAL): (
        "the GIC's frames overlap, or the private interrupts of two timers or of the performance monitor are the same"
    ),
    ("KVM_RUN", errno.ENOSYS): (
        "the guest touched an address without memory by an instruction that the processor does not describe (a pair, "
        "a vector, one with write-back): enable Cap.ARM_NISV_TO_USER, or let the guest use simple loads and stores"
    ),
    **{(f"KVM_{call}", errno.ENOEXEC): _BEFORE_INIT for call in (
        "GET_ONE_REG", "SET_ONE_REG", "GET_REG_LIST", "GET_VCPU_EVENTS", "SET_VCPU_EVENTS", "ARM_VCPU_FINALIZE",
    )},
    **{(f"KVM_{call}", errno.EPERM): _BEFORE_FINALIZE for call in ("GET_ONE_REG", "SET_ONE_REG", "GET_REG_LIST")},
}  # fmt: skip

_RISCV64: Causes = {
    ("KVM_CREATE_IRQCHIP", errno.EINVAL): (
        "RISC-V has no irqchip of this kind: the in-kernel controller is a device, riscv64.platform.Aia, and where the "
        "host lacks it a PLIC of your own drives VcpuFd.interrupt"
    ),
    ("KVM_CREATE_DEVICE", errno.ENODEV): (
        "this host's KVM has no device of that type: the AIA needs processors with the Ssaia extension; a PLIC of your "
        "own drives VcpuFd.interrupt everywhere"
    ),
    ("KVM_CREATE_DEVICE", errno.EBUSY): _RAN_ALREADY,
    ("KVM_SET_DEVICE_ATTR", errno.EBUSY): "the interrupt controller is complete already",
    ("KVM_SET_DEVICE_ATTR", errno.EINVAL): (
        "a number, address or mode that this host's AIA cannot have: modes but MODE_EMUL need guest interrupt files"
    ),
    ("KVM_IRQ_LINE", errno.ENXIO): "there is no in-kernel AIA: VcpuFd.interrupt is the supervisor's external interrupt",
    ("KVM_RUN", errno.EOPNOTSUPP): "the guest fetched an instruction where it has no memory",
    ("KVM_SET_ONE_REG", errno.EBUSY): "this register can change only before the vCPU runs for the first time",
    ("KVM_SET_ONE_REG", errno.EINVAL): "the host cannot give the vCPU that value",
}

_BY_MACHINE = {"x86_64": _X86, "aarch64": _ARM64, "riscv64": _RISCV64}


def likely_cause(ioctl: str, error: int, machine: str = "") -> str:
    """Return one sentence for this pair, or an empty string where nothing useful is known.

    Args:
        ioctl: its name in linux/kvm.h.
        error: the errno.
        machine: the architecture, as ``uname -m`` says it; this host's by default.
    """
    own = _BY_MACHINE.get(machine or os.uname().machine, {})
    return own.get((ioctl, error)) or _KNOWN.get((ioctl, error)) or _ANY.get(error, "")
