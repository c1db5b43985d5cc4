from __future__ import annotations

import pytest

from pyvmm_kvm import Kvm, KvmError
from pyvmm_kvm.x86_64.structs import LapicState
from pyvmm_loader.x86_64.clean_state import (
    LAPIC_SIZE,
    LVT_LINT0,
    LVT_LINT1,
    MSR_MISC_ENABLE,
    MSR_MTRR_DEF_TYPE,
    MSR_TSC,
    boot_lapic,
    boot_msrs,
)


def word(registers: bytes, at: int) -> int:
    return int.from_bytes(registers[at : at + 4], "little")


def test_local_apic_is_a_virtual_wire() -> None:
    masked = bytes(LVT_LINT0) + b"\0\0\1\0" + bytes(12) + b"\0\0\1\0" + bytes(LAPIC_SIZE - LVT_LINT1 - 4)
    first, other = boot_lapic(masked), boot_lapic(masked, bootstrap=False)
    assert (word(first, LVT_LINT0), word(first, LVT_LINT1)) == (0x700, 0x400)
    assert (word(other, LVT_LINT0), word(other, LVT_LINT1)) == (0x10700, 0x400)
    with pytest.raises(ValueError, match="1024"):
        boot_lapic(b"")


@pytest.mark.kvm
def test_kvm_takes_it() -> None:
    try:
        kvm = Kvm()
    except KvmError as error:
        pytest.skip(str(error))
    with kvm, kvm.create_vm() as vm:
        vm.create_irq_chip()
        with vm.create_vcpu(0) as vcpu:
            vcpu.set_cpuid2(kvm.get_supported_cpuid())
            msrs = boot_msrs()
            assert vcpu.set_msrs(msrs) == len(msrs)
            found = vcpu.get_msrs(msrs)
            assert found[MSR_MTRR_DEF_TYPE] == 0x806
            assert found[MSR_MISC_ENABLE] & 1
            assert MSR_TSC in msrs
            vcpu.set_lapic(LapicState.from_bytes(boot_lapic(bytes(vcpu.get_lapic()))))
            registers = bytes(vcpu.get_lapic())
            assert (word(registers, LVT_LINT0), word(registers, LVT_LINT1)) == (0x700, 0x400)
