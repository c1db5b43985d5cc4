"""vCPUs, devices and VMs of arm64 and RISC-V that tests make up: what KVM keeps, in dicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm_kvm import Hlt, RegList
from pyvmm_kvm.aarch64.structs import VcpuEvents
from pyvmm_kvm.errors import KvmError
from pyvmm_kvm.mp_state import MpState

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm_kvm import VcpuExit
    from pyvmm_kvm.aarch64.structs import GuestDebugArch, VcpuInit


class MadeUpVcpu:
    """Registers in a dict, as KVM keeps them, with the refusals that KVM makes."""

    def __init__(self, registers: dict[int, int], *, sve: bool = False, refusal: Exception | None = None) -> None:
        self.registers = dict(registers)
        self.refusal = refusal
        self.sve = sve
        self.fixed: set[int] = set()
        self.log: list[object] = []
        self.state = MpState(mp_state=MpState.STOPPED)
        self.events = VcpuEvents()
        self.closed = False
        self.exits: list[VcpuExit] = []
        self.debug: list[tuple[int, GuestDebugArch | None]] = []

    def set_kvm_immediate_exit(self, value: int) -> None:
        self.log.append(("immediate_exit", value))

    def run(self) -> VcpuExit:
        self.log.append("run")
        return self.exits.pop(0) if self.exits else Hlt()

    def get_reg_list(self) -> RegList:
        return RegList(self.registers)

    def get_one_reg(self, register: int) -> int:
        if register not in self.registers and self.refusal is not None:
            raise self.refusal
        return self.registers[register]

    def set_one_reg(self, register: int, value: int) -> None:
        if register in self.fixed and self.registers.get(register) != value:
            raise KvmError(22, "KVM_SET_ONE_REG")
        self.log.append(register)
        self.registers[register] = value

    def get_mp_state(self) -> MpState:
        return self.state

    def set_mp_state(self, state: MpState | int) -> None:
        self.state = MpState(mp_state=state) if isinstance(state, int) else state

    def vcpu_init(self, init: VcpuInit) -> None:
        self.log.append(("init", init.target))

    def vcpu_finalize(self, feature: int) -> None:
        self.log.append(("finalize", feature))

    def get_vcpu_events(self) -> VcpuEvents:
        return self.events

    def set_vcpu_events(self, events: VcpuEvents) -> None:
        self.events = events

    def set_guest_debug(self, control: int, debugreg: GuestDebugArch | None = None) -> None:
        self.debug.append((control, debugreg.copy() if debugreg else None))


class MadeUpDevice:
    """A device file descriptor that keeps attributes in a dict."""

    def __init__(self) -> None:
        self.values: dict[tuple[int, int], bytes] = {}
        self.log: list[tuple[int, int]] = []
        self.default: Callable[[int, int], int] | None = None
        self.closed = False

    def set_device_attr(self, group: int, attr: int, data: bytes | bytearray | None = None) -> None:
        self.values[group, attr] = bytes(data or b"")
        self.log.append((group, attr))

    def get_device_attr(self, group: int, attr: int, size: int = 8) -> bytes:
        if self.default and (group, attr) not in self.values:
            return self.default(group, attr).to_bytes(8, "little")[:size]
        return self.values[group, attr].ljust(size, b"\0")

    def close(self) -> None:
        self.closed = True


class MadeUpVm:
    def __init__(self) -> None:
        self.device = MadeUpDevice()
        self.kinds: list[int] = []

    def create_device(self, kind: int) -> MadeUpDevice:
        self.kinds.append(kind)
        return self.device
