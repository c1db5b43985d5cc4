"""Snapshots of a RISC-V vCPU, and of the AIA that the vCPUs of a VM share where it has one. Memory is not in them."""

from __future__ import annotations

import struct

from pyvmm_kvm.errors import StateError
from pyvmm_kvm.reg_state import RegisterState, read_registers, write_registers
from pyvmm_kvm.riscv64.platform import CONFIG_IDS, CONFIG_SRCS
from pyvmm_kvm.riscv64.registers import timer
from pyvmm_kvm.riscv64.structs import MpState
from pyvmm_kvm.state import State, exactly, finish_io, rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar, Self

    from pyvmm_kvm.reg_state import RegisterVcpu
    from pyvmm_kvm.riscv64.platform import Aia
    from pyvmm_kvm.state import Check


class VcpuState(RegisterState):
    """One vCPU: every register KVM lists, and whether it runs."""

    __slots__ = ()
    kind = 4

    @classmethod
    def save(cls, vcpu: RegisterVcpu) -> Self:
        """Read a stopped vCPU. Its pending I/O is completed first."""
        finish_io(vcpu)
        return cls({"registers": read_registers(vcpu), "mp_state": bytes(vcpu.get_mp_state())})

    def restore(self, vcpu: RegisterVcpu) -> list[int]:
        """Make a fresh vCPU the same; return the registers whose value this kernel refused.

        Raises `StateError` where a part has not the form of what it is, before anything is changed.
        """
        self.check()
        state = timer("state")
        refused = write_registers(vcpu, self.parts["registers"], lambda register: register != state)
        # arming the timer takes the compare value into account, so it comes last
        refused += write_registers(vcpu, self.parts["registers"], lambda register: register == state)
        vcpu.set_mp_state(MpState.from_bytes(self.parts["mp_state"]))
        return refused


# registers of an APLIC (RISC-V Advanced Interrupt Architecture 1.0, 4.5)
_DOMAINCFG, _SOURCECFG, _SETIP, _CLRIP, _SETIE, _CLRIE, _TARGET = 0x0, 0x4, 0x1C00, 0x1D00, 0x1E00, 0x1F00, 0x3004
_ALL = 0xFFFFFFFF
# indirect registers of an interrupt file (3.8); with 64 bits only the even ones of the arrays exist
_EIDELIVERY, _EITHRESHOLD, _EIP, _EIE = 0x70, 0x72, 0x80, 0xC0


def _aplic_offsets(sources: int) -> list[int]:
    words = range(0, 4 * (sources // 32 + 1), 4)
    each = range(0, 4 * sources, 4)
    offsets = [_SOURCECFG + at for at in each] + [_TARGET + at for at in each]
    # what is pending comes before what is enabled, and both before the domain delivers
    return [*offsets, *(_SETIP + at for at in words), *(_SETIE + at for at in words), _DOMAINCFG]


def _imsic_selectors(ids: int) -> list[int]:
    pairs = range(0, 2 * ((ids + 1) // 64), 2)
    return [_EITHRESHOLD, *(_EIP + at for at in pairs), *(_EIE + at for at in pairs), _EIDELIVERY]


class VmState(State):
    """What the vCPUs of a VM share in the kernel: the AIA, or nothing where the interrupt controller is your own."""

    __slots__ = ()
    kind = 6
    PARTS: ClassVar[dict[str, Check]] = {"aia": exactly(12), "aplic": rows(4, 1 << 12), "imsic": rows(8, 1 << 20)}

    @classmethod
    def save(cls, aia: Aia | None = None, vcpus: int = 0) -> Self:
        """Read it from a VM of so many vCPUs, which are stopped."""
        if aia is None:
            return cls({})
        sources, ids = aia.get_config(CONFIG_SRCS), aia.get_config(CONFIG_IDS)
        lines = [aia.get_aplic_reg(offset) for offset in _aplic_offsets(sources)] if sources else []
        files = [aia.get_imsic_reg(vcpu, number) for vcpu in range(vcpus) for number in _imsic_selectors(ids)]
        return cls({
            "aia": struct.pack("<3I", sources, ids, vcpus),
            "aplic": struct.pack(f"<{len(lines)}I", *lines),
            "imsic": struct.pack(f"<{len(files)}Q", *files),
        })  # fmt: skip

    def restore(self, aia: Aia | None = None, vcpus: int = 0) -> None:
        """Write it into the AIA of a VM that was set up alike, complete (`init()`), before its vCPUs run.

        Restore devices of your own after this: the level of a line is theirs, and KVM keeps no other note of it.

        Raises:
            StateError: the state is of another kind of VM; nothing was changed.
        """
        if ("aia" in self.parts) != (aia is not None):
            raise StateError("of the saved VM and this one, one has an AIA")
        if aia is None:
            return
        sources, ids = aia.get_config(CONFIG_SRCS), aia.get_config(CONFIG_IDS)
        offsets = _aplic_offsets(sources) if sources else []
        selectors = _imsic_selectors(ids) * vcpus
        sizes = [len(self.parts.get(name, b"")) for name in ("aplic", "imsic")]
        shape = struct.pack("<3I", sources, ids, vcpus)
        if self.parts["aia"] != shape or sizes != [4 * len(offsets), 8 * len(selectors)]:
            raise StateError(f"the state is not of an AIA with {sources} sources, {ids} identities and {vcpus} vCPUs")
        files = struct.unpack(f"<{len(selectors)}Q", self.parts.get("imsic", b""))
        each = len(selectors) // vcpus if vcpus else 0
        for at, (selector, value) in enumerate(zip(selectors, files, strict=True)):
            aia.set_imsic_reg(at // each, selector, value)
        # last, so that a message which this sends is not wiped out
        for word in range(0, 4 * (sources // 32 + 1) if sources else 0, 4):
            aia.set_aplic_reg(_CLRIE + word, _ALL)
        lines = struct.unpack(f"<{len(offsets)}I", self.parts.get("aplic", b""))
        for offset, value in zip(offsets, lines, strict=True):
            aia.set_aplic_reg(offset, value)
