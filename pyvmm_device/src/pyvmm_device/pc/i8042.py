r"""The keyboard controller of a PC: Intel 8042 with the firmware of the PS/2, which also resets the machine.

Registers: 0 the data port (0x60), 4 status and command (0x64). Of the ports between, 0x61 is the timer's (`Pit`), and
so the controller is registered at two places, or at all five where nothing else wants them:

>>> from pyvmm_device import BusRange, IoManager, register_ports
>>> io = IoManager()
>>> register_ports(io, I8042(lambda: print("the machine restarts")))
>>> io.pio_write(0x64, memoryview(b"\xfe"))
the machine restarts
>>> IoManager().register_pio(I8042(print), [BusRange(0x60, 5)])

What is plugged in is called with no lock held, in the order of what the guest did: bytes for it are in the lock's
outbox, and after them `_pull`, which fetches a byte while there is room for one. As the outbox is emptied by one thread
at a time, only one fetches. What it has fetched when another vCPU has filled the output buffer meanwhile, or has
switched that device off, waits in `_held`, for what was sent cannot be given back.

Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller".
"""

from __future__ import annotations

from pyvmm_device.errors import DeviceStateError
from pyvmm_device.interrupt_output import InterruptOutput
from pyvmm_device.pc.port_device import PortDevice
from pyvmm_device.pc.ps2 import BREAK, to_set_1
from pyvmm_device.state import FLAG, PART, array, blob, choice, optional, uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from pyvmm_device.interrupt import Interrupt
    from pyvmm_device.pc.ps2 import Ps2Device

DATA_OFFSET, COMMAND_OFFSET = 0, 4
"""Ports 0x60 (data) to 0x64 (status and command)."""

OUTPUT_FULL, SYSTEM, LAST_WAS_COMMAND, UNLOCKED, AUX_DATA, TIMEOUT = 0x01, 0x04, 0x08, 0x10, 0x20, 0x40
"""Bits of the status. The input buffer (bit 1) is always empty: a byte is taken as it is written."""

KEYBOARD_INTERRUPT, AUX_INTERRUPT, KEYBOARD_OFF, AUX_OFF, TRANSLATE = 0x01, 0x02, 0x10, 0x20, 0x40
"""Bits of the command byte, beside `SYSTEM`."""
AFTER_FIRMWARE = TRANSLATE | AUX_OFF | SYSTEM | KEYBOARD_INTERRUPT
"""Most guests start without a firmware that would have set it."""

READ_MEMORY, WRITE_MEMORY = 0x20, 0x60
AUX_DISABLE, AUX_ENABLE, AUX_TEST, SELF_TEST = 0xA7, 0xA8, 0xA9, 0xAA
KEYBOARD_TEST, KEYBOARD_DISABLE, KEYBOARD_ENABLE = 0xAB, 0xAD, 0xAE
READ_INPUT, READ_OUTPUT, WRITE_OUTPUT = 0xC0, 0xD0, 0xD1
FROM_KEYBOARD, FROM_AUX, TO_AUX, PULSE = 0xD2, 0xD3, 0xD4, 0xF0
COMMAND_RESET = 0xFE
"""Pulse output line 0, which is wired to the processor's reset input."""
SELF_TEST_PASSED, TEST_PASSED, INPUT_PORT, RESEND = 0x55, 0x00, 0x80, 0xFE

NOT_RESET, A20, OUTPUT_KEYBOARD, OUTPUT_AUX = 0x01, 0x02, 0x10, 0x20
"""Bits of the output port."""
OUTPUT_ONES = 0xCC


class I8042(PortDevice):
    """An i8042, without keyboard or mouse unless some are given.

    A byte for a device that is not there is answered as the controller does whose device is silent: 0xfe, "resend",
    with the timeout bit of the status.

    Args:
        reset: called when the guest asks for a reset, with no lock held.
        keyboard: for example a `Ps2Keyboard`.
        aux: the mouse.
        keyboard_interrupt: IRQ 1.
        aux_interrupt: IRQ 12.
        on_a20: called with the new level when the guest switches address line 20, which is on at first.
    """

    PORTS = ((0x60, 1, DATA_OFFSET), (0x64, 1, COMMAND_OFFSET))
    STATE = {
        "memory": blob(32, 32),
        "status": uint(8),
        "output": uint(8),
        "reply": optional(uint(16)),
        "expected": choice(0, *range(0x60, 0x80), WRITE_OUTPUT, FROM_KEYBOARD, FROM_AUX, TO_AUX),
        "a20": FLAG,
        "break": FLAG,
        "held": array(optional(uint(8)), 2, 2),
        "keyboard": optional(PART),
        "aux": optional(PART),
    }

    def __init__(
        self,
        reset: Callable[[], object],
        *,
        keyboard: Ps2Device | None = None,
        aux: Ps2Device | None = None,
        keyboard_interrupt: Interrupt | None = None,
        aux_interrupt: Interrupt | None = None,
        on_a20: Callable[[bool], object] | None = None,
    ) -> None:
        super().__init__()
        self._reset = reset
        self._on_a20 = on_a20
        self._devices = {"keyboard": keyboard, "aux": aux}
        self._lines = [
            (flag, InterruptOutput(interrupt, self.lock))
            for flag, interrupt in ((0, keyboard_interrupt), (AUX_DATA, aux_interrupt))
        ]
        self._keyboard: object = None  # the devices' states, while one of ours is made or taken
        self._aux: object = None
        self._a20 = True
        self._power_on()
        for device in self._devices.values():
            if device is not None:
                device.connect(self._on_data)

    def _power_on(self) -> None:
        self._memory = bytearray(32)  # its first byte is the command byte
        self._memory[0] = AFTER_FIRMWARE
        self._status = LAST_WAS_COMMAND | UNLOCKED
        self._output = 0
        self._reply: int | None = None  # the controller's own next byte, and its status bits above it
        self._expected = 0  # the command that the next byte of data belongs to
        self._break = False
        self._held: list[int | None] = [None, None]  # of the keyboard and of the mouse

    def reset(self) -> None:
        """Be as after power-on, with all that is plugged in."""
        with self.lock:
            self._power_on()
            self._set_a20(True)
            for device in self._devices.values():
                if device is not None:
                    self.lock.after(device.reset)
            self._update_lines()

    @property
    def keyboard(self) -> Ps2Device | None:
        """The keyboard that is plugged in."""
        return self._devices["keyboard"]

    @property
    def aux(self) -> Ps2Device | None:
        """The mouse that is plugged in."""
        return self._devices["aux"]

    # towards the guest

    def _on_data(self) -> None:
        self.lock.after(self._pull)

    def _fill(self) -> None:
        """Put the next byte into the output buffer, if that is empty, and ask the devices where there is none."""
        self._place()
        if not self._status & OUTPUT_FULL:
            self.lock.after(self._pull)

    def _place(self) -> None:
        """Put the next byte of those that are here into the output buffer: the controller's own first."""
        if not self._status & OUTPUT_FULL:
            if self._reply is not None:
                reply, self._reply = self._reply, None
                self._put(reply & 0xFF, reply >> 8)
            else:
                for at, (_, off, flags) in enumerate(SENDERS):
                    value = self._held[at]
                    if value is not None and not self._memory[0] & off:
                        self._held[at] = None
                        self._put(value, flags)
                        break
        self._update_lines()

    def _put(self, value: int, flags: int) -> None:
        self._output = value
        self._status = self._status & ~(AUX_DATA | TIMEOUT) | OUTPUT_FULL | flags

    def _pull(self) -> None:
        """Fetch bytes of what is plugged in, the keyboard's first, until there is one that the guest gets."""
        for at, (name, off, _) in enumerate(SENDERS):
            device = self._devices[name]
            while device is not None and self._has_room(at, off):
                value = device.send()
                if value is None:
                    break
                with self.lock:
                    self._take(at, value & 0xFF)

    def _has_room(self, at: int, off: int) -> bool:
        with self.lock:
            return not (self._status & OUTPUT_FULL or self._memory[0] & off) and self._held[at] is None

    def _take(self, at: int, value: int) -> None:
        """Take what a device sent; of the keyboard, translated, a code that follows 0xf0 becomes one with bit 7."""
        if not at and self._memory[0] & TRANSLATE:
            if value == BREAK:
                self._break = True
                return
            released, self._break = self._break, False
            value = to_set_1(value) | (0x80 if released else 0)
        self._held[at] = value
        self._place()

    def _update_lines(self) -> None:
        full, command = self._status & OUTPUT_FULL, self._memory[0]
        for flag, line in self._lines:
            enable = AUX_INTERRUPT if flag else KEYBOARD_INTERRUPT
            line.set(bool(full and command & enable and self._status & AUX_DATA == flag))

    def _answer(self, value: int, flags: int = 0) -> None:
        self._reply = flags << 8 | value

    def _read(self, offset: int) -> int:
        if offset == COMMAND_OFFSET:
            return self._status | self._memory[0] & SYSTEM
        if offset != DATA_OFFSET:
            return 0
        value = self._output  # of an empty buffer, what was in it last
        self._status &= ~OUTPUT_FULL
        self._update_lines()
        self._fill()
        return value

    # from the guest

    def _write(self, offset: int, value: int) -> None:
        if offset == COMMAND_OFFSET:
            self._status |= LAST_WAS_COMMAND
            self._expected = 0
            self._command(value)
        elif offset == DATA_OFFSET:
            self._status &= ~LAST_WAS_COMMAND
            expected, self._expected = self._expected, 0
            self._data(expected, value)
        else:
            return
        self._fill()

    def _command(self, command: int) -> None:
        if command >= PULSE:
            if not command & NOT_RESET:
                self.lock.after(self._reset)
        elif READ_MEMORY <= command < READ_MEMORY + 32:
            self._answer(self._memory[command - READ_MEMORY])
        elif WRITE_MEMORY <= command < WRITE_MEMORY + 32 or WRITE_OUTPUT <= command <= TO_AUX:
            self._expected = command
        elif command in SWITCHES:
            clear, set_ = SWITCHES[command]
            self._memory[0] = self._memory[0] & ~clear | set_
        elif command in (AUX_TEST, KEYBOARD_TEST):
            self._answer(TEST_PASSED)
        elif command == SELF_TEST:
            self._memory[0] |= SYSTEM
            self._answer(SELF_TEST_PASSED)
        elif command == READ_INPUT:
            self._answer(INPUT_PORT)
        elif command == READ_OUTPUT:
            self._answer(self._output_port())

    def _output_port(self) -> int:
        value = OUTPUT_ONES | NOT_RESET | (A20 if self._a20 else 0)
        if self._status & OUTPUT_FULL:
            value |= OUTPUT_AUX if self._status & AUX_DATA else OUTPUT_KEYBOARD
        return value

    def _data(self, command: int, value: int) -> None:
        if command == WRITE_OUTPUT:
            self._set_a20(bool(value & A20))
            if not value & NOT_RESET:
                self.lock.after(self._reset)
        elif command == FROM_KEYBOARD:
            self._answer(value)
        elif command == FROM_AUX:
            self._answer(value, AUX_DATA)
        elif command == TO_AUX:
            self._send_to("aux", value, AUX_OFF, AUX_DATA)
        elif command:
            self._memory[command - WRITE_MEMORY] = value
        else:
            self._send_to("keyboard", value, KEYBOARD_OFF, 0)

    def _send_to(self, name: str, value: int, off: int, flags: int) -> None:
        self._memory[0] &= ~off  # "writing to the device enables its interface"
        device = self._devices[name]
        if device is None:
            self._answer(RESEND, TIMEOUT | flags)
        else:
            self.lock.after(device.receive, value)

    def _set_a20(self, level: bool) -> None:
        if level is not self._a20:
            self._a20 = level
            if self._on_a20 is not None:
                self.lock.after(self._on_a20, level)

    # state

    def state(self) -> dict[str, Any]:
        """Return everything the guest could notice, of what is plugged in as well."""
        states = [None if device is None else device.state() for device in self._devices.values()]
        with self.lock:
            self._keyboard, self._aux = states
            return super().state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what a state says, with what is plugged in; raises as `Stateful.restore`."""
        super().restore(state)
        for name, device in self._devices.items():
            if device is not None:
                device.restore(state[name])
        self.lock.after(self._pull)

    def _check_fields(self, fields: dict[str, Any]) -> None:
        for name, device in self._devices.items():
            if device is not None:
                device.check_state(fields[name])
            elif fields[name] is not None:
                raise DeviceStateError(type(self).__name__, f"{name}: there is none plugged in")

    def _after_restore(self) -> None:
        if self._on_a20 is not None:
            self.lock.after(self._on_a20, self._a20)
        for _, line in self._lines:
            line.forget()
        self._update_lines()

    def __repr__(self) -> str:
        plugged = ", ".join(repr(device) for device in self._devices.values() if device is not None)
        return f"<I8042 keyboard controller{', ' + plugged if plugged else ''}>"


SWITCHES = {
    AUX_DISABLE: (0, AUX_OFF),
    AUX_ENABLE: (AUX_OFF, 0),
    KEYBOARD_DISABLE: (0, KEYBOARD_OFF),
    KEYBOARD_ENABLE: (KEYBOARD_OFF, 0),
}
"""What commands do to the command byte: the bits they clear, and those they set."""
SENDERS = (("keyboard", KEYBOARD_OFF, 0), ("aux", AUX_OFF, AUX_DATA))
"""Who sends, by what bit of the command byte it is off, and what the status says of its bytes."""
