"""A PS/2 keyboard: what a driver asks of one, and keys that its owner presses.

Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboard (101- and 102-Key)".
"""

from __future__ import annotations

from pyvmm_device.locks import DeferringLock
from pyvmm_device.state import FLAG, Stateful, array, choice, number, uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SET_LEDS, ECHO, SCAN_CODE_SET, IDENTIFY, SET_RATE, ENABLE, DISABLE, DEFAULTS, RESEND, RESET = (
    *(0xED, 0xEE, 0xF0, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xFE, 0xFF),
)
ACKNOWLEDGE, TEST_PASSED = 0xFA, 0xAA
IDENTITY = (0xAB, 0x83)
BUFFER = 16
"""Bytes of keys that wait to be sent."""
FIRST_COMMAND = SET_LEDS
"""Whatever is not less is a command, even where an argument is expected."""


class Ps2Keyboard(Stateful):
    r"""A keyboard to plug into an `I8042`.

    >>> from pyvmm_device import I8042
    >>> keyboard = Ps2Keyboard()
    >>> controller = I8042(print, keyboard=keyboard)
    >>> keyboard.press(b"\x1c")  # A, in scan code set 2
    True
    >>> buffer = memoryview(bytearray(1))
    >>> controller.read(0, buffer)
    >>> hex(buffer[0])  # and as the controller translates it
    '0x1e'

    Attributes:
        on_leds: called with the LEDs (bit 0 scroll lock, 1 num lock, 2 caps lock) when the guest sets them.
    """

    STATE = {
        "replies": array(uint(8), 4),
        "keys": array(uint(8), BUFFER),
        "scanning": FLAG,
        "leds": uint(3),
        "rate": uint(7),
        "scan_code_set": number(1, 3),
        "expected": choice(0, SET_LEDS, SCAN_CODE_SET, SET_RATE),
        "last": uint(8),
    }

    def __init__(self) -> None:
        self.lock: DeferringLock = DeferringLock()
        self._on_data: Callable[[], object] | None = None
        self.on_leds: Callable[[int], object] | None = None
        self._power_on()

    def _power_on(self) -> None:
        self._replies: list[int] = []
        self._leds = 0
        self._expected = 0
        self._last = 0
        self._set_defaults()

    def _set_defaults(self) -> None:
        self._keys: list[int] = []
        self._scanning = True
        self._rate = 0x2B  # 10.9 characters a second after 500 ms
        self._scan_code_set = 2

    def reset(self) -> None:
        """Be as after power-on; nothing is sent of it."""
        with self.lock:
            self._power_on()

    # the owner's side

    @property
    def leds(self) -> int:
        """Bit 0 scroll lock, 1 num lock, 2 caps lock."""
        return self._leds

    @property
    def scan_code_set(self) -> int:
        """The set that the guest asked for: 1 to 3, which `press` has to follow; 2 unless it did."""
        return self._scan_code_set

    def press(self, scancodes: bytes) -> bool:
        """Send what a key sends: 0x1c when A goes down, 0xf0 0x1c when it goes up again.

        Returns:
            Whether all of it will reach the guest; if not, nothing does: it has disabled the keyboard, or its buffer
            of 16 bytes is too full.
        """
        with self.lock:
            if not self._scanning or len(self._keys) + len(scancodes) > BUFFER:
                return False
            self._keys += scancodes
            if self._on_data is not None:
                self.lock.after(self._on_data)
        return True

    # the controller's side

    def connect(self, on_data: Callable[[], object]) -> None:
        """Say whom to call when there is something to send."""
        with self.lock:
            self._on_data = on_data

    def send(self) -> int | None:
        """Give the next byte, or None; replies come before keys."""
        with self.lock:
            waiting = self._replies or self._keys
            if not waiting:
                return None
            self._last = waiting.pop(0)
            return self._last

    def receive(self, value: int) -> None:
        """Take a command or its argument. What was not yet sent of an earlier reply is not any more."""
        with self.lock:
            expected, self._expected = self._expected, 0
            if expected and value < FIRST_COMMAND:
                self._replies = [ACKNOWLEDGE]
                self._take_argument(expected, value)
            else:
                self._replies = list(self._command(value))

    def _command(self, command: int) -> tuple[int, ...]:
        """Do what a command says, and return the reply."""
        if command in (SET_LEDS, SCAN_CODE_SET, SET_RATE):
            self._expected = command
        elif command == ENABLE:
            self._scanning = True
        elif command in (DEFAULTS, DISABLE):
            self._set_defaults()
            self._scanning = command == DEFAULTS
        elif command == RESET:
            self._power_on()
            return ACKNOWLEDGE, TEST_PASSED
        elif command == IDENTIFY:
            return ACKNOWLEDGE, *IDENTITY
        elif command == ECHO:
            return (ECHO,)
        elif command == RESEND:
            return (self._last,)
        else:
            return (RESEND,)
        return (ACKNOWLEDGE,)

    def _take_argument(self, command: int, value: int) -> None:
        if command == SET_LEDS:
            self._leds = value & 7
            if self.on_leds is not None:
                self.lock.after(self.on_leds, self._leds)
        elif command == SET_RATE:
            self._rate = value & 0x7F
        elif value == 0:
            self._replies.append(self._scan_code_set)
        elif value <= 3:
            self._scan_code_set = value
        else:
            self._replies = [RESEND]

    def __repr__(self) -> str:
        return f"<Ps2Keyboard {'on' if self._scanning else 'off'}, {len(self._keys)} bytes wait>"
