"""Ids of RISC-V's registers for `VcpuFd.get_one_reg` and `set_one_reg` (asm/kvm.h; kvm/api.rst 4.68).

>>> hex(core("pc")), hex(csr("satp")), hex(isa_ext("ZBB"))
('0x8030000002000000', '0x8030000003000008', '0x803000000700000d')
"""

from __future__ import annotations

from pyvmm_kvm._kvm import ffi

RISCV = 0x8 << 60
SIZE_U32, SIZE_U64 = 2 << 52, 3 << 52

_CONFIG, _CORE, _CSR, _TIMER, _FP_F, _FP_D, _ISA_EXT, _SBI_EXT, _VECTOR, _SBI_STATE = (
    number << 24 for number in range(1, 11)
)
_AIA, _SMSTATEEN = 1 << 16, 2 << 16
_SBI_STA = 0
_MULTI_EN, _MULTI_DIS = 1 << 16, 2 << 16

# the kernel's enum KVM_RISCV_ISA_EXT_ID, in its order
ISA_EXTENSIONS = (
    "A C D F H I M SVPBMT SSTC SVINVAL ZIHINTPAUSE ZICBOM ZICBOZ ZBB SSAIA V SVNAPOT ZBA ZBS ZICNTR ZICSR ZIFENCEI "
    "ZIHPM SMSTATEEN ZICOND ZBC ZBKB ZBKC ZBKX ZKND ZKNE ZKNH ZKR ZKSED ZKSH ZKT ZVBB ZVBC ZVKB ZVKG ZVKNED ZVKNHA "
    "ZVKNHB ZVKSED ZVKSH ZVKT ZFH ZFHMIN ZIHINTNTL ZVFH ZVFHMIN ZFA ZTSO ZACAS SSCOFPMF ZIMOP ZCA ZCB ZCD ZCF ZCMOP "
    "ZAWRS SMNPM SSNPM SVADE SVADU SVVPTC ZABHA ZICCRSE ZAAMO ZALRSC"
).split()
# enum KVM_RISCV_SBI_EXT_ID
SBI_EXTENSIONS = "V01 TIME IPI RFENCE SRST HSM PMU EXPERIMENTAL VENDOR DBCN STA SUSP".split()


def _field(structure: str, name: str, size: int) -> int:
    try:
        return int(ffi.offsetof(f"struct riscv64_{structure}", name)) // size
    except KeyError:
        raise ValueError(f"struct kvm_riscv_{structure} has no field {name!r}") from None


def _named(table: list[str], name: str, what: str) -> int:
    if name.upper() not in table:
        raise ValueError(f"{name!r} is no {what} that this table knows; the last is {table[-1]}")
    return table.index(name.upper())


def config(name: str) -> int:
    """Return the id of a field of `Config`, before the vCPU runs."""
    return RISCV | SIZE_U64 | _CONFIG | _field("config", name, 8)


def core(name: str) -> int:
    """Return the id of a field of `Regs`."""
    return RISCV | SIZE_U64 | _CORE | _field("core", name, 8)


def csr(name: str) -> int:
    """Return the id of a field of `Csr`."""
    return RISCV | SIZE_U64 | _CSR | _field("csr", name, 8)


def aia_csr(name: str) -> int:
    """Return the id of a field of `AiaCsr`."""
    return RISCV | SIZE_U64 | _CSR | _AIA | _field("aia_csr", name, 8)


def smstateen_csr(name: str) -> int:
    """Return the id of a field of `SmstateenCsr`."""
    return RISCV | SIZE_U64 | _CSR | _SMSTATEEN | _field("smstateen_csr", name, 8)


def timer(name: str) -> int:
    """Return the id of a field of `Timer`."""
    return RISCV | SIZE_U64 | _TIMER | _field("timer", name, 8)


def fp_f(number: int) -> int:
    """Return the id of single-precision register `number`, or with 32 of the control register."""
    if not 0 <= number <= 32:
        raise ValueError(f"there are 32 registers and one for control, no number {number}")
    return RISCV | SIZE_U32 | _FP_F | number


def fp_d(number: int) -> int:
    """Return the id of double-precision register `number`, or with 32 of the control register, which has 32 bits."""
    if not 0 <= number <= 32:
        raise ValueError(f"there are 32 registers and one for control, no number {number}")
    return RISCV | (SIZE_U32 if number == 32 else SIZE_U64) | _FP_D | number


def isa_ext(name: str) -> int:
    """Return the id of whether the vCPU has an extension: 1 or 0, changed before it runs."""
    return RISCV | SIZE_U64 | _ISA_EXT | _named(ISA_EXTENSIONS, name, "extension")


def isa_multi(word: int, *, enable: bool = True) -> int:
    """Return the id of 64 extensions at once: a written 1 switches on, or with `enable=False` off."""
    return RISCV | SIZE_U64 | _ISA_EXT | (_MULTI_EN if enable else _MULTI_DIS) | word


def sbi_ext(name: str) -> int:
    """Return the id of whether the vCPU may use an SBI extension: 1 or 0."""
    return RISCV | SIZE_U64 | _SBI_EXT | _named(SBI_EXTENSIONS, name, "SBI extension")


def sbi_multi(word: int, *, enable: bool = True) -> int:
    """Return the id of 64 SBI extensions at once."""
    return RISCV | SIZE_U64 | _SBI_EXT | (_MULTI_EN if enable else _MULTI_DIS) | word


def sbi_sta(name: str) -> int:
    """Return the id of a field of `SbiSta`."""
    return RISCV | SIZE_U64 | _SBI_STATE | _SBI_STA | _field("sbi_sta", name, 8)


def vector_csr(number: int) -> int:
    """Return the id of a vector control register: 0 vstart, 1 vl, 2 vtype, 3 vcsr, 4 vlenb."""
    return RISCV | SIZE_U64 | _VECTOR | number


def vector(number: int, vlenb: int) -> int:
    """Return the id of vector register `number` of `vlenb` bytes, a power of two that `vector_csr(4)` reads."""
    if vlenb & (vlenb - 1) or not vlenb or not 0 <= number < 32:
        raise ValueError(f"vector register {number} of {vlenb} bytes is not one of 32 of a power of two")
    # behind the six words of struct __riscv_v_ext_state, of which the last is a pointer and no register
    return RISCV | (vlenb.bit_length() - 1) << 52 | _VECTOR | 6 + number
