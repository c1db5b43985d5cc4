r"""Port 0x92 of a PC, "system control port A": address line 20 and a reset without the keyboard controller.

>>> port = Port92(lambda: print("the machine restarts"))
>>> port.write(0, memoryview(b"\x03"))
the machine restarts

Source: IBM PS/2 Hardware Interface Technical Reference, "System Control Port A".
"""

from __future__ import annotations

from pyvmm_device.pc.port_device import PortDevice
from pyvmm_device.state import uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FAST_RESET, A20 = 0x01, 0x02


class Port92(PortDevice):
    """One register: bit 0 resets when it rises, bit 1 is address line 20.

    Args:
        reset: called when the guest asks for a reset, with no lock held.
        on_a20: called with the new level when the guest switches address line 20, which is on at first.
    """

    PORTS = ((0x92, 1, 0),)
    STATE = {"value": uint(8)}

    def __init__(self, reset: Callable[[], object], on_a20: Callable[[bool], object] | None = None) -> None:
        super().__init__()
        self._reset = reset
        self._on_a20 = on_a20
        self._value = A20

    def reset(self) -> None:
        """Be as after power-on."""
        with self.lock:
            self._set(A20)

    def _set(self, value: int) -> int:
        changed, self._value = self._value ^ value, value
        if changed & A20 and self._on_a20 is not None:
            self.lock.after(self._on_a20, bool(value & A20))
        return changed

    def _read(self, offset: int) -> int:
        return self._value if offset == 0 else 0xFF

    def _write(self, offset: int, value: int) -> None:
        if offset == 0 and self._set(value) & value & FAST_RESET:
            self.lock.after(self._reset)

    def _after_restore(self) -> None:
        if self._on_a20 is not None:
            self.lock.after(self._on_a20, bool(self._value & A20))

    def __repr__(self) -> str:
        return f"<Port92 {self._value:#04x}>"
