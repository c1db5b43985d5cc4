"""What the devices behind a PC's ports share: registers of one byte, which are scattered over the port space.

Such a device numbers all its registers from 0, wherever they are: the 8259 pair has six, at ports 0x20, 0xa0 and 0x4d0.
`register_ports` puts each where a PC has it:

>>> from pyvmm_device import IoManager, Pic
>>> io = IoManager()
>>> register_ports(io, Pic(print))
>>> [hex(entry.base) for entry in io.pio.entries()]
['0x20', '0xa0', '0x4d0']
"""

from __future__ import annotations

from pyvmm_device.bus import BusRange
from pyvmm_device.locks import DeferringLock
from pyvmm_device.state import Stateful

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

    from pyvmm_device.io_manager import IoManager
    from pyvmm_device.protocols import Device


class Window:
    """A part of a device's registers, to be registered by itself.

    Args:
        device: the whole.
        offset: of the device's registers, where the window begins.
    """

    __slots__ = ("device", "offset")

    def __init__(self, device: Device, offset: int) -> None:
        self.device = device
        self.offset = offset

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read from the device, so much further in."""
        # whatever it returns, which is nothing where the device is right: the bus sees to the others
        return self.device.read(offset + self.offset, buffer)

    def write(self, offset: int, data: memoryview) -> None:
        """Write to the device, so much further in."""
        self.device.write(offset + self.offset, data)

    def __repr__(self) -> str:
        return f"<Window at {self.offset:#x} of {self.device!r}>"


class PortDevice(Stateful):
    """A device whose registers are bytes. An access to several is one access to each, as the ISA bus splits it.

    A subclass says where a PC has it in ``PORTS``, as (port, number of ports, offset of the first register). Its
    registers are read and written with `lock` held, so whatever it calls, an interrupt or a callback, it calls by
    ``lock.after``.
    """

    PORTS: ClassVar[tuple[tuple[int, int, int], ...]] = ()

    def __init__(self) -> None:
        self.lock: DeferringLock = DeferringLock()

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read a register into each byte; where there is none the bus floats, and reads as ones."""
        with self.lock:
            for at in range(len(buffer)):
                buffer[at] = self._read(offset + at)

    def write(self, offset: int, data: memoryview) -> None:
        """Write a register with each byte."""
        with self.lock:
            for at in range(len(data)):
                self._write(offset + at, data[at])

    def _read(self, offset: int) -> int:  # noqa: ARG002 - a device with nothing to read
        return 0xFF

    def _write(self, offset: int, value: int) -> None:
        pass


def register_ports(io: IoManager, *devices: PortDevice) -> None:
    """Let devices answer at the ports where a PC has them: all of them, or none where one is refused.

    Raises:
        DeviceOverlap: another device has one of the ports.
    """
    add: list[tuple[BusRange, Device]] = []
    for device in devices:
        for port, count, offset in device.PORTS:
            add.append((BusRange(port, count), Window(device, offset) if offset else device))
    io.pio.update(add=add)
