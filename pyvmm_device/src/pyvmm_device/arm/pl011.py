"""Arm's UART: PrimeCell PL011, revision r1p5 (technical reference manual, Arm DDI 0183G), with FIFOs of 32 bytes.

Bytes cross at once in both directions, whatever the divisors say. Input has back-pressure, as in `Serial`. As there,
the line is down for a moment where an access ends a reason to interrupt and begins another.
"""

from __future__ import annotations

from collections import deque

from pyvmm_device.arm.amba import AmbaDevice
from pyvmm_device.interrupt_output import InterruptOutput
from pyvmm_device.output import Outlet
from pyvmm_device.register_device import Register
from pyvmm_device.state import FLAG, array, uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar

    from pyvmm_device.interrupt import Interrupt
    from pyvmm_device.pc.serial import Output
    from pyvmm_device.state import Kind

FIFO_SIZE = 32
DATA, REGISTER = 0, 4
"""Where the data register is, and how wide each register is."""
RECEIVE_LEVELS = (4, 8, 16, 24, 28)
"""Eighths of the FIFO by UARTIFLS; the reserved values are taken as the last."""

FRAMING_ERROR, PARITY_ERROR, BREAK_ERROR, OVERRUN_ERROR = 0x1, 0x2, 0x4, 0x8
"""UARTRSR; a received character has them in bits 8 to 11."""
FR_CTS, FR_DSR, FR_DCD, FR_RXFE, FR_RXFF, FR_TXFE, FR_RI = 0x01, 0x02, 0x04, 0x10, 0x40, 0x80, 0x100
LCR_BREAK, LCR_FIFO = 0x01, 0x10
CR_ENABLE, CR_LOOP, CR_TXE, CR_RXE, CR_DTR, CR_RTS, CR_OUT1, CR_OUT2 = (
    1,
    0x80,
    0x100,
    0x200,
    0x400,
    0x800,
    0x1000,
    0x2000,
)
INT_RI, INT_CTS, INT_DCD, INT_DSR, INT_RX, INT_TX, INT_RT = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40
INT_OVERRUN = 0x400
ERROR_INTERRUPTS = 7
"""Framing, parity and break are bits 7 to 9 of the interrupt registers."""
CONNECTED = FR_CTS | FR_DSR | FR_DCD
LOOP = ((CR_RTS, FR_CTS), (CR_DTR, FR_DSR), (CR_OUT1, FR_DCD), (CR_OUT2, FR_RI))
MODEM_INTERRUPTS = ((FR_RI, INT_RI), (FR_CTS, INT_CTS), (FR_DCD, INT_DCD), (FR_DSR, INT_DSR))


class Pl011(AmbaDevice):
    """A PL011.

    Args:
        interrupt: UARTINTR: a level follows it, an edge interrupt is triggered when it rises.
        output: gets each byte the guest transmits, enabled or not, so that early consoles are heard.
        on_room: called when there is room in the receiver again, with no lock held.

    Attributes:
        on_break: called with True when the guest begins to send a break and with False when it ends.
    """

    IDS = bytes.fromhex("111034000df005b1")
    STATE: ClassVar[dict[str, Kind]] = {
        "received": array(uint(11), FIFO_SIZE),
        "overrun": FLAG,
        "lines": uint(9),
        "seen": uint(9),
    }

    data = Register(0x00, writable=0)
    receive_status = Register(0x04, writable=0)
    flag = Register(0x18, writable=0)
    low_power_counter = Register(0x20, writable=0xFF)
    integer_baud_rate = Register(0x24, writable=0xFFFF)
    fractional_baud_rate = Register(0x28, writable=0x3F)
    line_control = Register(0x2C, writable=0xFF)
    control = Register(0x30, reset=CR_TXE | CR_RXE, writable=0xFF87)
    fifo_levels = Register(0x34, reset=0x12, writable=0x3F)
    interrupt_mask = Register(0x38, writable=0x7FF)
    raw_interrupt = Register(0x3C, writable=0)
    masked_interrupt = Register(0x40, writable=0)
    interrupt_clear = Register(0x44, writable=0)
    dma_control = Register(0x48, writable=0x7)

    def __init__(self, interrupt: Interrupt, output: Output, on_room: Callable[[], object] | None = None) -> None:
        super().__init__()
        self._line = InterruptOutput(interrupt, self.lock)
        self._output = Outlet(self, output.write)
        self.on_room = on_room
        self.on_break: Callable[[bool], object] | None = None
        self._received: deque[int] = deque()
        self._overrun = False  # as the data register tells it, once; the status register keeps it
        self._lines = self._seen = CONNECTED  # as they are, and as the interrupts have told
        self._broken = False

    def reset(self) -> None:
        """Be as after power-on; what was received is lost, the modem lines stay as they are."""
        with self.lock:
            super().reset()
            self._received.clear()
            self._overrun = False
            self._seen = self._lines
            self._tell_break()
            self._update()

    # the guest's side

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read registers."""
        with self.lock:
            room = self._room()
            super().read(offset, buffer)
            self._update()
            if self.on_room is not None and self._room() > room:
                self.lock.after(self.on_room)

    def write(self, offset: int, data: memoryview) -> None:
        """Write registers."""
        if offset == DATA and len(data) <= REGISTER and not self.control & CR_LOOP:
            # before the lock: output may block, and input must still get through
            self._output.put(bytes(data[:1]))
            with self.lock:
                self._transmit()
            return
        with self.lock:
            room = self._room()
            super().write(offset, data)
            self._update()
            if self.on_room is not None and self._room() > room:
                self.lock.after(self.on_room)

    def _depth(self) -> int:
        return FIFO_SIZE if self.line_control & LCR_FIFO else 1

    def _listening(self) -> bool:
        return self.control & (CR_ENABLE | CR_RXE) == CR_ENABLE | CR_RXE

    def _room(self) -> int:
        connected = self._listening() and not self.control & CR_LOOP
        return max(0, self._depth() - len(self._received)) if connected else 0

    @data.on_read
    def _read_data(self) -> int:
        if not self._received:
            return 0
        item = self._received.popleft()
        # "The received data character must be read first from UARTDR before reading the error status"
        self.receive_status = self.receive_status & OVERRUN_ERROR | item >> 8
        # "cleared to 0 once there is an empty space in the FIFO and a new character can be written to it"
        overrun, self._overrun = self._overrun, False
        self._follow_receiver()
        return item | (OVERRUN_ERROR << 8 if overrun else 0)

    @data.on_write
    def _write_data(self, value: int) -> None:
        if self.control & CR_LOOP:
            self._receive(value & 0xFF)
        else:
            self.lock.after(self._output.put, bytes((value & 0xFF,)))
        self._transmit()

    def _transmit(self) -> None:
        # "based on a transition through a level, rather than on the level itself": the byte came, which resets this
        # interrupt, and went
        raw, mask = self.raw_interrupt, self.interrupt_mask
        self.raw_interrupt = raw | INT_TX
        if mask & INT_TX:
            self._line.set(bool(raw & mask & ~INT_TX))
            self._line.set(True)

    @receive_status.on_write
    def _clear_errors(self, value: int) -> None:  # noqa: ARG002 - "The data value is not important"
        self.receive_status = 0

    @flag.on_read
    def _read_flag(self) -> int:
        held = len(self._received)
        return self._modem() | FR_TXFE | FR_RXFE * (not held) | FR_RXFF * (held >= self._depth())

    def _modem(self) -> int:
        if self.control & CR_LOOP:
            return sum(into for out, into in LOOP if self.control & out)
        return self._lines

    @control.on_write
    def _write_control(self, value: int) -> None:  # noqa: ARG002 - it is stored
        self._follow_modem()

    @line_control.on_write
    def _write_line_control(self, value: int) -> None:  # noqa: ARG002 - it is stored
        while len(self._received) > self._depth():
            self._received.pop()
        self._follow_receiver()
        self._tell_break()

    def _tell_break(self) -> None:
        broken = bool(self.line_control & LCR_BREAK)
        if broken is not self._broken:
            self._broken = broken
            if self.on_break is not None:
                self.lock.after(self.on_break, broken)

    @fifo_levels.on_write
    def _write_fifo_levels(self, value: int) -> None:  # noqa: ARG002 - it is stored
        self._follow_receiver()

    @masked_interrupt.on_read
    def _read_masked_interrupt(self) -> int:
        return self.raw_interrupt & self.interrupt_mask

    @interrupt_clear.on_write
    def _write_interrupt_clear(self, value: int) -> None:
        self.raw_interrupt &= ~value
        self._update()

    @interrupt_mask.on_write
    def _write_interrupt_mask(self, value: int) -> None:  # noqa: ARG002 - it is stored
        self._update()

    # what becomes of it

    def _receive(self, item: int) -> None:
        if not self._listening():
            return
        if len(self._received) >= self._depth():
            self._overrun = True
            self.receive_status |= OVERRUN_ERROR
            self.raw_interrupt |= INT_OVERRUN
            return
        self._received.append(item)
        self.raw_interrupt |= (item >> 8 & ERROR_INTERRUPTS) << 7
        self._follow_receiver()

    def _follow_receiver(self) -> None:
        """Set the receive interrupt at its level, and the timeout below: no more comes within the time it waits."""
        held = len(self._received)
        level = RECEIVE_LEVELS[min(self.fifo_levels >> 3, 4)] if self.line_control & LCR_FIFO else 1
        status = INT_RX if held >= level else INT_RT if held else 0
        if status & ~self.raw_interrupt:
            # the one is over before the other begins: the timeout would be later
            self.raw_interrupt &= ~(INT_RX | INT_RT)
            self._update()
        self.raw_interrupt = self.raw_interrupt & ~(INT_RX | INT_RT) | status
        self._update()

    def _follow_modem(self) -> None:
        changed = self._modem() ^ self._seen
        self._seen ^= changed
        self.raw_interrupt |= sum(interrupt for line, interrupt in MODEM_INTERRUPTS if changed & line)

    def _update(self) -> None:
        self._line.set(bool(self.raw_interrupt & self.interrupt_mask))

    # the other end of the cable

    @property
    def lost_output(self) -> int:
        """How many bytes the output refused; the first was logged."""
        return self._output.lost

    def enqueue(self, data: bytes) -> int:
        """Receive bytes and return how many there was room for; see ``on_room``. None while the receiver is off."""
        with self.lock:
            taken = data[: self._room()]
            for byte in taken:
                self._receive(byte)
            self._update()
        return len(taken)

    def room(self) -> int:
        """Return how many bytes `enqueue` would take now."""
        with self.lock:
            return self._room()

    def send_break(self) -> None:
        """Receive a break: a NUL with the break error."""
        self.enqueue_error(0, BREAK_ERROR)

    def enqueue_error(self, byte: int, errors: int) -> None:
        """Receive a byte with errors (``FRAMING_ERROR``, ``PARITY_ERROR``, ``BREAK_ERROR``)."""
        with self.lock:
            self._receive(byte & 0xFF | (errors & ERROR_INTERRUPTS) << 8)
            self._update()

    def set_modem_lines(self, *, cts: bool = True, dsr: bool = True, ri: bool = False, dcd: bool = True) -> None:
        """Set what the other end of the cable does."""
        with self.lock:
            self._lines = FR_CTS * cts | FR_DSR * dsr | FR_RI * ri | FR_DCD * dcd
            self._follow_modem()
            self._update()

    def _after_restore(self) -> None:
        self._received = deque(self._received)
        self._broken = bool(self.line_control & LCR_BREAK)
        # whoever took over the interrupt does not know whether it was pending
        self._line.forget()
        self._update()

    def __repr__(self) -> str:
        return (
            f"<Pl011, {len(self._received)} bytes received, interrupts {self.raw_interrupt & self.interrupt_mask:#x}>"
        )
