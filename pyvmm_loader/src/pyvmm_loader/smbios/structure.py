"""One SMBIOS structure: a formatted part, and the strings that it refers to by number.

Source: DSP0134, 6.1.2 and 6.1.3.
"""

from __future__ import annotations

from pyvmm_loader.errors import InvalidHeader
from pyvmm_loader.fields import pack

MAX_STRINGS = 0xFF
NO_HANDLE = 0xFFFF


def is_text(text: str) -> bool:
    """Say whether a string can be one: an empty one would be the end of the structure."""
    return bool(text) and "\0" not in text and text.encode("utf-8", "replace").decode("utf-8") == text


class Structure:
    """`type`, `handle`, the `formatted` bytes behind the header of four, and its `strings`."""

    __slots__ = ("formatted", "handle", "strings", "type")

    def __init__(self, type: int, handle: int, formatted: bytes = b"", strings: tuple[str, ...] = ()) -> None:  # noqa: A002 - the field's name
        if any(not is_text(text) for text in strings) or len(strings) > MAX_STRINGS:
            raise InvalidHeader(
                f"structure {type}: its strings are at most {MAX_STRINGS}, none empty or with a NUL", field="string"
            )
        pack("<BBH", type, 4 + len(formatted), handle)  # what does not fit is refused here, where the caller is known
        self.type = type
        self.handle = handle
        self.formatted = formatted
        self.strings = strings

    def string(self, number: int) -> str:
        """Return a string by its number, which counts from 1; 0 means none, and so does one that is not there."""
        return self.strings[number - 1] if 1 <= number <= len(self.strings) else ""

    def __bytes__(self) -> bytes:
        texts = b"".join([text.encode("utf-8") + b"\0" for text in self.strings]) or b"\0"
        return pack("<BBH", self.type, 4 + len(self.formatted), self.handle) + self.formatted + texts + b"\0"

    def __repr__(self) -> str:
        return f"<Structure type {self.type} handle {self.handle:#x} {' / '.join(self.strings)}>"


class Strings:
    """Numbers strings as the formatted part needs them.

    >>> strings = Strings()
    >>> strings("pyvmm"), strings(""), strings("x"), strings("pyvmm")
    (1, 0, 2, 1)
    """

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, text: str) -> int:
        """Return the number of a string, 0 for an empty one."""
        if not text:
            return 0
        if not is_text(text) or len(self.texts) >= MAX_STRINGS:
            raise InvalidHeader(
                f"{text!r:.80} is no SMBIOS string: no NUL in it, at most {MAX_STRINGS} of them", field="string"
            )
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1
