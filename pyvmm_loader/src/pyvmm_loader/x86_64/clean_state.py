"""What an entry expects of a processor beside its general and system registers: MSRs, local APIC, x87 and SSE.

A new vCPU is in the state of the architecture's INIT or power-up, which is not what firmware hands to a kernel: it
leaves the time-stamp counter at zero, fast strings on, memory write-back by default, and the local APIC as virtual
wire, so that the PIC's interrupts and NMIs arrive.

Sources: Intel SDM volume 3, table 10-1 (state after reset), 11.5.1 (local vector table), 12.11 (MTRRs); Intel
MultiProcessor Specification 1.4, 3.6.2.2 (virtual wire mode).
"""

from __future__ import annotations

MSR_TSC, MSR_MISC_ENABLE, MSR_MTRR_DEF_TYPE, MSR_EFER = 0x10, 0x1A0, 0x2FF, 0xC0000080
MSR_SYSENTER_CS, MSR_SYSENTER_ESP, MSR_SYSENTER_EIP = 0x174, 0x175, 0x176
MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_SYSCALL_MASK = 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084
MSR_KERNEL_GS_BASE = 0xC0000102
FAST_STRINGS = 1 << 0
MTRR_ENABLE, MTRR_WRITE_BACK = 1 << 11, 6

LAPIC_SIZE = 1024
LVT_LINT0, LVT_LINT1 = 0x350, 0x360
DELIVERY_MODE, DELIVER_NMI, DELIVER_EXTINT, MASKED = 0x700, 0x400, 0x700, 1 << 16

FPU_CONTROL, MXCSR = 0x37F, 0x1F80
"""All exceptions masked, extended precision, rounding to nearest."""


def boot_msrs() -> dict[int, int]:
    """Return index and value of the MSRs, in an order in which they may be set."""
    msrs = dict.fromkeys((MSR_SYSENTER_CS, MSR_SYSENTER_ESP, MSR_SYSENTER_EIP), 0)
    msrs.update(dict.fromkeys((MSR_STAR, MSR_CSTAR, MSR_KERNEL_GS_BASE, MSR_SYSCALL_MASK, MSR_LSTAR), 0))
    msrs[MSR_TSC] = 0
    msrs[MSR_MISC_ENABLE] = FAST_STRINGS
    msrs[MSR_MTRR_DEF_TYPE] = MTRR_ENABLE | MTRR_WRITE_BACK
    return msrs


def boot_lapic(state: bytes, *, bootstrap: bool = True) -> bytes:
    """Return a local APIC's registers (`struct kvm_lapic_state`) in virtual wire mode; others are masked on LINT0.

    Raises ValueError for anything but 1024 bytes.
    """
    if len(state) != LAPIC_SIZE:
        raise ValueError(f"a local APIC has {LAPIC_SIZE} bytes of registers, these are {len(state)}")
    registers = bytearray(state)

    def deliver(register: int, mode: int, mask: int) -> None:
        old = int.from_bytes(registers[register : register + 4], "little")
        registers[register : register + 4] = (old & ~(DELIVERY_MODE | MASKED) | mode | mask).to_bytes(4, "little")

    deliver(LVT_LINT0, DELIVER_EXTINT, 0 if bootstrap else MASKED)
    deliver(LVT_LINT1, DELIVER_NMI, 0)
    return bytes(registers)
