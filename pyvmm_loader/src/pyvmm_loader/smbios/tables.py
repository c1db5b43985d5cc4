"""The tables of a virtual machine: types 0, 1, 3, 4, 16, 17, 19, 32 and 127, and their two anchors.

Source: DSP0134, chapters 5 (entry points) and 7 (structures).
"""

from __future__ import annotations

from pyvmm_loader.checksum import checksum
from pyvmm_loader.errors import InvalidHeader
from pyvmm_loader.fields import pack
from pyvmm_loader.guid import guid_bytes
from pyvmm_loader.smbios.structure import NO_HANDLE, Strings, Structure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ANCHOR_3_SIZE, ANCHOR_2_SIZE = 24, 31
TABLE_OFFSET = 64  # both anchors lie before the structures, 16-byte aligned
BIOS, SYSTEM, CHASSIS, PROCESSOR, MEMORY_ARRAY, MEMORY_DEVICE, MAPPED, BOOT, END = 0, 1, 3, 4, 16, 17, 19, 32, 127
OTHER, UNKNOWN = 1, 2
IN_32_BIT_KB = (1 << 31) - 1
MAX_MODULES = 0x200
"""Handles of modules are 0x1100 to 0x12ff."""


class MemoryDevice:
    """A memory module of `size` bytes at guest address `start`, in the slot called `locator`."""

    __slots__ = ("locator", "size", "start")

    def __init__(self, start: int, size: int, locator: str) -> None:
        self.start = start
        self.size = size
        self.locator = locator


class Smbios:
    """What the machine says about itself. Empty strings are not said.

    `memory` are (start, size) pairs of RAM, each shown as one module. `uuid` has the form 8-4-4-4-12. `oem` are strings
    (type 11) that only the guest's software understands, such as systemd's credentials.
    """

    def __init__(
        self,
        *,
        vendor: str = "pyvmm",
        version: str = "0.1",
        date: str = "01/01/2026",
        manufacturer: str = "pyvmm",
        product: str = "Virtual Machine",
        product_version: str = "1",
        serial: str = "",
        uuid: str = "00000000-0000-0000-0000-000000000000",
        sku: str = "",
        family: str = "",
        asset: str = "",
        vcpus: int = 1,
        memory: Sequence[tuple[int, int]] = (),
        oem: Sequence[str] = (),
    ) -> None:
        if not 1 <= vcpus <= 0xFFFF or len(memory) > MAX_MODULES:
            raise ValueError(f"{vcpus} processors, {len(memory)} modules: 1 to 65535, and at most {MAX_MODULES}")
        if any(start < 0 or size < 1 << 10 or size % 1024 or start + size > 1 << 64 for start, size in memory):
            # type 17 counts in KiB, and says 0 for a slot with nothing in it
            raise ValueError(f"RAM {list(memory)}: (start, size) pairs of some KiB below 2**64")
        if date and not _is_date(date):
            raise ValueError(f"date {date!r}: mm/dd/yyyy, or mm/dd/yy")
        self.product = product
        self.vcpus = vcpus
        self.structures: list[Structure] = []
        self._bios(vendor, version, date)
        self._system(manufacturer, product, product_version, serial, uuid, sku, family)
        self._chassis(manufacturer, product_version, serial, asset)
        self._processor(manufacturer, vcpus)
        if oem:
            self._add(11, 0x0B00, pack("<B", len(oem)), *oem)
        modules = [MemoryDevice(start, size, f"RAM {number}") for number, (start, size) in enumerate(memory)]
        self._memory(modules, manufacturer)
        self._add(BOOT, 0x2000, bytes(7))  # status: no errors detected
        self._add(END, 0x7F00, b"")

    def _add(self, kind: int, handle: int, formatted: bytes, *strings: str) -> None:
        self.structures.append(Structure(kind, handle, formatted, strings))

    def _bios(self, vendor: str, version: str, date: str) -> None:
        s = Strings()
        not_supported, virtual_machine = 1 << 3, 0x10  # extension byte 2: bit 3 UEFI, bit 4 virtual machine
        body = pack(
            "<BBHBBQBBBBBBH", s(vendor), s(version), 0, s(date), 0, not_supported, 0, virtual_machine, 0, 1, 255, 255, 0
        )
        self._add(BIOS, 0x0000, body, *s.texts)

    def _system(
        self, manufacturer: str, product: str, version: str, serial: str, uuid: str, sku: str, family: str
    ) -> None:
        s = Strings()
        power_switch = 6  # how it was woken
        body = pack("<BBBB", s(manufacturer), s(product), s(version), s(serial)) + guid_bytes(uuid)
        body += pack("<BBB", power_switch, s(sku), s(family))
        self._add(SYSTEM, 0x0100, body, *s.texts)

    def _chassis(self, manufacturer: str, version: str, serial: str, asset: str) -> None:
        s = Strings()
        safe, none = 3, 3
        body = pack("<BBBBB", s(manufacturer), OTHER, s(version), s(serial), s(asset))
        body += pack("<BBBBIBBBBB", safe, safe, safe, none, 0, 0, 0, 0, 0, 0)
        self._add(CHASSIS, 0x0300, body, *s.texts)

    def _processor(self, manufacturer: str, vcpus: int) -> None:
        # One socket with a core for each vCPU. Beyond 255 the two-byte counts of 3.0 say how many.
        s = Strings()
        central, family_other, enabled, no_upgrade = 3, 0xFE, 0x41, 6
        short = min(vcpus, 255)
        body = pack(
            "<BBBBQBBHHHBBHHHBBBBBBHHHHH",
            s("CPU 0"), central, family_other, s(manufacturer), 0, s("virtual"), 0, 0, 0, 0, enabled, no_upgrade,
            NO_HANDLE, NO_HANDLE, NO_HANDLE, 0, 0, 0, short, short, short, 0x4, OTHER, vcpus, vcpus, vcpus,
        )  # fmt: skip
        self._add(PROCESSOR, 0x0400, body, *s.texts)

    def _memory(self, modules: Sequence[MemoryDevice], manufacturer: str) -> None:
        total = sum([module.size for module in modules])
        kib = total >> 10
        extended = kib > IN_32_BIT_KB
        other_place, no_ecc, for_system = 1, 3, 3
        capacity, large = (1 << 31, total) if extended else (kib, 0)
        body = pack("<BBBIHHQ", other_place, for_system, no_ecc, capacity, 0xFFFE, len(modules), large)
        self._add(MEMORY_ARRAY, 0x1000, body)
        for number, module in enumerate(modules):
            self._module(number, module, manufacturer)
            self._mapping(number, module)

    def _module(self, number: int, module: MemoryDevice, manufacturer: str) -> None:
        s = Strings()
        mib = module.size >> 20
        # "If the size is 32 GB-1 MB or greater, the field value is 7FFFh and the actual size is in Extended Size"
        size, extended = (mib, 0) if mib < 0x7FFF else (0x7FFF, mib)
        if not mib:
            size = 0x8000 | module.size >> 10  # in KiB
        dimm, ram = 9, 7
        body = pack(
            "<HHHHHBBBBBHHBBBBBIH",
            0x1000, 0xFFFE, 0xFFFF, 0xFFFF, size, dimm, 0, s(module.locator), 0, ram, 2, 0, s(manufacturer), 0, 0, 0,
            0, extended, 0,
        )  # fmt: skip
        self._add(MEMORY_DEVICE, 0x1100 + number, body, *s.texts)

    def _mapping(self, number: int, module: MemoryDevice) -> None:
        first, last = module.start, module.start + module.size - 1
        extended = last >> 10 >= 0xFFFFFFFF
        low = (0xFFFFFFFF, 0xFFFFFFFF) if extended else (first >> 10, last >> 10)
        wide = (first, last) if extended else (0, 0)
        self._add(MAPPED, 0x1300 + number, pack("<IIHBQQ", *low, 0x1000, 1, *wide))

    def table(self) -> bytes:
        """Return the structures, one behind the other."""
        return b"".join([bytes(structure) for structure in self.structures])

    def place(self, start: int) -> bytes:
        """Return both anchors and the table as one block for `start`, which must be 16-byte aligned and below 4 GiB.

        Raises InvalidHeader where it does not fit the 64 KiB that the 2.x anchor can say, or where structures that were
        added have a handle twice or come behind the end.
        """
        table = self.table()
        # DSP0134, 6.1.2: a handle is unique; 7.45: the end-of-table structure is the last, and readers stop there
        kinds = [structure.type for structure in self.structures]
        handles = {structure.handle for structure in self.structures}
        if END not in kinds or END in kinds[:-1] or len(handles) < len(kinds):
            raise InvalidHeader(
                "structures with one handle, or none or more than the last that ends the table", field="handle"
            )
        largest = max([len(bytes(structure)) for structure in self.structures])
        if start % 16 or start < 0 or start + TABLE_OFFSET + len(table) > 1 << 32 or len(table) > 0xFFFF:
            raise InvalidHeader(f"SMBIOS tables of {len(table)} bytes at {start:#x}: align to 16, use less than 64 KiB")
        at = start + TABLE_OFFSET
        three = bytearray(pack("<5sBBBBBBBIQ", b"_SM3_", 0, ANCHOR_3_SIZE, 3, 3, 0, 1, 0, len(table), at))
        three[5] = checksum(three)
        middle = bytearray(pack("<5sBHIHB", b"_DMI_", 0, len(table), at, len(self.structures), 0x28))
        middle[5] = checksum(middle)
        two = bytearray(pack("<4sBBBBHB5s", b"_SM_", 0, ANCHOR_2_SIZE, 2, 8, largest, 0, bytes(5)) + middle)
        two[4] = checksum(two)
        return (bytes(three).ljust(32, b"\0") + bytes(two)).ljust(TABLE_OFFSET, b"\0") + table

    def __str__(self) -> str:
        return f"{self.product}, {len(self.structures)} structures"

    def __repr__(self) -> str:
        return f"<Smbios {self}>"


def _is_date(text: str) -> bool:
    # DSP0134, 7.1: "The date string, if supplied, is in either mm/dd/yy or mm/dd/yyyy format"
    parts = text.split("/")
    if [len(part) for part in parts] not in ([2, 2, 2], [2, 2, 4]) or not all(map(_is_number, parts)):
        return False
    return 1 <= int(parts[0]) <= 12 and 1 <= int(parts[1]) <= 31


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
