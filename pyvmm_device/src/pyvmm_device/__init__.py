"""What surrounds the processor of a virtual machine: buses, interrupts, the old devices of a PC, an event loop.

A device is any object with ``read(offset, buffer)`` and ``write(offset, data)``. `IoManager` is where they are
registered, by port or by address, and where a VMM takes each access that leaves the guest:

>>> class Answer:
...     def read(self, offset, buffer): buffer[:] = bytes([42] * len(buffer))
...     def write(self, offset, data): pass
>>> io = IoManager()
>>> io.register_pio(Answer(), [BusRange(0x10, 1)])
>>> buffer = memoryview(bytearray(1))
>>> io.pio_read(0x10, buffer)
>>> buffer[0]
42

Interrupts are protocols (`interrupt.EdgeInterrupt`), so a device works under any hypervisor and under none.
"""

from pyvmm_device.bus import Bus, BusRange
from pyvmm_device.cmos import Cmos
from pyvmm_device.errors import DeviceError, DeviceNotFound, DeviceOverlap, InvalidAccessLength, InvalidRange
from pyvmm_device.event_loop import EventLoop
from pyvmm_device.i8042 import I8042
from pyvmm_device.interrupt import EventFdInterrupt
from pyvmm_device.io_manager import IoManager
from pyvmm_device.serial import Serial

__version__ = "0.1.0"

__all__ = [
    "I8042",
    "Bus",
    "BusRange",
    "Cmos",
    "DeviceError",
    "DeviceNotFound",
    "DeviceOverlap",
    "EventFdInterrupt",
    "EventLoop",
    "InvalidAccessLength",
    "InvalidRange",
    "IoManager",
    "Serial",
]
