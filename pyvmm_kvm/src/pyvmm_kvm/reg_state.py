"""A vCPU's snapshot where KVM keeps everything in numbered registers: arm64 and RISC-V."""

from __future__ import annotations

import struct

from pyvmm_kvm.errors import KvmError, StateError
from pyvmm_kvm.one_reg import reg_size
from pyvmm_kvm.state import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Protocol

    from pyvmm_kvm.mp_state import MpState
    from pyvmm_kvm.state import Runnable

    class RegisterVcpu(Runnable, Protocol):
        """As much of a vCPU as this needs; `VcpuFd` has it on both architectures."""

        def get_reg_list(self) -> Iterable[int]:
            """Call KVM_GET_REG_LIST."""

        def get_one_reg(self, register: int) -> int:
            """Call KVM_GET_ONE_REG."""

        def set_one_reg(self, register: int, value: int) -> None:
            """Call KVM_SET_ONE_REG."""

        def get_mp_state(self) -> MpState:
            """Call KVM_GET_MP_STATE."""

        def set_mp_state(self, state: MpState | int) -> None:
            """Call KVM_SET_MP_STATE."""


def read_registers(vcpu: RegisterVcpu) -> bytes:
    """Return every register that KVM lists: id, value, id, value; the values are as wide as their ids say."""
    parts = []
    for register in vcpu.get_reg_list():
        value = vcpu.get_one_reg(register)
        parts.append(struct.pack("<Q", register) + value.to_bytes(reg_size(register), "little"))
    return b"".join(parts)


def write_registers(vcpu: RegisterVcpu, data: bytes, wanted: Callable[[int], bool]) -> list[int]:
    """Write those that `wanted` picks, in order, and return the ids of those whose value this kernel refused."""
    refused = []
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise StateError("the registers are cut off inside an id")
        register = struct.unpack_from("<Q", data, at)[0]
        size = reg_size(register)
        value = data[at + 8 : at + 8 + size]
        if len(value) < size:
            raise StateError(f"register {register:#x} is cut off")
        at += 8 + size
        if not wanted(register):
            continue
        try:
            vcpu.set_one_reg(register, int.from_bytes(value, "little"))
        except KvmError:
            # identification registers can be read but only written with the value they have
            if vcpu.get_one_reg(register) != int.from_bytes(value, "little"):
                refused.append(register)
    return refused


class RegisterState(State):
    """What the snapshots of both architectures consist of."""

    required: tuple[str, ...] = ("registers", "mp_state")
