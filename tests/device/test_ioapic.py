"""The 82093AA, in the sequences of Linux's arch/x86/kernel/apic/io_apic.c and of the data sheet."""

import pytest
from tests.device.access import Line, get, put

from pyvmm_device import FanOut, InterruptError, Ioapic, Pic
from pyvmm_device.pc import ioapic as regs


class Machine:
    def __init__(self, version: int = 0x20) -> None:
        self.sent: list[tuple[int, int]] = []
        self.ioapic = Ioapic(lambda address, data: self.sent.append((address, data)), version=version)

    def write(self, register: int, value: int) -> None:
        put(self.ioapic, regs.IOREGSEL, register)
        put(self.ioapic, regs.IOWIN, value, 4)

    def read(self, register: int) -> int:
        put(self.ioapic, regs.IOREGSEL, register)
        return get(self.ioapic, regs.IOWIN, 4)

    def program(self, number: int, entry: int) -> None:
        # __ioapic_write_entry(): the high half first
        self.write(0x11 + 2 * number, entry >> 32)
        self.write(0x10 + 2 * number, entry & 0xFFFFFFFF)


def test_identity() -> None:
    machine = Machine(0x11)
    assert machine.read(1) == 0x170011  # 24 entries
    machine.write(0, 0xFF000000)
    assert machine.read(0) == machine.read(2) == 0x0F000000
    assert machine.read(0x40) == 0
    assert Machine().read(1) == 0x170020
    assert get(machine.ioapic, regs.IOREGSEL) == 0x40


@pytest.mark.parametrize(
    ("entry", "address", "data"),
    [
        (0x31, 0xFEE00000, 0x31),
        (3 << 56 | 0x31, 0xFEE03000, 0x31),
        (0xFF << 56 | regs.LOGICAL | 0x41, 0xFEEFF004, 0x41),
        (1 << 56 | regs.LOGICAL | 1 << 8 | 0x51, 0xFEE0100C, 0x151),
        (regs.LEVEL | 0x61, 0xFEE00000, 0xC061),
        (4 << 8, 0xFEE00000, 0x400),
        (7 << 8, 0xFEE00000, 0x700),
    ],
)
def test_messages(entry: int, address: int, data: int) -> None:
    machine = Machine()
    machine.program(9, entry)
    machine.ioapic.line(9).trigger()
    assert machine.sent == [(address, data)]


def test_edges() -> None:
    machine = Machine()
    line = machine.ioapic.line(4)
    line.trigger()
    machine.program(4, regs.MASKED | 0x31)
    line.assert_()  # "ignored" while masked
    machine.program(4, 0x31)
    assert machine.sent == []
    line.assert_()  # no edge
    line.clear()
    line.assert_()
    assert len(machine.sent) == 1


@pytest.mark.parametrize("version", [0x11, 0x20])
def test_levels_come_again_after_their_end(version: int) -> None:
    machine = Machine(version)
    ended: list[int] = []
    machine.ioapic.on_end_of_interrupt = ended.append
    machine.program(10, regs.LEVEL | 0x31)
    line = machine.ioapic.line(10)
    line.assert_()
    line.assert_()
    assert len(machine.sent) == 1
    assert machine.read(0x10 + 20) & regs.REMOTE_IRR
    machine.program(10, machine.ioapic.entry(10))  # read-only bits are not written
    assert machine.ioapic.entry(10) & regs.REMOTE_IRR
    machine.ioapic.end_of_interrupt(0x32)
    assert ended == []
    if version == 0x20:
        put(machine.ioapic, regs.IOEOI, 0x31, 4)
    else:
        put(machine.ioapic, regs.IOEOI, 0x31, 4)  # is not there
        assert ended == []
        machine.ioapic.end_of_interrupt(0x31)
    assert ended == [10]
    assert len(machine.sent) == 2
    line.clear()
    machine.ioapic.end_of_interrupt(0x31)
    machine.ioapic.end_of_interrupt(0x31)
    assert len(machine.sent) == 2
    assert not machine.ioapic.entry(10) & regs.REMOTE_IRR


def test_linux_ends_an_interrupt_by_making_it_an_edge() -> None:
    # __eoi_ioapic_pin() for versions before 0x20: masked and edge, then as it was
    machine = Machine(0x11)
    entry = regs.LEVEL | 0x31
    machine.program(10, entry)
    machine.ioapic.line(10).assert_()
    machine.program(10, regs.MASKED | 0x31)
    assert not machine.ioapic.entry(10) & regs.REMOTE_IRR
    machine.program(10, entry)
    assert len(machine.sent) == 2


def test_unmasking_delivers_a_level() -> None:
    machine = Machine()
    machine.program(10, regs.LEVEL | regs.MASKED | 0x31)
    machine.ioapic.line(10).assert_()
    machine.write(0x10 + 20, regs.LEVEL | 0x31)
    assert len(machine.sent) == 1


def test_routes_are_told_when_they_change() -> None:
    machine = Machine()
    routes: list[tuple[int, int | None, int | None]] = []
    machine.ioapic.on_route = lambda *route: routes.append(route)
    machine.program(10, regs.MASKED | 0x31)
    assert routes == []
    machine.program(10, regs.LEVEL | 0x31)
    machine.program(10, regs.LEVEL | 0x31)
    machine.program(10, regs.MASKED | 0x31)
    assert routes == [(10, 0xFEE00000, 0xC031), (10, None, None)]
    routes.clear()
    machine.ioapic.reset()
    assert len(routes) == 24


def test_accesses_of_other_widths() -> None:
    machine = Machine()
    machine.program(0, 0x12345678 & ~regs.MASKED)
    put(machine.ioapic, regs.IOREGSEL, 0x10, 8)
    whole = get(machine.ioapic, regs.IOWIN, 4)
    assert get(machine.ioapic, regs.IOWIN, 8) == whole
    assert get(machine.ioapic, regs.IOWIN + 1, 2) == whole >> 8 & 0xFFFF
    assert get(machine.ioapic, 0x123, 4) == 0
    put(machine.ioapic, regs.IOWIN + 1, 0xFF)
    assert get(machine.ioapic, regs.IOWIN, 4) == whole


def test_state_raises_what_waits() -> None:
    machine, other = Machine(), Machine()
    machine.program(10, regs.LEVEL | 0x31)
    saved = machine.ioapic.state()
    saved["lines"] = 1 << 10
    other.ioapic.restore(saved)
    assert other.sent == [(0xFEE00000, 0xC031)]
    assert "1 of 24" in repr(other.ioapic)


def test_wrong_inputs() -> None:
    ioapic = Machine().ioapic
    for call in (ioapic.line, ioapic.entry):
        with pytest.raises(InterruptError):
            call(24)
    for arguments in ({"version": 0x12}, {"id_": 16}):
        with pytest.raises(InterruptError):
            Ioapic(lambda address, data: None, **arguments)
    assert repr(ioapic.line(3)) == "<IoapicLine 3>"


def test_one_line_to_both_controllers() -> None:
    machine = Machine()
    machine.program(4, 0x31)
    pic = Pic(lambda level: None)
    both = FanOut(pic.line(4), machine.ioapic.line(4))
    both.trigger()
    both.assert_()
    both.clear()
    assert pic.pending()
    assert len(machine.sent) == 2
    line = Line()
    FanOut(line).assert_()
    assert line.level
    assert "PicLine 4" in repr(both)
