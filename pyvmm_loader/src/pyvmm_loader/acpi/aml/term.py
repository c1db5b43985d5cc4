"""What every part of AML is: a thing with bytes."""

from __future__ import annotations

from pyvmm_loader.errors import LoaderError

MAX_PACKAGE = (1 << 28) - 1
IF, ELSE = b"\xa0", b"\xa1"


class AmlError(LoaderError, ValueError):
    """Something that AML cannot say: a bad name, a number too large, a package too long."""


class Term:
    """A piece of AML; `bytes(term)` encodes it."""

    __slots__ = ("_bytes",)

    declares: tuple[str, ...] = ()
    """The names that it puts into the place where it stands."""
    inside: tuple[Term, ...] = ()
    """The terms in it, which are a place of their own if it has a name."""
    loops: bool = False
    """Whether it may stand in a `While` only."""

    def __init__(self, encoded: bytes) -> None:
        self._bytes = encoded

    def __bytes__(self) -> bytes:
        return self._bytes

    def __len__(self) -> int:
        return len(self._bytes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Term) and bytes(self) == bytes(other)

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._bytes)} bytes of AML>"


def aml(value: Term | int | str | bytes) -> bytes:
    """Return the AML of a term, or of a constant given as Python has it."""
    if isinstance(value, Term):
        return bytes(value)
    from pyvmm_loader.acpi.aml.data import Buffer, Integer, String

    if isinstance(value, int):
        return bytes(Integer(value))
    if isinstance(value, str):
        return bytes(String(value))
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise AmlError(f"{value!r:.80} is nothing that AML has; give a term, an int, a str or bytes", value=value)
    return bytes(Buffer(value))


def raw_number(value: int, size: int, what: str) -> bytes:
    """Encode a number that is no term, of `size` bytes; `what` it is, for the error."""
    if not 0 <= value < 1 << 8 * size:
        raise AmlError(f"{what} {value}: give 0 to {(1 << 8 * size) - 1:#x}", value=value)
    return value.to_bytes(size, "little")


def package_length(size: int) -> bytes:
    """Encode PkgLength for `size` bytes that follow it; the length counts itself. ACPI 20.2.4.

    >>> package_length(62).hex(), package_length(63).hex()
    ('3f', '4104')
    """
    for extra in range(4):
        total = size + 1 + extra
        if total < (0x40 if not extra else 1 << 4 + 8 * extra):
            return bare_length(total, extra)
    raise AmlError(f"a package of {size} bytes: AML can say {MAX_PACKAGE} at most", size=size)


def bare_length(value: int, extra: int | None = None) -> bytes:
    """Encode a number the way PkgLength does; in field lists it counts bits, and not itself."""
    if extra is None:
        extra = next((n for n in range(4) if value < (0x40 if not n else 1 << 4 + 8 * n)), 4)
    if not 0 <= value <= MAX_PACKAGE:
        raise AmlError(f"a length of {value}: AML can say 0 to {MAX_PACKAGE}", size=value)
    if not extra:
        return bytes([value])
    return bytes([extra << 6 | value & 0xF]) + (value >> 4).to_bytes(extra, "little")


def package(opcode: bytes, body: bytes) -> bytes:
    """Return an opcode whose contents are preceded by their length."""
    return opcode + package_length(len(body)) + body


def body_of(terms: tuple[Term | int | str | bytes, ...]) -> bytes:
    """Return a list of terms, one behind the other; raises AmlError for an `Else` that follows no `If`."""
    parts = [aml(term) for term in terms]
    joined = b"".join(parts)
    if ELSE in joined:
        for before, part in zip((b"", *parts), parts, strict=False):
            if part.startswith(ELSE) and not before.startswith(IF):
                raise AmlError("an Else that follows no If; put it behind one")
    return joined
