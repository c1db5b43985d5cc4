"""A PVH kernel of a few instructions on a real vCPU."""

from __future__ import annotations

import os

import pytest
from tests.loader.images import XEN_NOTE, elf

from pyvmm_loader import BootPlan
from pyvmm_memory import GuestMemoryMmap

# The PVH note's entry is 0x10 behind the segment: mov eax,[ebx]; mov dx,0x3f8; out dx,eax; hlt
PROGRAM = bytes(16) + bytes.fromhex("8b03 66ba f803 ef f4")


@pytest.mark.kvm
@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="/dev/kvm does not open")
def test_pvh_entry_finds_its_start_info() -> None:
    from pyvmm_kvm import IoOut, Kvm

    size = 4 << 20
    with (
        GuestMemoryMmap.from_ranges([(0, size)]) as memory,
        Kvm() as kvm,
        kvm.create_vm() as vm,
        BootPlan(elf(PROGRAM, notes=(XEN_NOTE,)), memory) as plan,
    ):
        plan.apply(memory)
        vm.set_user_memory_region(0, 0, next(iter(memory)).buffer)
        with vm.create_vcpu(0) as vcpu:
            regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
            plan.registers.copy_to(regs, sregs)
            vcpu.set_sregs(sregs)
            vcpu.set_regs(regs)
            match vcpu.run():
                case IoOut(port, data):
                    assert (port, bytes(data)) == (0x3F8, bytes.fromhex("78c56e33"))
                case other:
                    pytest.fail(repr(other))
