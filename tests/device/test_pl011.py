"""The PL011 as Linux's amba-pl011 driver uses it, and what its manual says besides."""

import pytest
from tests.device.access import Line, get, put

from pyvmm_device import DeviceStateError, Pl011

DR, RSR, FR, LCR_H, CR, IFLS, IMSC, RIS, MIS, ICR = 0x00, 0x04, 0x18, 0x2C, 0x30, 0x34, 0x38, 0x3C, 0x40, 0x44
RX, TX, RT, OVERRUN = 0x10, 0x20, 0x40, 0x400


class Output:
    def __init__(self) -> None:
        self.sent = b""

    def write(self, data: bytes) -> None:
        self.sent += data


class Broken:
    def write(self, data: bytes) -> None:
        raise OSError("nobody listens")


@pytest.fixture
def output() -> Output:
    return Output()


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def uart(line: Line, output: Output) -> Pl011:
    """As pl011_startup() leaves it: FIFOs on, enabled, receive interrupts unmasked."""
    made = Pl011(line, output)
    put(made, LCR_H, 0x70, 4)
    put(made, CR, 0x301, 4)
    put(made, IMSC, RX | RT, 4)
    return made


def test_linux_knows_its_identity(uart: Pl011) -> None:
    # amba_read_periphid() puts bytes together; the driver's table has 0x00041011 under the mask 0x000fffff
    identity = sum(get(uart, 0xFE0 + 4 * at, 4) << 8 * at for at in range(4))
    assert identity & 0xFFFFF == 0x41011
    assert sum(get(uart, 0xFF0 + 4 * at, 4) << 8 * at for at in range(4)) == 0xB105F00D
    # get_fifosize_arm() takes 32 bytes from revision 3 on
    assert identity >> 20 & 0xF == 3


def test_output_and_its_interrupt(uart: Pl011, line: Line, output: Output) -> None:
    put(uart, IMSC, TX, 4)
    assert not line.level  # not before there was a byte: the driver writes one itself to start
    for byte in b"hi":
        assert not get(uart, FR, 4) & 0x28  # neither full nor busy
        put(uart, DR, byte, 4)
    assert output.sent == b"hi"
    assert line.level
    assert get(uart, MIS, 4) == TX
    put(uart, ICR, TX, 4)
    assert not line.level


def test_output_that_is_refused_is_counted(line: Line) -> None:
    uart = Pl011(line, Broken())
    put(uart, DR, 1)
    put(uart, DR, 2)
    assert uart.lost_output == 2


def test_input_below_the_level_comes_by_timeout(uart: Pl011, line: Line) -> None:
    assert uart.enqueue(b"abc") == 3
    assert line.level
    assert get(uart, MIS, 4) == RT
    # pl011_fifo_to_tty() reads until RXFE
    read = b""
    while not get(uart, FR, 4) & 0x10:
        read += bytes([get(uart, DR, 4) & 0xFF])
    assert read == b"abc"
    assert not line.level


@pytest.mark.parametrize(("select", "level"), [(0, 4), (1, 8), (2, 16), (3, 24), (4, 28), (7, 28)])
def test_input_at_the_level(uart: Pl011, select: int, level: int) -> None:
    put(uart, IFLS, select << 3, 4)
    uart.enqueue(bytes(level - 1))
    assert get(uart, RIS, 4) & (RX | RT) == RT
    uart.enqueue(b"!")
    assert get(uart, RIS, 4) & (RX | RT) == RX
    get(uart, DR)
    assert get(uart, RIS, 4) & (RX | RT) == RT


def test_back_pressure(uart: Pl011) -> None:
    calls: list[int] = []
    uart.on_room = lambda: calls.append(uart.room())
    assert uart.enqueue(bytes(range(100))) == 32
    assert get(uart, FR, 4) & 0x40
    assert uart.enqueue(b"x") == 0
    get(uart, DR)
    assert calls == [1]
    put(uart, CR, 0x101, 4)  # receiver off
    assert uart.enqueue(b"x") == 0
    put(uart, CR, 0x301, 4)
    assert calls == [1, 1]


def test_without_fifos_there_is_room_for_one(uart: Pl011) -> None:
    uart.enqueue(b"abc")
    put(uart, LCR_H, 0x60, 4)
    assert get(uart, FR, 4) & 0x40
    assert get(uart, RIS, 4) & RX
    assert get(uart, DR) == ord("a")
    assert uart.enqueue(b"de") == 1


def test_errors_come_with_their_byte(uart: Pl011, line: Line) -> None:
    uart.send_break()
    uart.enqueue_error(0x41, 0x3)
    put(uart, IMSC, 0x380, 4)
    assert get(uart, MIS, 4) == 0x380
    assert get(uart, DR, 4) == 0x400
    assert get(uart, RSR, 4) == 0x4
    assert get(uart, DR, 4) == 0x341
    put(uart, RSR, 0, 4)  # UARTECR
    assert get(uart, RSR, 4) == 0
    put(uart, ICR, 0x380, 4)
    assert not line.level


def test_overrun_is_told_once_and_kept_in_the_status(uart: Pl011) -> None:
    uart.enqueue(bytes(32))
    uart.enqueue_error(0x42, 0)
    assert get(uart, RIS, 4) & OVERRUN
    # pl011_fifo_to_tty() counts an overrun for each byte that says so, and does not write UARTECR
    assert [get(uart, DR, 4) >> 11 for _ in range(32)] == [1] + [0] * 31
    assert get(uart, RSR, 4) == 0x8
    put(uart, RSR, 0xFF, 4)
    assert get(uart, RSR, 4) == 0


def test_a_receiver_that_is_off_hears_nothing(uart: Pl011) -> None:
    put(uart, CR, 0x101, 4)
    uart.send_break()
    put(uart, CR, 0x181, 4)  # nor itself
    put(uart, DR, 0x55, 4)
    assert get(uart, FR, 4) & 0x10
    assert get(uart, RIS, 4) & (0x380 | OVERRUN | RX | RT) == 0


def test_loopback(uart: Pl011, output: Output) -> None:
    put(uart, CR, 0x381 | 0x0C00, 4)  # DTR and RTS
    put(uart, DR, 0x55, 4)
    assert output.sent == b""
    assert get(uart, DR, 4) == 0x55
    assert get(uart, FR, 4) & 0x107 == 0x03
    put(uart, CR, 0x381 | 0x3000, 4)  # OUT1 and OUT2
    assert get(uart, FR, 4) & 0x107 == 0x104
    assert uart.enqueue(b"x") == 0


def test_modem_lines_interrupt(uart: Pl011, line: Line) -> None:
    put(uart, IMSC, 0xF, 4)
    uart.set_modem_lines(cts=False, ri=True)
    assert get(uart, MIS, 4) == 0x3
    assert get(uart, FR, 4) & 0x107 == 0x106
    put(uart, ICR, 0xF, 4)
    assert not line.level


def test_break_is_told(uart: Pl011) -> None:
    told: list[bool] = []
    uart.on_break = told.append
    put(uart, LCR_H, 0x71, 4)
    put(uart, LCR_H, 0x71, 4)
    put(uart, LCR_H, 0x70, 4)
    put(uart, LCR_H, 0x71, 4)
    uart.reset()
    assert told == [True, False, True, False]
    assert get(uart, CR, 4) == 0x300


def test_a_pending_interrupt_is_raised_again(uart: Pl011) -> None:
    uart.enqueue(b"abc")
    line = Line()
    other = Pl011(line, Output())
    other.restore(uart.state())
    assert line.level
    assert "3 bytes" in repr(other)
    with pytest.raises(DeviceStateError):
        other.restore({**uart.state(), "received": [0] * 33})
