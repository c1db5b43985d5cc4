"""The two interrupt controllers of a PC: Intel 8259A, the second behind input 2 of the first.

Where a hypervisor has no 8259 of its own, the processor's side is here too: the output line says that an interrupt
waits, `Pic.acknowledge` is the processor's INTA cycle and gives its vector.

>>> pic = Pic(lambda level: print("INTR", level))
>>> for port, value in [(0, 0x11), (1, 0x20), (1, 0x04), (1, 0x01), (1, 0xFE)]:  # ICW1 to ICW4, then the mask
...     pic.write(port, memoryview(bytes([value])))
>>> pic.line(0).assert_()
INTR True
>>> hex(pic.acknowledge())
INTR False
'0x20'

Source: Intel 8259A data sheet (231468); the edge/level registers are those of the 82371 (PIIX).
"""

from __future__ import annotations

from pyvmm_device.errors import InterruptError
from pyvmm_device.interrupt_output import InterruptOutput
from pyvmm_device.pc.port_device import PortDevice
from pyvmm_device.state import FLAG, Stateful, choice, nested, uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CASCADE = 2
"""The input of the first chip that the second one drives."""
SPURIOUS = 7
"""What a chip answers when no input asks for attention any more."""

ICW1_INIT, ICW1_LEVEL, ICW1_SINGLE, ICW1_ICW4 = 0x10, 0x08, 0x02, 0x01
ICW4_SPECIAL_FULLY_NESTED, ICW4_AUTO_EOI = 0x10, 0x02
OCW3, OCW3_SMM_ENABLE, OCW3_SMM, OCW3_POLL, OCW3_READ, OCW3_READ_ISR = 0x08, 0x40, 0x20, 0x04, 0x02, 0x01
POLL_INTERRUPT = 0x80

# OCW2, bits 7 to 5
ROTATE_AEOI_CLEAR, EOI, NOP, SPECIFIC_EOI, ROTATE_AEOI_SET, ROTATE_EOI, SET_PRIORITY, ROTATE_SPECIFIC_EOI = range(8)

READY, WANT_ICW2, WANT_ICW3, WANT_ICW4 = range(4)


class PicChip(Stateful):
    """One 8259A: eight inputs, and the decision which of them interrupts.

    Its output follows `request`, and falls for a moment whenever an interrupt is acknowledged, also where another waits
    that is requested at once: with automatic end of interrupt, or in special mask mode. `take_fall` says so.

    An edge that was seen waits in the request register even if its line falls again, as in other hypervisors; the
    real chip would then answer with its spurious interrupt.

    Args:
        cascaded: the inputs that other chips drive, as a mask: input 2 of the first chip.
        level_inputs: the inputs that the edge/level register may switch, as a mask.
    """

    STATE = {
        "lines": uint(8),
        "irr": uint(8),
        "imr": uint(8),
        "isr": uint(8),
        "elcr": uint(8),
        "base": uint(8),
        "lowest": uint(3),
        "next_word": choice(READY, WANT_ICW2, WANT_ICW3, WANT_ICW4),
        "single": FLAG,
        "wants_icw4": FLAG,
        "level_mode": FLAG,
        "auto_eoi": FLAG,
        "rotate_on_auto_eoi": FLAG,
        "special_mask": FLAG,
        "special_fully_nested": FLAG,
        "read_isr": FLAG,
        "poll": FLAG,
    }

    def __init__(self, cascaded: int = 0, level_inputs: int = 0) -> None:
        self._cascaded = cascaded
        self._level_inputs = level_inputs
        self._lines = 0
        self._fell = False
        self.reset()

    def reset(self) -> None:
        """Be as after power-on, with the input lines as they are."""
        self._irr = self._elcr = self._base = 0
        self._level_mode = False
        self._single = self._wants_icw4 = False
        self._next_word = READY
        self._initialize()

    def _initialize(self) -> None:
        """Do what ICW1 does by itself (data sheet, "Initialization Command Words", a to f)."""
        # "The edge sense circuit is reset, which means that following initialization, an interrupt request (IR) input
        # must make a low-to-high transition to generate an interrupt"
        self._irr = self._lines & self._level_triggered()
        self._imr = self._isr = 0
        self._lowest = 7
        self._auto_eoi = self._rotate_on_auto_eoi = False
        self._special_mask = self._special_fully_nested = False
        self._read_isr = self._poll = False

    def _level_triggered(self) -> int:
        return 0xFF if self._level_mode else self._elcr

    def set_line(self, number: int, active: bool) -> None:
        """Set the level of an input."""
        bit = 1 << number
        if active:
            if bit & (self._level_triggered() | ~self._lines):
                self._irr |= bit
            self._lines |= bit
        else:
            self._irr &= ~(bit & self._level_triggered())
            self._lines &= ~bit

    def _highest(self, inputs: int) -> int:
        """Return the priority of the first of some inputs, 0 the highest; 8 where there are none."""
        for priority in range(8):
            if inputs >> (self._lowest + 1 + priority & 7) & 1:
                return priority
        return 8

    def request(self) -> int | None:
        """Return the input that interrupts now, or None."""
        waiting = self._irr & ~self._imr
        if not waiting:
            return None
        serviced = self._isr
        if self._special_mask:
            # "inhibits further interrupts at that level and enables interrupts from all other levels ... that are not
            # masked"
            serviced &= ~self._imr
        if self._special_fully_nested:
            # "this slave is not locked out from the master's priority logic"
            serviced &= ~self._cascaded
        priority = self._highest(waiting)
        return self._lowest + 1 + priority & 7 if priority < self._highest(serviced) else None

    def acknowledge(self, number: int) -> int:
        """Begin to service an input and return its vector."""
        bit = 1 << number
        self._fell = True
        if not self._auto_eoi:
            self._isr |= bit
        elif self._rotate_on_auto_eoi:
            self._lowest = number
        self._irr &= ~(bit & ~self._level_triggered())
        return self._base | number

    def take_fall(self) -> bool:
        """Return whether the output fell since this was asked last: an interrupt was acknowledged."""
        fell, self._fell = self._fell, False
        return fell

    def spurious(self) -> int:
        """Return the vector of an interrupt that is gone: no bit of ISR goes with it."""
        return self._base | SPURIOUS

    def read(self, offset: int) -> int:
        """Read: what the last OCW3 asked for at offset 0, the mask at offset 1."""
        if self._poll:
            # the read after a poll command "is treated as an interrupt acknowledge", at either address
            self._poll = False
            number = self.request()
            if number is None:
                return 0
            self.acknowledge(number)
            return POLL_INTERRUPT | number
        if offset:
            return self._imr
        return self._isr if self._read_isr else self._irr

    def write(self, offset: int, value: int) -> None:
        """Write a command word."""
        if offset:
            self._write_data(value)
        elif value & ICW1_INIT:
            self._level_mode = bool(value & ICW1_LEVEL)
            self._single = bool(value & ICW1_SINGLE)
            self._wants_icw4 = bool(value & ICW1_ICW4)
            self._initialize()
            self._next_word = WANT_ICW2
        elif value & OCW3:
            self._write_ocw3(value)
        else:
            self._write_ocw2(value >> 5, value & 7)

    def _write_data(self, value: int) -> None:
        word, after = self._next_word, WANT_ICW4 if self._wants_icw4 else READY
        if word == READY:
            self._imr = value
        elif word == WANT_ICW2:
            self._base = value & 0xF8
            self._next_word = after if self._single else WANT_ICW3
        elif word == WANT_ICW3:
            self._next_word = after  # which input is cascaded is a matter of wires here
        else:
            self._special_fully_nested = bool(value & ICW4_SPECIAL_FULLY_NESTED)
            self._auto_eoi = bool(value & ICW4_AUTO_EOI)
            self._next_word = READY

    def _write_ocw2(self, command: int, level: int) -> None:
        if command in (EOI, ROTATE_EOI):
            # "an IS bit that is masked by an IMR bit will not be cleared by a non-specific EOI command if the 8259A
            # is in the Special Mask Mode"
            priority = self._highest(self._isr & ~self._imr if self._special_mask else self._isr)
            if priority == 8:
                return
            level = self._lowest + 1 + priority & 7
        if command in (EOI, ROTATE_EOI, SPECIFIC_EOI, ROTATE_SPECIFIC_EOI):
            self._isr &= ~(1 << level)
        if command in (ROTATE_EOI, ROTATE_SPECIFIC_EOI, SET_PRIORITY):
            self._lowest = level
        elif command in (ROTATE_AEOI_CLEAR, ROTATE_AEOI_SET):
            self._rotate_on_auto_eoi = command == ROTATE_AEOI_SET

    def _write_ocw3(self, value: int) -> None:
        if value & OCW3_POLL:
            self._poll = True  # "P=1 overrides RR"
        elif value & OCW3_READ:
            self._read_isr = bool(value & OCW3_READ_ISR)
        if value & OCW3_SMM_ENABLE:
            self._special_mask = bool(value & OCW3_SMM)

    def read_elcr(self) -> int:
        """Return which inputs are level-triggered, as a mask."""
        return self._elcr

    def write_elcr(self, value: int) -> None:
        """Say which inputs are level-triggered; those that the machine needs as edges stay so."""
        changed = self._elcr ^ value & self._level_inputs
        self._elcr ^= changed
        level = changed & self._level_triggered()
        self._irr = self._irr & ~level | self._lines & level

    def __repr__(self) -> str:
        return f"<PicChip irr={self._irr:#04x} imr={self._imr:#04x} isr={self._isr:#04x} base={self._base:#04x}>"


class PicLine:
    """An input of the pair, a level interrupt; a rising edge counts where the input is edge-triggered."""

    __slots__ = ("_pic", "irq")

    def __init__(self, pic: Pic, irq: int) -> None:
        self._pic = pic
        self.irq = irq

    def assert_(self) -> None:
        """Raise the line."""
        self._pic.set_line(self.irq, True)

    def clear(self) -> None:
        """Lower the line."""
        self._pic.set_line(self.irq, False)

    def trigger(self) -> None:
        """Raise and lower it: one edge."""
        self._pic.set_line(self.irq, True)
        self._pic.set_line(self.irq, False)

    def __repr__(self) -> str:
        return f"<PicLine {self.irq}>"


def _first() -> PicChip:
    return PicChip(cascaded=1 << CASCADE, level_inputs=0xF8)


def _second() -> PicChip:
    return PicChip(level_inputs=0xDE)


class Pic(PortDevice):
    """Both 8259As. Registers: 0 and 1 the first chip, 2 and 3 the second, 4 and 5 their edge/level control (ELCR).

    Args:
        output: called with the level of the INTR line to the processor whenever it changes, with no lock held;
            `line_of` makes such a function of an interrupt.
    """

    PORTS = ((0x20, 2, 0), (0xA0, 2, 2), (0x4D0, 2, 4))
    STATE = {"first": nested(_first), "second": nested(_second)}

    def __init__(self, output: Callable[[bool], object]) -> None:
        super().__init__()
        self._output = InterruptOutput(output, self.lock)
        self._first = _first()
        self._second = _second()

    def reset(self) -> None:
        """Be as after power-on; the input lines stay as they are."""
        with self.lock:
            self._second.reset()
            self._first.reset()
            self._update()

    # the devices' side

    def line(self, irq: int) -> PicLine:
        """Return an input, 0 to 15 without 2; raises `InterruptError` for others."""
        if not 0 <= irq < 16 or irq == CASCADE:
            raise InterruptError(f"a PC's 8259s have no input {irq} for devices: give 0 to 15, but not 2")
        return PicLine(self, irq)

    def set_line(self, irq: int, active: bool) -> None:
        """Set the level of an input."""
        with self.lock:
            if irq >= 8:
                self._second.set_line(irq - 8, active)
            else:
                self._first.set_line(irq, active)
            self._update()

    # the processor's side

    def pending(self) -> bool:
        """Say whether an interrupt waits to be acknowledged: the level of the output."""
        with self.lock:
            return self._first.request() is not None

    def acknowledge(self) -> int:
        """Do the processor's interrupt-acknowledge cycle and return the vector.

        If what was requested is gone by now, it is the spurious one: input 7 of the chip.
        """
        with self.lock:
            number = self._first.request()
            if number is None:
                vector = self._first.spurious()
            else:
                vector = self._first.acknowledge(number)
                if number == CASCADE:
                    inner = self._second.request()
                    vector = self._second.spurious() if inner is None else self._second.acknowledge(inner)
            self._update()
            return vector

    # the guest's side

    def _read(self, offset: int) -> int:
        if offset < 4:
            value = (self._first, self._second)[offset >> 1].read(offset & 1)
            self._update()  # the read after a poll command acknowledges
            return value
        return (self._first, self._second)[offset & 1].read_elcr() if offset < 6 else 0xFF

    def _write(self, offset: int, value: int) -> None:
        if offset < 4:
            (self._first, self._second)[offset >> 1].write(offset & 1, value)
        elif offset < 6:
            (self._first, self._second)[offset & 1].write_elcr(value)
        self._update()

    def _update(self) -> None:
        if self._second.take_fall():
            # "the in-service bit is reset at the last INTA pulse" at the latest, so a further request is a new edge
            self._first.set_line(CASCADE, False)
        self._first.set_line(CASCADE, self._second.request() is not None)
        if self._first.take_fall():
            self._output.set(False)
        self._output.set(self._first.request() is not None)

    def _after_restore(self) -> None:
        # whoever is at the output now does not know its level
        self._output.forget()
        self._update()

    def __repr__(self) -> str:
        return f"<Pic {'interrupts' if self._output.level else 'idle'}, {self._first!r}, {self._second!r}>"
