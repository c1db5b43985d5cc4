"""The root of PCI: a bus with its host bridge, and the two ways to its configuration space.

Source: PCI Local Bus Specification 3.0, section 3.2.2.3.2 (ports); PCI Express Base 5.0, section 7.2.2 (ECAM).
"""

from __future__ import annotations

from pyvmm_device.bus import BusRange
from pyvmm_device.locks import DeferringLock
from pyvmm_device.pci.bus import PciBus
from pyvmm_device.pci.function import PciFunction
from pyvmm_device.state import Stateful, check_parts, restore_parts, save_parts, uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from pyvmm_device.interrupt import LevelInterrupt
    from pyvmm_device.io_manager import IoManager

CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
ENABLE = 0x80000000
RESET_CONTROL_OFFSET, RESET_CPU = 1, 0x04
ECAM_BUS_SIZE = 1 << 20
HOST_BRIDGE_CLASS = 0x060000


class ConfigPorts(Stateful):
    """Ports 0xcf8 (address) and 0xcfc (data), and between them 0xcf9, by which a PC is reset.

    Args:
        bus: bus 0, from which the others are reached.
        on_reset: called when the guest resets the machine by port 0xcf9, which Linux does where told ``reboot=p``.
    """

    STATE = {"address": uint(32)}

    def __init__(self, bus: PciBus, on_reset: Callable[[], object] | None = None) -> None:
        self._bus = bus
        self.lock: DeferringLock = DeferringLock()
        self._on_reset = on_reset
        self._address = 0

    def reset(self) -> None:
        """Forget the address."""
        self._address = 0

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read the address (only all of it), or a part of the register it points to."""
        if offset >= 4 and offset + len(buffer) <= 8 and self._address & ENABLE:
            bus = self._bus.find(self._address >> 16 & 0xFF)
            if bus is None:
                buffer[:] = b"\xff" * len(buffer)
            else:
                bus.config_read(self._address >> 8 & 0xFF, (self._address & 0xFC) + offset - 4, buffer)
        elif offset == 0 and len(buffer) == 4:
            buffer[:] = self._address.to_bytes(4, "little")
        elif offset == RESET_CONTROL_OFFSET and len(buffer) == 1:
            buffer[0] = 0
        else:
            buffer[:] = b"\xff" * len(buffer)

    def write(self, offset: int, data: memoryview) -> None:
        """Write the address: "only ... a full DWORD"; a byte between is the reset control."""
        if offset >= 4 and offset + len(data) <= 8:
            bus = self._bus.find(self._address >> 16 & 0xFF) if self._address & ENABLE else None
            if bus is not None:
                bus.config_write(self._address >> 8 & 0xFF, (self._address & 0xFC) + offset - 4, data)
        elif offset == 0 and len(data) == 4:
            # "bits 30 through 24 are reserved", bits 1 and 0 read as zeros
            self._address = int.from_bytes(data, "little") & 0x80FFFFFC
        elif offset == RESET_CONTROL_OFFSET and len(data) == 1 and data[0] & RESET_CPU and self._on_reset is not None:
            self.lock.after(self._on_reset)

    def __repr__(self) -> str:
        return f"<ConfigPorts, address {self._address:#x}>"


class Ecam:
    """The configuration space in memory: 4 KiB for each function, 1 MiB for each bus, from bus 0 on."""

    def __init__(self, bus: PciBus) -> None:
        self._bus = bus

    def _found(self, offset: int, length: int) -> PciBus | None:
        if offset // 4096 != (offset + length - 1) // 4096:
            return None
        return self._bus.find(offset // ECAM_BUS_SIZE)

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read a function's configuration space; an access that leaves it reads ones."""
        bus = self._found(offset, len(buffer))
        if bus is None:
            buffer[:] = b"\xff" * len(buffer)
        else:
            bus.config_read(offset >> 12 & 0xFF, offset & 0xFFF, buffer)

    def write(self, offset: int, data: memoryview) -> None:
        """Write it."""
        bus = self._found(offset, len(data))
        if bus is not None:
            bus.config_write(offset >> 12 & 0xFF, offset & 0xFFF, data)

    def __repr__(self) -> str:
        return f"<Ecam of {self._bus!r}>"


class PciRoot:
    """Bus 0 of a machine with its host bridge as device 0, registered in an `IoManager`.

    Args:
        io: the machine's ports and addresses.
        lines: interrupt lines for INTA to INTD, usually four; see `PciBus`.
        ecam: where the configuration space lies in memory, if anywhere; 1 MiB for each bus.
        buses: how many buses it covers; above one they are behind bridges.
        host_bridge: the function 00:00.0. By default one that only says what it is, which is all Linux needs;
            firmware may look for a chipset it knows.
        ports: whether ports 0xcf8 to 0xcff are there.
        on_reset: called when the guest resets the machine by port 0xcf9.
    """

    def __init__(
        self,
        io: IoManager,
        lines: Sequence[LevelInterrupt] = (),
        *,
        ecam: int | None = None,
        buses: int = 1,
        host_bridge: PciFunction | None = None,
        ports: bool = True,
        on_reset: Callable[[], object] | None = None,
    ) -> None:
        self.bus = PciBus(io, lines)
        self.host_bridge = host_bridge or PciFunction(0x8086, 0x0D57, HOST_BRIDGE_CLASS)
        self.bus.add(self.host_bridge, 0)
        self.ports = ConfigPorts(self.bus, on_reset)
        if ports:
            io.register_pio(self.ports, [BusRange(CONFIG_ADDRESS, 8)])
        if ecam is not None:
            io.register_mmio(Ecam(self.bus), [BusRange(ecam, buses * ECAM_BUS_SIZE)])

    def add(self, function: PciFunction, slot: int | None = None, number: int = 0) -> int:
        """Put a function on the bus and return its device number; see `PciBus.add`."""
        return self.bus.add(function, slot, number)

    def reset(self) -> None:
        """Reset every function."""
        self.ports.reset()
        self.bus.reset()

    def state(self) -> dict[str, Any]:
        """Return the state of the ports and of every function."""
        return save_parts("PciRoot", self._parts())

    def check_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state of ports and bus, checked; raises as `restore`."""
        return check_parts("PciRoot", self._parts(), state)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what a state says; raises as `PciBus.restore`, and then nothing changed."""
        restore_parts("PciRoot", self._parts(), state)

    def _parts(self) -> dict[str, Any]:
        return {"ports": self.ports, "bus": self.bus}

    def __repr__(self) -> str:
        return f"<PciRoot {self.bus!r}>"
