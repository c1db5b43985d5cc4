"""A vCPU's snapshot where KVM keeps everything in numbered registers: arm64 and RISC-V."""

from __future__ import annotations

import struct

from pyvmm_kvm.errors import KvmError, StateError
from pyvmm_kvm.mp_state import MpState
from pyvmm_kvm.one_reg import LARGEST, MAX_REGISTERS, reg_size
from pyvmm_kvm.state import State, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import ClassVar, Protocol

    from pyvmm_kvm.state import Check, Runnable

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
    for register, value in _registers(data):
        if not wanted(register):
            continue
        try:
            vcpu.set_one_reg(register, value)
        except KvmError:
            # identification registers can be read but only written with the value they have
            if not _has(vcpu, register, value):
                refused.append(register)
    return refused


def check_registers(data: bytes) -> None:
    """Raise StateError where these are no registers: one is cut off, wider than any, or there twice."""
    seen = set()
    for register, _ in _registers(data):
        if register in seen:
            raise StateError(f"register {register:#x} is there twice")
        seen.add(register)
        if len(seen) > MAX_REGISTERS:
            raise StateError(f"more than {MAX_REGISTERS} registers are those of no vCPU")


def _has(vcpu: RegisterVcpu, register: int, value: int) -> bool:
    try:
        return vcpu.get_one_reg(register) == value
    except KvmError:
        # this kernel does not know it at all
        return False


def _registers(data: bytes) -> Iterator[tuple[int, int]]:
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise StateError("the registers are cut off inside an id")
        register = struct.unpack_from("<Q", data, at)[0]
        if register >> 52 & 0xF > LARGEST:
            raise StateError(f"register {register:#x} would be wider than any")
        size = reg_size(register)
        value = data[at + 8 : at + 8 + size]
        if len(value) < size:
            raise StateError(f"register {register:#x} is cut off")
        at += 8 + size
        yield register, int.from_bytes(value, "little")


class RegisterState(State):
    """What the snapshots of both architectures consist of."""

    __slots__ = ()
    required: tuple[str, ...] = ("registers", "mp_state")
    PARTS: ClassVar[dict[str, Check]] = {"registers": check_registers, "mp_state": whole(MpState)}
