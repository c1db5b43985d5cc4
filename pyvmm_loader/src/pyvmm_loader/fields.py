"""`struct.pack` for tables that users describe: a number that does not fit is their error, and typed."""

from __future__ import annotations

import struct

from pyvmm_loader.errors import FieldRange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

BITS = {"B": 8, "H": 16, "I": 32, "Q": 64}


def pack(form: str, *values: int | bytes) -> bytes:
    """Return the fields. Raises FieldRange for the first number that its field cannot hold.

    >>> pack("<HB", 0x1234, 5).hex()
    '341205'
    >>> pack("<HB", 0x1234, 256)
    Traceback (most recent call last):
        ...
    pyvmm_loader.errors.FieldRange: 256 does not fit its field of 8 bits; give 0 to 0xff
    """
    try:
        packed = struct.pack(form, *values)
        if "s" in form:
            _no_longer(form, values)
        return packed
    except struct.error as error:
        for code, value in zip(_codes(form), values, strict=True):
            bits = BITS.get(code, 0)
            if bits and isinstance(value, int) and not 0 <= value < 1 << bits:
                raise FieldRange(
                    f"{value} does not fit its field of {bits} bits; give 0 to {(1 << bits) - 1:#x}",
                    value=value,
                    bits=bits,
                ) from error
        raise


def _no_longer(form: str, values: tuple[int | bytes, ...]) -> None:
    """Raise FieldRange for text that struct would cut off."""
    sizes = [struct.calcsize(f"<{count}s") for count in _texts(form)]
    texts = [value for code, value in zip(_codes(form), values, strict=True) if code == "s"]
    for size, text in zip(sizes, texts, strict=True):
        if isinstance(text, bytes) and len(text) > size:
            raise FieldRange(f"{text!r:.40} does not fit its field of {size} bytes", value=text, bits=8 * size)


def _texts(form: str) -> Iterator[str]:
    """Yield the size of each text that a format takes."""
    count = ""
    for character in form:
        if character == "s":
            yield count or "1"
        count = count + character if character.isdigit() else ""


def _codes(form: str) -> Iterator[str]:
    """Yield the code of each value that a format takes."""
    count = ""
    for character in form.lstrip("<>"):
        if character.isdigit():
            count += character
            continue
        if character == "s":
            yield character
        elif character != "x":
            yield from character * int(count or 1)
        count = ""
