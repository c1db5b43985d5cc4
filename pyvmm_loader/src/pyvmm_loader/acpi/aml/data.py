"""Constants: integers, strings, buffers, packages, and the two identifiers that are written as text.

Source: ACPI 6.5, 20.2.3 and 20.2.5.
"""

from __future__ import annotations

from pyvmm_loader.acpi.aml.term import AmlError, Term, aml, body_of, package
from pyvmm_loader.guid import guid_bytes

ONES = (1 << 64) - 1
SIZES = ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8))
HEXADECIMAL = frozenset("0123456789ABCDEF")


class Integer(Term):
    """An unsigned number of up to 64 bits, in the shortest form.

    >>> bytes(Integer(0)).hex(), bytes(Integer(0x12)).hex(), bytes(Integer(2**64 - 1)).hex()
    ('00', '0a12', 'ff')
    """

    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        if not 0 <= value <= ONES:
            raise AmlError(f"{value}: an ACPI integer is 0 to 2**64 - 1", value=value)
        self.value = value
        if value in (0, 1):
            encoded = bytes([value])
        elif value == ONES:
            encoded = b"\xff"
        else:
            prefix, size = next((prefix, size) for prefix, size in SIZES if value < 1 << 8 * size)
            encoded = bytes([prefix]) + value.to_bytes(size, "little")
        super().__init__(encoded)


class String(Term):
    """Text in ASCII."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        if not text.isascii() or "\0" in text:
            raise AmlError(f"string {text!r}: ACPI strings are ASCII without NUL", text=text)
        self.text = text
        super().__init__(b"\x0d" + text.encode("ascii") + b"\0")


class Buffer(Term):
    """Bytes, of the length given or of their own; what is not given is zero."""

    __slots__ = ()

    def __init__(self, data: bytes = b"", size: int | None = None) -> None:
        length = len(data) if size is None else size
        if length < len(data):
            raise AmlError(f"a buffer of {length} bytes for {len(data)}; make it longer", size=length)
        super().__init__(package(b"\x11", aml(length) + data))


class Package(Term):
    """A list of constants and references."""

    __slots__ = ()

    def __init__(self, *elements: Term | int | str | bytes) -> None:
        # Beyond 255 elements the count becomes a term: VarPackageOp.
        count = bytes([len(elements)]) if len(elements) < 256 else aml(len(elements))
        opcode = b"\x12" if len(elements) < 256 else b"\x13"
        super().__init__(package(opcode, count + body_of(elements)))


class EisaId(Integer):
    """A plug-and-play identifier such as PNP0A08, as the integer that stands for it.

    >>> hex(EisaId("PNP0501").value)
    '0x105d041'
    """

    __slots__ = ()

    def __init__(self, text: str) -> None:
        letters, digits = text[:3], text[3:]
        if len(text) != 7 or not all("A" <= letter <= "Z" for letter in letters) or not HEXADECIMAL.issuperset(digits):
            raise AmlError(f"{text!r} is no EISA id: use three letters and four upper-case hex digits", text=text)
        packed = 0
        for letter in letters:
            packed = packed << 5 | ord(letter) - 0x40
        super().__init__(int.from_bytes((packed << 16 | int(digits, 16)).to_bytes(4, "big"), "little"))


class ToUuid(Buffer):
    """A UUID as the buffer of 16 bytes that stands for it; the first three groups are little-endian."""

    __slots__ = ()

    def __init__(self, text: str) -> None:
        super().__init__(guid_bytes(text))
