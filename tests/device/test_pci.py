"""PCI as a guest sees it: probing, sizing, moving, interrupts, hotplug."""

from collections.abc import Callable

import pytest

from pyvmm_device import (
    BusRange,
    DeviceStateError,
    EventFdGroup,
    InterruptError,
    IoManager,
    LegacyGroup,
    MessageGroup,
    MsiIrqConfig,
    PciBus,
    PciError,
    PciFunction,
    PciHotplug,
    PciRoot,
    Ram,
    ResourceExhausted,
)
from pyvmm_device.pci.config_space import CAP_MSI, CAP_MSIX, CAP_VENDOR


class Line:
    """A level interrupt that remembers."""

    def __init__(self) -> None:
        self.active = False

    def assert_(self) -> None:
        self.active = True

    def clear(self) -> None:
        self.active = False


class Machine:
    """A PCI root and a guest's ways to it."""

    def __init__(self) -> None:
        self.io = IoManager()
        self.lines = [Line() for _ in range(4)]
        self.resets: list[int] = []
        self.root = PciRoot(self.io, self.lines, ecam=0xE0000000, on_reset=lambda: self.resets.append(1))

    def select(self, slot: int, offset: int, function: int = 0) -> None:
        address = 0x80000000 | slot << 11 | function << 8 | offset & 0xFC
        self.io.pio_write(0xCF8, memoryview(address.to_bytes(4, "little")))

    def get(self, slot: int, offset: int, length: int = 4, function: int = 0) -> int:
        self.select(slot, offset, function)
        buffer = memoryview(bytearray(length))
        self.io.pio_read(0xCFC + (offset & 3), buffer)
        return int.from_bytes(buffer, "little")

    def put(self, slot: int, offset: int, value: int, length: int = 4, function: int = 0) -> None:
        self.select(slot, offset, function)
        self.io.pio_write(0xCFC + (offset & 3), memoryview(value.to_bytes(length, "little")))

    def mmio(self, address: int, length: int = 4) -> int:
        buffer = memoryview(bytearray(length))
        self.io.mmio_read(address, buffer)
        return int.from_bytes(buffer, "little")

    def mmio_put(self, address: int, value: int, length: int = 4) -> None:
        self.io.mmio_write(address, memoryview(value.to_bytes(length, "little")))


def sample(*, interrupt_pin: int = 0, express: bool = False) -> PciFunction:
    return PciFunction(
        0x1AF4, 0x1234, 0x020000, subsystem_vendor=0x1AF4, subsystem_id=7, interrupt_pin=interrupt_pin, express=express
    )


def test_how_linux_looks_for_type_1_accesses() -> None:
    machine = Machine()
    machine.io.pio_write(0xCFB, memoryview(b"\x01"))
    machine.io.pio_write(0xCF8, memoryview((0x80000000).to_bytes(4, "little")))
    buffer = memoryview(bytearray(4))
    machine.io.pio_read(0xCF8, buffer)
    assert int.from_bytes(buffer, "little") == 0x80000000
    assert machine.get(0, 0x0A, 2) == 0x0600  # the host bridge, which pci_sanity_check looks for


def test_absent_functions_read_ones() -> None:
    machine = Machine()
    assert machine.get(5, 0) == 0xFFFFFFFF
    assert machine.mmio(0xE0000000 + (5 << 15)) == 0xFFFFFFFF
    machine.io.pio_write(0xCF8, memoryview((0x80010000).to_bytes(4, "little")))  # another bus
    buffer = memoryview(bytearray(4))
    machine.io.pio_read(0xCFC, buffer)
    assert bytes(buffer) == b"\xff" * 4
    machine.io.pio_write(0xCF8, memoryview(bytes(4)))  # switched off
    machine.io.pio_read(0xCFC, buffer)
    assert bytes(buffer) == b"\xff" * 4


def test_accesses_of_bytes_and_words() -> None:
    machine = Machine()
    machine.root.add(sample(), 3)
    assert machine.get(3, 0) == 0x12341AF4
    assert machine.get(3, 2, 2) == 0x1234
    assert [machine.get(3, at, 1) for at in (9, 10, 11)] == [0, 0, 2]
    machine.put(3, 0, 0)  # ids are read-only
    assert machine.get(3, 0) == 0x12341AF4
    machine.put(3, 0x3C, 0x0B, 1)
    assert machine.get(3, 0x3C, 1) == 0x0B
    assert machine.mmio(0xE0000000 + (3 << 15)) == 0x12341AF4
    assert machine.mmio(0xE0000000 + (3 << 15) + 0x3C, 1) == 0x0B
    assert machine.mmio(0xE0000000 + (3 << 15) + 256) == 0xFFFFFFFF  # not PCI Express
    machine.mmio_put(0xE0000000 + (3 << 15) + 0x3C, 0x0C, 1)
    assert machine.get(3, 0x3C, 1) == 0x0C
    machine.io.mmio_write(0xE0000000 + (3 << 15) + 0xFFE, memoryview(bytes(4)))  # leaves the function
    assert machine.mmio(0xE0000000 + (3 << 15) + 0xFFE) == 0xFFFFFFFF


@pytest.mark.parametrize("size", [0x10, 0x1000, 0x100000])
def test_sizing_and_placing_a_bar(size: int) -> None:
    machine = Machine()
    function = sample()
    bar = function.add_bar(0, size, Ram(size))
    machine.root.add(function, 1)
    machine.put(1, 0x10, 0xFFFFFFFF)
    assert machine.get(1, 0x10) == 0x100000000 - size
    machine.put(1, 0x10, 0xD0000000)
    assert bar.mapped is None  # decoding is off
    machine.put(1, 4, 2, 2)
    assert bar.mapped == BusRange(0xD0000000, size)
    machine.mmio_put(0xD0000004, 0x5A)
    assert machine.mmio(0xD0000004) == 0x5A
    machine.put(1, 0x10, 0xFFFFFFFF)  # sized while decoding: answers nowhere
    assert bar.mapped is None
    machine.put(1, 0x10, 0xD8000000)
    assert machine.mmio(0xD8000004) == 0x5A
    assert machine.mmio(0xD0000004) == 0xFFFFFFFF
    machine.put(1, 4, 0, 2)
    assert bar.mapped is None


def test_wide_and_port_bars() -> None:
    machine = Machine()
    function = sample()
    wide = function.add_bar(0, 0x100000000, Ram(16), wide=True, prefetchable=True)
    ports = function.add_bar(2, 0x20, Ram(0x20), io=True)
    machine.root.add(function, 1)
    assert machine.get(1, 0x10) == 0xC
    machine.put(1, 0x10, 0xFFFFFFFF)
    machine.put(1, 0x14, 0xFFFFFFFF)
    assert (machine.get(1, 0x10), machine.get(1, 0x14)) == (0xC, 0xFFFFFFFF)
    machine.put(1, 0x10, 0)
    machine.put(1, 0x14, 0x10)
    machine.put(1, 0x18, 0xFFFFFFFF)
    assert machine.get(1, 0x18) == 0xFFFFFFE1
    machine.put(1, 0x18, 0xC000)
    machine.put(1, 4, 3, 2)
    assert wide.mapped == BusRange(0x10_0000_0000, 1 << 32)
    assert ports.mapped == BusRange(0xC000, 0x20)
    assert "64-bit" in repr(wide)


def test_bars_that_collide_wait_until_one_moves() -> None:
    machine = Machine()
    one, other = sample(), sample()
    first, second = one.add_bar(0, 0x1000, Ram(16)), other.add_bar(0, 0x1000, Ram(16))
    machine.root.add(one, 1)
    machine.root.add(other, 2)
    for slot in (1, 2):
        machine.put(slot, 0x10, 0xD0000000)
        machine.put(slot, 4, 2, 2)
    assert first.mapped is not None
    assert second.mapped is None
    assert second.conflict is first.device
    machine.put(1, 0x10, 0xD1000000)
    machine.put(2, 4, 2, 2)
    assert second.mapped == BusRange(0xD0000000, 0x1000)
    assert second.conflict is None


def test_two_bars_of_a_function_change_places() -> None:
    machine = Machine()
    function = sample()
    for index in (0, 1):
        function.add_bar(index, 0x1000, Ram(16))
    machine.root.add(function, 1)
    machine.put(1, 0x10, 0xD0000000)
    machine.put(1, 0x14, 0xD0001000)
    machine.put(1, 4, 2, 2)
    machine.put(1, 0x10, 0xD0001000)
    machine.put(1, 0x14, 0xD0000000)
    assert [function.bars[index].mapped for index in (0, 1)] == [
        BusRange(0xD0001000, 0x1000),
        BusRange(0xD0000000, 0x1000),
    ]


def test_expansion_rom() -> None:
    machine = Machine()
    function = sample()
    function.add_rom(b"\x55\xaa" + bytes(3000))
    machine.root.add(function, 1)
    machine.put(1, 0x30, 0xFFFFFFFE)
    assert machine.get(1, 0x30) == 0xFFFFF000
    machine.put(1, 0x30, 0xD0000001)
    machine.put(1, 4, 2, 2)
    assert machine.mmio(0xD0000000, 2) == 0xAA55
    machine.mmio_put(0xD0000000, 0)
    assert machine.mmio(0xD0000000, 2) == 0xAA55
    machine.put(1, 0x30, 0xD0000000)
    assert function.bars[6].mapped is None


@pytest.mark.parametrize(
    "build",
    [
        lambda f: f.add_bar(0, 24, Ram(1)),
        lambda f: f.add_bar(0, 8, Ram(1)),
        lambda f: f.add_bar(7, 16, Ram(1)),
        lambda f: f.add_bar(5, 16, Ram(1), wide=True),
        lambda f: f.add_bar(0, 512, Ram(1), io=True),
        lambda f: (f.add_bar(0, 16, Ram(1)), f.add_bar(0, 16, Ram(1))),
        lambda f: (f.add_bar(0, 16, Ram(1), wide=True), f.add_bar(1, 16, Ram(1))),
        lambda f: (f.add_bar(1, 16, Ram(1)), f.add_bar(0, 16, Ram(1), wide=True)),
        lambda f: f.add_msi(MessageGroup(3, print)),
        lambda f: f.add_msi(MessageGroup(64, print)),
        lambda f: f.config.add_capability(9, bytes(200)),
        lambda f: f.config.add_extended_capability(3, 1, bytes(8)),
        lambda f: f.add_msix(MessageGroup(1, print)).place(0, 4, 0, 8),
        lambda _: PciFunction(1, 2, 3, interrupt_pin=5),
    ],
)
def test_functions_put_together_wrongly(build: Callable[[PciFunction], object]) -> None:
    with pytest.raises(PciError):
        build(sample())


def test_capabilities_form_a_list() -> None:
    function = sample(express=True)
    hooked: list[tuple[int, int]] = []
    first = function.config.add_capability(
        CAP_VENDOR, b"\x08\x01\x02\x03\x04\x05", b"\0\0\xff", lambda *a: hooked.append(a)
    )
    second = function.config.add_capability(CAP_VENDOR, b"\x04\x06")
    assert function.config.capabilities() == [(CAP_VENDOR, first), (CAP_VENDOR, second)]
    assert second % 4 == 0
    function.config_write(first, memoryview(b"\xaa" * 8))
    assert function.config.data[first : first + 8] == bytes([CAP_VENDOR, second, 8, 1, 0xAA, 3, 4, 5])
    assert hooked == [(0, 8)]
    at = [function.config.add_extended_capability(number, 1, bytes(8)) for number in (0x03, 0x0B, 0x0E)]
    assert at == [0x100, 0x10C, 0x118]
    assert [function.config.get(place, 4) for place in at] == [0x10C10003, 0x1181000B, 0x0001000E]


def test_status_bits_are_cleared_by_ones() -> None:
    function = sample()
    function.config.data[7] = 0xF9
    function.config_write(6, memoryview(b"\x00\x88"))
    assert function.config.data[7] == 0x71


def test_intx_follows_command_and_messages() -> None:
    machine = Machine()
    function = sample(interrupt_pin=1)
    function.add_msi(MessageGroup(1, lambda _: None))
    machine.root.add(function, 2)
    line = machine.lines[machine.root.bus.line_of(2, 1)]
    function.interrupt()
    assert line.active
    assert machine.get(2, 6, 2) & 8
    machine.put(2, 4, 0x400, 2)
    assert not line.active
    assert machine.get(2, 6, 2) & 8  # "regardless of the state" of the disable bit
    machine.put(2, 4, 0, 2)
    assert line.active
    function.set_intx(False)
    assert not line.active
    assert not machine.get(2, 6, 2) & 8


def test_two_devices_share_a_line() -> None:
    machine = Machine()
    functions = [sample(interrupt_pin=1), sample(interrupt_pin=1)]
    machine.root.add(functions[0], 1)
    machine.root.add(functions[1], 5)
    line = machine.lines[1]
    for function in functions:
        function.set_intx(True)
    functions[0].set_intx(False)
    assert line.active
    machine.root.bus.remove(5)
    assert not line.active


def test_a_message_that_waits_goes_out_as_it_was_written_with_its_mask() -> None:
    sent: list[MsiIrqConfig] = []
    function = sample()
    msi = function.add_msi(MessageGroup(1, sent.append))
    Machine().root.add(function, 1)
    function.config_write(msi.offset + 16, memoryview(b"\1\0\0\0"))
    function.config_write(msi.offset + 4, memoryview((0xFEE00000).to_bytes(4, "little")))
    function.config_write(msi.offset + 2, memoryview(b"\1\0"))
    function.interrupt()
    function.config_write(msi.offset + 12, memoryview(b"\x55" + bytes(7)))  # its data and its mask at once
    assert [message.data for message in sent] == [0x55]


def test_msi_with_several_vectors_and_masks() -> None:
    sent: list[MsiIrqConfig] = []
    machine = Machine()
    function = sample()
    msi = function.add_msi(MessageGroup(4, sent.append))
    machine.root.add(function, 1)
    at = msi.offset
    assert machine.get(1, at, 1) == CAP_MSI
    assert machine.get(1, at + 2, 2) == 0x184  # 64 bits, maskable, 4 messages
    machine.put(1, at + 4, 0xFEE00000)
    machine.put(1, at + 12, 0x41, 2)
    function.interrupt(1)
    assert not sent  # not enabled: INTx, which has no pin here
    machine.put(1, at + 2, 0x21, 2)  # all four
    function.interrupt(2)
    assert sent == [MsiIrqConfig(0, 0xFEE00000, 0x42, devid=1 << 3)]
    machine.put(1, at + 16, 0b0100)
    function.interrupt(2)
    assert len(sent) == 1
    assert machine.get(1, at + 20) == 0b0100
    machine.put(1, at + 16, 0)
    assert sent[1:] == [MsiIrqConfig(0, 0xFEE00000, 0x42, devid=1 << 3)]
    assert machine.get(1, at + 20) == 0
    machine.put(1, at + 2, 0x01, 2)  # only one allowed
    function.interrupt(3)
    assert sent[-1].data == 0x41


def msix_machine(group: MessageGroup | EventFdGroup) -> tuple[Machine, PciFunction, int, int]:
    machine = Machine()
    function = sample()
    msix = function.add_msix(group, bar=1)
    machine.root.add(function, 1)
    machine.put(1, 0x14, 0xD0000000)
    machine.put(1, 4, 6, 2)
    return machine, function, msix.offset, 0xD0000000


def test_msix_table_masks_and_pending_bits() -> None:
    sent: list[MsiIrqConfig] = []
    machine, function, at, bar = msix_machine(MessageGroup(3, sent.append))
    assert machine.get(1, at, 1) == CAP_MSIX
    assert machine.get(1, at + 2, 2) == 2  # "N-1"
    assert machine.get(1, at + 4) == 1
    pba = bar + (machine.get(1, at + 8) & ~7)
    assert machine.mmio(bar + 12) == 1  # masked after reset
    machine.put(1, at + 2, 0x8000, 2)
    machine.mmio_put(bar + 16, 0xFEE01000)
    machine.mmio_put(bar + 20, 0)
    machine.mmio_put(bar + 24, 0x31)
    function.interrupt(1)
    assert not sent
    assert machine.mmio(pba, 8) == 2
    machine.mmio_put(bar + 28, 0)
    assert sent == [MsiIrqConfig(0, 0xFEE01000, 0x31, devid=1 << 3)]
    assert machine.mmio(pba, 8) == 0
    machine.put(1, at + 2, 0xC000, 2)  # function mask
    function.interrupt(1)
    assert machine.mmio(pba, 8) == 2
    machine.put(1, at + 2, 0x8000, 2)
    assert len(sent) == 2
    machine.mmio_put(bar + 16, 0x00000031_FEE02000, 8)
    machine.io.mmio_write(bar + 24, memoryview(b"\x77"))  # neither 4 nor 8 bytes: ignored
    function.interrupt(1)
    assert sent[2] == MsiIrqConfig(0x31, 0xFEE02000, 0x31, devid=1 << 3)
    machine.mmio_put(pba, 0xFF)
    assert machine.mmio(pba) == 0


class Router:
    def __init__(self) -> None:
        self.routes: dict[int, MsiIrqConfig] = {}

    def attach(self, fd: int, config: MsiIrqConfig) -> None:
        self.routes[fd] = config

    def detach(self, fd: int) -> None:
        del self.routes[fd]


def test_msix_through_eventfds() -> None:
    router = Router()
    with EventFdGroup(2, router) as group:
        machine, function, at, bar = msix_machine(group)
        fd = group.notifier(0)
        assert fd is not None
        machine.put(1, at + 2, 0x8000, 2)
        machine.mmio_put(bar, 0xFEE00000)
        machine.mmio_put(bar + 8, 0x40)
        function.interrupt(0)  # masked: collects in the eventfd
        assert not router.routes
        assert machine.mmio(bar + 0x1000) == 1
        machine.mmio_put(bar + 12, 0)
        assert router.routes == {fd: MsiIrqConfig(0, 0xFEE00000, 0x40, devid=1 << 3)}
        import os

        assert os.eventfd_read(fd) == 1  # handed on to whoever was attached
        assert machine.mmio(bar + 0x1000) == 0
        machine.mmio_put(bar + 12, 1)
        function.interrupt(0)
        saved = function.state()
        assert saved["parts"]["msix"]["group"]["pending"] == [True, False]
        function.reset()
        assert not router.routes
        function.restore(saved)
        assert group.is_pending(0)
        machine.mmio_put(bar + 12, 0)
        assert router.routes
        machine.mmio_put(bar + 8, 0x50)
        assert router.routes[fd].data == 0x50
    assert not router.routes


def test_groups_check_their_index() -> None:
    with pytest.raises(InterruptError):
        MessageGroup(0, print)
    group = MessageGroup(2, print)
    for call in (group.trigger, group.mask, group.unmask, group.is_pending, group.notifier, group.get_config):
        with pytest.raises(InterruptError):
            call(2)
    assert group.notifier(1) is None
    assert hash(MsiIrqConfig(0, 1, 2)) == hash(MsiIrqConfig(0, 1, 2))
    assert "devid" in repr(MsiIrqConfig(0, 1, 2))
    assert "2, off" in repr(group)


def test_legacy_group_lays_all_on_one_line() -> None:
    line = Line()
    group = LegacyGroup(3, line)
    group.trigger(2)
    assert not line.active
    group.enable()
    assert line.active
    group.clear()
    assert not line.active
    group.reset()


def test_slots_and_functions() -> None:
    bus = PciBus(IoManager())
    with pytest.raises(PciError, match="function 0"):
        bus.add(sample(), 1, 1)
    function = sample()
    bus.add(function, 1)
    bus.add(sample(), 1, 3)
    assert function.config.data[0x0E] & 0x80
    with pytest.raises(PciError, match="already"):
        bus.add(sample(), 1)
    with pytest.raises(PciError):
        bus.add(sample(), 32)
    with pytest.raises(PciError):
        bus.add(function, 2)
    assert len(bus.remove(1)) == 2
    assert not function.config.data[0x0E] & 0x80
    with pytest.raises(PciError):
        bus.remove(1)
    for _ in range(32):
        bus.add(sample())
    with pytest.raises(ResourceExhausted):
        bus.add(sample())
    assert "1af4:1234 00:1f.0" in repr(bus)


def test_hotplug() -> None:
    machine = Machine()
    events: list[str] = []
    ejected: list[list[PciFunction]] = []
    hotplug = PciHotplug(machine.root.bus, lambda: events.append("gpe"), ejected.append)
    machine.io.register_pio(hotplug, [BusRange(0xAE00, 20)])

    def port(offset: int) -> int:
        buffer = memoryview(bytearray(4))
        machine.io.pio_read(0xAE00 + offset, buffer)
        return int.from_bytes(buffer, "little")

    function = sample()
    bar = function.add_bar(0, 0x1000, Ram(16))
    slot = hotplug.insert(function)
    assert (slot, hotplug.slot_state(slot), events) == (1, "inserted", ["gpe"])
    assert port(0) == 2
    assert (port(0), hotplug.slot_state(1)) == (0, "present")
    machine.put(1, 0x10, 0xD0000000)
    machine.put(1, 4, 2, 2)
    with pytest.raises(PciError):
        hotplug.request_eject(0)
    hotplug.request_eject(1)
    assert (port(4), hotplug.slot_state(1)) == (2, "ejecting")
    machine.io.pio_write(0xAE08, memoryview(b"\xff\xff\xff\xff"))
    assert hotplug.slot_state(1) == "empty"
    assert ejected == [[function]]
    assert bar.mapped is None
    assert machine.root.bus.get(0) is not None  # the host bridge stays
    assert hotplug.insert(function) == 1


def test_reset_port() -> None:
    machine = Machine()
    machine.io.pio_write(0xCF9, memoryview(b"\x02"))
    assert not machine.resets
    machine.io.pio_write(0xCF9, memoryview(b"\x06"))
    assert machine.resets


def full_machine() -> tuple[Machine, list[MsiIrqConfig]]:
    sent: list[MsiIrqConfig] = []
    machine = Machine()
    function = sample(interrupt_pin=1)
    function.add_bar(0, 0x1000, Ram(0x40))
    function.add_msix(MessageGroup(2, sent.append))
    function.add_msi(MessageGroup(2, sent.append))
    machine.root.add(function, 4)
    return machine, sent


def test_state_comes_back_with_mappings_and_pending_interrupts() -> None:
    machine, _ = full_machine()
    machine.put(4, 0x10, 0xD0000000)
    machine.put(4, 0x14, 0xD1000000)
    machine.put(4, 4, 6, 2)
    machine.mmio_put(0xD0000000, 77)
    function = machine.root.bus.get(4)
    assert function is not None
    assert function.bus_master
    assert function.msix is not None
    machine.put(4, function.msix.offset + 2, 0x8000, 2)
    function.interrupt(1)
    saved = machine.root.bus.state()

    other, sent = full_machine()
    other.root.bus.restore(saved)
    assert other.mmio(0xD0000000) == 77
    assert other.root.bus.state() == saved
    other.mmio_put(0xD1000010, 0xFEE00000)
    other.mmio_put(0xD100001C, 0)
    assert len(sent) == 1
    other.root.reset()
    assert other.mmio(0xD0000000) == 0xFFFFFFFF


def test_states_that_do_not_fit() -> None:
    machine, _ = full_machine()
    saved = machine.root.bus.state()
    function = saved["parts"]["04.0"]
    parts = function["parts"]
    for wrong in (
        {},
        {**saved, "version": 9},
        {**saved, "parts": {}},
        *(
            {**saved, "parts": {**saved["parts"], "04.0": one}}
            for one in (
                {**function, "config": "00" + function["config"][2:]},
                {**function, "config": "zz"},
                {**function, "intx": 3},
                {**function, "more": 3},
                {**function, "parts": {}},
                {**function, "parts": {**parts, "msix": {}}},
                {**function, "parts": {**parts, "msix": {**parts["msix"], "group": {}}}},
                {**function, "parts": {**parts, "msi": 3}},
            )
        ),
    ):
        with pytest.raises(DeviceStateError):
            machine.root.bus.restore(wrong)
        assert machine.root.bus.state() == saved
    machine.root.bus.restore(saved)


def test_a_refused_state_leaves_every_function_as_it_was() -> None:
    machine, _ = full_machine()
    machine.root.add(sample(), 5)
    saved = machine.root.state()
    machine.put(4, 0x10, 0xD0000000)
    machine.put(4, 4, 6, 2)
    machine.mmio_put(0xD0000000, 77)
    now = machine.root.state()
    bus = saved["parts"]["bus"]
    broken = {**bus, "parts": {**bus["parts"], "05.0": {**bus["parts"]["05.0"], "intx": None}}}
    with pytest.raises(DeviceStateError):
        machine.root.restore({**saved, "parts": {**saved["parts"], "bus": broken}})
    assert machine.root.state() == now
    assert machine.mmio(0xD0000000) == 77
    machine.root.restore(saved)
    assert machine.mmio(0xD0000000) == 0xFFFFFFFF
    machine.root.restore(now)
    assert machine.mmio(0xD0000000) == 77
