"""Guests of one page of program, on each architecture: the same things done by each one's instructions.

Memory lies at 0 and has 64 KiB, the program at `ENTRY`; what lies from `MMIO` on is nobody's.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING

from pyvmm_kvm import Hlt, MpState, SystemEvent

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from pyvmm_kvm import Kvm, VcpuExit, VmFd

    # with calls that not all architectures have
    Vcpu: TypeAlias = Any
    Vm: TypeAlias = Any

    # such as VmFd.create_irq_chip, before anything else
    Prepare: TypeAlias = Callable[[VmFd], object]

MACHINE = os.uname().machine
ARCHITECTURES = ("x86_64", "aarch64", "riscv64")
ENTRY, MMIO, SIZE = 0x1000, 0x2F000, 0x10000


def words(text: str) -> bytes:
    """Instructions of 32 bits, as an assembler's listing shows them."""
    return b"".join(struct.pack("<I", int(word, 16)) for word in text.split())


def put(memory: mmap.mmap, address: int, code: bytes) -> None:
    """Write a program, word by word.

    An emulated arm64 host (QEMU 7.2) goes on with what it translated of a page before when the page is used again and
    SVE's stores write to it, as those of ``memcpy`` are.
    """
    code += bytes(-len(code) % 4)
    with memoryview(memory) as whole, whole.cast("I") as view:
        for at, (word,) in enumerate(struct.iter_unpack("=I", code), address // 4):
            view[at] = word


# loop and count go on for ever, all others end.
# copy: reads 2 bytes at MMIO and writes them behind those. count: counts there, in 4 bytes (x86: 2). twice: writes a
# byte 1 and a byte 2 there. doorbell: writes 7 in one byte, 7 in two and 8 in one there.
# store: writes a byte 0x5a to 0x3000 and to 0x4000. load: reads a byte of 0x2000.
X86_64 = {
    # real mode, with ds at 0x20000 and es at 0
    "loop": bytes.fromhex("ebfe"),
    "end": bytes.fromhex("f4"),
    "copy": bytes.fromhex("a100f0 a302f0 f4"),
    "count": bytes.fromhex("40 a300f0 ebfa"),
    "store": bytes.fromhex("b05a 26a20030 26a20040 f4"),
    "load": bytes.fromhex("26a00020 f4"),
    "twice": bytes.fromhex("b001 a200f0 b002 a200f0 f4"),
    "doorbell": bytes.fromhex("b80700 a200f0 a300f0 b008 a200f0 f4"),
}
# mov w0,#0x84000008 (PSCI's SYSTEM_OFF); hvc #0
ARM_END = words("52800100 72b08000 d4000002 14000000")
ARM_AT_MMIO = words("d29e0001 f2a00041")  # mov x1,#0x2f000
AARCH64 = {
    "loop": words("14000000"),
    "end": ARM_END,
    "copy": ARM_AT_MMIO + words("79400020 79000420") + ARM_END,
    "count": ARM_AT_MMIO + words("52800000 11000400 b9000020 17fffffe"),
    "store": words("52800b40 d2860001 39000020 d2880001 39000020") + ARM_END,
    "load": words("d2840001 39400020") + ARM_END,
    "twice": ARM_AT_MMIO + words("52800020 39000020 52800040 39000020") + ARM_END,
    "doorbell": ARM_AT_MMIO + words("528000e0 39000020 79000020 52800100 39000020") + ARM_END,
}
# li a7,0x53525354 (SBI's SRST); li a6,0; li a0,0; li a1,0; ecall
RISCV_END = words("535258b7 3548889b 00000813 00000513 00000593 00000073 0000006f")
RISCV_AT_MMIO = words("0002f337")  # lui t1,0x2f
RISCV64 = {
    "loop": words("0000006f"),
    "end": RISCV_END,
    "copy": RISCV_AT_MMIO + words("00035283 00531123") + RISCV_END,
    "count": RISCV_AT_MMIO + words("00000293 00128293 00532023 ff9ff06f"),
    "store": words("05a00293 00003337 00530023 00004337 00530023") + RISCV_END,
    "load": words("00002337 00034283") + RISCV_END,
    "twice": RISCV_AT_MMIO + words("00100293 00530023 00200293 00530023") + RISCV_END,
    "doorbell": RISCV_AT_MMIO + words("00700293 00530023 00531023 00800293 00530023") + RISCV_END,
}
PROGRAMS = {"x86_64": X86_64, "aarch64": AARCH64, "riscv64": RISCV64}.get(MACHINE, {})


def start_x86_64(kvm: Kvm, vm: VmFd, vcpu: Vcpu, entry: int) -> None:
    vcpu.set_cpuid2(kvm.get_supported_cpuid())
    sregs = vcpu.get_sregs()
    sregs.cs.base, sregs.cs.selector, sregs.ds.base = 0, 0, 0x20000
    vcpu.set_sregs(sregs)
    regs = vcpu.get_regs()
    regs.rip, regs.rflags = entry, 2
    vcpu.set_regs(regs)


def start_aarch64(kvm: Kvm, vm: Vm, vcpu: Vcpu, entry: int) -> None:
    from pyvmm_kvm.aarch64.modes import setup_boot
    from pyvmm_kvm.aarch64.structs import VcpuInit

    init = vm.get_preferred_target()
    init.set_feature(VcpuInit.PSCI_0_2)
    vcpu.vcpu_init(init)
    setup_boot(vcpu, entry)


def start_riscv64(kvm: Kvm, vm: VmFd, vcpu: Vcpu, entry: int) -> None:
    from pyvmm_kvm.riscv64.modes import setup_boot

    setup_boot(vcpu, entry, hart=vcpu.id)
    # all but the first wait for the SBI's hart start
    vcpu.set_mp_state(MpState.RUNNABLE)


START = {"x86_64": start_x86_64, "aarch64": start_aarch64, "riscv64": start_riscv64}


def pc_of(vcpu: Vcpu) -> int:
    """Where a vCPU goes on."""
    if MACHINE == "x86_64":
        return int(vcpu.get_regs().rip)
    from importlib import import_module

    return int(vcpu.get_one_reg(import_module(f"pyvmm_kvm.{MACHINE}.registers").core("pc")))


def ended(exit_: VcpuExit) -> bool:
    """Whether a program came to its end."""
    return isinstance(exit_, Hlt) or (isinstance(exit_, SystemEvent) and exit_.type == SystemEvent.SHUTDOWN)


class Guest:
    """A program and everything that must be closed after it."""

    def __init__(self, kvm: Kvm, code: bytes, vcpus: int = 1, prepare: Prepare | None = None) -> None:
        self.memory = mmap.mmap(-1, SIZE)
        put(self.memory, ENTRY, code)
        self.vm = kvm.create_vm()
        if prepare:
            prepare(self.vm)
        self.vm.set_user_memory_region(0, 0, self.memory)
        self.vcpus = [self.vm.create_vcpu(number) for number in range(vcpus)]
        self.vcpu: Vcpu = self.vcpus[0]
        for vcpu in self.vcpus:
            START[MACHINE](kvm, self.vm, vcpu, ENTRY)

    def close(self) -> None:
        for vcpu in self.vcpus:
            vcpu.close()
        self.vm.close()
        self.memory.close()
