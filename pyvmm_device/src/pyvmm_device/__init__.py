"""What surrounds the processor of a virtual machine: buses, interrupts, PCI, the old devices of a PC, an event loop.

A device is any object with ``read(offset, buffer)`` and ``write(offset, data)``. `IoManager` is where they are
registered, by port or by address, and where a VMM takes each access that leaves the guest:

>>> from pyvmm_device import BusRange, IoManager
>>> class Answer:
...     def read(self, offset, buffer): buffer[:] = bytes([42] * len(buffer))
...     def write(self, offset, data): pass
>>> io = IoManager()
>>> io.register_pio(Answer(), [BusRange(0x10, 1)])
>>> buffer = memoryview(bytearray(1))
>>> io.pio_read(0x10, buffer)
>>> buffer[0]
42

Interrupts are protocols (`interrupt`, `interrupt_group`) and time is one (`clock.Clock`), so a device works under any
hypervisor and under none. The devices take whatever a guest writes without an exception, and have ``reset()``,
``state()`` and ``restore(state)``. A device that is made of registers is shortest as a `RegisterDevice`.

The names below load their modules when they are first used: a VMM pays at start-up for what it touches.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_device.acpi.control import AcpiMode as AcpiMode
    from pyvmm_device.acpi.control import AcpiSleep as AcpiSleep
    from pyvmm_device.acpi.control import ResetPort as ResetPort
    from pyvmm_device.acpi.pm import AcpiGpe as AcpiGpe
    from pyvmm_device.acpi.pm import AcpiPm as AcpiPm
    from pyvmm_device.acpi.pm import Sci as Sci
    from pyvmm_device.allocator import IdPool as IdPool
    from pyvmm_device.allocator import RangePool as RangePool
    from pyvmm_device.allocator import SystemAllocator as SystemAllocator
    from pyvmm_device.arm.pl011 import Pl011 as Pl011
    from pyvmm_device.arm.pl031 import Pl031 as Pl031
    from pyvmm_device.bus import Bus as Bus
    from pyvmm_device.bus import BusEntry as BusEntry
    from pyvmm_device.bus import BusRange as BusRange
    from pyvmm_device.clock import Alarm as Alarm
    from pyvmm_device.clock import ManualClock as ManualClock
    from pyvmm_device.clock import Timer as Timer
    from pyvmm_device.composite import Composite as Composite
    from pyvmm_device.errors import DeviceError as DeviceError
    from pyvmm_device.errors import DeviceNotFound as DeviceNotFound
    from pyvmm_device.errors import DeviceOverlap as DeviceOverlap
    from pyvmm_device.errors import DeviceStateError as DeviceStateError
    from pyvmm_device.errors import InterruptError as InterruptError
    from pyvmm_device.errors import InvalidAccessLength as InvalidAccessLength
    from pyvmm_device.errors import InvalidRange as InvalidRange
    from pyvmm_device.errors import InvalidResource as InvalidResource
    from pyvmm_device.errors import PciError as PciError
    from pyvmm_device.errors import ResourceExhausted as ResourceExhausted
    from pyvmm_device.errors import ResourceTaken as ResourceTaken
    from pyvmm_device.event_loop import EventLoop as EventLoop
    from pyvmm_device.event_loop import Registration as Registration
    from pyvmm_device.interrupt import EventFdInterrupt as EventFdInterrupt
    from pyvmm_device.interrupt import EventFdLevelInterrupt as EventFdLevelInterrupt
    from pyvmm_device.interrupt import FanOut as FanOut
    from pyvmm_device.interrupt import SharedLine as SharedLine
    from pyvmm_device.interrupt_group import EventFdGroup as EventFdGroup
    from pyvmm_device.interrupt_group import InterruptGroup as InterruptGroup
    from pyvmm_device.interrupt_group import LegacyGroup as LegacyGroup
    from pyvmm_device.interrupt_group import MessageGroup as MessageGroup
    from pyvmm_device.interrupt_output import InterruptOutput as InterruptOutput
    from pyvmm_device.io_manager import IoManager as IoManager
    from pyvmm_device.io_thread import IoThread as IoThread
    from pyvmm_device.irq_config import LegacyIrqConfig as LegacyIrqConfig
    from pyvmm_device.irq_config import MsiIrqConfig as MsiIrqConfig
    from pyvmm_device.locks import DeferringLock as DeferringLock
    from pyvmm_device.output import OutputBuffer as OutputBuffer
    from pyvmm_device.pc.cmos import Cmos as Cmos
    from pyvmm_device.pc.i8042 import I8042 as I8042
    from pyvmm_device.pc.ioapic import Ioapic as Ioapic
    from pyvmm_device.pc.pic import Pic as Pic
    from pyvmm_device.pc.pit import Pit as Pit
    from pyvmm_device.pc.port92 import Port92 as Port92
    from pyvmm_device.pc.port_device import PortDevice as PortDevice
    from pyvmm_device.pc.port_device import Window as Window
    from pyvmm_device.pc.port_device import register_ports as register_ports
    from pyvmm_device.pc.ps2_keyboard import Ps2Keyboard as Ps2Keyboard
    from pyvmm_device.pc.serial import Serial as Serial
    from pyvmm_device.pci.bridge import PciBridge as PciBridge
    from pyvmm_device.pci.bus import PciBus as PciBus
    from pyvmm_device.pci.function import PciFunction as PciFunction
    from pyvmm_device.pci.hotplug import PciHotplug as PciHotplug
    from pyvmm_device.pci.root import PciRoot as PciRoot
    from pyvmm_device.pci.root_port import PcieRootPort as PcieRootPort
    from pyvmm_device.protocols import AutoRetriggerInterrupt as AutoRetriggerInterrupt
    from pyvmm_device.protocols import ConfigurableInterrupt as ConfigurableInterrupt
    from pyvmm_device.protocols import Device as Device
    from pyvmm_device.protocols import EdgeInterrupt as EdgeInterrupt
    from pyvmm_device.protocols import InterruptSourceGroup as InterruptSourceGroup
    from pyvmm_device.protocols import InterruptStatusChecker as InterruptStatusChecker
    from pyvmm_device.protocols import LevelInterrupt as LevelInterrupt
    from pyvmm_device.protocols import MaskableInterrupt as MaskableInterrupt
    from pyvmm_device.protocols import MsiRouter as MsiRouter
    from pyvmm_device.protocols import ResampleNotifier as ResampleNotifier
    from pyvmm_device.protocols import SwitchableInterrupt as SwitchableInterrupt
    from pyvmm_device.protocols import TriggerNotifier as TriggerNotifier
    from pyvmm_device.qemu.debug_ports import DebugExit as DebugExit
    from pyvmm_device.qemu.debug_ports import DebugPort as DebugPort
    from pyvmm_device.qemu.debug_ports import PostPort as PostPort
    from pyvmm_device.qemu.fw_cfg import FwCfg as FwCfg
    from pyvmm_device.qemu.pvpanic import Pvpanic as Pvpanic
    from pyvmm_device.ram import Ram as Ram
    from pyvmm_device.register_device import Register as Register
    from pyvmm_device.register_device import RegisterDevice as RegisterDevice
    from pyvmm_device.resources import DeviceResources as DeviceResources
    from pyvmm_device.riscv.plic import Plic as Plic
    from pyvmm_device.tally import Tally as Tally
    from pyvmm_device.trace import Access as Access

_HOMES = {
    "acpi.control": "AcpiMode AcpiSleep ResetPort",
    "acpi.pm": "AcpiGpe AcpiPm Sci",
    "allocator": "IdPool RangePool SystemAllocator",
    "arm.pl011": "Pl011",
    "arm.pl031": "Pl031",
    "bus": "Bus BusEntry BusRange",
    "clock": "Alarm ManualClock Timer",
    "composite": "Composite",
    "errors": (
        "DeviceError DeviceNotFound DeviceOverlap DeviceStateError InterruptError InvalidAccessLength "
        "InvalidRange InvalidResource PciError ResourceExhausted ResourceTaken"
    ),
    "event_loop": "EventLoop Registration",
    "interrupt": "EventFdInterrupt EventFdLevelInterrupt FanOut SharedLine",
    "interrupt_group": "EventFdGroup InterruptGroup LegacyGroup MessageGroup",
    "interrupt_output": "InterruptOutput",
    "io_manager": "IoManager",
    "io_thread": "IoThread",
    "irq_config": "LegacyIrqConfig MsiIrqConfig",
    "locks": "DeferringLock",
    "output": "OutputBuffer",
    "pc.cmos": "Cmos",
    "pc.i8042": "I8042",
    "pc.ioapic": "Ioapic",
    "pc.pic": "Pic",
    "pc.pit": "Pit",
    "pc.port92": "Port92",
    "pc.port_device": "PortDevice Window register_ports",
    "pc.ps2_keyboard": "Ps2Keyboard",
    "pc.serial": "Serial",
    "pci.bridge": "PciBridge",
    "pci.bus": "PciBus",
    "pci.function": "PciFunction",
    "pci.hotplug": "PciHotplug",
    "pci.root": "PciRoot",
    "pci.root_port": "PcieRootPort",
    "protocols": (
        "AutoRetriggerInterrupt ConfigurableInterrupt Device EdgeInterrupt InterruptSourceGroup "
        "InterruptStatusChecker LevelInterrupt MaskableInterrupt MsiRouter ResampleNotifier "
        "SwitchableInterrupt TriggerNotifier"
    ),
    "qemu.debug_ports": "DebugExit DebugPort PostPort",
    "qemu.fw_cfg": "FwCfg",
    "qemu.pvpanic": "Pvpanic",
    "ram": "Ram",
    "register_device": "Register RegisterDevice",
    "resources": "DeviceResources",
    "riscv.plic": "Plic",
    "tally": "Tally",
    "trace": "Access",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
