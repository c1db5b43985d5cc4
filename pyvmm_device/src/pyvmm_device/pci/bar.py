"""Base address registers: how a guest learns the size of a device's ranges and decides where they are.

Source: PCI Local Bus Specification 3.0, section 6.2.5.
"""

from __future__ import annotations

from pyvmm_device.bus import BusRange
from pyvmm_device.errors import PciError
from pyvmm_device.pci.config_space import BAR0, COMMAND, COMMAND_IO, COMMAND_MEMORY, ROM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_device.bus import Claim, Device
    from pyvmm_device.pci.config_space import ConfigSpace

IO_FLAG, WIDE_FLAG, PREFETCHABLE_FLAG, ROM_ENABLE = 1, 4, 8, 1
ROM_INDEX = 6


class Bar:
    """One range of a function, and where it lies now.

    Args:
        config: the function's configuration space, in which the register is set up.
        index: 0 to 5, or `ROM_INDEX` for the expansion ROM.
        size: a power of two: at least 16 for memory, 4 to 256 for ports, 2048 for a ROM.
        device: what answers there.
        io: whether it is of ports.
        wide: whether its address has 64 bits; it then takes the next index too.
        prefetchable: whether reads have no side effects.

    Raises:
        PciError: the size or the index is none.
    """

    __slots__ = ("_config", "_last", "claim", "device", "index", "io", "offset", "prefetchable", "size", "wide")

    def __init__(
        self,
        config: ConfigSpace,
        index: int,
        size: int,
        device: Device,
        *,
        io: bool = False,
        wide: bool = False,
        prefetchable: bool = False,
    ) -> None:
        least, most = (2048, 1 << 24) if index == ROM_INDEX else (4, 256) if io else (16, 1 << (63 if wide else 31))
        if size & (size - 1) or not least <= size <= most:
            raise PciError(f"BAR {index}: {size:#x} bytes; a size is a power of two from {least:#x} to {most:#x}")
        if not 0 <= index <= (4 if wide else ROM_INDEX) or (io and (wide or index == ROM_INDEX)):
            raise PciError(f"BAR {index}: a BAR has index 0 to 5, and one of 64 bits is of memory and takes two")
        self._config = config
        self.index = index
        self.size = size
        self.device = device
        self.io = io
        self.wide = wide
        self.prefetchable = prefetchable
        self.offset = ROM if index == ROM_INDEX else BAR0 + 4 * index
        self._last: BusRange | None = None  # where it should answer when that was asked last: mostly it is there still
        self.claim: Claim | None = None
        """What it has of the bus for its addresses, while its function is on one."""
        flags = IO_FLAG if io else WIDE_FLAG * wide | PREFETCHABLE_FLAG * prefetchable
        enable = ROM_ENABLE if index == ROM_INDEX else 0
        if config.writable[self.offset + 2] or config.data[self.offset]:
            raise PciError(f"BAR {index} is there already")
        config.set(self.offset, 4, flags, ~(size - 1) & 0xFFFFFFFF | enable)
        if wide:
            config.set(self.offset + 4, 4, 0, ~(size - 1) >> 32 & 0xFFFFFFFF)

    @property
    def mapped(self) -> BusRange | None:
        """Where it is registered now."""
        claim = self.claim
        return None if claim is None else claim.mapped

    @property
    def conflict(self) -> object | None:
        """Who has the addresses that the guest wants for it."""
        claim = self.claim
        return None if claim is None else claim.conflict

    @property
    def address(self) -> int:
        """What the guest wrote, without the flags."""
        return self._config.get(self.offset, 8 if self.wide else 4) & ~(self.size - 1)

    @address.setter
    def address(self, address: int) -> None:
        """Write it as firmware would; takes effect with the next look at the command register."""
        length = 8 if self.wide else 4
        flags = self._config.get(self.offset, length) & (self.size - 1)
        self._config.put(self.offset, length, address | flags)

    def wanted(self) -> BusRange | None:
        """Return where it should answer now, if anywhere."""
        command = self._config.get(COMMAND, 2)
        if not command & (COMMAND_IO if self.io else COMMAND_MEMORY):
            return None
        if self.index == ROM_INDEX and not self._config.data[ROM] & ROM_ENABLE:
            return None
        address = self.address
        limit = 1 << (16 if self.io else 64 if self.wide else 32)
        # All ones is a guest that asks for the size, and some do not switch decoding off before. "A value of 0 is no
        # valid address."
        if address == 0 or address + self.size >= limit:
            return None
        last = self._last
        if last is None or last.base != address:
            last = self._last = BusRange(address, self.size)
        return last

    def __repr__(self) -> str:
        kind = "ports" if self.io else "64-bit memory" if self.wide else "memory"
        mapped = self.mapped
        where = f"at {mapped.base:#x}" if mapped is not None else "not mapped"
        return f"<Bar {self.index}: {self.size:#x} bytes of {kind}, {where}>"
