"""The registers of an arm64 processor by their KVM ids.

Source: Documentation/virt/kvm/api.rst, 4.68; arch/arm64/include/uapi/asm/kvm.h, struct kvm_regs.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CORE_REGISTER = 0x6030000000100000
"""KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE; behind it the offset in struct kvm_regs, in words of 32 bits."""
INDICES = {**{f"x{number}": number * 2 for number in range(31)}, "sp": 62, "pc": 64, "pstate": 66}


def one_regs(registers: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """Yield (id, value) for KVM_SET_ONE_REG, of registers by name as `BootPlan.boot_registers` has them.

    >>> [hex(number) for number, _ in one_regs({"pc": 0, "x0": 0})]
    ['0x6030000000100040', '0x6030000000100000']
    """
    for name, value in registers.items():
        yield CORE_REGISTER | INDICES[name], value
