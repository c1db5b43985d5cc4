"""Ports by which firmware, kernels and test programs talk to whoever runs them: debug output, POST codes, an exit.

>>> written = []
>>> port = DebugPort(written.append)
>>> port.write(0, memoryview(b"SeaBIOS"))
>>> written
[b'SeaBIOS']
"""

from __future__ import annotations

from pyvmm_device.output import Outlet
from pyvmm_device.pc.port_device import PortDevice
from pyvmm_device.state import uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ_BACK = 0xE9
"""What a debug port reads as, by which firmware finds it."""


class DebugPort(PortDevice):
    """A port whose bytes are text for a person: 0x402, as SeaBIOS and OVMF know it, or 0xe9, as Bochs does.

    Args:
        output: called with what was written, in the thread that wrote it. What it raises is a loss of the bytes, and
            counted.
    """

    PORTS = ((0x402, 1, 0),)

    def __init__(self, output: Callable[[bytes], object]) -> None:
        super().__init__()
        self._output = Outlet(self, output)

    @property
    def lost_output(self) -> int:
        """How many bytes the output refused; the first was logged."""
        return self._output.lost

    def reset(self) -> None:
        """Do nothing: there is nothing to reset."""

    def _read(self, offset: int) -> int:  # noqa: ARG002 - there is one
        return READ_BACK

    def write(self, offset: int, data: memoryview) -> None:  # noqa: ARG002 - there is one
        """Put bytes out, those of one access together."""
        self._output.put(bytes(data))

    def __repr__(self) -> str:
        return f"<DebugPort to {self._output.function!r}>"


class PostPort(PortDevice):
    """The port of the power-on self test's codes, 0x80, which Linux also writes to in order to wait a little.

    Args:
        on_code: called with each code, with no lock held.
    """

    PORTS = ((0x80, 1, 0),)
    STATE = {"code": uint(8)}

    def __init__(self, on_code: Callable[[int], object] | None = None) -> None:
        super().__init__()
        self.on_code = on_code
        self._code = 0

    @property
    def code(self) -> int:
        """The code written last."""
        return self._code

    def reset(self) -> None:
        """Forget the code."""
        with self.lock:
            self._code = 0

    def _read(self, offset: int) -> int:
        return 0xFF if offset else self._code

    def _write(self, offset: int, value: int) -> None:
        if not offset:
            self._code = value
            if self.on_code is not None:
                self.lock.after(self.on_code, value)

    def __repr__(self) -> str:
        return f"<PostPort {self._code:#04x}>"


class DebugExit(PortDevice):
    """QEMU's isa-debug-exit: a test program ends its machine by writing its verdict here.

    Args:
        on_exit: called with the exit status, ``value << 1 | 1``, which is never 0, with no lock held.
    """

    PORTS = ((0xF4, 4, 0),)

    def __init__(self, on_exit: Callable[[int], object]) -> None:
        super().__init__()
        self._on_exit = on_exit

    def reset(self) -> None:
        """Do nothing: there is nothing to reset."""

    def _read(self, offset: int) -> int:  # noqa: ARG002 - it reads as zero everywhere
        return 0

    def write(self, offset: int, data: memoryview) -> None:  # noqa: ARG002 - all of it is one register
        """Take the value, of any width."""
        self.lock.after(self._on_exit, int.from_bytes(data, "little") << 1 | 1)

    def __repr__(self) -> str:
        return f"<DebugExit to {self._on_exit!r}>"
