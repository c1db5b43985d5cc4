"""Snapshots of an arm64 vCPU and of what a VM shares between them: the GICv3 and its ITS.

Memory is not in them. A GIC keeps the tables of its messages there: save memory after `VmState.save`, and restore it
before `VmState.restore`.
"""

from __future__ import annotations

import struct

from pyvmm_kvm.aarch64.platform import affinity
from pyvmm_kvm.aarch64.registers import MPIDR_EL1, SVE_VLS, sys_reg
from pyvmm_kvm.aarch64.structs import MpState, VcpuEvents, VcpuInit
from pyvmm_kvm.errors import StateError
from pyvmm_kvm.reg_state import RegisterState, read_registers, write_registers
from pyvmm_kvm.state import State, exactly, finish_io, rows, whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import ClassVar, Protocol, Self

    from pyvmm_kvm.aarch64.platform import VgicIts, VgicV3
    from pyvmm_kvm.reg_state import RegisterVcpu
    from pyvmm_kvm.state import Check

    class ArmVcpu(RegisterVcpu, Protocol):
        """As much of an arm64 vCPU as this needs."""

        def vcpu_init(self, init: VcpuInit) -> None:
            """Call KVM_ARM_VCPU_INIT."""

        def vcpu_finalize(self, feature: int) -> None:
            """Call KVM_ARM_VCPU_FINALIZE."""

        def get_vcpu_events(self) -> VcpuEvents:
            """Call KVM_GET_VCPU_EVENTS."""

        def set_vcpu_events(self, events: VcpuEvents) -> None:
            """Call KVM_SET_VCPU_EVENTS."""


class VcpuState(RegisterState):
    """One vCPU: the kind of processor it was made as, every register KVM lists, pending aborts, whether it runs."""

    __slots__ = ()
    kind = 3
    required = ("init", "registers", "mp_state")
    PARTS: ClassVar[dict[str, Check]] = RegisterState.PARTS | {"init": whole(VcpuInit), "events": whole(VcpuEvents)}

    @classmethod
    def save(cls, vcpu: ArmVcpu, init: VcpuInit) -> Self:
        """Read a stopped vCPU that `vcpu_init(init)` made. Its pending I/O is completed first."""
        finish_io(vcpu)
        parts = {"init": bytes(init), "registers": read_registers(vcpu), "mp_state": bytes(vcpu.get_mp_state())}
        parts["events"] = bytes(vcpu.get_vcpu_events())
        return cls(parts)

    def restore(self, vcpu: ArmVcpu) -> list[int]:
        """Make a fresh vCPU the same; return the registers whose value this kernel refused.

        Raises `StateError` where a part has not the form of what it is, before anything is changed.
        """
        self.check()
        init = VcpuInit.from_bytes(self.parts["init"])
        vcpu.vcpu_init(init)
        refused = []
        if init.has_feature(VcpuInit.SVE):
            # the vector lengths settle which registers exist
            refused += write_registers(vcpu, self.parts["registers"], lambda register: register == SVE_VLS)
            vcpu.vcpu_finalize(VcpuInit.SVE)
        refused += write_registers(vcpu, self.parts["registers"], lambda register: register != SVE_VLS)
        vcpu.set_mp_state(MpState.from_bytes(self.parts["mp_state"]))
        if "events" in self.parts:
            vcpu.set_vcpu_events(VcpuEvents.from_bytes(self.parts["events"]))
        return refused


# The distributor's registers for all shared interrupts: offset and bits for each interrupt, as GICv3's specification
# (IHI 0069, 12.8) has them. In the order of restoring: an interrupt is configured while it is off, and its priority
# comes before what makes it pending.
_ENABLE, _CLEAR_ENABLE, _PENDING, _ACTIVE, _CLEAR_ACTIVE = 0x100, 0x180, 0x200, 0x300, 0x380
_GROUP, _PRIORITY, _CONFIGURATION, _ROUTER = 0x80, 0x400, 0xC00, 0x6000
_SHARED = ((_GROUP, 1), (_ROUTER, 64), (_CONFIGURATION, 2), (_PRIORITY, 8), (_PENDING, 1), (_ACTIVE, 1), (_ENABLE, 1))
_CTLR, _IIDR, _STATUSR, _WAKER, _PROPBASER, _PENDBASER = 0x0, 0x8, 0x10, 0x14, 0x70, 0x78
_PRIVATE, _SGI_BASE, _FIRST_SHARED = 32, 0x10000, 32
_ALL = 0xFFFFFFFF
# a redistributor's own registers, the control last: it lets KVM read the pending messages out of guest memory
_REDIST = (_STATUSR, _WAKER, _PROPBASER, _PROPBASER + 4, _PENDBASER, _PENDBASER + 4)
# SRE, CTLR, PMR, BPR0, BPR1, then AP0R0-3 and AP1R0-3, then IGRPEN0 and 1, of ICC_*_EL1
_SRE, _ICC_CTLR = (3, 0, 12, 12, 5), (3, 0, 12, 12, 4)
_ICC = [sys_reg(*fields) for fields in (
    _SRE, _ICC_CTLR, (3, 0, 4, 6, 0), (3, 0, 12, 8, 3), (3, 0, 12, 12, 3),
    *((3, 0, 12, 8, 4 + n) for n in range(4)), *((3, 0, 12, 9, n) for n in range(4)),
    (3, 0, 12, 12, 6), (3, 0, 12, 12, 7),
)]  # fmt: skip
_AP0R, _AP1R, _AP_COUNT = 5, 9, 4
_ITS_CTLR, _ITS_IIDR, _ITS_CBASER, _ITS_CWRITER, _ITS_CREADR, _ITS_BASER = 0x0, 0x4, 0x80, 0x88, 0x90, 0x100
# kvm/devices/arm-vgic-its.rst, "ITS Restore Sequence"; writing CBASER resets CREADR
_ITS = (_ITS_IIDR, _ITS_CBASER, _ITS_CREADR, _ITS_CWRITER, *(_ITS_BASER + 8 * n for n in range(8)))
_VALID = 1 << 63
_MOST = 1 << 20


def _shared_offsets(interrupts: int) -> list[int]:
    offsets: list[int] = []
    for base, bits in _SHARED:
        offsets += range(base + bits * _FIRST_SHARED // 8, base + bits * interrupts // 8, 4)
    return offsets


def _private_offsets() -> list[int]:
    shared = ((base, bits) for base, bits in _SHARED if base != _ROUTER)
    return [_SGI_BASE + offset for base, bits in shared for offset in range(base, base + bits * _PRIVATE // 8, 4)]


def _existing(control: int) -> list[int]:
    """Return which of `_ICC` a processor has: more bits of priority, more registers of active ones."""
    bits = (control >> 8 & 7) + 1
    count = {6: 2, 7: 4}.get(bits, 1)
    missing = {start + n for start in (_AP0R, _AP1R) for n in range(count, _AP_COUNT)}
    return [index for index in range(len(_ICC)) if index not in missing]


class VmState(State):
    """What the vCPUs of a VM share: the registers of its GICv3 and, if it has one, of its ITS."""

    __slots__ = ()
    kind = 5
    required = ("gic", "dist", "redist", "icc")
    PARTS: ClassVar[dict[str, Check]] = {
        "gic": exactly(8),
        "dist": rows(4, _MOST),
        "redist": rows(4, _MOST),
        "icc": rows(8, _MOST),
        "its": exactly(8 * (len(_ITS) + 1)),
    }

    @classmethod
    def save(cls, gic: VgicV3, vcpus: Sequence[RegisterVcpu], its: VgicIts | None = None) -> Self:
        """Read them from a VM whose vCPUs are stopped, in the order of their creation.

        KVM writes the tables of messages and which of them are pending into guest memory.
        """
        where = _affinities(vcpus)
        interrupts = gic.get_nr_irqs()
        if its is not None:
            its.save_tables()
        gic.save_pending_tables()
        dist = [gic.get_dist_reg(offset) for offset in (_IIDR, _CTLR, _STATUSR, *_shared_offsets(interrupts))]
        dist += [gic.get_levels(first) for first in range(_FIRST_SHARED, interrupts, 32)]
        redist: list[int] = []
        icc: list[int] = []
        for cpu in where:
            redist += (gic.get_redist_reg(cpu, offset) for offset in (*_REDIST, _CTLR, *_private_offsets()))
            redist.append(gic.get_levels(0, cpu))
            exists = _existing(gic.get_cpu_sysreg(cpu, sys_reg(*_ICC_CTLR)))
            icc += (gic.get_cpu_sysreg(cpu, _ICC[n]) if n in exists else 0 for n in range(len(_ICC)))
        parts = {
            "gic": struct.pack("<II", interrupts, len(where)),
            "dist": _pack("I", dist),
            "redist": _pack("I", redist),
            "icc": _pack("Q", icc),
        }
        if its is not None:
            parts["its"] = _pack("Q", [its.get_reg(offset) for offset in (*_ITS, _ITS_CTLR)])
        return cls(parts)

    def restore(self, gic: VgicV3, vcpus: Sequence[RegisterVcpu], its: VgicIts | None = None) -> None:
        """Write them into a VM that has the same controllers, after its memory and its vCPUs were restored.

        The GIC and the ITS are complete (`init()`) and no vCPU has run. Restore devices of your own after this.

        Raises:
            StateError: the state is of another number of interrupts or vCPUs, or of another kind of VM; nothing was
                changed.
        """
        if missing := [name for name in self.required if name not in self.parts]:
            raise StateError(f"the state lacks {', '.join(missing)}")
        where = _affinities(vcpus)
        interrupts = gic.get_nr_irqs()
        if self.parts["gic"] != struct.pack("<II", interrupts, len(where)):
            raise StateError(f"the state is not of a GIC with {interrupts} interrupts and {len(where)} vCPUs")
        if ("its" in self.parts) != (its is not None):
            raise StateError("of the saved VM and this one, one has an ITS")
        offsets = _shared_offsets(interrupts)
        levels = range(_FIRST_SHARED, interrupts, 32)
        dist = self._values("dist", "I", 3 + len(offsets) + len(levels))
        each = len(_REDIST) + 1 + len(_private_offsets()) + 1
        redist = self._values("redist", "I", each * len(where))
        icc = self._values("icc", "Q", len(_ICC) * len(where))
        tables = self._values("its", "Q", len(_ITS) + 1) if its is not None else []
        # "Userspace should set GICD_IIDR before setting any other registers"
        for offset, value in zip((_IIDR, _CTLR, _STATUSR), dist, strict=False):
            gic.set_dist_reg(offset, value)
        for number, cpu in enumerate(where):
            _restore_redist(gic, cpu, redist[each * number : each * (number + 1)])
        for first in levels:
            gic.set_dist_reg(_CLEAR_ENABLE + first // 8, _ALL)
            gic.set_dist_reg(_CLEAR_ACTIVE + first // 8, _ALL)
        for first, lines in zip(levels, dist[3 + len(offsets) :], strict=True):
            gic.set_levels(first, lines)
        for offset, value in zip(offsets, dist[3 : 3 + len(offsets)], strict=True):
            gic.set_dist_reg(offset, value)
        for number, cpu in enumerate(where):
            own = icc[len(_ICC) * number : len(_ICC) * (number + 1)]
            for index in _existing(own[1]):
                gic.set_cpu_sysreg(cpu, _ICC[index], own[index])
        if its is not None:
            _restore_its(its, tables)

    def _values(self, part: str, code: str, count: int) -> list[int]:
        data = self.parts[part]
        if len(data) != struct.calcsize(f"<{count}{code}"):
            raise StateError(f"part {part!r} has {len(data)} bytes, and this GIC {count} numbers")
        return list(struct.unpack(f"<{count}{code}", data))


def _affinities(vcpus: Iterable[RegisterVcpu]) -> list[int]:
    return [affinity(vcpu.get_one_reg(MPIDR_EL1)) for vcpu in vcpus]


def _pack(code: str, values: list[int]) -> bytes:
    return struct.pack(f"<{len(values)}{code}", *values)


def _restore_redist(gic: VgicV3, cpu: int, values: list[int]) -> None:
    *own, control = values[: len(_REDIST) + 1]
    for offset, value in zip(_REDIST, own, strict=True):
        # one that nobody wrote says 0, and to write that has KVM put the cacheability of tables there
        if gic.get_redist_reg(cpu, offset) != value:
            gic.set_redist_reg(cpu, offset, value)
    gic.set_redist_reg(cpu, _CTLR, control)
    gic.set_redist_reg(cpu, _SGI_BASE + _CLEAR_ENABLE, _ALL)
    gic.set_redist_reg(cpu, _SGI_BASE + _CLEAR_ACTIVE, _ALL)
    gic.set_levels(0, values[-1], cpu)
    for offset, value in zip(_private_offsets(), values[len(_REDIST) + 1 : -1], strict=True):
        gic.set_redist_reg(cpu, offset, value)


def _restore_its(its: VgicIts, values: list[int]) -> None:
    *registers, control = values
    for offset, value in zip(_ITS, registers, strict=True):
        its.set_reg(offset, value)
    # without a device table there is none to read
    if registers[_ITS.index(_ITS_BASER)] & _VALID:
        its.restore_tables()
    its.set_reg(_ITS_CTLR, control)
