"""Ids of x86's registers for `VcpuFd.get_one_reg` and `set_one_reg`: model-specific registers, on Linux 6.18 and later.

>>> hex(msr(0x174))
'0x2030000200000174'
"""

from __future__ import annotations

X86 = 0x2 << 60
SIZE_U64 = 3 << 52
TYPE_MSR, TYPE_KVM = 2, 3


def msr(index: int) -> int:
    """Return the id of a model-specific register."""
    return X86 | SIZE_U64 | TYPE_MSR << 32 | index


def kvm(number: int) -> int:
    """Return the id of a register that KVM made up: 0 is the shadow-stack pointer of a guest with CET."""
    return X86 | SIZE_U64 | TYPE_KVM << 32 | number


GUEST_SSP = kvm(0)
