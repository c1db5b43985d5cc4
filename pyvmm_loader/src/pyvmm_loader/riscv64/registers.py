"""The registers of a riscv64 hart by their KVM ids.

Source: Documentation/virt/kvm/api.rst, 4.68; arch/riscv/include/uapi/asm/kvm.h, struct kvm_riscv_core and _csr.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CORE_REGISTER, CSR_REGISTER = 0x8030000002000000, 0x8030000003000000
"""KVM_REG_RISCV | KVM_REG_SIZE_U64 | KVM_REG_RISCV_CORE or _CSR; behind it the index of the register."""
IDS = {
    "pc": CORE_REGISTER,
    "ra": CORE_REGISTER | 1,
    "sp": CORE_REGISTER | 2,
    **{f"a{number}": CORE_REGISTER | 10 + number for number in range(8)},
    "mode": CORE_REGISTER | 32,
    "satp": CSR_REGISTER | 8,
}


def one_regs(registers: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """Yield (id, value) for KVM_SET_ONE_REG, of registers by name as `BootPlan.boot_registers` has them.

    >>> [hex(number) for number, _ in one_regs({"a1": 0, "satp": 0})]
    ['0x803000000200000b', '0x8030000003000008']
    """
    for name, value in registers.items():
        yield IDS[name], value
