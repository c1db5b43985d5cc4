"""The vCPU calls that only x86 has: registers, CPUID, model-specific registers, LAPIC, FPU."""

from __future__ import annotations

from .._kvm import ffi
from ..fd import Fd
from .structs import Fpu, LapicState, MpState, Regs, Sregs, VcpuEvents

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import TypeVar

    from ..struct import Struct
    from .cpuid import CpuId
    from .msrs import Msrs

    S = TypeVar("S", bound=Struct)


def read_msrs(fd: Fd, indices: Iterable[int]) -> Msrs:
    """KVM_GET_MSRS on a vCPU, or on the system fd for feature MSRs."""
    from ..errors import MsrError
    from .msrs import MAX_IO_MSRS, Msrs, pack, unpack

    wanted = list(indices)
    found = Msrs()
    for start in range(0, len(wanted), MAX_IO_MSRS):
        part = wanted[start : start + MAX_IO_MSRS]
        buffer = bytearray(pack((index, 0) for index in part))
        with ffi.from_buffer("char[]", buffer) as argument:
            done = fd._ioctl("KVM_GET_MSRS", argument)
        if done < len(part):
            # the kernel stops without an error at the first one that it does not know
            raise MsrError("KVM_GET_MSRS", part[done], start + done)
        found.update(unpack(buffer, done))
    return found


class ArchVcpu(Fd):
    """What `VcpuFd` adds on x86."""

    __slots__ = ()

    def _get(self, name: str, kind: type[S]) -> S:
        value = kind()
        self._ioctl(name, value._c)
        return value

    def _set(self, name: str, kind: type[S], value: object) -> None:
        if isinstance(value, kind):
            self._ioctl(name, value._c)
            return
        # any object with attributes named as in the header will do
        own = kind()
        own.update(value)
        self._ioctl(name, own._c)

    def get_regs(self) -> Regs:
        """The general-purpose registers."""
        return self._get("KVM_GET_REGS", Regs)

    def set_regs(self, regs: Regs) -> None:
        """Replace the general-purpose registers."""
        self._set("KVM_SET_REGS", Regs, regs)

    def get_sregs(self) -> Sregs:
        """Segments, descriptor tables and control registers."""
        return self._get("KVM_GET_SREGS", Sregs)

    def set_sregs(self, sregs: Sregs) -> None:
        """Replace segments, descriptor tables and control registers."""
        self._set("KVM_SET_SREGS", Sregs, sregs)

    def get_fpu(self) -> Fpu:
        """The x87 and SSE registers."""
        return self._get("KVM_GET_FPU", Fpu)

    def set_fpu(self, fpu: Fpu) -> None:
        """Replace the x87 and SSE registers."""
        self._set("KVM_SET_FPU", Fpu, fpu)

    def get_lapic(self) -> LapicState:
        """The local APIC's registers; needs the in-kernel LAPIC."""
        return self._get("KVM_GET_LAPIC", LapicState)

    def set_lapic(self, lapic: LapicState) -> None:
        """Replace the local APIC's registers."""
        self._set("KVM_SET_LAPIC", LapicState, lapic)

    def get_mp_state(self) -> MpState:
        """Whether it runs, halts or waits for INIT and SIPI."""
        return self._get("KVM_GET_MP_STATE", MpState)

    def set_mp_state(self, state: MpState | int) -> None:
        """Change that; a plain number such as `MpState.RUNNABLE` will do."""
        self._set("KVM_SET_MP_STATE", MpState, MpState(mp_state=state) if isinstance(state, int) else state)

    def get_vcpu_events(self) -> VcpuEvents:
        """Exceptions, interrupts and NMIs that are pending or half delivered."""
        return self._get("KVM_GET_VCPU_EVENTS", VcpuEvents)

    def set_vcpu_events(self, events: VcpuEvents) -> None:
        """Replace them; `flags` says which optional parts are meant."""
        self._set("KVM_SET_VCPU_EVENTS", VcpuEvents, events)

    def set_cpuid2(self, cpuid: CpuId) -> None:
        """What the guest's CPUID instruction answers; before the first `run()`."""
        buffer = bytearray(bytes(cpuid))
        with ffi.from_buffer("char[]", buffer) as argument:
            self._ioctl("KVM_SET_CPUID2", argument)

    def get_cpuid2(self, count: int = 256) -> CpuId:
        """The table in force, with what KVM keeps up to date in it."""
        from .cpuid import CpuId, room_for

        buffer = room_for(count)
        with ffi.from_buffer("char[]", buffer) as argument:
            self._ioctl("KVM_GET_CPUID2", argument)
        return CpuId.from_bytes(buffer)

    def get_msrs(self, indices: Iterable[int]) -> Msrs:
        """Values by index; `MsrError` names the first that KVM does not know."""
        return read_msrs(self, indices)

    def set_msrs(self, msrs: Mapping[int, int]) -> int:
        """Write registers in the mapping's order and return how many; `MsrError` names the one that was refused."""
        from ..errors import MsrError
        from .msrs import MAX_IO_MSRS, pack

        items = list(msrs.items())
        for start in range(0, len(items), MAX_IO_MSRS):
            part = items[start : start + MAX_IO_MSRS]
            buffer = bytearray(pack(part))
            with ffi.from_buffer("char[]", buffer) as argument:
                done = self._ioctl("KVM_SET_MSRS", argument)
            if done < len(part):
                raise MsrError("KVM_SET_MSRS", part[done][0], start + done)
        return len(items)

    def nmi(self) -> None:
        """Queue a non-maskable interrupt."""
        self._ioctl_value("KVM_NMI", 0)

    def interrupt(self, vector: int) -> None:
        """Inject an external interrupt; only without an in-kernel irqchip, when `ready_for_interrupt_injection`."""
        self._ioctl("KVM_INTERRUPT", ffi.new("struct kvm_interrupt *", (vector,)))

    def get_tsc_khz(self) -> int:
        """The guest's time-stamp counter frequency in kHz."""
        return self._ioctl_value("KVM_GET_TSC_KHZ", 0)

    def set_tsc_khz(self, khz: int) -> None:
        """Change it, where the host can scale it; 0 means the host's own."""
        self._ioctl_value("KVM_SET_TSC_KHZ", khz)

    @property
    def registers(self) -> str:
        """All registers as people read them, for the terminal and for reports."""
        return f"{self.get_regs()}\n{self.get_sregs()}"
