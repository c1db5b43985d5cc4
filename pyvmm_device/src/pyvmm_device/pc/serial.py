"""The serial port of a PC: a 16550A UART (National Semiconductor PC16550D data sheet).

Bytes cross at once in both directions, whatever the divisor says: the transmitter is always empty, and a received
byte waits in the FIFO until the guest reads it. The FIFO is deeper than the chip's sixteen bytes, which no driver
minds and which saves interrupts; and it is there in 16450 mode too.

Input has back-pressure: `Serial.enqueue` says how much it took, and `Serial.on_room` is called when there is room for
more, so a terminal that holds the rest back until then loses nothing however much is pasted.

Interrupts: what the guest does to one source of them may end it and begin it again, because bytes cross at once: a byte
that is written resets "transmitter empty", and is sent; a byte that is read resets "character timeout" (and without a
FIFO "data available"), and the next one is there. The line is down in between, which is an edge.
"""

from __future__ import annotations

from collections import deque

from pyvmm_device.interrupt_output import InterruptOutput
from pyvmm_device.locks import DeferringLock
from pyvmm_device.output import Outlet
from pyvmm_device.state import FLAG, Stateful, array, uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from pyvmm_device.interrupt import Interrupt

    class Output(Protocol):
        """Where transmitted bytes go."""

        def write(self, data: bytes, /) -> object:
            """Take the bytes.

            What it raises, as a pipe without a reader does, is a loss of the bytes, and counted. Where it may wait,
            give an `OutputBuffer`: the guest's processor would wait with it.
            """
            ...


FIFO_SIZE = 64

# Registers by offset; the first two are the divisor while LCR_DLAB is set.
DATA, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = range(8)

IER_RDA, IER_THRE, IER_RLS, IER_MSI = 0x01, 0x02, 0x04, 0x08
IIR_NONE, IIR_MSI, IIR_THRE, IIR_RDA, IIR_RLS, IIR_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
IIR_FIFO_ENABLED = 0xC0
FCR_ENABLE, FCR_CLEAR_RECEIVER = 0x01, 0x02
FCR_TRIGGERS = (1, 4, 8, 14)
LCR_BREAK, LCR_DLAB = 0x40, 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
LSR_DR, LSR_OE, LSR_PE, LSR_FE, LSR_BI, LSR_THRE, LSR_TEMT, LSR_FIFO = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80
LSR_ERRORS = LSR_OE | LSR_PE | LSR_FE | LSR_BI
MSR_DCTS, MSR_DDSR, MSR_TERI, MSR_DDCD = 0x01, 0x02, 0x04, 0x08
MSR_DELTAS = 0x0F
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
MSR_CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD


class Serial(Stateful):
    """A 16550A UART.

    Args:
        interrupt: the chip's interrupt output: an edge interrupt is triggered when it rises, a level follows it.
        output: gets each byte the guest transmits, in the thread of the vCPU that writes it.
        on_room: called when the guest has emptied the receiver or opened it again, with no lock held; whoever holds
            input back because `enqueue` took only a part goes on then.

    Attributes:
        on_break: called with True when the guest begins to send a break and with False when it ends.
        on_modem_control: called with the states of DTR and RTS when the guest changes one.
    """

    STATE = {
        "received": array(uint(16), FIFO_SIZE),
        "divisor": uint(16),
        "ier": uint(4),
        "fcr": uint(8),
        "lcr": uint(8),
        "mcr": uint(5),
        "msr": uint(8),
        "lines": uint(8),
        "scratch": uint(8),
        "overrun": FLAG,
        "transmitted": FLAG,
    }

    def __init__(self, interrupt: Interrupt, output: Output, on_room: Callable[[], object] | None = None) -> None:
        # vCPUs read and write, another thread enqueues
        self.lock: DeferringLock = DeferringLock()
        self._line = InterruptOutput(interrupt, self.lock)
        self._output = Outlet(self, output.write)
        self._send = self._output.send
        self.on_room = on_room
        self.on_break: Callable[[bool], object] | None = None
        self.on_modem_control: Callable[[bool, bool], object] | None = None
        self._lines = MSR_CONNECTED  # the modem's outputs as they are outside of the chip
        self._power_on()

    def _power_on(self) -> None:
        self._received: deque[int] = deque()  # a byte and, above it, the errors that came with it
        self._divisor = 12  # 9600 baud
        self._ier = 0
        self._fcr = 0
        self._lcr = 0x03  # eight data bits
        self._mcr = MCR_OUT2
        self._msr = self._lines
        self._scratch = 0
        self._overrun = False
        self._transmitted = False  # the transmitter ran empty, and the guest has not been told
        self._plain = True  # a byte written to offset 0 goes straight to the output

    def reset(self) -> None:
        """Be as after power-on; what was received is lost, the modem lines stay as they are."""
        with self.lock:
            room = self._room()
            self._power_on()
            self._update()
            self._tell_room(room)

    # the guest's side

    def write(self, offset: int, data: memoryview) -> None:
        """Write a register; of a wider access only the first byte arrives, as on an 8-bit bus."""
        if offset == DATA and self._plain:
            # before the lock: output may block, and input must still get through
            try:
                self._send(bytes(data[:1]))
            except Exception as error:  # noqa: BLE001 - the output's mistake, not the guest's
                self._output.lose(error, 1)
            if not self._ier & IER_THRE:
                self._transmitted = True
                return
            with self.lock:
                self._end_and_begin_transmission()
            return
        with self.lock:
            before, room = (self._lcr, self._mcr), self._room()
            self._write(offset, data[0])
            self._plain = not (self._lcr & LCR_DLAB or self._mcr & MCR_LOOP)
            self._update()
            if before != (self._lcr, self._mcr):
                self._tell(*before)
            # a cleared FIFO and the end of loopback make room as well
            self._tell_room(room)

    def _end_and_begin_transmission(self) -> None:
        """Let the transmitter be full for a moment: "THRE ... is reset by ... writing into the THR"."""
        self._transmitted = False
        others = self._identity() != IIR_NONE
        self._transmitted = True
        if others:
            self._update()
        else:
            self._line.pulse()

    def _tell(self, lcr: int, mcr: int) -> None:
        if self.on_break is not None and (lcr ^ self._lcr) & LCR_BREAK:
            self.lock.after(self.on_break, bool(self._lcr & LCR_BREAK))
        if self.on_modem_control is not None and (mcr ^ self._mcr) & (MCR_DTR | MCR_RTS):
            self.lock.after(self.on_modem_control, bool(self._mcr & MCR_DTR), bool(self._mcr & MCR_RTS))

    def _write(self, offset: int, value: int) -> None:
        if offset == DATA:
            self._write_data(value)
        elif offset == IER:
            if self._lcr & LCR_DLAB:
                self._divisor = self._divisor & 0x00FF | value << 8
            else:
                # the transmitter is empty, so enabling its interrupt raises it at once
                self._transmitted = self._transmitted or bool(value & ~self._ier & IER_THRE)
                self._ier = value & 0x0F
        elif offset == IIR_FCR:
            self._write_fifo_control(value)
        elif offset == LCR:
            self._lcr = value
        elif offset == MCR:
            self._mcr = value & 0x1F
            self._follow_lines()
        elif offset == SCR:
            self._scratch = value

    def _write_fifo_control(self, value: int) -> None:
        # "FCR0 ... When changing from the FIFO Mode to the 16450 Mode and vice versa, data is automatically cleared
        # from the FIFOs"; there is only the receiver's to clear. "This bit must be a 1 when other FCR bits are written
        # to or they will not be programmed."
        changed = (value ^ self._fcr) & FCR_ENABLE
        if changed or (value & FCR_ENABLE and value & FCR_CLEAR_RECEIVER):
            self._received.clear()
        if value & FCR_ENABLE:
            self._fcr = value & 0xC9
        elif changed:
            self._fcr = 0

    def _write_data(self, value: int) -> None:
        if self._lcr & LCR_DLAB:
            self._divisor = self._divisor & 0xFF00 | value
            return
        self._transmitted = False
        self._update()
        if self._mcr & MCR_LOOP:
            self._receive(value)
        self._transmitted = True

    def _receive(self, item: int) -> None:
        """Take one character; "the character in the shift register will be overwritten" without room."""
        if len(self._received) >= FIFO_SIZE:
            self._overrun = True
        else:
            self._received.append(item)

    def _follow_lines(self) -> None:
        lines = self._lines
        if self._mcr & MCR_LOOP:
            # "the four modem control outputs are internally connected to the four modem control inputs"
            pairs = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))
            lines = sum(into for out, into in pairs if self._mcr & out)
        changed = (lines ^ self._msr) >> 4 & 0x0F
        if changed & MSR_TERI and lines & MSR_RI:
            changed &= ~MSR_TERI  # only the trailing edge of the ring indicator counts
        self._msr = lines | self._msr & MSR_DELTAS | changed

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read a register into the first byte; the others of a wider access read as ones."""
        if len(buffer) > 1:
            buffer[:] = b"\xff" * len(buffer)
        with self.lock:
            if offset != DATA or self._lcr & LCR_DLAB:
                buffer[0] = self._read(offset)
                return
            received = self._received
            buffer[0] = received.popleft() & 0xFF if received else 0
            if self._ier:
                self._end_and_begin_reception()
            if not received and self.on_room is not None:
                self.lock.after(self.on_room)

    def _end_and_begin_reception(self) -> None:
        """Move the line after a character was read, which ends a reason to interrupt that those left may be again.

        Of the FIFO, the timeout is "cleared and the timer reset when the CPU reads one character", and comes again;
        below the trigger level it begins anew. Without the FIFO the next character would only arrive now.
        """
        enabled, held = self._ier, len(self._received)
        if held and enabled & IER_RDA and (not self._fcr & FCR_ENABLE or held < self._trigger()):
            self._ier = enabled & ~IER_RDA
            others = self._identity() != IIR_NONE
            self._ier = enabled
            if not others:
                self._line.pulse()
        self._update()

    def _trigger(self) -> int:
        return FCR_TRIGGERS[self._fcr >> 6] if self._fcr & FCR_ENABLE else 1

    def _read(self, offset: int) -> int:
        if self._lcr & LCR_DLAB and offset in (DATA, IER):
            return self._divisor >> 8 * offset & 0xFF
        if offset == IIR_FCR:
            identity = self._identity()
            if identity == IIR_THRE:
                # "reading the IIR (if source of interrupt)" is one of the two ways to reset this one
                self._transmitted = False
                self._update()
            return identity | (IIR_FIFO_ENABLED if self._fcr & FCR_ENABLE else 0)
        if offset == LSR:
            return self._read_line_status()
        if offset == MSR:
            lines, self._msr = self._msr, self._msr & ~MSR_DELTAS
            self._update()
            return lines
        return (0, self._ier, 0, self._lcr, self._mcr, 0, 0, self._scratch)[offset] if offset < 8 else 0xFF

    def _read_line_status(self) -> int:
        """Return LSR: the errors are those of the character that is read next, and reading them clears them."""
        status = LSR_THRE | LSR_TEMT
        if self._overrun:
            status |= LSR_OE
            self._overrun = False
        if self._received:
            # "LSR7 ... is set when there is at least one parity error, framing error or break indication in the FIFO"
            if self._fcr & FCR_ENABLE and any(item > 0xFF for item in self._received):
                status |= LSR_FIFO
            status |= LSR_DR | self._received[0] >> 8
            self._received[0] &= 0xFF
        if status & LSR_ERRORS:
            self._update()
        return status

    def _identity(self) -> int:
        """Return the pending interrupt of the highest priority (data sheet, table IV)."""
        received = self._received
        if self._ier & IER_RLS and (self._overrun or (received and received[0] > 0xFF)):
            return IIR_RLS
        if self._ier & IER_RDA and received:
            # below the trigger level the chip waits for four characters' time; here that time has always passed
            return IIR_RDA if len(received) >= self._trigger() else IIR_TIMEOUT
        if self._ier & IER_THRE and self._transmitted:
            return IIR_THRE
        if self._ier & IER_MSI and self._msr & MSR_DELTAS:
            return IIR_MSI
        return IIR_NONE

    def _update(self) -> None:
        raised = self._identity() != IIR_NONE
        if raised is not self._line.level:
            self._line.set(raised)

    # the other end of the cable

    @property
    def lost_output(self) -> int:
        """How many bytes the output refused; the first was logged."""
        return self._output.lost

    def enqueue(self, data: bytes) -> int:
        """Receive bytes and return how many there was room for; see ``on_room``. None are taken in loopback."""
        with self.lock:
            taken = data[: self._room()]
            self._received.extend(taken)
            self._update()
        return len(taken)

    def room(self) -> int:
        """Return how many bytes `enqueue` would take now."""
        with self.lock:
            return self._room()

    def _room(self) -> int:
        return 0 if self._mcr & MCR_LOOP else FIFO_SIZE - len(self._received)

    def _tell_room(self, before: int) -> None:
        if self.on_room is not None and self._room() > before:
            self.lock.after(self.on_room)

    def send_break(self) -> None:
        """Receive a break: a NUL with the break indicator, which Linux takes as the start of a SysRq."""
        self.enqueue_error(0, LSR_BI)

    def enqueue_error(self, byte: int, errors: int) -> None:
        """Receive a byte with errors (``LSR_PE``, ``LSR_FE``, ``LSR_BI``); without room it is an overrun."""
        with self.lock:
            self._receive(byte | (errors & (LSR_PE | LSR_FE | LSR_BI)) << 8)
            self._update()

    def set_modem_lines(self, *, cts: bool = True, dsr: bool = True, ri: bool = False, dcd: bool = True) -> None:
        """Set what the other end of the cable does; a guest with flow control transmits only while CTS is on."""
        with self.lock:
            self._lines = MSR_CTS * cts | MSR_DSR * dsr | MSR_RI * ri | MSR_DCD * dcd
            self._follow_lines()
            self._update()

    @property
    def modem_control(self) -> tuple[bool, bool]:
        """Whether the guest asserts DTR and RTS."""
        return bool(self._mcr & MCR_DTR), bool(self._mcr & MCR_RTS)

    @property
    def baud_rate(self) -> int:
        """What the guest set by the divisor of the usual 1.8432 MHz; nothing depends on it."""
        return 115200 // (self._divisor or 1 << 16)

    def _after_restore(self) -> None:
        self._received = deque(self._received)
        self._plain = not (self._lcr & LCR_DLAB or self._mcr & MCR_LOOP)
        # whoever took over the interrupt does not know whether it was pending
        self._line.forget()
        self._update()

    def __repr__(self) -> str:
        return f"<Serial 16550A, {len(self._received)} bytes received, IER {self._ier:#x}>"
