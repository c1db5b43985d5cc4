"""Multiboot 1: the header that a kernel carries.

Source: Multiboot Specification version 0.6.96, section 3.1.
"""

from __future__ import annotations

from struct import Struct

HEADER_MAGIC = 0x1BADB002
SEARCH = 8192
"""3.1: "completely within the first 8192 bytes", "longword (32-bit) aligned"."""
FIELDS = Struct("<III")
ADDRESSES = Struct("<IIIII")
PAGE_ALIGN, MEMORY_INFO, VIDEO_MODE, ADDRESS_FIELDS = 1 << 0, 1 << 1, 1 << 2, 1 << 16
UNDERSTOOD = PAGE_ALIGN | MEMORY_INFO | VIDEO_MODE
REQUIRED = 0xFFFF


class Header:
    """A header whose checksum is right: `offset` in the file, `flags`, and `addresses` where it has them."""

    __slots__ = ("addresses", "flags", "offset")

    def __init__(self, offset: int, flags: int, addresses: tuple[int, int, int, int, int] | None) -> None:
        self.offset = offset
        self.flags = flags
        self.addresses = addresses

    def refusal(self) -> str | None:
        """Say why the kernel cannot be started as it asks, or return None."""
        # 3.1.2: for a bit of 0..15 that it does not understand, the loader "must notify the user and fail".
        unknown = self.flags & REQUIRED & ~UNDERSTOOD
        if unknown:
            return f"its multiboot header requires features that multiboot 1 does not define (flags {unknown:#x})"
        return None


def find(view: memoryview) -> Header | None:
    """Return the first valid header, or None."""
    head = bytes(view[:SEARCH])
    magic = HEADER_MAGIC.to_bytes(4, "little")
    at = head.find(magic)
    while at >= 0:
        if at % 4 == 0 and at + FIELDS.size <= len(head):
            _, flags, checksum = FIELDS.unpack_from(head, at)
            if HEADER_MAGIC + flags + checksum & 0xFFFFFFFF == 0:
                addresses = None
                if flags & ADDRESS_FIELDS and at + FIELDS.size + ADDRESSES.size <= len(head):
                    addresses = ADDRESSES.unpack_from(head, at + FIELDS.size)
                return Header(at, flags, addresses)
        at = head.find(magic, at + 1)
    return None
