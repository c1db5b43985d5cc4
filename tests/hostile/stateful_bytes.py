"""States that are bytes: of vCPUs, of what a VM has in the kernel, and of guest memory."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

from tests.hostile.mutations import mutate, mutate_bytes

from pyvmm_kvm.aarch64 import platform as arm_platform
from pyvmm_kvm.aarch64 import registers as arm
from pyvmm_kvm.errors import KvmError, StateError
from pyvmm_kvm.riscv64 import platform as riscv_platform
from pyvmm_kvm.riscv64 import registers as riscv
from pyvmm_kvm.state import pack, unpack
from pyvmm_memory import GuestMemoryError, GuestMemoryMmap, InvalidSnapshot, Snapshot, save

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random


class BytesSubject:
    """Bytes that somebody may have changed, and who takes them.

    Attributes:
        saved: the right ones.
        refusals: what it may raise.
        complete: those of them that say that nothing changed.
    """

    saved: bytes
    refusals: tuple[type[Exception], ...] = (StateError, KvmError)
    complete: tuple[type[Exception], ...] = (StateError,)

    def restore(self, data: bytes) -> None:
        """Take a state."""

    def seen(self) -> Any:  # noqa: ANN401 - anything to compare
        """Return what a state that is refused must not have changed."""

    def wrong(self, chance: Random) -> bytes:
        """Return a state that somebody changed."""
        return mutate_bytes(self.saved, chance)

    def close(self) -> None:
        """Let go of what it has."""


class Parts(BytesSubject):
    """A state of named parts: whole parts are changed as well, each as bytes with a right length around it.

    Args:
        state: what was saved.
        restore: takes a state that was read.
        seen: returns what must not change.
    """

    def __init__(self, state: Any, restore: Callable[[Any], object], seen: Callable[[], Any] = lambda: None) -> None:  # noqa: ANN401 - anything
        self.kind, self.saved = type(state), bytes(state)
        self._restore, self._seen = restore, seen
        self.close_all: Callable[[], object] = int

    def restore(self, data: bytes) -> None:
        self._restore(self.kind.from_bytes(data))

    def seen(self) -> Any:  # noqa: ANN401 - anything to compare
        return self._seen()

    def wrong(self, chance: Random) -> bytes:
        if chance.random() < 0.3:
            return super().wrong(chance)
        parts = unpack(self.kind.kind, self.saved)
        if not parts:
            parts["more"] = b""
        name = chance.choice(list(parts))
        what = chance.random()
        if what < 0.1:
            del parts[name]
        elif what < 0.2:
            parts[name] = parts[name] * chance.choice((2, 3, 100))
        elif what < 0.3:
            parts[name] = parts[name][: chance.randrange(len(parts[name]) + 1)]
        elif what < 0.35:
            parts[name] = b""
        elif what < 0.4:
            parts[chance.choice(["nested", "lapic", "more", *parts])] = bytes(chance.randrange(200))
        else:
            parts[name] = mutate_bytes(parts[name], chance)
        return pack(self.kind.kind, parts)

    def close(self) -> None:
        self.close_all()


class Memory(BytesSubject):
    """A file of guest memory: its header is JSON, and is changed as such, too."""

    refusals = (InvalidSnapshot, GuestMemoryError)
    complete = ()

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.folder.name, "memory")
        with GuestMemoryMmap.from_ranges([(0, 1 << 16), (1 << 32, 1 << 14)]) as memory:
            memory.write_slice(b"begin", 0)
            memory.write_slice(b"end", (1 << 32) + (1 << 14) - 3)
            save(memory, self.path)
        with open(self.path, "rb") as file:
            self.saved = file.read()

    def restore(self, data: bytes) -> None:
        with open(self.path, "wb") as file:
            file.write(data)
        with Snapshot(self.path) as snapshot:
            assert sum(size for _, size, _ in snapshot.regions) < 1 << 40, "it promises more than the file has"
            snapshot.restore().close()

    def wrong(self, chance: Random) -> bytes:
        import json

        header, newline, rest = self.saved.partition(b"\n")
        if chance.random() < 0.3:
            return mutate_bytes(header, chance) + newline + rest
        try:
            text = json.dumps(mutate(json.loads(header), chance)).encode()
        except (TypeError, ValueError, RecursionError):
            deep = chance.choice((10, 1000, 100_000))
            text = header.replace(b'"offset": 0', b'"offset": ' + b"[" * deep + b"]" * deep)
        return text + newline + rest

    def close(self) -> None:
        self.folder.cleanup()


def arm_vcpu() -> BytesSubject:
    from tests.kvm.made_up import MadeUpVcpu

    from pyvmm_kvm.aarch64.state import VcpuState
    from pyvmm_kvm.aarch64.structs import VcpuInit

    registers = {arm.core("pc"): 0x4000, arm.core("vregs", 3): 1 << 127, arm.SVE_VLS: 3, arm.MIDR_EL1: 0x410FD083}
    target = MadeUpVcpu(registers, refusal=KvmError(2, "KVM_GET_ONE_REG"))
    init = VcpuInit(target=5)
    init.set_feature(VcpuInit.SVE)
    state = VcpuState.save(MadeUpVcpu(registers), init)
    return Parts(state, lambda state: state.restore(target), lambda: (dict(target.registers), list(target.log)))


def riscv_vcpu() -> BytesSubject:
    from tests.kvm.made_up import MadeUpVcpu

    from pyvmm_kvm.riscv64.state import VcpuState

    registers = {riscv.timer("state"): 1, riscv.timer("compare"): 0x5000, riscv.core("pc"): 0x80200000}
    target = MadeUpVcpu(registers, refusal=KvmError(2, "KVM_GET_ONE_REG"))
    state = VcpuState.save(MadeUpVcpu(registers))
    return Parts(state, lambda state: state.restore(target), lambda: (dict(target.registers), list(target.log)))


def arm_vm() -> BytesSubject:
    from tests.kvm.made_up import MadeUpVcpu, MadeUpVm
    from tests.kvm.test_controllers import gic_of

    from pyvmm_kvm.aarch64.state import VmState

    vcpus = [MadeUpVcpu({arm.MPIDR_EL1: 1 << 31 | number}) for number in range(2)]
    vm, its_vm = MadeUpVm(), MadeUpVm()
    gic = gic_of(vm, 64, vcpus)
    its = arm_platform.VgicIts(its_vm, 0x8080000)  # type: ignore[arg-type]
    its_vm.device.default = lambda group, attr: 1 << 63 | attr
    state = VmState.save(gic, vcpus, its)
    return Parts(state, lambda state: state.restore(gic, vcpus, its), lambda: dict(vm.device.values))


def riscv_vm() -> BytesSubject:
    from tests.kvm.made_up import MadeUpVm

    from pyvmm_kvm.riscv64.state import VmState

    vm = MadeUpVm()
    aia = riscv_platform.Aia(vm, sources=33, ids=127)  # type: ignore[arg-type]
    vm.device.default = lambda group, attr: (group << 24 ^ attr * 2654435761) & 0xFFFFFFFF
    state = VmState.save(aia, vcpus=2)
    return Parts(state, lambda state: state.restore(aia, vcpus=2), lambda: dict(vm.device.values))


def x86_vcpu() -> BytesSubject:
    from pyvmm_kvm import Kvm, VcpuState

    kvm = Kvm()
    vms = [kvm.create_vm() for _ in range(2)]
    for vm in vms:
        vm.create_irq_chip()
    source, target = [vm.create_vcpu(0) for vm in vms]
    source.set_cpuid2(kvm.get_supported_cpuid())
    state = VcpuState.save(kvm, vms[0], source)
    subject = Parts(
        state, lambda state: state.restore(target), lambda: (bytes(target.get_regs()), bytes(target.get_sregs()))
    )

    def close() -> None:
        for each in (source, target, *vms, kvm):
            each.close()

    subject.close_all = close
    return subject


def x86_vm() -> BytesSubject:
    from pyvmm_kvm import Kvm, VmState

    kvm = Kvm()
    vm = kvm.create_vm()
    vm.create_irq_chip()
    vm.create_pit2()
    state = VmState.save(vm)

    def seen() -> list[bytes]:
        return [bytes(vm.get_irqchip(number)) for number in range(3)]

    subject = Parts(state, lambda state: state.restore(vm), seen)
    subject.complete = (StateError, KvmError)

    def close() -> None:
        vm.close()
        kvm.close()

    subject.close_all = close
    return subject


MAKERS: dict[str, Callable[[], BytesSubject]] = {
    "pyvmm_kvm.aarch64.state.VcpuState": arm_vcpu,
    "pyvmm_kvm.aarch64.state.VmState": arm_vm,
    "pyvmm_kvm.riscv64.state.VcpuState": riscv_vcpu,
    "pyvmm_kvm.riscv64.state.VmState": riscv_vm,
    "pyvmm_kvm.x86_64.state.VcpuState": x86_vcpu,
    "pyvmm_kvm.x86_64.state.VmState": x86_vm,
    "pyvmm_memory.snapshot.Snapshot": Memory,
}
NEED_KVM = ("x86_vcpu", "x86_vm")
