"""The serial port of a PC: a 16550A UART (National Semiconductor PC16550D data sheet).

Bytes cross at once in both directions, whatever the divisor says: the transmitter is always empty, and a received
byte waits in the FIFO until the guest reads it. The FIFO is deeper than the chip's sixteen bytes, which no driver
minds and which saves interrupts.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from pyvmm_device.interrupt import EdgeInterrupt

    class Output(Protocol):
        """Where transmitted bytes go."""

        def write(self, data: bytes, /) -> object:
            """Take the bytes."""
            ...


FIFO_SIZE = 64

# Registers by offset; the first two are the divisor while LCR_DLAB is set.
DATA, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = range(8)

IER_RDA, IER_THRE, IER_RLS, IER_MSI = 0x01, 0x02, 0x04, 0x08
IIR_NONE, IIR_MSI, IIR_THRE, IIR_RDA, IIR_RLS, IIR_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
IIR_FIFO_ENABLED = 0xC0
FCR_ENABLE, FCR_CLEAR_RECEIVER = 0x01, 0x02
FCR_TRIGGERS = (1, 4, 8, 14)
LCR_DLAB = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
LSR_DR, LSR_OE, LSR_BI, LSR_THRE, LSR_TEMT = 0x01, 0x02, 0x10, 0x20, 0x40
MSR_DELTAS = 0x0F
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
MSR_CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD


class Serial:
    """A 16550A UART.

    Args:
        interrupt: triggered when the chip's interrupt output rises.
        output: gets each byte the guest transmits.
        on_room: called when the guest has emptied the receiver, in the thread that read from it; whoever holds input
            back because `enqueue` took only a part goes on then.
    """

    def __init__(self, interrupt: EdgeInterrupt, output: Output, on_room: Callable[[], object] | None = None) -> None:
        self._interrupt = interrupt
        self._output = output
        self.on_room = on_room
        # vCPUs read and write, another thread enqueues
        self._lock = allocate_lock()
        self._received: deque[int] = deque()
        self._divisor = 12  # 9600 baud
        self._ier = 0
        self._fcr = 0
        self._lcr = 0x03  # eight data bits
        self._mcr = MCR_OUT2
        self._msr = MSR_CONNECTED
        self._scratch = 0
        self._errors = 0
        self._transmitted = False  # the transmitter ran empty, and the guest has not been told
        self._raised = False

    def write(self, offset: int, data: memoryview) -> None:
        """Write a register; of a wider access only the first byte arrives, as on an 8-bit bus."""
        value = data[0]
        if offset == DATA and not (self._lcr & LCR_DLAB or self._mcr & MCR_LOOP):
            # before the lock: output may block, and input must still get through
            self._output.write(data[:1].tobytes())
        with self._lock:
            self._write(offset, value)
            self._update()

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
            # "FCR0 ... changing it clears both FIFOs"; there is only the receiver's to clear
            if value & FCR_CLEAR_RECEIVER or (value ^ self._fcr) & FCR_ENABLE:
                self._received.clear()
            self._fcr = value & 0xC9
        elif offset == LCR:
            self._lcr = value
        elif offset == MCR:
            self._write_modem_control(value & 0x1F)
        elif offset == SCR:
            self._scratch = value

    def _write_data(self, value: int) -> None:
        if self._lcr & LCR_DLAB:
            self._divisor = self._divisor & 0xFF00 | value
            return
        if self._mcr & MCR_LOOP:
            if len(self._received) < FIFO_SIZE:
                self._received.append(value)
            else:
                self._errors |= LSR_OE
        self._transmitted = True

    def _write_modem_control(self, value: int) -> None:
        self._mcr = value
        lines = MSR_CONNECTED
        if value & MCR_LOOP:
            # "the four modem control outputs are internally connected to the four modem control inputs"
            pairs = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))
            lines = sum(into for out, into in pairs if value & out)
        changed = (lines ^ self._msr) >> 4 & 0x0F
        if changed & 4 and lines & MSR_RI:
            changed &= ~4  # only the trailing edge of the ring indicator counts
        self._msr = lines | self._msr & MSR_DELTAS | changed

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read a register into the first byte; the others of a wider access read as ones."""
        if len(buffer) > 1:
            buffer[:] = b"\xff" * len(buffer)
        emptied = False
        with self._lock:
            if offset == DATA and not self._lcr & LCR_DLAB:
                buffer[0] = self._received.popleft() if self._received else 0
                emptied = not self._received
            else:
                buffer[0] = self._read(offset)
            self._update()
        if emptied and self.on_room is not None:
            self.on_room()

    def _read(self, offset: int) -> int:
        if self._lcr & LCR_DLAB and offset in (DATA, IER):
            return self._divisor >> 8 * offset & 0xFF
        if offset == IIR_FCR:
            identity = self._identity()
            if identity == IIR_THRE:
                # "reading the IIR (if source of interrupt)" is one of the two ways to reset this one
                self._transmitted = False
            return identity | (IIR_FIFO_ENABLED if self._fcr & FCR_ENABLE else 0)
        if offset == LSR:
            errors, self._errors = self._errors, 0
            return LSR_THRE | LSR_TEMT | errors | (LSR_DR if self._received else 0)
        if offset == MSR:
            lines, self._msr = self._msr, self._msr & ~MSR_DELTAS
            return lines
        return (0, self._ier, 0, self._lcr, self._mcr, 0, 0, self._scratch)[offset] if offset < 8 else 0xFF

    def _identity(self) -> int:
        """The pending interrupt of the highest priority (data sheet, table IV)."""
        if self._ier & IER_RLS and self._errors:
            return IIR_RLS
        if self._ier & IER_RDA and self._received:
            trigger = FCR_TRIGGERS[self._fcr >> 6] if self._fcr & FCR_ENABLE else 1
            # below the trigger level the chip waits for four characters' time; here that time has always passed
            return IIR_RDA if len(self._received) >= trigger else IIR_TIMEOUT
        if self._ier & IER_THRE and self._transmitted:
            return IIR_THRE
        if self._ier & IER_MSI and self._msr & MSR_DELTAS:
            return IIR_MSI
        return IIR_NONE

    def _update(self) -> None:
        raised = self._identity() != IIR_NONE
        if raised and not self._raised:
            self._interrupt.trigger()
        self._raised = raised

    def enqueue(self, data: bytes) -> int:
        """Receive bytes and return how many there was room for; see ``on_room``. None are taken in loopback."""
        with self._lock:
            if self._mcr & MCR_LOOP:
                return 0
            taken = data[: FIFO_SIZE - len(self._received)]
            self._received.extend(taken)
            self._update()
        return len(taken)

    def send_break(self) -> None:
        """Receive a break: a NUL with the break indicator, which Linux takes as the start of a SysRq."""
        with self._lock:
            self._errors |= LSR_BI
            self._received.append(0)
            self._update()

    def __repr__(self) -> str:
        return f"<Serial 16550A, {len(self._received)} bytes received, IER {self._ier:#x}>"
