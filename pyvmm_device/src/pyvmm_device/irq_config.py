"""Where an interrupt goes: what a driver says of each one of a group, and what firmware says of a pin."""

from __future__ import annotations


class MsiIrqConfig:
    """The message of one interrupt: a write of 32 bits to an address, and the device it comes from.

    Attributes:
        devid: the device, as an interrupt controller that translates messages by device wants to know it (Arm's ITS);
            of a PCI function its bus, device and function in 16 bits.
    """

    __slots__ = ("data", "devid", "high_addr", "low_addr")

    def __init__(self, high_addr: int, low_addr: int, data: int, devid: int = 0) -> None:
        self.high_addr = high_addr
        self.low_addr = low_addr
        self.data = data
        self.devid = devid

    @property
    def address(self) -> int:
        """All 64 bits of the address."""
        return self.high_addr << 32 | self.low_addr

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MsiIrqConfig) and all(getattr(self, n) == getattr(other, n) for n in self.__slots__)

    def __hash__(self) -> int:
        return hash((self.address, self.data, self.devid))

    def __repr__(self) -> str:
        return f"MsiIrqConfig({self.high_addr:#x}, {self.low_addr:#x}, {self.data:#x}, devid={self.devid:#x})"


class LegacyIrqConfig:
    """Where a device's interrupt pin is wired to.

    Attributes:
        interrupt_line: the input of the interrupt controllers, or None where firmware has to say.
        interrupt_pin: 1 to 4 for INTA to INTD, or None without a pin.
    """

    __slots__ = ("interrupt_line", "interrupt_pin")

    def __init__(self, interrupt_line: int | None = None, interrupt_pin: int | None = None) -> None:
        self.interrupt_line = interrupt_line
        self.interrupt_pin = interrupt_pin

    def __eq__(self, other: object) -> bool:
        mine = (self.interrupt_line, self.interrupt_pin)
        return isinstance(other, LegacyIrqConfig) and mine == (other.interrupt_line, other.interrupt_pin)

    def __hash__(self) -> int:
        return hash((self.interrupt_line, self.interrupt_pin))

    def __repr__(self) -> str:
        return f"LegacyIrqConfig({self.interrupt_line}, {self.interrupt_pin})"
