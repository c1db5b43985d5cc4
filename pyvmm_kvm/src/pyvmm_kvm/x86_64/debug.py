"""A debugger's view of a vCPU: single steps, hardware breakpoints and watchpoints through KVM_SET_GUEST_DEBUG."""

from __future__ import annotations

from pyvmm_kvm.debugger import ENABLE, SINGLESTEP, Debugger
from pyvmm_kvm.exits.rare import Debug

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_kvm.exits.hot import VcpuExit
    from pyvmm_kvm.vcpu import VcpuFd

USE_SW_BP = 1 << 16
USE_HW_BP = 1 << 17
INJECT_DB = 1 << 18
INJECT_BP = 1 << 19
BLOCKIRQ = 1 << 20

_KINDS = {"execute": 0, "write": 1, "access": 3}
# DR7 encodes lengths 1, 2, 8, 4 as 0 to 3 (Intel SDM volume 3, 17.2.4)
_LENGTHS = {1: 0, 2: 1, 8: 2, 4: 3}
_DR7, _POINTS = 7, 4
# bit 10 reads as one; bit 9 asks for exact reports
_DR7_FIXED = 1 << 10 | 1 << 9


class GuestDebug(Debugger):
    """Debugging of one vCPU, switched off again by `with`.

    Example::

        with GuestDebug(vcpu) as debug:
            debug.watch(0x1000, 4, "write")
            exit = debug.resume()          # a Debug, or whatever else the guest did
            for pc in debug.steps(100): print(hex(pc))
    """

    __slots__ = ("_points",)
    stop_kind = Debug
    vcpu: VcpuFd

    def __init__(self, vcpu: VcpuFd) -> None:
        super().__init__(vcpu)
        self._points: list[tuple[int, int, str] | None] = [None] * _POINTS

    def watch(self, address: int, length: int = 1, kind: str = "execute") -> int:
        """Set a breakpoint ("execute") or watchpoint ("write", "access") on a linear address; return its number 0-3.

        Watchpoints need an instruction that the processor itself runs: KVM's emulator honours "execute" only.

        Raises:
            ValueError: all four are taken, or the address is not aligned to the length.
        """
        if kind not in _KINDS or length not in _LENGTHS or (kind == "execute" and length != 1):
            raise ValueError(f"{kind!r} with {length} bytes is not one of the processor's breakpoints")
        if address % length:
            raise ValueError(f"a watchpoint of {length} bytes lies at a multiple of {length}, not at {address:#x}")
        if None not in self._points:
            raise ValueError("the processor has four breakpoints and all are taken")
        number = self._points.index(None)
        self._points[number] = address, length, kind
        return number

    def clear(self, number: int) -> None:
        """Forget a breakpoint."""
        self._points[number] = None

    def _registers(self) -> list[int]:
        registers = [0] * 8
        for number, point in enumerate(self._points):
            if point:
                address, length, kind = point
                registers[number] = address
                registers[_DR7] |= 2 << 2 * number | (_KINDS[kind] | _LENGTHS[length] << 2) << 16 + 4 * number
        registers[_DR7] |= _DR7_FIXED
        return registers

    def arm(self, extra: int = 0) -> None:
        """Give the control bits and breakpoints to KVM."""
        points = any(self._points)
        self.vcpu.set_guest_debug(ENABLE | extra | (USE_HW_BP if points else 0), self._registers() if points else ())

    def position(self, exit_: VcpuExit, /) -> int:
        """Return the linear address that a `Debug` exit reports."""
        # only called with an exit of the type in stop_kind
        return exit_.pc if isinstance(exit_, Debug) else 0

    def hit(self, exit_: Debug) -> list[int]:
        """Return the numbers of the breakpoints that a `Debug` exit reports."""
        return [number for number in range(_POINTS) if exit_.dr6 >> number & 1]


__all__ = ["BLOCKIRQ", "ENABLE", "INJECT_BP", "INJECT_DB", "SINGLESTEP", "USE_HW_BP", "USE_SW_BP", "GuestDebug"]
