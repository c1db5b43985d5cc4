r"""A device made of registers, declared one per line: the short way to a new device.

>>> import random
>>> class Dice(RegisterDevice):
...     sides = Register(0x00, reset=6, writable=0xFF)
...     roll = Register(0x04, writable=0)
...
...     @roll.on_read
...     def _(self) -> int:
...         return random.randint(1, max(1, self.sides))
>>> dice, answer = Dice(), memoryview(bytearray(4))
>>> dice.write(0x00, memoryview(b"\x01"))
>>> dice.read(0x04, answer)
>>> answer[0], dice
(1, <Dice sides=0x1 roll=0x0>)
"""

from __future__ import annotations

from pyvmm_device.locks import DeferringLock
from pyvmm_device.state import Stateful, uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, TypeVar, overload

    Method = TypeVar("Method", bound=Callable[..., Any])


class Register:
    """One register of a `RegisterDevice`; in the device it is an attribute that reads and writes the stored value.

    Args:
        offset: from the base of the device, in bytes.
        size: in bytes, 1 to 8.
        reset: the value after a reset.
        writable: the bits that a guest's write changes; the others keep their value.
        clears: the bits that a guest clears by writing a one to them.
    """

    def __init__(
        self, offset: int, size: int = 4, *, reset: int = 0, writable: int | None = None, clears: int = 0
    ) -> None:
        self.offset = offset
        self.size = size
        self.mask = (1 << 8 * size) - 1
        self.reset = reset & self.mask
        self.writable = (self.mask if writable is None else writable & self.mask) & ~clears
        self.clears = clears & self.mask
        self.name = ""
        self._read: Callable[[Any], int] | None = None
        self._write: Callable[[Any, int], object] | None = None

    def __set_name__(self, owner: type[object], name: str) -> None:
        if self.name:
            return
        self.name = name
        self._slot = f"_{name}"

    def on_read(self, method: Method) -> Method:
        """Decorate a method that returns what the guest reads."""
        self._read = method
        return method

    def on_write(self, method: Method) -> Method:
        """Decorate a method that is called with the value the guest wrote, after it was stored."""
        self._write = method
        return method

    if TYPE_CHECKING:

        @overload
        def __get__(self, device: None, owner: type[object]) -> Register: ...
        @overload
        def __get__(self, device: object, owner: type[object]) -> int: ...

    def __get__(self, device: object | None, owner: type[object]) -> Register | int:
        return self if device is None else int(device.__dict__[self._slot])

    def __set__(self, device: object, value: int) -> None:
        device.__dict__[self._slot] = value & self.mask

    def guest_read(self, device: object) -> int:
        """Return what the guest reads."""
        value: int = self._read(device) if self._read is not None else device.__dict__[self._slot]
        return value & self.mask

    def guest_write(self, device: object, value: int) -> None:
        """Take what the guest wrote."""
        old = device.__dict__[self._slot]
        device.__dict__[self._slot] = (old & ~self.writable | value & self.writable) & ~(value & self.clears)
        if self._write is not None:
            self._write(device, value)

    def __repr__(self) -> str:
        return f"<Register {self.name} at {self.offset:#x}, {self.size} bytes>"


class RegisterDevice(Stateful):
    """A device whose attributes of type `Register` are its registers.

    An access may have any length and alignment: a narrow write changes the bytes it covers, a wide one goes to every
    register it touches, lowest first; between registers there are zeros. One lock is held during each access, so
    methods may be written as if there were one vCPU. What they have to tell others (a line, a callback, a timer, a
    file) they put in by ``self.lock.after(function, ...)``, to be called when the lock has been released. The state is
    the value of every register, and more if a class adds to ``STATE``.

    Attributes:
        lock: held during each access; whoever changes registers besides takes it too.
    """

    REGISTERS: ClassVar[tuple[Register, ...]] = ()

    def __init_subclass__(cls, **arguments: Any) -> None:  # noqa: ANN401 - whatever other bases take
        super().__init_subclass__(**arguments)
        own = [value for value in vars(cls).values() if isinstance(value, Register)]
        for register in own:
            if hasattr(RegisterDevice, register.name):
                raise TypeError(f"{cls.__name__}: every device has a {register.name!r}: call the register otherwise")
        cls.REGISTERS = tuple(sorted([*cls.REGISTERS, *own], key=lambda register: register.offset))
        for one, other in zip(cls.REGISTERS, cls.REGISTERS[1:], strict=False):
            if one.offset + one.size > other.offset:
                raise TypeError(f"{cls.__name__}: {other!r} overlaps {one!r}")
        cls.STATE = {**cls.STATE, **{register.name: uint(8 * register.size) for register in own}}
        cls._BY_OFFSET = {register.offset: register for register in cls.REGISTERS}

    _BY_OFFSET: ClassVar[dict[int, Register]] = {}

    def __init__(self) -> None:
        self.lock: DeferringLock = DeferringLock()
        for register in self.REGISTERS:
            register.__set__(self, register.reset)

    def reset(self) -> None:
        """Give every register its first value."""
        with self.lock:
            for register in self.REGISTERS:
                register.__set__(self, register.reset)

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read registers."""
        length = len(buffer)
        register = self._BY_OFFSET.get(offset)
        with self.lock:
            if register is not None and length <= register.size:
                value = register.guest_read(self)
                buffer[:] = (value & (1 << 8 * length) - 1).to_bytes(length, "little")
                return
            answer = bytearray(length)
            for register in self._touched(offset, length):
                value_bytes = register.guest_read(self).to_bytes(register.size, "little")
                first = max(offset, register.offset)
                beyond = min(offset + length, register.offset + register.size)
                answer[first - offset : beyond - offset] = value_bytes[
                    first - register.offset : beyond - register.offset
                ]
        buffer[:] = answer

    def write(self, offset: int, data: memoryview) -> None:
        """Write registers."""
        data = memoryview(bytes(data))
        with self.lock:
            for register in self._touched(offset, len(data)):
                first = max(offset, register.offset)
                beyond = min(offset + len(data), register.offset + register.size)
                shift = 8 * (first - register.offset)
                value = int.from_bytes(data[first - offset : beyond - offset], "little") << shift
                if beyond - first < register.size:
                    # bits that are cleared by ones are not written where the guest did not write
                    covered = ((1 << 8 * (beyond - first)) - 1) << shift
                    value |= register.__get__(self, type(self)) & ~covered & ~register.clears
                register.guest_write(self, value)

    def _touched(self, offset: int, length: int) -> list[Register]:
        end = offset + length
        return [one for one in self.REGISTERS if one.offset < end and offset < one.offset + one.size]

    def __repr__(self) -> str:
        values = " ".join(f"{one.name.strip('_')}={one.__get__(self, type(self)):#x}" for one in self.REGISTERS)
        return f"<{type(self).__name__} {values}>"
