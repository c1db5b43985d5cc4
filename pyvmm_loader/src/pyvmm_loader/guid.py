"""UUIDs in the byte order of ACPI and SMBIOS: the first three groups are little-endian."""

from __future__ import annotations

from pyvmm_loader.errors import LoaderError

HEXADECIMAL = frozenset("0123456789abcdefABCDEF")


class GuidError(LoaderError, ValueError):
    """Text that is no UUID (`text`)."""


def guid_bytes(text: str) -> bytes:
    """Return the 16 bytes of a UUID.

    >>> guid_bytes("00112233-4455-6677-8899-aabbccddeeff").hex()
    '33221100554477668899aabbccddeeff'
    """
    groups = text.split("-")
    digits = "".join(groups)
    if [len(group) for group in groups] != [8, 4, 4, 4, 12] or not HEXADECIMAL.issuperset(digits):
        raise GuidError(f"{text!r} is no UUID: use 8-4-4-4-12 hex digits", text=text)
    raw = bytes.fromhex(digits)
    return raw[3::-1] + raw[5:3:-1] + raw[7:5:-1] + raw[8:]
