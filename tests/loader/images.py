"""Small images with every field under the test's control, and a guest memory that records what is written."""

from __future__ import annotations

import zlib
from struct import pack
from typing import TYPE_CHECKING

from pyvmm_loader.x86_64.bootparam import SetupHeader

if TYPE_CHECKING:
    from typing_extensions import Buffer

PVH_ENTRY = 0x100010


class FlatMemory:
    """RAM from 0, filled with 0xAA so that bytes nobody zeroed show."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(b"\xaa") * size
        self.written: list[tuple[int, int]] = []

    def check_range(self, addr: int, length: int, /) -> bool:
        return addr + length <= len(self.data)

    def write_slice(self, buffer: Buffer, addr: int, /) -> None:
        with memoryview(buffer) as view:
            assert addr + len(view) <= len(self.data), "the loader wrote outside memory that it had checked"
            self.data[addr : addr + len(view)] = view
            self.written.append((addr, len(view)))


def note(owner: bytes, kind: int, desc: bytes) -> bytes:
    name = owner + b"\0"
    return pack("<III", len(name), len(desc), kind) + name + bytes(-len(name) % 4) + desc + bytes(-len(desc) % 4)


XEN_NOTE = note(b"Xen", 18, pack("<I", PVH_ENTRY))


def elf(
    code: bytes = b"\xf4" * 64,
    *,
    notes: tuple[bytes, ...] = (),
    paddr: int = 0x100000,
    bss: int = 0,
    machine: int = 62,
    kind: int = 2,
    entry: int = 0x100000,
    bits: int = 64,
) -> bytes:
    ehdr, phdr = (64, 56) if bits == 64 else (52, 32)
    at = ehdr + phdr * (1 + len(notes))
    rows = [(1, at, paddr, len(code), len(code) + bss)]
    body = code
    for item in notes:
        rows.append((4, at + len(body), 0, len(item), len(item)))
        body += item
    head = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9)
    if bits == 64:
        head += pack("<HHIQQQIHHHHHH", kind, machine, 1, entry, ehdr, 0, 0, ehdr, phdr, len(rows), 0, 0, 0)
        table = b"".join([pack("<IIQQQQQQ", t, 7, off, addr, addr, fsz, msz, 4) for t, off, addr, fsz, msz in rows])
    else:
        head += pack("<HHIIIIIHHHHHH", kind, machine, 1, entry, ehdr, 0, 0, ehdr, phdr, len(rows), 0, 0, 0)
        table = b"".join([pack("<IIIIIIII", t, off, addr, addr, fsz, msz, 7, 4) for t, off, addr, fsz, msz in rows])
    return head + table + body


def bzimage(payload: bytes = b"\x90" * 2048, **fields: int) -> bytes:
    header = SetupHeader.for_elf()
    values = {
        "setup_sects": 1, "version": 0x20F, "loadflags": 1, "code32_start": 0x100000, "xloadflags": 1,
        "syssize": (len(payload) + 15) // 16, "pref_address": 0x100000, "init_size": 0x10000, "jump": 0x6AEB,
        "relocatable_kernel": 1,
    }  # fmt: skip
    for name, value in {**values, **fields}.items():
        setattr(header, name, value)
    setup = bytes(0x1F1) + bytes(header)
    return setup.ljust(((header.setup_sects or 4) + 1) * 512, b"\0") + payload


def arm64(size: int = 0x3000, body: int = 0x1000) -> bytes:
    return (pack("<IIQQQQQQ", 0, 0, 0x80000, size, 10, 0, 0, 0) + b"ARM\x64" + bytes(4)).ljust(body, b"\1")


def riscv64(size: int = 0x3000, body: int = 0x1000) -> bytes:
    return (pack("<IIQQQIIQQ", 0, 0, 0x200000, size, 0, 2, 0, 0, 0) + b"RSC\x05" + bytes(4)).ljust(body, b"\1")


def multiboot(code: bytes = b"\xf4" * 64, *, flags: int = 0x10000, load: int = 0x100000, bss: int = 0) -> bytes:
    """A flat image whose multiboot 1 header, at its beginning, says where it goes; `code` is its entry."""
    head = pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF)
    end = load + 32 + len(code)
    return head + pack("<IIIII", load, load, end, end + bss, load + 32) + code


def tag(kind: int, body: bytes, flags: int = 0) -> bytes:
    return pack("<HHI", kind, flags, 8 + len(body)) + body + bytes(-len(body) % 8)


def multiboot2_header(*tags: bytes, architecture: int = 0) -> bytes:
    body = b"".join(tags) + tag(0, b"")
    size = 16 + len(body)
    return pack("<IIII", 0xE85250D6, architecture, size, -(0xE85250D6 + architecture + size) & 0xFFFFFFFF) + body


def multiboot2(code: bytes = b"\xf4" * 64, *tags: bytes, load: int = 0x100000) -> bytes:
    """A flat image whose multiboot 2 header, at its beginning, says where it goes; `code` is its entry."""
    size = len(multiboot2_header(tag(2, bytes(16)), tag(3, bytes(4)), *tags))
    addresses = tag(2, pack("<IIII", load, load, 0, 0))
    return multiboot2_header(addresses, tag(3, pack("<I", load + size)), *tags) + code


def firmware(size: int = 0x10000, jump: bytes = b"\xe9\x00\xf0", start: bytes = b"") -> bytes:
    """A ROM whose reset vector holds `jump`."""
    return start.ljust(size - 16, b"\0") + jump.ljust(16, b"\0")


def zboot(payload: bytes, name: bytes = b"gzip", machine: int = 0xAA64) -> bytes:
    head = pack("<2s2x4sII8x32s", b"MZ", b"zimg", 0x80, len(payload), name).ljust(0x3C, b"\0") + pack("<I", 0x40)
    return (head + b"PE\0\0" + machine.to_bytes(2, "little")).ljust(0x80, b"\0") + payload


def patch_dictionary(data: bytearray, size: int) -> bytearray:
    """Make an xz or lzma file ask for another dictionary, without the memory to write one."""
    if data.startswith(b"\x5d"):
        data[1:5] = pack("<I", size)
        return data
    # The block's header stands behind the stream's 12 bytes: its size, flags, the filter's id and properties, a CRC.
    end = 12 + 4 * data[12]
    data[16] = next(bits for bits in range(40) if (2 | bits & 1) << bits // 2 + 11 == size)
    data[end : end + 4] = pack("<I", zlib.crc32(data[12:end]))
    return data
