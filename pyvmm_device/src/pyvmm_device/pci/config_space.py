"""The configuration space of one function: bytes, which bits a guest may change, and what happens then.

Source: PCI Local Bus Specification 3.0, chapter 6; PCI Express Base Specification 5.0, section 7.
"""

from __future__ import annotations

from pyvmm_device.errors import PciError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from pyvmm_device.bus import Device
    from pyvmm_device.locks import DeferringLock
    from pyvmm_device.pci.bus import PciBus

    # the offset within the part that was watched, and the length
    Hook = Callable[[int, int], object]

    class Owner(Protocol):
        """What a capability needs of the function that has it."""

        config: ConfigSpace
        lock: DeferringLock
        bus: PciBus | None
        place: tuple[int, int]

        def add_bar(self, index: int, size: int, device: Device) -> object:
            """Give it a range in which a device answers."""
            ...

        def update_intx(self) -> None:
            """Bring INTx to what the registers allow now: not beside messages."""
            ...


VENDOR_ID, DEVICE_ID, COMMAND, STATUS, REVISION, CLASS, CACHE_LINE, LATENCY, HEADER_TYPE = 0, 2, 4, 6, 8, 9, 12, 13, 14
BAR0, SUBSYSTEM_VENDOR, SUBSYSTEM_ID, ROM, CAPABILITIES = 0x10, 0x2C, 0x2E, 0x30, 0x34
INTERRUPT_LINE, INTERRUPT_PIN = 0x3C, 0x3D
FIRST_CAPABILITY, FIRST_EXTENDED_CAPABILITY = 0x40, 0x100

COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER, COMMAND_INTX_DISABLE = 0x001, 0x002, 0x004, 0x400
COMMAND_WRITABLE = 0x547
STATUS_INTERRUPT, STATUS_CAPABILITIES = 0x0008, 0x0010
STATUS_CLEARS = 0xF900
MULTIFUNCTION = 0x80

CAP_POWER, CAP_MSI, CAP_VENDOR, CAP_EXPRESS, CAP_MSIX = 0x01, 0x05, 0x09, 0x10, 0x11


def requester_id(function: Owner) -> int:
    """Return bus, device and function in 16 bits, which go with a function's messages; 0 where it is on no bus."""
    device, number = function.place
    return 0 if function.bus is None else function.bus.number << 8 | device << 3 | number


class ConfigSpace:
    """256 bytes, or 4096 on PCI Express, with a mask of what can be written.

    Args:
        size: 256 or 4096.
    """

    __slots__ = (
        "_clears",
        "_end_of_extended",
        "_last_extended",
        "_next",
        "_on_read",
        "_on_write",
        "_varying",
        "data",
        "writable",
    )

    def __init__(self, size: int = 256) -> None:
        if size not in (256, 4096):
            raise PciError(f"a configuration space has 256 or 4096 bytes, not {size}")
        self.data = bytearray(size)
        self.writable = bytearray(size)
        self._clears = bytearray(size)
        self._varying = bytearray(size)
        self._on_read: list[tuple[int, int, Hook]] = []
        self._on_write: list[tuple[int, int, Hook]] = []
        self._next = FIRST_CAPABILITY
        self._last_extended = 0
        self._end_of_extended = FIRST_EXTENDED_CAPABILITY

    def __len__(self) -> int:
        return len(self.data)

    # the device's side

    def get(self, offset: int, length: int) -> int:
        """Return a number of some bytes, little-endian."""
        return int.from_bytes(self.data[offset : offset + length], "little")

    def set(self, offset: int, length: int, value: int, writable: int = 0, clears: int = 0) -> None:
        """Define a field.

        Args:
            offset: its first byte.
            length: in bytes.
            value: its value after a reset.
            writable: the bits that a guest can write.
            clears: the bits that a guest clears by writing ones.
        """
        self.data[offset : offset + length] = value.to_bytes(length, "little")
        self.writable[offset : offset + length] = writable.to_bytes(length, "little")
        self._clears[offset : offset + length] = clears.to_bytes(length, "little")

    def put(self, offset: int, length: int, value: int) -> None:
        """Change a field's value, not its rules."""
        self.data[offset : offset + length] = value.to_bytes(length, "little")

    def vary(self, offset: int, length: int, bits: int) -> None:
        """Mark bits that the device itself changes, so that a saved state may have others than there are now."""
        self._varying[offset : offset + length] = bits.to_bytes(length, "little")

    def watch(self, offset: int, length: int, on_write: Hook | None = None, on_read: Hook | None = None) -> None:
        """Call before a guest reads, or after it wrote, any byte of a part; of a function, with none of its locks."""
        if on_write is not None:
            self._on_write.append((offset, offset + length, on_write))
        if on_read is not None:
            self._on_read.append((offset, offset + length, on_read))

    def add_capability(
        self,
        capability: int,
        body: bytes,
        writable: bytes = b"",
        on_write: Hook | None = None,
        on_read: Hook | None = None,
    ) -> int:
        """Append to the list of capabilities and return its offset.

        Args:
            capability: its number (``CAP_...``).
            body: what follows the number and the link.
            writable: the bits of the body that a guest can write; short of the body's length they are read-only.
            on_write: called with (offset from the capability's first byte, length) after a guest wrote.
            on_read: called likewise before a guest reads.

        Raises:
            PciError: the 192 bytes for capabilities do not suffice.
        """
        at, size = self._next, 2 + len(body)
        if at + size > FIRST_EXTENDED_CAPABILITY:
            raise PciError(f"capability {capability:#x} of {size} bytes does not fit behind {at:#x}")
        self.data[at : at + size] = bytes([capability, 0]) + body
        self.writable[at : at + size] = b"\0\0" + writable.ljust(len(body), b"\0")
        link = CAPABILITIES
        while self.data[link]:
            link = self.data[link] + 1
        self.data[link] = at
        self.data[STATUS] |= STATUS_CAPABILITIES
        self._next = (at + size + 3) & ~3
        self.watch(at, size, on_write, on_read)
        return at

    def add_extended_capability(self, capability: int, version: int, body: bytes, writable: bytes = b"") -> int:
        """Append to the list of PCI Express extended capabilities and return its offset.

        Raises:
            PciError: there is no room, or this is no PCI Express function.
        """
        if len(self.data) < 4096:
            raise PciError("extended capabilities need a configuration space of 4096 bytes")
        at = self._end_of_extended
        if at + 4 + len(body) > len(self.data):
            raise PciError(f"extended capability {capability:#x} of {len(body)} bytes does not fit behind {at:#x}")
        if self._last_extended:
            header = self.get(self._last_extended, 4) & 0xFFFFF | at << 20
            self.put(self._last_extended, 4, header)
        self.put(at, 4, capability | version << 16)
        self.data[at + 4 : at + 4 + len(body)] = body
        self.writable[at + 4 : at + 4 + len(body)] = writable.ljust(len(body), b"\0")
        self._last_extended = at
        self._end_of_extended = (at + 4 + len(body) + 3) & ~3
        return at

    def capabilities(self) -> list[tuple[int, int]]:
        """Return (number, offset) of each capability, in the order of the list."""
        found: list[tuple[int, int]] = []
        at = self.data[CAPABILITIES]
        while at and len(found) < 64:
            found.append((self.data[at], at))
            at = self.data[at + 1]
        return found

    # the guest's side: what is called before and after it belongs to others, so a function that has a lock takes the
    # three steps by themselves, and holds it for the bytes only

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read bytes; beyond the end there are ones."""
        self.before_read(offset, len(buffer))
        self.load(offset, buffer)

    def write(self, offset: int, data: memoryview) -> None:
        """Write bytes, as far as their bits can be written."""
        self.store(offset, data)
        self.after_write(offset, len(data))

    def before_read(self, offset: int, length: int) -> None:
        """Call who watches these bytes."""
        _call(self._on_read, offset, offset + length)

    def load(self, offset: int, buffer: memoryview) -> None:
        """Read bytes as they are."""
        buffer[:] = self.data[offset : offset + len(buffer)].ljust(len(buffer), b"\xff")

    def store(self, offset: int, data: memoryview) -> None:
        """Write bytes, and call nobody."""
        own, writable, clears = self.data, self.writable, self._clears
        for at, value in enumerate(bytes(data)[: max(0, len(own) - offset)], offset):
            mask = writable[at]
            own[at] = (own[at] & ~mask | value & mask) & ~(value & clears[at])

    def after_write(self, offset: int, length: int) -> None:
        """Call who watches these bytes."""
        _call(self._on_write, offset, min(offset + length, len(self.data)))

    def differs_read_only(self, other: bytes) -> int | None:
        """Return the first offset at which other bytes differ in a bit that nobody can write, or None."""
        for at, (mine, theirs) in enumerate(zip(self.data, other, strict=True)):
            free = self.writable[at] | self._clears[at] | self._varying[at]
            if (mine ^ theirs) & ~free & 0xFF:
                return at
        return None

    def __repr__(self) -> str:
        return f"<ConfigSpace {self.get(VENDOR_ID, 2):04x}:{self.get(DEVICE_ID, 2):04x}, {len(self.data)} bytes>"


def _call(watched: list[tuple[int, int, Hook]], offset: int, end: int) -> None:
    for first, beyond, hook in watched:
        if first < end and offset < beyond:
            hook(max(offset, first) - first, min(end, beyond) - max(offset, first))
