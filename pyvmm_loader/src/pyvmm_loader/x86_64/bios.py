"""The few BIOS services that 16-bit boot code calls before it leaves real mode, for machines without firmware.

Text output, memory size and map, the A20 gate, a keyboard on the serial port, the clock; no disks, no PCI. The source
is `bios.S` beside this file.
"""

from __future__ import annotations

from struct import Struct, unpack_from

from pyvmm_loader.errors import ProtocolViolation
from pyvmm_loader.x86_64.e820 import RAM, pack
from pyvmm_loader.x86_64.layout import EBDA_START, HIMEM_START

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm_loader.plan.layout import Layout
    from pyvmm_loader.x86_64.e820 import E820Entry

SEGMENT, OFFSET = 0xF000, 0xE000
BIOS_START = 0xFE000
BIOS_MAX = 0x1FF0
VECTORS_SIZE = 0x400
DATA_AREA_START, DATA_AREA_SIZE = 0x400, 0x100

# Where `start` of bios.S keeps the offset of each handler.
NOTHING, TICK, MASTER, SLAVE, VIDEO, EQUIPMENT, MEMORY, DISK, SYSTEM, KEYBOARD, TIME = range(0, 22, 2)
HANDLERS = {
    0x08: TICK,
    0x10: VIDEO,
    0x11: EQUIPMENT,
    0x12: MEMORY,
    0x13: DISK,
    0x15: SYSTEM,
    0x16: KEYBOARD,
    0x1A: TIME,
}
HANDLERS |= dict.fromkeys(range(0x09, 0x10), MASTER) | dict.fromkeys(range(0x70, 0x78), SLAVE)

CODE = bytes.fromhex(
    "16e017e032e02ce039e069e06de071e085e002e158e1cf1e50b840008ed866ff066c00cd1cb020e620581fcf50b020e6"
    "a05850b020e62058cfe8340180fc0e740b80fc0f741780fc037418cf5250bafd03eca82074fb58baf803ee5acfb80350"
    "b700cfb9070631d2cfb80202cfb87f02cfb4015589e5804e06015dcf5589e5806606fe5dcfe8e8003d20e874133d01e8"
    "744980fc88745380fc247454b486ebd36681fa50414d5375f32e3b1eb8e173ec56571e0e1f6bf31481c6bae1b90a00fc"
    "f3a51f5f5e432e3b1eb8e172036631db66b9140000006689d0eba12ea1b2e12e8b1eb4e189c189daeb922ea1b6e1eb8c"
    "3c037503bb03003c027502b001b400e97aff80e4ef740880fc01741330c0cfe8210074fb1e6a401fc6061e00001fcfe8"
    "11005589e57406806606bf5dcf804e06405dcf1e526a401f803e1e0000750fbafd03eca8017407baf803eca21e00b400"
    "a01e0084c05a1fc384e40f8515ff1e6a401f8b166c008b0e6e001fb000e90cff1e6a401f803ef000007535c606f00001"
    "50b011e620e6a0b008e621b070e6a1b004e621b002e6a1b001e621e6a1b0fee621b0ffe6a1b034e64330c0e640e64058"
    "1fc3"
)
DATA = Struct("<HHHH")


def vectors() -> bytes:
    """Return the interrupt vector table, for address 0."""
    table = []
    for number in range(256):
        (offset,) = unpack_from("<H", CODE, HANDLERS.get(number, NOTHING))
        table.append(Struct("<HH").pack(offset, SEGMENT))
    return b"".join(table)


def data_area() -> bytes:
    """Return the BIOS data area, for 0x400: the first serial port, the EBDA, equipment and memory size."""
    area = bytearray(DATA_AREA_SIZE)
    area[0x00:0x02] = (0x3F8).to_bytes(2, "little")
    area[0x0E:0x10] = (EBDA_START >> 4).to_bytes(2, "little")
    area[0x10:0x12] = (0x0202).to_bytes(2, "little")
    area[0x13:0x15] = (EBDA_START >> 10).to_bytes(2, "little")
    area[0x49] = 3  # text mode
    area[0x4A] = 80  # columns
    area[0x84] = 24  # rows, less one
    return bytes(area)


def bios(entries: Sequence[E820Entry]) -> bytes:
    """Return code and data for BIOS_START, which answers with this memory map."""
    end = max(
        [entry.addr + entry.size for entry in entries if entry.type == RAM and entry.addr == HIMEM_START], default=0
    )
    extended = max(0, end - HIMEM_START)
    below = min(extended, 15 << 20)
    above = min(max(0, end - (16 << 20)) >> 16, 0xFFFF)
    block = CODE + DATA.pack(below >> 10, above, min(extended >> 10, 0xFFFF), len(entries)) + pack(entries)
    if len(block) > BIOS_MAX:
        raise ProtocolViolation(f"{len(entries)} memory ranges are too many for the BIOS services; merge some")
    return block


def add(boot: Layout) -> None:
    """Put interrupt vectors, the BIOS data area and the services behind them, which answer with the plan's map."""
    boot.add(0, vectors(), "interrupt vectors", "real mode's table: 256 times offset and segment")
    boot.add(DATA_AREA_START, data_area(), "BIOS data area", "serial port, EBDA, base memory")
    boot.add(BIOS_START, bios(boot.e820), "BIOS services", "text, memory map, A20, keyboard, clock")
