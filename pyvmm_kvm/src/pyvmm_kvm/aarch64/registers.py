"""Ids of arm64's registers for `VcpuFd.get_one_reg` and `set_one_reg` (asm/kvm.h; Documentation/virt/kvm/api.rst 4.68).

>>> hex(core("pc")), hex(sys_reg(3, 3, 14, 0, 2))
('0x6030000000100040', '0x603000000013df02')
"""

from __future__ import annotations

from pyvmm_kvm._kvm import ffi

ARM64 = 0x6 << 60
SIZE_U32, SIZE_U64, SIZE_U128 = 2 << 52, 3 << 52, 4 << 52
SIZE_U256, SIZE_U512, SIZE_U2048 = 5 << 52, 6 << 52, 8 << 52

CORE = 0x10 << 16
DEMUX_CCSIDR = 0x11 << 16
SYSREG = 0x13 << 16
FIRMWARE = 0x14 << 16
SVE = 0x15 << 16
FIRMWARE_BITMAP = 0x16 << 16

_WIDTHS = {"vregs": SIZE_U128, "fpsr": SIZE_U32, "fpcr": SIZE_U32}


def core(name: str, index: int = 0) -> int:
    """Return the id of a field of `Regs`: `core("regs", 30)` is X30, `core("vregs", 2)` V2 (128 bits), `core("pc")` PC.

    Raises:
        ValueError: there is no such field, or it has fewer members.
    """
    try:
        offset = ffi.offsetof("struct arm64_regs", name)
    except KeyError:
        raise ValueError(f"struct kvm_regs of arm64 has no field {name!r}") from None
    width = _WIDTHS.get(name, SIZE_U64)
    size = 1 << (width >> 52)
    count = {"regs": 31, "spsr": 5, "vregs": 32}.get(name, 1)
    if not 0 <= index < count:
        raise ValueError(f"{name} has {count} members, no number {index}")
    # ids count in 32-bit words, whatever the width
    return ARM64 | width | CORE | (offset + index * size) // 4


def sys_reg(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """Return the id of a system register from the fields of its MRS encoding."""
    for value, bits in ((op0, 2), (op1, 3), (crn, 4), (crm, 4), (op2, 3)):
        if value >> bits:
            raise ValueError(f"{value} does not fit into {bits} bits of a system register's encoding")
    return ARM64 | SIZE_U64 | SYSREG | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


def ccsidr(level: int) -> int:
    """Return the id of the cache size register that CSSELR value `level` selects."""
    return ARM64 | SIZE_U32 | DEMUX_CCSIDR | level & 0xFF


def firmware(number: int) -> int:
    """Return the id of a pseudo register of KVM's firmware, such as `PSCI_VERSION`."""
    return ARM64 | SIZE_U64 | FIRMWARE | number & 0xFFFF


def firmware_bitmap(number: int) -> int:
    """Return the id of a bitmap of hypercall services: 0 standard, 1 standard hypervisor, 2 vendor hypervisor."""
    return ARM64 | SIZE_U64 | FIRMWARE_BITMAP | number & 0xFFFF


def sve_z(number: int, piece: int = 0) -> int:
    """Return the id of 2048 bits of vector register Z`number`."""
    return ARM64 | SVE | SIZE_U2048 | (number & 31) << 5 | piece & 31


def sve_p(number: int, piece: int = 0) -> int:
    """Return the id of 256 bits of predicate register P`number`."""
    return ARM64 | SVE | SIZE_U256 | 0x400 | (number & 15) << 5 | piece & 31


def sve_ffr(piece: int = 0) -> int:
    """Return the id of 256 bits of the first-fault register."""
    return ARM64 | SVE | SIZE_U256 | 0x600 | piece & 31


SVE_VLS = ARM64 | SVE | SIZE_U512 | 0xFFFF  # the set of vector lengths, before `vcpu_finalize`

PSCI_VERSION = firmware(0)
SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_2, SMCCC_ARCH_WORKAROUND_3 = firmware(1), firmware(2), firmware(3)
# the kernel swapped the ids of the virtual timer's value and count long ago and keeps them so (asm/kvm.h)
TIMER_CTL, TIMER_CVAL, TIMER_CNT = sys_reg(3, 3, 14, 3, 1), sys_reg(3, 3, 14, 0, 2), sys_reg(3, 3, 14, 3, 2)
PTIMER_CTL, PTIMER_CVAL, PTIMER_CNT = sys_reg(3, 3, 14, 2, 1), sys_reg(3, 3, 14, 2, 2), sys_reg(3, 3, 14, 0, 1)
MPIDR_EL1 = sys_reg(3, 0, 0, 0, 5)
MIDR_EL1 = sys_reg(3, 0, 0, 0, 0)
CNTFRQ_EL0 = sys_reg(3, 3, 14, 0, 0)
