"""What Arm's PrimeCell devices share: identification registers at the end of 4 KiB of memory."""

from __future__ import annotations

from pyvmm_device.register_device import RegisterDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

SIZE = 0x1000
ID_START = 0xFE0


class AmbaDevice(RegisterDevice):
    """A `RegisterDevice` of 4 KiB that says what it is: each byte of ``IDS`` is a register of a word of its own.

    Linux's AMBA bus takes part number, designer and revision from the first four, and looks for 0xb105f00d in the rest.
    """

    IDS: ClassVar[bytes] = b""

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read registers."""
        if offset < ID_START:
            super().read(offset, buffer)
            return
        words = b"".join(bytes((value, 0, 0, 0)) for value in self.IDS)
        at = offset - ID_START
        buffer[:] = words[at : at + len(buffer)].ljust(len(buffer), b"\0")
