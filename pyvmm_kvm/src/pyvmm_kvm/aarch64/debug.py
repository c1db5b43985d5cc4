"""A debugger's view of an arm64 vCPU: single steps, hardware breakpoints and watchpoints through KVM_SET_GUEST_DEBUG.

Control registers are encoded as the Arm ARM (D13.3, DBGBCR and DBGWCR) says, and exits decoded as it says of ESR_EL2.
"""

from __future__ import annotations

from pyvmm_kvm.aarch64.registers import core
from pyvmm_kvm.aarch64.structs import GuestDebugArch
from pyvmm_kvm.debugger import ENABLE, SINGLESTEP, Debugger
from pyvmm_kvm.exits.foreign import ArmDebug

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    from pyvmm_kvm.debugger import Runnable
    from pyvmm_kvm.exits.hot import VcpuExit

    class DebugVcpu(Runnable, Protocol):
        """As much of an arm64 vCPU as this needs."""

        def set_guest_debug(self, control: int, debugreg: GuestDebugArch | None = None) -> None:
            """Call KVM_SET_GUEST_DEBUG."""

        def get_one_reg(self, register: int) -> int:
            """Call KVM_GET_ONE_REG."""


USE_SW_BP, USE_HW = 1 << 16, 1 << 17
_MOST = 16
_ENABLED, _EL0_AND_EL1, _BYTES = 1 << 0, 3 << 1, 5
_BREAKPOINT = _ENABLED | _EL0_AND_EL1 | 0xF << _BYTES  # all four bytes of the instruction
_ACCESS = {"read": 1, "write": 2, "access": 3}
# exception classes of ESR_EL2, in its bits 31 to 26, that KVM gives to debuggers
BREAKPOINT, STEP, WATCHPOINT, BRK = 0x30, 0x32, 0x34, 0x3C
_CLASS = 26
# FAR is an address between the lowest one of the access and the highest watched one, so it may lie below what is
# watched; no access is longer than a vector of 2048 bits
_LONGEST = 256


class GuestDebug(Debugger):
    """Debugging of one vCPU, switched off again by `with`; as the x86 class of this name."""

    __slots__ = ("_arch",)
    stop_kind = ArmDebug
    vcpu: DebugVcpu

    def __init__(self, vcpu: DebugVcpu) -> None:
        super().__init__(vcpu)
        self._arch = GuestDebugArch()

    def watch(self, address: int, length: int = 4, kind: str = "execute") -> int:
        """Set a breakpoint ("execute") or a watchpoint ("read", "write", "access"); return its number.

        Breakpoints count from 0 and watchpoints from 16. `Kvm.get_guest_debug_hw_bps` and `_wps` say how many this
        host really has; KVM refuses more.

        Raises:
            ValueError: the kind, length or alignment is not one of the processor's, or all 16 are taken.
        """
        if kind == "execute":
            if address % 4:
                raise ValueError(f"instructions lie at multiples of 4, not at {address:#x}")
            number = self._free(self._arch.dbg_bcr)
            self._arch.dbg_bvr[number], self._arch.dbg_bcr[number] = address, _BREAKPOINT
            return number
        if kind not in _ACCESS or length not in (1, 2, 4, 8) or address % length:
            raise ValueError(f"{kind!r} of {length} bytes at {address:#x} is not one of the processor's watchpoints")
        number = self._free(self._arch.dbg_wcr)
        bytes_selected = ((1 << length) - 1) << address % 8
        self._arch.dbg_wvr[number] = address & ~7
        self._arch.dbg_wcr[number] = _ENABLED | _EL0_AND_EL1 | _ACCESS[kind] << 3 | bytes_selected << _BYTES
        return _MOST + number

    def hit(self, exit_: ArmDebug) -> list[int]:
        """Return the numbers of the breakpoints or watchpoints that an exit reports; none for a step or a `brk`."""
        kind = exit_.hsr >> _CLASS
        if kind == BREAKPOINT:
            pc = self.position(exit_)
            points = zip(self._arch.dbg_bcr, self._arch.dbg_bvr, strict=True)
            return [number for number, (control, value) in enumerate(points) if control & _ENABLED and value == pc]
        if kind != WATCHPOINT:
            return []
        watched = self._watched()
        inside = [number for number, (start, end) in watched.items() if start <= exit_.far < end]
        if inside or not watched:
            return inside
        # an access that began below what is watched
        above = {number: start - exit_.far for number, (start, _) in watched.items()}
        above = {number: distance for number, distance in above.items() if 0 < distance < _LONGEST}
        return [number for number, distance in above.items() if distance == min(above.values())]

    def _watched(self) -> dict[int, tuple[int, int]]:
        """Return the range of each watchpoint."""
        found = {}
        for number, (control, value) in enumerate(zip(self._arch.dbg_wcr, self._arch.dbg_wvr, strict=True)):
            if control & _ENABLED:
                selected = control >> _BYTES & 0xFF
                first = (selected & -selected).bit_length() - 1
                found[_MOST + number] = value + first, value + selected.bit_length()
        return found

    def clear(self, number: int) -> None:
        """Forget one."""
        control = self._arch.dbg_bcr if number < _MOST else self._arch.dbg_wcr
        control[number % _MOST] = 0

    @staticmethod
    def _free(control: Iterable[int]) -> int:
        for number, value in enumerate(control):
            if not value & _ENABLED:
                return number
        raise ValueError("the architecture has 16 of each and all are taken")

    def arm(self, extra: int = 0) -> None:
        """Give the control bits and breakpoints to KVM."""
        used = any(value & _ENABLED for value in (*self._arch.dbg_bcr, *self._arch.dbg_wcr))
        self.vcpu.set_guest_debug(ENABLE | extra | (USE_HW if used else 0), self._arch)

    def position(self, _exit: VcpuExit, /) -> int:
        """Return the program counter."""
        return self.vcpu.get_one_reg(core("pc"))


__all__ = [
    "BREAKPOINT",
    "BRK",
    "ENABLE",
    "SINGLESTEP",
    "STEP",
    "USE_HW",
    "USE_SW_BP",
    "WATCHPOINT",
    "GuestDebug",
]
