"""Byte programs on RISC-V: every exit that KVM makes there, and what it says where it makes none."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import (
    DeviceFd,
    Intr,
    Kvm,
    KvmError,
    MmioWrite,
    MpState,
    RiscvDebug,
    RiscvSbi,
    RunControl,
    SystemEvent,
    VcpuExit,
    VcpuFd,
    crash_report,
)
from pyvmm_kvm.riscv64.debug import GuestDebug
from pyvmm_kvm.riscv64.registers import core, csr, fp_d, isa_ext, sbi_ext, timer

from ..checks import check_widths, number
from ..guests import ENTRY, MMIO, RISCV_AT_MMIO, RISCV_END, ended, put, words

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..guests import Guest

pytestmark = pytest.mark.kvm
HANDLER = 0x3000
# lui t1,0x3; csrw stvec,t1
TO_HANDLER = words("00003337 10531073")
# the handler: scause and sepc are written to MMIO
REPORT = RISCV_AT_MMIO + words("142022f3 00533023 141022f3 00533423") + RISCV_END
SCAUSE_BREAKPOINT, SCAUSE_EXTERNAL = 3, 1 << 63 | 9


def test_memory_mapped_io_of_every_width(boot: Callable[..., Guest]) -> None:
    # li t0,-2; sb, sh, sw and sd of it; lbu t2,16(t1); ld t3,24(t1); sd of both
    code = "ffe00293 00530023 00531123 00532223 00533423 01034383 01833e03 02733023 03c33423"
    check_widths(boot(RISCV_AT_MMIO + words(code) + RISCV_END))


def test_calls_of_the_sbi_that_are_ours(boot: Callable[..., Guest]) -> None:
    # li a7,DBCN; li a6,2 (write_byte); li a0,65; ecall; sd a0,0(t1); sd a1,8(t1)
    console = "444248b7 34e8889b 00200813 04100513 00000073 00a33023 00b33423"
    # li a7,0x9000005 (a vendor's extension); li a6,7; li a0,1; li a1,2; ecall; the same
    vendor = "090008b7 0058889b 00700813 00100513 00200593 00000073 00a33023 00b33423"
    guest = boot(RISCV_AT_MMIO + words(console + " " + vendor) + RISCV_END)
    # the debug console is KVM's to give and ours to ask for
    guest.vcpu.set_one_reg(sbi_ext("DBCN"), 1)
    for extension, function, args in ((0x4442434E, 2, (65,)), (0x9000005, 7, (1, 2))):
        call = guest.vcpu.run()
        assert isinstance(call, RiscvSbi)
        assert (call.extension_id, call.function_id, call.args[: len(args)]) == (extension, function, args)
        call.ret0, call.ret1 = 0, extension + 1
        assert [number(guest.vcpu.run()) for _ in range(2)] == [0, extension + 1]
    assert ended(guest.vcpu.run())
    assert guest.vcpu.last_exits[0].startswith("RiscvSbi(extension_id=0x4442434e, function_id=0x2, args=(0x41, ")


def test_the_sbi_switches_off_and_resets(boot: Callable[..., Guest]) -> None:
    off = boot("end").vcpu.run()
    assert isinstance(off, SystemEvent)
    assert off.type == SystemEvent.SHUTDOWN
    # SRST with a0=1, a cold reboot
    reset = boot(words("535258b7 3548889b 00000813 00100513 00000593 00000073 0000006f")).vcpu.run()
    assert isinstance(reset, SystemEvent)
    assert reset.type == SystemEvent.RESET


def test_a_fetch_without_memory_is_an_error_that_says_so(boot: Callable[..., Guest]) -> None:
    guest = boot(words("40000337 00030067"))  # lui t1,0x40000; jr t1
    with pytest.raises(KvmError, match="fetched an instruction where it has no memory"):
        guest.vcpu.run()
    assert "pc 0000000040000000" in crash_report(guest.vcpu)


def test_an_ebreak_is_the_guests_or_a_debuggers(boot: Callable[..., Guest]) -> None:
    code = TO_HANDLER + words("00100073 0000006f")  # ebreak; j .
    guest = boot(code)
    put(guest.memory, HANDLER, REPORT)
    with GuestDebug(guest.vcpu) as debug:
        exit_ = debug.resume()
        assert isinstance(exit_, RiscvDebug)
        assert repr(exit_) == "RiscvDebug()"
        assert debug.position(exit_) == ENTRY + len(TO_HANDLER)
        assert guest.vcpu.last_exits == ["RiscvDebug()"]
        with pytest.raises(ValueError, match="no single step"):
            debug.step()
    # now it is the guest's again
    assert [number(guest.vcpu.run()) for _ in range(2)] == [SCAUSE_BREAKPOINT, ENTRY + len(TO_HANDLER)]


def test_an_external_interrupt_wakes_a_waiting_guest(boot: Callable[..., Guest]) -> None:
    # li t0,512; csrs sie,t0; csrsi sstatus,2; again: wfi; j again
    guest = boot(TO_HANDLER + words("20000293 1042a073 10016073 10500073 ffdff06f"))
    put(guest.memory, HANDLER, REPORT)
    seen: list[int] = []

    def handler(vcpu: VcpuFd, exit_: VcpuExit) -> bool:
        if isinstance(exit_, MmioWrite):
            seen.append(number(exit_))
        return ended(exit_)

    with RunControl([guest.vcpu], handler) as control:
        control.start()
        time.sleep(0.2)
        assert seen == []
        # while the vCPU is inside KVM_RUN: this call waits for nothing
        done = threading.Event()

        def raise_it() -> None:
            guest.vcpu.interrupt(True)
            done.set()

        threading.Thread(target=raise_it).start()
        assert done.wait(5)
        control.join(timeout=10)
    assert seen[0] == SCAUSE_EXTERNAL
    assert ENTRY < seen[1] < ENTRY + 0x20
    guest.vcpu.interrupt(False)


def test_a_waiting_guest_is_kicked(boot: Callable[..., Guest]) -> None:
    guest = boot(words("10500073 ffdff06f"))  # again: wfi; j again
    with RunControl([guest.vcpu], lambda vcpu, exit_: isinstance(exit_, Intr)) as control:
        control.start()
        time.sleep(0.1)
        control.kick()
        control.join(timeout=10)
    assert control.ended_by is not None


def test_the_sbi_starts_another_hart(boot: Callable[..., Guest]) -> None:
    # li a7,0x48534d (HSM); li a6,0 (hart_start); li a0,1; lui a1,2; li a2,77; ecall; lui t1,0x2f; sd a0,0(t1); j .
    code = words("004858b7 34d8889b 00000813 00100513 000025b7 04d00613 00000073 0002f337 00a33023 0000006f")
    guest = boot(code, vcpus=2)
    # lui t1,0x2f; sd a0,16(t1); sd a1,24(t1); j .
    second = words("0002f337 00a33823 00b33c23 0000006f")
    put(guest.memory, 0x2000, second)
    guest.vcpus[1].set_mp_state(MpState.STOPPED)
    assert guest.vcpus[1].get_mp_state().mp_state == MpState.STOPPED
    seen: dict[int, int] = {}

    def handler(vcpu: VcpuFd, exit_: VcpuExit) -> bool:
        if isinstance(exit_, MmioWrite):
            seen[exit_.addr - MMIO] = number(exit_)
        return len(seen) == 3

    with RunControl(guest.vcpus, handler) as control:
        control.start()
        control.join(timeout=20)
    # success, the hart's number and the opaque value
    assert seen == {0: 0, 16: 1, 24: 77}


def test_registers_by_their_names(boot: Callable[..., Guest]) -> None:
    vcpu = boot("end").vcpu
    for register, value in ((core("s11"), 1 << 63), (csr("sscratch"), 0x77), (fp_d(31), 0x3FF0 << 48)):
        vcpu.set_one_reg(register, value)
        assert vcpu.get_one_reg(register) == value
    assert vcpu.get_one_reg(core("pc")) == ENTRY
    assert vcpu.get_one_reg(isa_ext("I")) == vcpu.get_one_reg(isa_ext("A")) == 1
    assert vcpu.get_one_reg(timer("frequency")) > 0
    known = vcpu.get_reg_list()
    assert {core("pc"), csr("satp"), fp_d(0), timer("compare")} <= set(known)
    for register in known:
        vcpu.get_one_reg(register)
    with pytest.raises(KvmError, match="get_reg_list says which"):
        vcpu.get_one_reg(core("pc") | 0x80)
    vcpu.run()
    with pytest.raises(KvmError, match="before the vCPU runs"):
        vcpu.set_one_reg(isa_ext("ZBA"), 1 - vcpu.get_one_reg(isa_ext("ZBA")))


def test_interrupt_controllers_that_are_not_there_say_what_is(kvm: Kvm) -> None:
    from pyvmm_kvm import Cap
    from pyvmm_kvm.riscv64.platform import Aia

    with kvm.create_vm() as vm:
        with pytest.raises(KvmError, match="a PLIC of your own drives"):
            vm.create_irq_chip()
        with pytest.raises(KvmError, match=r"no in-kernel AIA: VcpuFd\.interrupt"):
            vm.set_irq_line(5, True)
        with pytest.raises(KvmError, match="no device of that type"):
            vm.create_device(DeviceFd.ARM_VGIC_V3)
        if kvm.check_extension(Cap.IRQCHIP):
            pytest.skip("this host has an AIA: test_state.py makes one")
        with pytest.raises(KvmError, match="needs processors with the Ssaia extension"):
            Aia(vm)
