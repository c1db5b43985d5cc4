"""Bridges and root ports as a guest sees them: bus numbers, windows, interrupts, hot-plug."""

import pytest
from tests.device.test_pci import Line, sample

from pyvmm_device import (
    BusRange,
    DeviceStateError,
    IoManager,
    MessageGroup,
    MsiIrqConfig,
    PciBridge,
    PcieRootPort,
    PciError,
    PciFunction,
    PciRoot,
    Ram,
)
from pyvmm_device.pci.bus import PciBus

ECAM = 0xE0000000


class Guest:
    """A root with ECAM for three buses, and a guest's accesses to it."""

    def __init__(self) -> None:
        self.io = IoManager()
        self.lines = [Line() for _ in range(4)]
        self.root = PciRoot(self.io, self.lines, ecam=ECAM, buses=3)

    def get(self, bus: int, slot: int, offset: int, length: int = 4) -> int:
        buffer = memoryview(bytearray(length))
        self.io.mmio_read(ECAM + (bus << 20 | slot << 15 | offset), buffer)
        return int.from_bytes(buffer, "little")

    def put(self, bus: int, slot: int, offset: int, value: int, length: int = 4) -> None:
        self.io.mmio_write(ECAM + (bus << 20 | slot << 15 | offset), memoryview(value.to_bytes(length, "little")))

    def by_ports(self, bus: int, slot: int, offset: int) -> int:
        address = 0x80000000 | bus << 16 | slot << 11 | offset
        self.io.pio_write(0xCF8, memoryview(address.to_bytes(4, "little")))
        buffer = memoryview(bytearray(4))
        self.io.pio_read(0xCFC, buffer)
        return int.from_bytes(buffer, "little")


def secondary(bridge: PciBridge) -> PciBus:
    assert bridge.secondary is not None
    return bridge.secondary


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_buses_are_found_by_the_numbers_the_guest_gives(guest: Guest) -> None:
    outer, inner = PciBridge(guest.io), PciBridge(guest.io)
    guest.root.add(outer, 2)
    secondary(outer).add(inner, 4)
    secondary(inner).add(sample(), 6)
    assert guest.get(0, 2, 0x0E, 1) == 1
    assert guest.get(0, 2, 0x0B, 1) == 6
    assert guest.get(1, 4, 0) == 0xFFFFFFFF
    guest.put(0, 2, 0x18, 0x020100)
    assert guest.get(1, 4, 0) == 0x00011B36
    guest.put(1, 4, 0x18, 0x020201)
    assert guest.get(2, 6, 0) == guest.by_ports(2, 6, 0) == 0x12341AF4
    assert inner.address == "01:04.0"
    guest.put(0, 2, 0x1A, 1, 1)  # nothing above 1 is passed on any more
    assert guest.by_ports(2, 6, 0) == 0xFFFFFFFF
    assert guest.get(0, 9, 0) == 0xFFFFFFFF


def test_what_is_behind_a_bridge_answers_in_its_windows_only(guest: Guest) -> None:
    bridge, function = PciBridge(guest.io), sample()
    memory = function.add_bar(0, 0x1000, Ram(0x1000))
    wide = function.add_bar(2, 0x1000, Ram(0x1000), wide=True, prefetchable=True)
    ports = function.add_bar(4, 0x20, Ram(0x20), io=True)
    secondary(bridge).add(function, 0)
    guest.root.add(bridge, 1)
    guest.put(0, 1, 0x18, 0x010100)
    for at, value in ((0x10, 0xD0100000), (0x18, 0), (0x1C, 0x10), (0x20, 0xC000)):
        guest.put(1, 0, at, value)
    guest.put(1, 0, 4, 7, 2)
    assert [bar.mapped for bar in (memory, wide, ports)] == [None] * 3
    guest.put(0, 1, 0x1C, 0xC0C0, 2)
    guest.put(0, 1, 0x20, 0xD010D010)
    guest.put(0, 1, 0x24, 0x00000000)
    guest.put(0, 1, 0x28, 0x10)
    guest.put(0, 1, 0x2C, 0x10)
    assert guest.get(0, 1, 0x24) == 0x00010001  # 64 bits wide
    assert memory.mapped is None
    guest.put(0, 1, 4, 7, 2)
    assert memory.mapped == BusRange(0xD0100000, 0x1000)
    assert wide.mapped == BusRange(0x10_0000_0000, 0x1000)
    assert ports.mapped == BusRange(0xC000, 0x20)
    guest.put(0, 1, 0x20, 0xD030D020)  # moved away
    assert memory.mapped is None
    guest.put(0, 1, 0x20, 0xD010D010)
    saved = guest.root.state()
    guest.root.reset()
    assert [bar.mapped for bar in (memory, wide, ports)] == [None] * 3
    guest.root.restore(saved)
    assert memory.mapped == BusRange(0xD0100000, 0x1000)
    guest.put(0, 1, 0x3E, 0x40, 2)  # secondary bus reset
    assert memory.mapped is None
    assert guest.get(1, 0, 0x10) == 0
    guest.root.bus.remove(1)
    assert bridge.address == "not on a bus"


def test_pins_are_swizzled_at_each_bridge(guest: Guest) -> None:
    bridge, function = PciBridge(guest.io), sample(interrupt_pin=1)
    secondary(bridge).add(function, 2)
    function.set_intx(True)
    assert not any(line.active for line in guest.lines)
    guest.root.add(bridge, 3)
    # INTA of device 2 is the bridge's INTC, which device 3 of bus 0 has on line 1
    assert [line.active for line in guest.lines] == [False, True, False, False]
    function.set_intx(False)
    assert not any(line.active for line in guest.lines)
    function.set_intx(True)
    guest.root.bus.remove(3)
    assert not any(line.active for line in guest.lines)


def port_machine(*, msi: bool = True) -> tuple[Guest, PcieRootPort, list[MsiIrqConfig], list[list[PciFunction]]]:
    guest = Guest()
    sent: list[MsiIrqConfig] = []
    ejected: list[list[PciFunction]] = []
    port = PcieRootPort(guest.io, 5, MessageGroup(1, sent.append) if msi else None, ejected.append)
    guest.root.add(port, 1)
    guest.put(0, 1, 0x18, 0x010100)
    return guest, port, sent, ejected


CAP = 0x40
CONTROL, STATUS, LINK = CAP + 0x18, CAP + 0x1A, CAP + 0x12


def test_the_capability_says_what_the_slot_can(guest: Guest) -> None:
    guest, port, _, _ = port_machine()
    assert port.config.capabilities() == [(0x10, CAP), (0x05, 0x7C)]
    assert guest.get(0, 1, CAP + 2, 2) == 0x0142
    slot = guest.get(0, 1, CAP + 0x14)
    assert slot >> 19 == 5
    assert slot & 0x7F == 0x7B
    with pytest.raises(PciError, match="slot 0"):
        PcieRootPort(guest.io, 0)


@pytest.mark.parametrize("msi", [True, False])
def test_a_device_comes_and_goes(msi: bool) -> None:
    guest, port, sent, ejected = port_machine(msi=msi)
    guest.put(0, 1, CONTROL, 0x1029 | 0x400, 2)  # all events, hot-plug interrupts, power off: as a driver begins
    if msi:
        guest.put(0, 1, 0x7C + 4, 0xFEE00000)
        guest.put(0, 1, 0x7C + 2, 1, 2)
    assert port.slot_state() == "empty"
    with pytest.raises(PciError, match="empty"):
        port.request_eject()
    function = sample()
    port.insert(function)
    assert port.slot_state() == "inserted"
    assert guest.get(0, 1, STATUS, 2) == 0x49  # present, and that is new, and the button
    assert (len(sent), guest.lines[1].active) == ((1, False) if msi else (0, True))
    guest.put(0, 1, STATUS, 0x49, 2)
    assert guest.get(0, 1, STATUS, 2) == 0x40
    assert not guest.lines[1].active
    assert not guest.get(0, 1, LINK, 2) & 0x2000
    guest.put(0, 1, CONTROL, 0x1029, 2)
    assert port.slot_state() == "present"
    assert guest.get(0, 1, LINK, 2) & 0x2000
    assert guest.get(0, 1, STATUS, 2) == 0x140
    guest.put(0, 1, STATUS, 0x100, 2)
    assert guest.get(1, 0, 0) == 0x12341AF4
    with pytest.raises(PciError):
        port.insert(sample())
    port.request_eject()
    assert guest.get(0, 1, STATUS, 2) == 0x41
    assert port.slot_state() == "ejecting"
    assert not ejected
    guest.put(0, 1, STATUS, 1, 2)
    guest.put(0, 1, CONTROL, 0x1029 | 0x400, 2)
    assert ejected == [[function]]
    assert guest.get(1, 0, 0) == 0xFFFFFFFF
    assert guest.get(0, 1, STATUS, 2) == 0x108
    assert "slot 5 empty" in repr(port)


def test_a_powered_off_slot_keeps_its_device() -> None:
    guest, port, _, ejected = port_machine()
    port.insert(sample())
    guest.put(0, 1, CONTROL, 0x400, 2)
    saved = guest.root.state()
    guest.put(0, 1, CONTROL, 0, 2)
    assert guest.get(0, 1, LINK, 2) & 0x2000
    guest.root.restore(saved)
    assert not guest.get(0, 1, LINK, 2) & 0x2000
    assert not ejected
    with pytest.raises(DeviceStateError):
        port_machine()[0].root.restore(saved)  # its slot is empty
    guest.root.reset()
    assert port.slot_state() == "present"
