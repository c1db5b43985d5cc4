"""The keyboard controller in the order in which Linux's i8042, libps2 and atkbd drivers use it, and port 0x92."""

import pytest

from pyvmm_device import (
    I8042,
    BusRange,
    DeviceStateError,
    IoManager,
    ManualClock,
    Pit,
    Port92,
    Ps2Keyboard,
    register_ports,
)

DATA, COMMAND = 0x60, 0x64
FULL, AUX, TIMEOUT = 0x01, 0x20, 0x40


class Line:
    """A level interrupt that remembers its level and counts how often it rose."""

    def __init__(self) -> None:
        self.level = False
        self.rises = 0

    def assert_(self) -> None:
        assert not self.level
        self.level = True
        self.rises += 1

    def clear(self) -> None:
        self.level = False


class Machine:
    """A controller behind its ports, with everything it tells its owner."""

    def __init__(self, *, keyboard: Ps2Keyboard | None = None, aux: Ps2Keyboard | None = None) -> None:
        self.events: list[object] = []
        self.irq_1, self.irq_12 = Line(), Line()
        self.controller = I8042(
            lambda: self.events.append("reset"),
            keyboard=keyboard,
            aux=aux,
            keyboard_interrupt=self.irq_1,
            aux_interrupt=self.irq_12,
            on_a20=self.events.append,
        )
        self.io = IoManager()
        register_ports(self.io, self.controller)

    def inb(self, port: int) -> int:
        buffer = memoryview(bytearray(1))
        self.io.pio_read(port, buffer)
        return buffer[0]

    def outb(self, port: int, *values: int) -> None:
        for value in values:
            self.io.pio_write(port, memoryview(bytes([value])))

    def take(self) -> list[int]:
        """Read until the output buffer is empty."""
        taken = []
        while self.inb(COMMAND) & FULL:
            taken.append(self.inb(DATA))
        return taken

    def command(self, command: int, *data: int) -> list[int]:
        self.outb(COMMAND, command)
        self.outb(DATA, *data)
        return self.take()


@pytest.mark.parametrize(
    ("command", "data", "answer"),
    [
        (0x20, [], [0x65]),
        (0x60, [0x47], []),
        (0x3F, [], [0]),
        (0xA7, [], []),
        (0xA8, [], []),
        (0xA9, [], [0x00]),
        (0xAA, [], [0x55]),
        (0xAB, [], [0x00]),
        (0xAD, [], []),
        (0xAE, [], []),
        (0xC0, [], [0x80]),
        (0xD0, [], [0xCF]),
        (0xD2, [0x12], [0x12]),
        (0xD3, [0x5A], [0x5A]),
        (0xD4, [0xF2], [0xFE]),
        (0xF1, [], []),
        (0xFF, [], []),
        (0x00, [], []),
    ],
)
def test_commands(command: int, data: list[int], answer: list[int]) -> None:
    machine = Machine()
    assert machine.inb(COMMAND) == 0x1C
    assert machine.command(command, *data) == answer
    assert not machine.events


def test_linux_probes_the_controller() -> None:
    machine = Machine()
    assert machine.take() == []  # i8042_flush
    assert machine.command(0xAA) == [0x55]  # i8042_controller_selftest
    [control] = machine.command(0x20)  # i8042_controller_init
    control = (control | 0x10) & ~0x01
    machine.command(0x60, control)
    assert machine.command(0x20) == [control]
    # i8042_check_aux: a loop, then the test of the interface and whether its switch works
    assert machine.command(0xD3, 0x5A) == [0x5A]
    assert machine.command(0xA9) == [0]
    machine.command(0xA7)
    assert machine.command(0x20)[0] & 0x20
    machine.command(0xA8)
    assert not machine.command(0x20)[0] & 0x20
    # and whether IRQ 12 is delivered
    machine.command(0x60, control & ~0x20 | 0x02)
    machine.outb(COMMAND, 0xD3)
    machine.outb(DATA, 0xA5)
    assert machine.irq_12.level
    assert not machine.irq_1.level
    assert machine.inb(COMMAND) & (FULL | AUX) == FULL | AUX
    assert machine.inb(DATA) == 0xA5
    assert not machine.irq_12.level


@pytest.mark.parametrize(("prefix", "flags"), [([], TIMEOUT), ([0xD4], TIMEOUT | AUX)])
def test_a_device_that_is_missing_times_out(prefix: list[int], flags: int) -> None:
    machine = Machine()
    machine.outb(COMMAND, *prefix)
    machine.outb(DATA, 0xF2)
    assert machine.inb(COMMAND) & (FULL | AUX | TIMEOUT) == FULL | flags
    assert machine.take() == [0xFE]
    machine.command(0xAA)
    machine.outb(COMMAND, 0xAA)
    assert machine.inb(COMMAND) & (FULL | AUX | TIMEOUT) == FULL


def test_linux_probes_the_keyboard() -> None:
    keyboard = Ps2Keyboard()
    leds: list[int] = []
    keyboard.on_leds = leds.append
    machine = Machine(keyboard=keyboard)

    def send(*values: int) -> list[int]:
        """As ps2_sendbyte: each byte waits for its acknowledgement."""
        answer = []
        for value in values:
            rises = machine.irq_1.rises
            machine.outb(DATA, value)
            assert machine.irq_1.rises == rises + 1
            answer += machine.take()
        return answer

    machine.command(0x60, 0x05)  # no translation
    assert send(0xF2) == [0xFA, 0xAB, 0x83]
    assert send(0xED, 0x00) == [0xFA, 0xFA]
    assert send(0xFF) == [0xFA, 0xAA]
    assert send(0xF0, 0x00) == [0xFA, 0xFA, 2]
    assert send(0xF0, 0x03) == [0xFA, 0xFA]
    assert keyboard.scan_code_set == 3
    assert send(0xF0, 0x04) == [0xFA, 0xFE]
    assert send(0xF3, 0x00) == [0xFA, 0xFA]
    assert send(0xEE) == [0xEE]
    assert send(0xFE) == [0xEE]  # the last byte again
    assert send(0xE0) == [0xFE]  # no command
    assert send(0xED, 0xFF) == [0xFA, 0xFA, 0xAA]  # a command instead of the argument
    assert send(0xED, 0x07) == [0xFA, 0xFA]
    assert (leds, keyboard.leds) == ([0, 7], 7)
    assert send(0xF5) == [0xFA]
    assert not keyboard.press(b"\x1c")
    assert send(0xF4) == [0xFA]
    assert keyboard.press(b"\x1c")
    assert machine.take() == [0x1C]
    assert send(0xF6) == [0xFA]
    assert repr(machine.controller) == "<I8042 keyboard controller, <Ps2Keyboard on, 0 bytes wait>>"


def test_keys_are_translated_and_wait_while_the_keyboard_is_off() -> None:
    keyboard = Ps2Keyboard()
    machine = Machine(keyboard=keyboard)
    assert keyboard.press(b"\x1c\xf0\x1c\xe0\x75\xe0\xf0\x75")  # A, then the cursor key up
    assert machine.irq_1.level
    assert machine.take() == [0x1E, 0x9E, 0xE0, 0x48, 0xE0, 0xC8]
    assert machine.irq_1.rises == 6
    machine.command(0xAD)
    keyboard.press(b"\x5a")
    assert machine.take() == []
    machine.outb(COMMAND, 0xAE)
    assert machine.take() == [0x1C]
    machine.outb(DATA, 0xF2)
    assert machine.take() == [0xFA, 0xAB, 0x41]  # the identity too
    machine.command(0xAD)
    assert keyboard.press(b"\x1c" * 16)
    assert not keyboard.press(b"\x1c")  # the buffer is full
    assert len(machine.command(0xAE)) == 16


def test_the_auxiliary_device_is_another_one() -> None:
    keyboard, aux = Ps2Keyboard(), Ps2Keyboard()
    machine = Machine(keyboard=keyboard, aux=aux)
    machine.command(0x60, 0x47)
    machine.outb(COMMAND, 0xD4)
    machine.outb(DATA, 0xEE)
    assert machine.irq_12.level
    assert machine.inb(COMMAND) & AUX
    keyboard.press(b"\x1c")
    assert machine.inb(DATA) == 0xEE
    assert machine.irq_1.level
    assert not machine.inb(COMMAND) & AUX
    assert machine.take() == [0x1E]


def test_resets_and_address_line_20() -> None:
    machine = Machine()
    machine.outb(COMMAND, 0xFE)
    machine.command(0xD1, 0xDC)  # bit 0 of the output port is the reset, too; A20 is off
    assert machine.events == ["reset", False, "reset"]
    assert machine.command(0xD0) == [0xCD]
    machine.outb(COMMAND, 0xD2)
    machine.outb(DATA, 1)
    machine.outb(COMMAND, 0xD0)
    assert machine.inb(DATA) == 1
    assert machine.take() == [0xDD]  # made while the buffer was full of keyboard data
    machine.command(0xD1, 0xDF)
    assert machine.events[3:] == [True]


def test_a_reset_is_what_linux_asks_for_by_reboot_k() -> None:
    machine = Machine()
    assert not machine.inb(COMMAND) & 2  # kb_wait: the input buffer is empty
    machine.outb(COMMAND, 0xFE)
    assert machine.events == ["reset"]
    machine.outb(DATA, 0xFE)
    assert machine.events == ["reset"]


def test_memory_of_the_controller() -> None:
    machine = Machine()
    machine.command(0x7F, 0xA5)
    assert machine.command(0x3F) == [0xA5]
    machine.outb(COMMAND, 0x60)
    machine.outb(COMMAND, 0xA9)  # another command instead of the byte
    assert machine.take() == [0]
    assert machine.command(0x20) == [0x65]


def test_it_stands_beside_port_0x61_or_over_it() -> None:
    machine = Machine()
    register_ports(machine.io, Pit(Line(), ManualClock()))
    io = IoManager()
    io.register_pio(I8042(lambda: machine.events.append("other")), [BusRange(0x60, 5)])
    io.pio_write(0x64, memoryview(b"\xaa"))
    io.pio_write(0x61, memoryview(b"\xff"))
    buffer = memoryview(bytearray(1))
    io.pio_read(0x60, buffer)
    assert buffer[0] == 0x55
    io.pio_read(0x61, buffer)
    assert buffer[0] == 0
    assert not machine.events


def test_a_restored_controller_goes_on() -> None:
    machine = Machine(keyboard=Ps2Keyboard())
    machine.command(0xD1, 0xDD)
    machine.outb(DATA, 0xF2)
    other = Machine(keyboard=Ps2Keyboard())
    other.controller.restore(machine.controller.state())
    assert other.irq_1.level
    assert other.events == [False]
    assert other.take() == [0xFA, 0xAB, 0x41]
    other.controller.reset()
    assert other.events == [False, True]
    assert not other.irq_1.level
    with pytest.raises(DeviceStateError, match="none plugged in"):
        Machine().controller.restore(machine.controller.state())
    with pytest.raises(DeviceStateError):
        machine.controller.restore(Machine().controller.state())


def test_port_0x92() -> None:
    events: list[object] = []
    io = IoManager()
    port = Port92(lambda: events.append("reset"), events.append)
    register_ports(io, port)
    for value in (0x02, 0x00, 0x03, 0x03, 0x02):
        io.pio_write(0x92, memoryview(bytes([value])))
    assert events == [False, True, "reset"]
    buffer = memoryview(bytearray(2))
    port.read(0, buffer)
    assert bytes(buffer) == b"\x02\xff"
    port.write(0, memoryview(b"\x00\x55"))
    other = Port92(print, events.append)
    other.restore(port.state())
    port.reset()
    assert events[3:] == [False, False, True]
    assert repr(port) == "<Port92 0x02>"
