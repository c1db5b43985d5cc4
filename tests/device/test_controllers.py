"""The 8259s, the 8254 and the IOAPIC against their data sheets, in the sequences that kernels and firmware use."""

import doctest

import pytest

from pyvmm_device import FanOut, InterruptError, Ioapic, IoManager, ManualClock, Pic, Pit
from pyvmm_device.pc import ioapic, pic, pit, port_device
from pyvmm_device.pc.port_device import register_ports

SECOND = 1_000_000_000


@pytest.mark.parametrize("module", [ioapic, pic, pit, port_device])
def test_examples(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]  # a module, whichever


class Board:
    """8259s and 8254 where a PC has them."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.levels: list[bool] = []
        self.io = IoManager()
        self.pic = Pic(self.levels.append)
        self.pit = Pit(self.pic.line(0), self.clock)
        register_ports(self.io, self.pic, self.pit)

    def out(self, port: int, *values: int) -> None:
        for value in values:
            self.io.pio_write(port, memoryview(bytes([value])))

    def inb(self, port: int) -> int:
        buffer = memoryview(bytearray(1))
        self.io.pio_read(port, buffer)
        return buffer[0]

    def initialize(self) -> None:
        """As Linux's init_8259A does, with everything unmasked."""
        self.out(0x20, 0x11)
        self.out(0x21, 0x30, 0x04, 0x01)
        self.out(0xA0, 0x11)
        self.out(0xA1, 0x38, 0x02, 0x01)
        self.out(0x21, 0)
        self.out(0xA1, 0)


@pytest.fixture
def board() -> Board:
    board = Board()
    board.initialize()
    return board


def test_vectors_and_priorities(board: Board) -> None:
    board.pic.line(4).trigger()
    board.pic.line(1).trigger()
    assert board.levels == [True]
    assert board.pic.acknowledge() == 0x31
    assert not board.pic.pending()  # 4 is of lower priority than what is in service
    board.pic.line(0).trigger()
    assert board.pic.acknowledge() == 0x30
    board.out(0x20, 0x20)
    board.out(0x20, 0x20)
    assert board.pic.acknowledge() == 0x34
    board.out(0x20, 0x0B)
    assert board.inb(0x20) == 1 << 4  # in service
    board.out(0x20, 0x64)
    assert board.inb(0x20) == 0


def test_the_second_chip_comes_through_the_first(board: Board) -> None:
    board.pic.line(12).trigger()
    assert board.pic.acknowledge() == 0x3C
    board.out(0x20, 0x0B)
    board.out(0xA0, 0x0B)
    assert (board.inb(0x20), board.inb(0xA0)) == (1 << 2, 1 << 4)
    board.out(0xA0, 0x64)
    board.out(0x20, 0x62)
    assert not board.pic.pending()
    for irq in (2, 16, -1):
        with pytest.raises(InterruptError):
            board.pic.line(irq)


def test_masks_and_spurious_interrupts(board: Board) -> None:
    board.out(0x21, 0xFF)
    board.pic.line(3).assert_()
    assert not board.pic.pending()
    assert board.inb(0x21) == 0xFF
    board.out(0x21, 0)
    assert board.pic.pending()
    board.out(0x21, 0x08)  # masked between request and acknowledge
    assert board.pic.acknowledge() == 0x37
    board.out(0x20, 0x0B)
    assert board.inb(0x20) == 0


def test_level_triggered_inputs_ask_again(board: Board) -> None:
    board.out(0x4D1, 0x0C)  # IRQ 10 and 11
    assert board.inb(0x4D1) == 0x0C
    board.out(0x4D0, 0xFF)
    assert board.inb(0x4D0) == 0xF8  # a PC's timer and keyboard stay edges
    line = board.pic.line(10)
    line.assert_()
    assert board.pic.acknowledge() == 0x3A
    board.out(0xA0, 0x20)
    board.out(0x20, 0x20)
    assert board.pic.acknowledge() == 0x3A
    line.clear()
    board.out(0xA0, 0x20)
    board.out(0x20, 0x20)
    assert not board.pic.pending()


def test_polling_and_rotation(board: Board) -> None:
    board.pic.line(5).trigger()
    board.out(0x20, 0x0C)
    assert board.inb(0x20) == 0x85
    board.out(0x20, 0xA0)  # rotate on this end of interrupt: 5 is the lowest now
    board.pic.line(5).trigger()
    board.pic.line(6).trigger()
    assert board.pic.acknowledge() == 0x36
    board.out(0x20, 0x0C)
    assert board.inb(0x20) == 0


@pytest.mark.parametrize(("control", "mode"), [(0x34, 2), (0x36, 3)])
def test_the_timer_ticks_at_its_rate(board: Board, control: int, mode: int) -> None:
    board.out(0x43, control)
    board.out(0x40, 11932 & 0xFF, 11932 >> 8)
    ticks = 0
    for _ in range(100):
        board.clock.advance(SECOND // 100)
        while board.pic.pending():
            assert board.pic.acknowledge() == 0x30
            board.out(0x20, 0x20)
            ticks += 1
    assert ticks == pytest.approx(100, abs=1)
    board.out(0x43, 0xE2)  # read back the status of counter 0
    assert board.inb(0x40) >> 1 & 7 == mode


def test_one_shot_and_latched_counts(board: Board) -> None:
    board.out(0x43, 0x30)
    board.out(0x40, 0x00, 0x80)
    board.clock.advance(SECOND // 1000)
    board.out(0x43, 0x00)
    latched = board.inb(0x40) | board.inb(0x40) << 8
    assert latched == pytest.approx(0x8000 - 1193, abs=2)
    assert not board.pic.pending()
    board.clock.advance(SECOND)
    assert board.pic.acknowledge() == 0x30
    board.out(0x20, 0x20)
    board.clock.advance(SECOND)
    assert not board.pic.pending()


def test_port_61_and_the_speaker(board: Board) -> None:
    heard: list[int] = []
    board.pit.on_speaker = heard.append
    board.out(0x43, 0xB6)
    board.out(0x42, 1193 & 0xFF, 1193 >> 8)
    board.out(0x61, 0x03)
    assert heard == [1000]
    board.out(0x61, 0x01)  # as when Linux and SeaBIOS measure time: gate on, speaker off
    board.out(0x43, 0xB0)
    board.out(0x42, 0xFF, 0x10)
    assert not board.inb(0x61) & 0x20
    board.clock.advance(SECOND // 100)
    assert board.inb(0x61) & 0x20
    assert heard == [1000, 0]


class Apics:
    """What an IOAPIC tells local APICs and a hypervisor."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, int]] = []
        self.routes: dict[int, tuple[int | None, int | None]] = {}
        self.ioapic = Ioapic(lambda address, data: self.messages.append((address, data)))
        self.ioapic.on_route = lambda number, address, data: self.routes.update({number: (address, data)})

    def put(self, register: int, value: int) -> None:
        self.ioapic.write(0x00, memoryview(register.to_bytes(4, "little")))
        self.ioapic.write(0x10, memoryview(value.to_bytes(4, "little")))

    def get(self, register: int) -> int:
        self.ioapic.write(0x00, memoryview(register.to_bytes(4, "little")))
        buffer = memoryview(bytearray(4))
        self.ioapic.read(0x10, buffer)
        return int.from_bytes(buffer, "little")

    def program(self, number: int, low: int, high: int = 0) -> None:
        self.put(0x11 + 2 * number, high)
        self.put(0x10 + 2 * number, low)


def test_the_ioapic_says_what_it_is() -> None:
    apics = Apics()
    assert apics.get(0x01) == 0x00170020
    apics.put(0x00, 0x0F000000)
    assert apics.get(0x00) == 0x0F000000
    assert apics.get(0x10) == 0x00010000  # masked
    with pytest.raises(InterruptError):
        Ioapic(print, version=0x99)
    with pytest.raises(InterruptError):
        apics.ioapic.line(24)


def test_edges_become_messages_once() -> None:
    apics = Apics()
    line = apics.ioapic.line(4)
    line.trigger()
    assert not apics.messages
    apics.program(4, 0x31, 0x02000000)
    assert apics.routes[4] == (0xFEE02000, 0x31)
    line.assert_()
    line.assert_()
    assert apics.messages == [(0xFEE02000, 0x31)]
    line.clear()
    line.assert_()
    assert len(apics.messages) == 2
    apics.program(4, 0x10031, 0x02000000)
    assert set(apics.routes[4]) == {None}


def test_levels_are_sent_again_after_each_end_of_interrupt() -> None:
    apics = Apics()
    ended: list[int] = []
    apics.ioapic.on_end_of_interrupt = ended.append
    apics.program(10, 0x803A)
    line = apics.ioapic.line(10)
    line.assert_()
    assert apics.messages == [(0xFEE00000, 0xC03A)]
    assert apics.get(0x24) & 1 << 14  # remote IRR
    line.clear()
    line.assert_()
    assert len(apics.messages) == 1  # until the processor says that it is done
    apics.ioapic.end_of_interrupt(0x3A)
    assert len(apics.messages) == 2
    line.clear()
    apics.ioapic.write(0x40, memoryview((0x3A).to_bytes(4, "little")))  # the EOI register of version 0x20
    assert len(apics.messages) == 2
    assert ended == [10, 10]
    assert not apics.get(0x24) & 1 << 14


def test_one_line_to_both_controllers() -> None:
    board, apics = Board(), Apics()
    board.initialize()
    apics.program(4, 0x44)
    both = FanOut(board.pic.line(4), apics.ioapic.line(4))
    both.trigger()
    assert board.pic.acknowledge() == 0x34
    assert apics.messages == [(0xFEE00000, 0x44)]
    both.assert_()
    both.clear()
    assert len(apics.messages) == 2
    assert "FanOut" in repr(both)
