"""The checksum that PC firmware tables share: all bytes of a table add up to zero."""

from __future__ import annotations


def checksum(block: bytes | bytearray) -> int:
    """Return the byte that makes the sum of all bytes zero; 0 where it is zero already.

    >>> checksum(bytes([0xFF, 2]))
    255
    """
    return -sum(block) & 0xFF
