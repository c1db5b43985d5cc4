"""Arithmetic, comparison, assignment, and what acts at once.

A `target` is where the result goes as well; None throws it away, which suits an expression inside another one.
Source: ACPI 6.5, 20.2.5.3 and 20.2.5.4.
"""

from __future__ import annotations

from pyvmm_loader.acpi.aml.data import Buffer, Integer, Package, String
from pyvmm_loader.acpi.aml.path import name_string
from pyvmm_loader.acpi.aml.term import AmlError, Term, aml, raw_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

EXT = b"\x5b"
NOWHERE = b"\0"
MAX_STALL = 255


def _target(target: Term | None) -> bytes:
    if isinstance(target, (Integer, String, Buffer, Package)):
        raise AmlError(f"{target!r} is a constant, into which nothing can be stored; give a name or a Local")
    return NOWHERE if target is None else bytes(target)


class _Binary(Term):
    __slots__ = ()
    OPCODE: ClassVar[bytes] = b""

    def __init__(
        self, first: Term | int | str | bytes, second: Term | int | str | bytes, target: Term | None = None
    ) -> None:
        super().__init__(self.OPCODE + aml(first) + aml(second) + _target(target))


class _Comparison(Term):
    __slots__ = ()
    OPCODE: ClassVar[bytes] = b""

    def __init__(self, first: Term | int | str | bytes, second: Term | int | str | bytes) -> None:
        super().__init__(self.OPCODE + aml(first) + aml(second))


class _Unary(Term):
    __slots__ = ()
    OPCODE: ClassVar[bytes] = b""

    def __init__(self, operand: Term | int | str | bytes) -> None:
        super().__init__(self.OPCODE + aml(operand))


class _Conversion(Term):
    __slots__ = ()
    OPCODE: ClassVar[bytes] = b""

    def __init__(self, operand: Term | int | str | bytes, target: Term | None = None) -> None:
        super().__init__(self.OPCODE + aml(operand) + _target(target))


class Add(_Binary):
    """The sum."""

    __slots__ = ()
    OPCODE = b"\x72"


class Subtract(_Binary):
    """The difference."""

    __slots__ = ()
    OPCODE = b"\x74"


class Multiply(_Binary):
    """The product."""

    __slots__ = ()
    OPCODE = b"\x77"


class ShiftLeft(_Binary):
    """The first shifted left by the second."""

    __slots__ = ()
    OPCODE = b"\x79"


class ShiftRight(_Binary):
    """The first shifted right by the second."""

    __slots__ = ()
    OPCODE = b"\x7a"


class And(_Binary):
    """The bits in both."""

    __slots__ = ()
    OPCODE = b"\x7b"


class Or(_Binary):
    """The bits in either."""

    __slots__ = ()
    OPCODE = b"\x7d"


class Xor(_Binary):
    """The bits in one of them."""

    __slots__ = ()
    OPCODE = b"\x7f"


class Mod(_Binary):
    """The remainder."""

    __slots__ = ()
    OPCODE = b"\x85"


class Concatenate(_Binary):
    """Both, one behind the other."""

    __slots__ = ()
    OPCODE = b"\x73"


class Index(_Binary):
    """A reference to an element of a buffer, package or string."""

    __slots__ = ()
    OPCODE = b"\x88"


class LAnd(_Comparison):
    """Whether both are true."""

    __slots__ = ()
    OPCODE = b"\x90"


class LOr(_Comparison):
    """Whether either is true."""

    __slots__ = ()
    OPCODE = b"\x91"


class Equal(_Comparison):
    """Whether equal."""

    __slots__ = ()
    OPCODE = b"\x93"


class Greater(_Comparison):
    """Whether the first is greater."""

    __slots__ = ()
    OPCODE = b"\x94"


class Less(_Comparison):
    """Whether the first is less."""

    __slots__ = ()
    OPCODE = b"\x95"


class NotEqual(_Comparison):
    """Whether not equal."""

    __slots__ = ()
    OPCODE = b"\x92\x93"


class GreaterEqual(_Comparison):
    """Whether the first is not less."""

    __slots__ = ()
    OPCODE = b"\x92\x95"


class LessEqual(_Comparison):
    """Whether the first is not greater."""

    __slots__ = ()
    OPCODE = b"\x92\x94"


class RefOf(_Unary):
    """A reference to an object."""

    __slots__ = ()
    OPCODE = b"\x71"


class DerefOf(_Unary):
    """What a reference refers to."""

    __slots__ = ()
    OPCODE = b"\x83"


class SizeOf(_Unary):
    """The size of a buffer, package or string."""

    __slots__ = ()
    OPCODE = b"\x87"


class Increment(_Unary):
    """One more, in place."""

    __slots__ = ()
    OPCODE = b"\x75"


class Decrement(_Unary):
    """One less, in place."""

    __slots__ = ()
    OPCODE = b"\x76"


class LNot(_Unary):
    """Whether it is zero."""

    __slots__ = ()
    OPCODE = b"\x92"


class ToInteger(_Conversion):
    """As an integer."""

    __slots__ = ()
    OPCODE = b"\x99"


class ToBuffer(_Conversion):
    """As a buffer."""

    __slots__ = ()
    OPCODE = b"\x96"


class ToHexString(_Conversion):
    """As a string of hexadecimal numbers."""

    __slots__ = ()
    OPCODE = b"\x98"


class Divide(Term):
    """The quotient, which goes to `target`; the remainder goes to `remainder`."""

    __slots__ = ()

    def __init__(
        self, first: Term | int, second: Term | int, remainder: Term | None = None, target: Term | None = None
    ) -> None:
        super().__init__(b"\x78" + aml(first) + aml(second) + _target(remainder) + _target(target))


class Store(Term):
    """`Store (value, target)`."""

    __slots__ = ()

    def __init__(self, value: Term | int | str | bytes, target: Term) -> None:
        super().__init__(b"\x70" + aml(value) + _target(target))


class CondRefOf(Term):
    """Whether an object exists; if so, `target` becomes a reference to it."""

    __slots__ = ()

    def __init__(self, source: Term, target: Term | None = None) -> None:
        super().__init__(EXT + b"\x12" + bytes(source) + _target(target))


class Notify(Term):
    """`Notify (object, value)`: tells the operating system. ACPI 5.6.6 lists the values."""

    __slots__ = ()

    def __init__(self, target: Term, value: Term | int) -> None:
        super().__init__(b"\x86" + bytes(target) + aml(value))


class Acquire(Term):
    """Take a mutex; the value is true when it was not to be had in `timeout` milliseconds (0xFFFF waits for ever)."""

    __slots__ = ()

    def __init__(self, mutex: str, timeout: int = 0xFFFF) -> None:
        super().__init__(EXT + b"\x23" + name_string(mutex) + raw_number(timeout, 2, "timeout"))


class Release(Term):
    """Give a mutex back."""

    __slots__ = ()

    def __init__(self, mutex: str) -> None:
        super().__init__(EXT + b"\x27" + name_string(mutex))


class Sleep(Term):
    """Wait for so many milliseconds."""

    __slots__ = ()

    def __init__(self, milliseconds: Term | int) -> None:
        super().__init__(EXT + b"\x22" + aml(milliseconds))


class Stall(Term):
    """Wait for so many microseconds, at most 255, without giving up the processor."""

    __slots__ = ()

    def __init__(self, microseconds: Term | int) -> None:
        if isinstance(microseconds, int) and microseconds > MAX_STALL:
            raise AmlError(f"Stall ({microseconds}): at most {MAX_STALL}; use Sleep", value=microseconds)
        super().__init__(EXT + b"\x21" + aml(microseconds))
