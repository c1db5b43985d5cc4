"""RSDP and XSDT: where the tables begin.

Source: ACPI 6.5, 5.2.5.3 and 5.2.8.
"""

from __future__ import annotations

from pyvmm_loader.acpi.table import OEM_ID, table
from pyvmm_loader.checksum import checksum
from pyvmm_loader.fields import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

SIGNATURE = b"RSD PTR "
SIZE, SIZE_V1 = 36, 20


def rsdp(xsdt: int) -> bytes:
    """Return the root pointer (revision 2); a guest that searches for it wants it 16-byte aligned.

    >>> rsdp(0xE1000)[:8]
    b'RSD PTR '
    """
    block = bytearray(pack("<8sB6sBIIQBxxx", SIGNATURE, 0, OEM_ID, 2, 0, SIZE, xsdt, 0))
    block[8] = checksum(block[:SIZE_V1])
    block[32] = checksum(block)
    return bytes(block)


def xsdt(tables: Iterable[int]) -> bytes:
    """Return the list of the other tables' addresses; the FADT comes first by custom."""
    addresses = list(tables)
    return table("XSDT", 1, pack(f"<{len(addresses)}Q", *addresses))
