"""A VM with one page-sized program, for the tests of every file here."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyvmm_kvm import Kvm, VcpuFd, VmFd


class Guest:
    """A real-mode program at 0x1000 and everything that must be closed after it."""

    def __init__(self, kvm: Kvm, code: bytes, vcpus: int = 1, prepare: Callable[[VmFd], object] | None = None) -> None:
        self.memory = mmap.mmap(-1, 0x10000)
        self.memory[0x1000 : 0x1000 + len(code)] = code
        self.vm = kvm.create_vm()
        if prepare:
            prepare(self.vm)
        self.vm.set_user_memory_region(0, 0, self.memory)
        self.vcpus = [self.vm.create_vcpu(number) for number in range(vcpus)]
        self.vcpu: VcpuFd = self.vcpus[0]
        self.vcpu.set_cpuid2(kvm.get_supported_cpuid())
        self.point(0x1000)

    def point(self, rip: int) -> None:
        sregs = self.vcpu.get_sregs()
        sregs.cs.base = 0
        sregs.cs.selector = 0
        self.vcpu.set_sregs(sregs)
        regs = self.vcpu.get_regs()
        regs.rip = rip
        regs.rflags = 2
        self.vcpu.set_regs(regs)

    def close(self) -> None:
        for vcpu in self.vcpus:
            vcpu.close()
        self.vm.close()
        self.memory.close()


@pytest.fixture
def boot(kvm: Kvm) -> Iterator[Callable[..., Guest]]:
    guests = []

    def make(code: bytes | str, **options: object) -> Guest:
        guest = Guest(kvm, bytes.fromhex(code) if isinstance(code, str) else code, **options)  # type: ignore[arg-type]
        guests.append(guest)
        return guest

    yield make
    for guest in guests:
        guest.close()
