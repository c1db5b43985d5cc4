"""A guest of a few instructions as an ELF file with a PVH note, which this project's VMM and QEMU both boot."""

import struct

LOAD_ADDRESS = 0x100000
XEN_ELFNOTE_PHYS32_ENTRY = 18

# ten instructions in 32-bit protected mode: '!' and a newline to the first serial port, then a reset by the i8042
TEN_INSTRUCTIONS = bytes.fromhex(
    "66baf803"  # mov dx, 0x3f8
    "b021"  # mov al, '!'
    "ee"  # out dx, al
    "b00a"  # mov al, '\n'
    "ee"  # out dx, al
    "66ba6400"  # mov dx, 0x64
    "b0fe"  # mov al, 0xfe
    "ee"  # out dx, al
    "f4"  # hlt
    "ebfd"  # jmp to the hlt
)


def pvh_elf(code: bytes) -> bytes:
    """Return an ELF64 executable that a PVH loader starts at the first byte of the code, in protected mode."""
    note = struct.pack("<III4sI", 4, 4, XEN_ELFNOTE_PHYS32_ENTRY, b"Xen\0", LOAD_ADDRESS)
    headers = 64 + 2 * 56
    note_at, code_at = headers, headers + len(note)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    elf = identity + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, LOAD_ADDRESS, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 7, code_at, LOAD_ADDRESS, LOAD_ADDRESS, len(code), len(code), 4096)
    noted = struct.pack("<IIQQQQQQ", 4, 4, note_at, 0, 0, len(note), len(note), 4)
    return elf + load + noted + note + code
