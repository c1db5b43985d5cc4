"""The keyboard controller of a PC, of which guests without a keyboard use one thing: it resets the machine."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

COMMAND_OFFSET = 4
"""Ports 0x60 (data) to 0x64 (status and command)."""
COMMAND_RESET = 0xFE
"""Pulse output line 0, which is wired to the processor's reset input."""


class I8042:
    """An i8042 without keyboard or mouse.

    Args:
        reset: called when the guest asks for a reset, in the thread of the vCPU that did.
    """

    def __init__(self, reset: Callable[[], object]) -> None:
        self._reset = reset

    def read(self, offset: int, buffer: memoryview) -> None:  # noqa: ARG002 (all registers read alike)
        """Both buffers are empty and there is no data: every register reads zero."""
        buffer[:] = bytes(len(buffer))

    def write(self, offset: int, data: memoryview) -> None:
        """Take a command; all but the reset are accepted and do nothing."""
        if offset == COMMAND_OFFSET and data[0] == COMMAND_RESET:
            self._reset()

    def __repr__(self) -> str:
        return "<I8042 keyboard controller>"
