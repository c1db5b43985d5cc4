"""The 16550A against its data sheet, in the sequences drivers use."""

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from pyvmm_device import Serial
from pyvmm_device.pc import serial as regs

if TYPE_CHECKING:
    from collections.abc import Callable


class Line:
    """An interrupt that counts, and an output that remembers."""

    def __init__(self) -> None:
        self.edges = 0
        self.sent = b""

    def trigger(self) -> None:
        self.edges += 1

    def write(self, data: bytes) -> None:
        self.sent += data


class Driver:
    """A driver's view of the chip."""

    def __init__(self) -> None:
        self.line = Line()
        self.uart = Serial(self.line, self.line)

    def put(self, register: int, value: int) -> None:
        self.uart.write(register, memoryview(bytes([value])))

    def get(self, register: int) -> int:
        buffer = memoryview(bytearray(1))
        self.uart.read(register, buffer)
        return buffer[0]

    def identify(self) -> int:
        return self.get(regs.IIR_FCR) & 0x0F


def test_transmitted_bytes_come_out() -> None:
    driver = Driver()
    for byte in b"hello":
        assert driver.get(regs.LSR) & regs.LSR_THRE
        driver.put(regs.DATA, byte)
    assert driver.line.sent == b"hello"
    assert driver.line.edges == 0


def test_divisor_hides_data_and_interrupt_registers() -> None:
    driver = Driver()
    driver.put(regs.IER, regs.IER_RDA)
    driver.put(regs.LCR, regs.LCR_DLAB | 3)
    driver.put(regs.DATA, 0x34)
    driver.put(regs.IER, 0x12)
    assert (driver.get(regs.DATA), driver.get(regs.IER)) == (0x34, 0x12)
    driver.put(regs.LCR, 3)
    assert driver.get(regs.IER) == regs.IER_RDA
    assert driver.line.sent == b""


def test_linux_finds_a_16550a() -> None:
    # autoconfig(): the scratch register holds, IER has four bits, FIFOs show in IIR once enabled, loopback mirrors
    driver = Driver()
    driver.put(regs.SCR, 0xAA)
    assert driver.get(regs.SCR) == 0xAA
    driver.put(regs.IER, 0xFF)
    assert driver.get(regs.IER) == 0x0F
    driver.put(regs.IER, 0)
    driver.put(regs.MCR, regs.MCR_LOOP | regs.MCR_OUT2 | regs.MCR_RTS)
    assert driver.get(regs.MSR) & 0xF0 == regs.MSR_DCD | regs.MSR_CTS
    driver.put(regs.MCR, regs.MCR_OUT2)
    assert driver.get(regs.IIR_FCR) >> 6 == 0
    driver.put(regs.IIR_FCR, regs.FCR_ENABLE)
    assert driver.get(regs.IIR_FCR) >> 6 == 3


def test_enabling_the_transmitter_interrupt_raises_it() -> None:
    # upstream raises none, and drivers that prime transmission that way hang
    driver = Driver()
    driver.put(regs.IER, regs.IER_THRE)
    assert driver.line.edges == 1
    assert driver.identify() == regs.IIR_THRE
    assert driver.identify() == regs.IIR_NONE  # reading IIR resets it
    driver.put(regs.DATA, 65)
    assert driver.line.edges == 2


def test_received_data_stays_pending_until_read() -> None:
    # upstream clears the interrupt with the first byte read
    driver = Driver()
    driver.put(regs.IIR_FCR, regs.FCR_ENABLE)
    driver.put(regs.IER, regs.IER_RDA)
    assert driver.uart.enqueue(b"ab") == 2
    assert driver.line.edges == 1
    assert driver.identify() == regs.IIR_RDA
    assert driver.get(regs.DATA) == ord("a")
    assert driver.identify() == regs.IIR_RDA
    assert driver.get(regs.DATA) == ord("b")
    assert driver.identify() == regs.IIR_NONE
    assert not driver.get(regs.LSR) & regs.LSR_DR


def test_received_data_goes_before_the_transmitter() -> None:
    driver = Driver()
    driver.put(regs.IER, regs.IER_RDA | regs.IER_THRE)
    driver.uart.enqueue(b"a")
    assert driver.identify() == regs.IIR_RDA
    driver.get(regs.DATA)
    assert driver.identify() == regs.IIR_THRE


def test_below_the_trigger_level_it_is_a_timeout() -> None:
    driver = Driver()
    driver.put(regs.IIR_FCR, regs.FCR_ENABLE | 0x80)  # trigger at 8
    driver.put(regs.IER, regs.IER_RDA)
    driver.uart.enqueue(b"1234567")
    assert driver.identify() == regs.IIR_TIMEOUT
    driver.uart.enqueue(b"8")
    assert driver.identify() == regs.IIR_RDA


def test_fifo_control_clears_the_receiver() -> None:
    # upstream ignores FCR, which breaks FreeBSD
    driver = Driver()
    driver.put(regs.IIR_FCR, regs.FCR_ENABLE)
    driver.uart.enqueue(b"old")
    driver.put(regs.IIR_FCR, regs.FCR_ENABLE | regs.FCR_CLEAR_RECEIVER)
    assert not driver.get(regs.LSR) & regs.LSR_DR


def test_input_waits_for_room_and_none_is_lost() -> None:
    driver = Driver()
    pending = bytearray(bytes(range(256)) * 4)
    received = bytearray()
    emptied = []
    driver.uart.on_room = lambda: emptied.append(1)
    del pending[: driver.uart.enqueue(bytes(pending))]
    while driver.get(regs.LSR) & regs.LSR_DR:
        received.append(driver.get(regs.DATA))
        if emptied:
            emptied.clear()
            del pending[: driver.uart.enqueue(bytes(pending))]
    assert received == bytes(range(256)) * 4


def test_whoever_waits_for_room_hears_of_it_however_it_came() -> None:
    driver = Driver()
    heard: list[int] = []
    driver.uart.on_room = lambda: heard.append(driver.uart.room())
    makes_room: list[Callable[[], object]] = [
        lambda: driver.put(regs.IIR_FCR, regs.FCR_ENABLE | regs.FCR_CLEAR_RECEIVER),
        lambda: driver.put(regs.IIR_FCR, 0),  # back to the 16450
        driver.uart.reset,
    ]
    for make_room in makes_room:
        driver.put(regs.IIR_FCR, regs.FCR_ENABLE)
        assert driver.uart.enqueue(bytes(100)) == regs.FIFO_SIZE
        heard.clear()
        make_room()
        assert heard == [regs.FIFO_SIZE]
    driver.put(regs.MCR, regs.MCR_LOOP)
    assert driver.uart.enqueue(b"x") == 0
    heard.clear()
    driver.put(regs.MCR, 0)
    assert heard == [regs.FIFO_SIZE]


def test_loopback_returns_what_is_sent() -> None:
    driver = Driver()
    driver.put(regs.MCR, regs.MCR_LOOP)
    driver.put(regs.DATA, 0x5A)
    assert driver.get(regs.DATA) == 0x5A
    assert driver.line.sent == b""
    assert driver.uart.enqueue(b"x") == 0


def test_break_is_reported_once() -> None:
    driver = Driver()
    driver.put(regs.IER, regs.IER_RLS)
    driver.uart.send_break()
    assert driver.identify() == regs.IIR_RLS
    assert driver.get(regs.LSR) & regs.LSR_BI
    assert not driver.get(regs.LSR) & regs.LSR_BI


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7), st.integers(0, 255), st.integers(1, 8)), max_size=200))
def test_any_access_is_survived(accesses: list[tuple[bool, int, int, int]]) -> None:
    driver = Driver()
    for is_write, register, value, length in accesses:
        if is_write:
            driver.uart.write(register, memoryview(bytes([value]) * length))
        else:
            driver.uart.read(register, memoryview(bytearray(length)))
        driver.uart.enqueue(b"xy")
