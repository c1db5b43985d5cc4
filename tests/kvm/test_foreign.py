"""arm64 and RISC-V without such a host: the ioctls and bytes that their calls make, and snapshots of made-up vCPUs."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import Hlt, RegList, StateError, VmFd
from pyvmm_kvm._kvm import ffi, lib
from pyvmm_kvm.aarch64 import modes as arm_modes
from pyvmm_kvm.aarch64 import registers as arm
from pyvmm_kvm.aarch64.debug import GuestDebug as ArmGuestDebug
from pyvmm_kvm.aarch64.state import VcpuState as ArmState
from pyvmm_kvm.aarch64.structs import GuestDebugArch, SmcccFilter, VcpuEvents, VcpuInit
from pyvmm_kvm.aarch64.system import ArchKvm as ArmKvm
from pyvmm_kvm.aarch64.vcpu import ArchVcpu as ArmVcpu
from pyvmm_kvm.aarch64.vm import ArchVm as ArmVm
from pyvmm_kvm.errors import KvmError
from pyvmm_kvm.exits.foreign import ArmDebug, ArmSea, RiscvDebug
from pyvmm_kvm.mp_state import MpState
from pyvmm_kvm.riscv64 import modes as riscv_modes
from pyvmm_kvm.riscv64 import registers as riscv
from pyvmm_kvm.riscv64.debug import GuestDebug as RiscvGuestDebug
from pyvmm_kvm.riscv64.state import VcpuState as RiscvState
from pyvmm_kvm.riscv64.system import ArchKvm as RiscvKvm
from pyvmm_kvm.riscv64.vcpu import ArchVcpu as RiscvVcpu
from pyvmm_kvm.riscv64.vm import ArchVm as RiscvVm

from .made_up import MadeUpVcpu
from .recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from pyvmm_kvm.fd import Fd

    F = TypeVar("F", bound=Fd)


def opened(kind: type[F]) -> F:
    """One of our descriptor classes around a number that the recorder never gives to the kernel."""
    return kind(-1)


def test_arm_system_and_vm_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    recorder.install(monkeypatch, ArmKvm, ArmVm)
    recorder.answer = lambda name, argument: 48
    kvm = opened(ArmKvm)
    assert (kvm.get_host_ipa_limit(), kvm.default_vm_type()) == (48, 48)
    kvm.get_guest_debug_hw_bps()
    kvm.get_guest_debug_hw_wps()
    assert [int.from_bytes(data, "little") for _, data in recorder.calls] == [165, 165, 119, 120]

    vm = opened(ArmVm)
    recorder.calls.clear()

    def preferred(name: str, argument: memoryview) -> int:
        argument[:4] = struct.pack("<I", 5)
        return 0

    recorder.answer = preferred
    assert vm.get_preferred_target().target == VcpuInit.GENERIC_V8
    recorder.answer = lambda name, argument: 4096
    tags = bytearray(256)
    assert vm.copy_mte_tags(0x80000000, tags, to_guest=False) == 4096
    name, data = recorder.calls[-1]
    ipa, length, address, flags = struct.unpack_from("<QQQQ", data)
    assert (name, ipa, length, flags) == ("KVM_ARM_MTE_COPY_TAGS", 0x80000000, 4096, 1)
    assert address == int(ffi.cast("unsigned long", ffi.from_buffer("char[]", tags)))
    with pytest.raises((BufferError, TypeError)):
        vm.copy_mte_tags(0, bytes(256), to_guest=False)
    vm.set_counter_offset(77)
    assert recorder.calls[-1] == ("KVM_ARM_SET_COUNTER_OFFSET", struct.pack("<QQ", 77, 0))
    vm.set_device_addr(0, 1, 0x8000000)
    assert recorder.calls[-1] == ("KVM_ARM_SET_DEVICE_ADDR", struct.pack("<QQ", 1, 0x8000000))

    def masks(name: str, argument: memoryview) -> int:
        address = struct.unpack_from("<Q", argument)[0]
        ffi.cast("unsigned long long *", address)[191] = 0xF0
        return 0

    recorder.answer = masks
    found = vm.get_reg_writable_masks()
    assert (len(found), found[191], sum(found[:191])) == (192, 0xF0, 0)

    recorder.calls.clear()
    filters: list[bytes] = []

    def keep(name: str, argument: memoryview) -> int:
        address = struct.unpack_from("<16xQ", argument)[0]
        filters.append(bytes(ffi.buffer(ffi.cast("char *", address), SmcccFilter.size())) if address else b"")
        return 0

    recorder.answer = keep
    vm.set_smccc_filter(0x84000000, 32, SmcccFilter.FWD_TO_USER)
    assert vm.has_smccc_filter()
    assert filters[0] == struct.pack("<IIB15x", 0x84000000, 32, 2)
    assert [call[:3] for call in recorder.attributes()] == [
        ("KVM_SET_DEVICE_ATTR", 0, 0),
        ("KVM_HAS_DEVICE_ATTR", 0, 0),
    ]


def test_arm_vcpu_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    recorder.install(monkeypatch, ArmVcpu)
    vcpu = opened(ArmVcpu)
    init = VcpuInit(target=5)
    init.set_feature(VcpuInit.SVE)
    init.set_feature(VcpuInit.PSCI_0_2)
    init.set_feature(VcpuInit.SVE, wanted=False)
    vcpu.vcpu_init(init)
    assert recorder.calls[-1] == ("KVM_ARM_VCPU_INIT", struct.pack("<8I", 5, 4, 0, 0, 0, 0, 0, 0))
    vcpu.vcpu_finalize(VcpuInit.SVE)
    assert recorder.calls[-1] == ("KVM_ARM_VCPU_FINALIZE", struct.pack("<i", 4))
    recorder.calls.clear()
    values: list[int] = []

    def keep(name: str, argument: memoryview) -> int:
        address = struct.unpack_from("<16xQ", argument)[0]
        values.append(int(ffi.cast("int *", address)[0]) if address else -1)
        return 0

    recorder.answer = keep
    vcpu.init_pmu(23)
    vcpu.set_timer_irq(27)
    vcpu.set_timer_irq(30, physical=True)
    vcpu.set_pvtime_ipa(0x9000)
    assert [(group, attr) for _, group, attr, _ in recorder.attributes()] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert values == [23, -1, 27, 30, 0x9000]


def test_arm_snapshot_settles_vector_lengths_first_and_names_what_was_refused() -> None:
    pc, wide, midr = arm.core("pc"), arm.core("vregs", 3), arm.MIDR_EL1
    source = MadeUpVcpu({pc: 0x4000, wide: 1 << 127, arm.SVE_VLS: 0b11, midr: 0x410FD083})
    source.events.exception.serror_pending = 1
    init = VcpuInit(target=5)
    init.set_feature(VcpuInit.SVE)
    saved = bytes(ArmState.save(source, init))
    assert source.log == [("immediate_exit", 1), "run", ("immediate_exit", 0)]

    other = MadeUpVcpu({pc: 0, wide: 0, arm.SVE_VLS: 0b11, midr: 0x410FD0C0})
    other.fixed = {midr}
    assert ArmState.from_bytes(saved).restore(other) == [midr]
    assert other.log == [("init", 5), arm.SVE_VLS, ("finalize", VcpuInit.SVE), pc, wide]
    assert (other.registers[pc], other.registers[wide]) == (0x4000, 1 << 127)
    assert other.state.mp_state == MpState.STOPPED
    assert other.events.exception.serror_pending == 1
    # the same processor takes its own identity
    other.registers[midr] = 0x410FD083
    assert ArmState.from_bytes(saved).restore(other) == []


def test_riscv_snapshot_arms_the_timer_last() -> None:
    state, compare, pc = riscv.timer("state"), riscv.timer("compare"), riscv.core("pc")
    source = MadeUpVcpu({state: 1, compare: 0x5000, pc: 0x80200000})
    saved = RiscvState.save(source)
    other = MadeUpVcpu({})
    assert RiscvState.from_bytes(bytes(saved)).restore(other) == []
    assert other.log == [compare, pc, state]
    assert other.registers == source.registers
    for length in range(1, len(saved.parts["registers"])):
        if length % 16:
            broken = RiscvState({**saved.parts, "registers": saved.parts["registers"][:length]})
            with pytest.raises(StateError, match="cut off"):
                broken.restore(MadeUpVcpu({}))
    with pytest.raises(StateError, match="of that kind"):
        ArmState.from_bytes(bytes(saved))


def test_boot_states() -> None:
    vcpu = MadeUpVcpu({})
    arm_modes.setup_boot(vcpu, 0x40080000, 0x44000000)  # type: ignore[arg-type]
    assert vcpu.registers[arm.core("pc")] == 0x40080000
    assert vcpu.registers[arm.core("regs", 0)] == 0x44000000
    assert vcpu.registers[arm.core("pstate")] == 0x3C5
    vcpu = MadeUpVcpu({})
    riscv_modes.setup_boot(vcpu, 0x80200000, 0x88000000, hart=2)  # type: ignore[arg-type]
    assert [vcpu.registers[riscv.core(name)] for name in ("pc", "a0", "a1", "mode")] == [0x80200000, 2, 0x88000000, 1]
    assert vcpu.registers[riscv.csr("satp")] == 0


def test_what_a_riscv_vcpu_is() -> None:
    has = {riscv.isa_ext(name): 1 for name in ("M", "I", "C", "SSTC", "ZBA", "A")} | {riscv.isa_ext("V"): 0}
    vcpu = MadeUpVcpu({**has, riscv.config("satp_mode"): 9, riscv.timer("frequency"): 24_000_000})
    vcpu.refusal = KvmError(2, "KVM_GET_ONE_REG")
    assert riscv_modes.extensions(vcpu) == ["i", "m", "a", "c", "sstc", "zba"]
    assert (riscv_modes.paging_mode(vcpu), riscv_modes.timebase(vcpu)) == ("sv48", 24_000_000)
    del vcpu.registers[riscv.config("satp_mode")]
    assert riscv_modes.paging_mode(vcpu) == "sv39"
    vcpu.refusal = KvmError(9, "KVM_GET_ONE_REG")  # not "there is none"
    for call in (riscv_modes.extensions, riscv_modes.paging_mode, riscv_modes.timebase):
        with pytest.raises(KvmError, match="EBADF"):
            call(MadeUpVcpu({}, refusal=vcpu.refusal))


def test_arm_breakpoints_are_encoded_as_the_architecture_says() -> None:
    vcpu = MadeUpVcpu({arm.core("pc"): 0x1004})
    vcpu.exits = [ArmDebug(0, 0, 0), ArmDebug(0, 0, 0), Hlt(), ArmDebug(0, 0, 0x2008)]
    with ArmGuestDebug(vcpu) as debug:
        assert list(debug.steps(5)) == [0x1004, 0x1004]
        assert [control for control, _ in vcpu.debug] == [3, 3, 3]
        number = debug.watch(0x1000)
        second = debug.watch(0x2006, 2, "write")
        assert (number, second) == (0, 16)
        assert isinstance(debug.resume(), ArmDebug)
        control, arch = vcpu.debug[-1]
        assert control == 1 | 1 << 17
        assert arch is not None
        assert (arch.dbg_bvr[0], arch.dbg_bcr[0]) == (0x1000, 0x1E7)
        # bytes 6 and 7 of the doubleword at 0x2000, stores only, EL0 and EL1
        assert (arch.dbg_wvr[0], arch.dbg_wcr[0]) == (0x2000, 1 | 3 << 1 | 2 << 3 | 0b11000000 << 5)
        debug.clear(number)
        debug.clear(second)
        debug.resume()
        assert vcpu.debug[-1][0] == 1
        assert debug.hit(ArmDebug(0x30 << 26, 0, 0)) == [], "nothing is set"
        for _ in range(16):
            debug.watch(0x3000)
        with pytest.raises(ValueError, match="all are taken"):
            debug.watch(0x3000)
        with pytest.raises(ValueError, match="multiples of 4"):
            debug.watch(0x1001)
        with pytest.raises(ValueError, match="watchpoints"):
            debug.watch(0x1001, 2, "write")
    assert vcpu.debug[-1] == (0, None)


def test_arm_exits_say_which_point_was_hit() -> None:
    """Exception classes of ESR_EL2 (Arm ARM, D17.2.37), and the address of a watchpoint in FAR_EL2 (D2.10.5)."""
    breakpoint_, step, watchpoint, brk = (number << 26 for number in (0x30, 0x32, 0x34, 0x3C))
    debug = ArmGuestDebug(MadeUpVcpu({arm.core("pc"): 0x1008}))
    first, second = debug.watch(0x1004), debug.watch(0x1008)
    byte, word, later = (
        debug.watch(0x2006, 1, "write"),
        debug.watch(0x2004, 4, "read"),
        debug.watch(0x2010, 8, "access"),
    )
    assert debug.hit(ArmDebug(breakpoint_ | 0x22, 0, 0)) == [second] != [first]
    for reason in (step, brk, 0):
        assert debug.hit(ArmDebug(reason, 0, 0x2006)) == []
    assert debug.hit(ArmDebug(watchpoint | 1 << 6, 0, 0x2006)) == [byte, word]
    assert debug.hit(ArmDebug(watchpoint, 0, 0x2004)) == [word]
    assert debug.hit(ArmDebug(watchpoint, 0, 0x2017)) == [later]
    # a pair of registers stored from below on
    assert debug.hit(ArmDebug(watchpoint, 0, 0x2008)) == [later]
    assert debug.hit(ArmDebug(watchpoint, 0, 0x2018)) == debug.hit(ArmDebug(watchpoint, 0, 0x9000)) == []
    debug.clear(later)
    assert debug.hit(ArmDebug(watchpoint, 0, 0x2017)) == []


def test_riscv_knows_only_software_breakpoints() -> None:
    vcpu = MadeUpVcpu({riscv.core("pc"): 0x80})
    vcpu.exits = [RiscvDebug()]
    with RiscvGuestDebug(vcpu) as debug:
        assert isinstance(debug.resume(), RiscvDebug)
        assert debug.position(Hlt()) == 0x80
        with pytest.raises(ValueError, match="no single step"):
            debug.step()
    assert [control for control, _ in vcpu.debug] == [1 | 1 << 16, 0]


def test_riscv_vcpu_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    recorder.install(monkeypatch, RiscvVcpu)
    vcpu = opened(RiscvVcpu)
    vcpu.interrupt(True)
    vcpu.interrupt(False)
    vcpu.set_guest_debug(1)
    assert recorder.calls == [
        ("KVM_INTERRUPT", b"\xff\xff\xff\xff"),
        ("KVM_INTERRUPT", b"\xfe\xff\xff\xff"),
        ("KVM_SET_GUEST_DEBUG", struct.pack("<II", 1, 0)),
    ]
    assert opened(RiscvKvm).default_vm_type() == 0
    assert not {name for name in vars(RiscvVm) if not name.startswith("__")} & set(vars(VmFd))


@pytest.mark.parametrize("kind", [ArmVcpu, RiscvVcpu])
def test_registers_are_printed_the_way_people_read_them(
    monkeypatch: pytest.MonkeyPatch, kind: type[ArmVcpu | RiscvVcpu]
) -> None:
    def answer(fd: object, name: str, argument: object) -> int:
        register, address = argument.id, argument.addr  # type: ignore[attr-defined]
        ffi.memmove(ffi.cast("char *", address), struct.pack("<Q", register & 0xFFFF), 8)
        return 0

    monkeypatch.setattr(kind, "ioctl", answer)
    text = opened(kind).registers
    assert (" x30 " in text) if kind is ArmVcpu else ("  a1 000000000000000b" in text)
    assert "pc" in text
    assert len(text.splitlines()) >= 9


def test_arm_events_and_debug_state_reach_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, bytes]] = []

    def answer(fd: object, name: str, argument: object) -> int:
        size = {"KVM_SET_GUEST_DEBUG": 8 + GuestDebugArch.size()}.get(name, VcpuEvents.size())
        calls.append((name, bytes(ffi.buffer(argument, size))))
        return 0

    monkeypatch.setattr(ArmVcpu, "ioctl", answer)
    vcpu = opened(ArmVcpu)
    events = vcpu.get_vcpu_events()
    events.exception.ext_dabt_pending = 1
    vcpu.set_vcpu_events(events)
    assert calls[-1] == ("KVM_SET_VCPU_EVENTS", b"\0\0\1".ljust(64, b"\0"))
    arch = GuestDebugArch()
    arch.dbg_wvr[15] = 0x77
    vcpu.set_guest_debug(1 | 1 << 17, arch)
    assert calls[-1][1] == struct.pack("<II", 1 | 1 << 17, 0) + bytes(8 * 63) + struct.pack("<Q", 0x77)
    vcpu.set_guest_debug(0)
    assert calls[-1][1] == bytes(520)

    class Mapped(ArmVcpu):
        __slots__ = ("run_page",)

    mapped = opened(Mapped)
    mapped.run_page = memoryview(bytearray(4096))
    mapped.run_page[lib.PYVMM_RUN_SYNC] = 3
    assert mapped.sync_regs().device_irq_level == 3


def test_bad_names_are_refused() -> None:
    calls: tuple[Callable[[], int], ...] = (
        lambda: arm.core("rax"),
        lambda: arm.core("regs", 31),
        lambda: arm.sys_reg(4, 0, 0, 0, 0),
        lambda: riscv.core("x0"),
        lambda: riscv.isa_ext("Zfoo"),
        lambda: riscv.sbi_ext("NACL2"),
        lambda: riscv.fp_f(33),
        lambda: riscv.fp_d(-1),
        lambda: riscv.vector(0, 24),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"no|fit|members|there are|not one"):
            call()
    assert riscv.smstateen_csr("sstateen0") != riscv.aia_csr("siselect") != riscv.csr("sstatus")
    with pytest.raises(StateError, match="do not hold"):
        RegList.from_bytes(struct.pack("<QQ", 2, 1))
    assert repr(RegList([16])) == "RegList([0x10])"
    sea = ArmSea.decode(memoryview(bytearray(struct.pack("<4Q", 1, 2, 3, 4).ljust(256, b"\0"))))
    assert (sea.flags, sea.esr, sea.gva, sea.gpa) == (1, 2, 3, 4)
