"""Find tables in memory as a guest does: RSDP, XSDT or RSDT, and what they list. Checksums are checked.

Source: ACPI 6.5, 5.2.5 to 5.2.8.
"""

from __future__ import annotations

from struct import unpack_from

from pyvmm_loader.acpi.rsdp import SIGNATURE, SIZE, SIZE_V1
from pyvmm_loader.acpi.table import HEADER_SIZE
from pyvmm_loader.acpi.table import AcpiError as AcpiError
from pyvmm_loader.checksum import checksum

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Read = Callable[[int, int], bytes]

MAX_TABLE = 1 << 20
MAX_TABLES = 256
MAX_TOTAL = 8 << 20
"""Of all tables together: a list may name one large table many times."""
DSDT_AT, X_DSDT_AT = 40, 140


class AcpiTable:
    """A table: its `signature`, `address` and `data`, the header included."""

    __slots__ = ("address", "data", "signature")

    def __init__(self, signature: str, address: int, data: bytes) -> None:
        self.signature = signature
        self.address = address
        self.data = data

    def __repr__(self) -> str:
        return f"<AcpiTable {self.signature} at {self.address:#x}, {len(self.data)} bytes>"


def read_tables(read: Read, rsdp: int) -> list[AcpiTable]:
    """Return the tables below the root pointer at `rsdp`, in the order listed, the DSDT behind its FADT.

    `read(address, length)` returns guest memory. Raises AcpiError, and whatever `read` raises.
    """
    root = _exactly(read, rsdp, SIZE_V1)
    if root[:8] != SIGNATURE or checksum(root):
        raise AcpiError(f"no RSDP with a good checksum at {rsdp:#x}", address=rsdp)
    if root[15] >= 2:
        extended = _exactly(read, rsdp, SIZE)
        if checksum(extended):
            raise AcpiError(f"the RSDP at {rsdp:#x} has a bad extended checksum", address=rsdp)
        listing, width = _table(read, unpack_from("<Q", extended, 24)[0], "XSDT"), 8
    else:
        listing, width = _table(read, unpack_from("<I", root, 16)[0], "RSDT"), 4
    addresses = listing.data[HEADER_SIZE:]
    if len(addresses) % width or len(addresses) // width > MAX_TABLES:
        raise AcpiError(f"{listing.signature} lists {len(addresses)} bytes of addresses", address=listing.address)
    found: list[AcpiTable] = []
    for at in range(0, len(addresses), width):
        table = _table(read, int.from_bytes(addresses[at : at + width], "little"))
        found.append(table)
        if sum([len(other.data) for other in found]) > MAX_TOTAL:
            raise AcpiError(f"tables of more than {MAX_TOTAL} bytes together", address=listing.address)
        if table.signature == "FACP":
            dsdt = _dsdt_of(table)
            if dsdt:
                found.append(_table(read, dsdt, "DSDT"))
    return found


def _dsdt_of(fadt: AcpiTable) -> int:
    if len(fadt.data) >= X_DSDT_AT + 8:
        wide: int = unpack_from("<Q", fadt.data, X_DSDT_AT)[0]
        if wide:
            return wide
    if len(fadt.data) < DSDT_AT + 4:
        raise AcpiError(f"the FADT at {fadt.address:#x} has {len(fadt.data)} bytes", address=fadt.address)
    narrow: int = unpack_from("<I", fadt.data, DSDT_AT)[0]
    return narrow


def _table(read: Read, address: int, expected: str = "") -> AcpiTable:
    header = _exactly(read, address, HEADER_SIZE)
    signature = header[:4].decode("ascii", "replace")
    (length,) = unpack_from("<I", header, 4)
    if expected and signature != expected:
        raise AcpiError(f"{signature!r} at {address:#x} where the {expected} should be", address=address)
    if not HEADER_SIZE <= length <= MAX_TABLE:
        raise AcpiError(f"{signature!r} at {address:#x} says it has {length} bytes", address=address)
    data = _exactly(read, address, length)
    if checksum(data):
        raise AcpiError(f"{signature!r} at {address:#x} has a bad checksum", address=address)
    return AcpiTable(signature, address, data)


def _exactly(read: Read, address: int, length: int) -> bytes:
    data = read(address, length)
    if len(data) != length:
        raise AcpiError(f"memory ends inside the {length} bytes at {address:#x}", address=address)
    return data
