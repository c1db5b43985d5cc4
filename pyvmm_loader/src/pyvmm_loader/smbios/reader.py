"""Read SMBIOS structures, as a guest or `dmidecode` does.

Source: DSP0134, 5.2 and 6.1.
"""

from __future__ import annotations

from struct import unpack_from

from pyvmm_loader.checksum import checksum
from pyvmm_loader.errors import ImageTruncated, InvalidHeader
from pyvmm_loader.smbios.structure import Structure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

END_OF_TABLE = 127
MAX_STRUCTURES = 0xFFFF


def find_anchor(block: bytes) -> tuple[int, int]:
    """Return (address, length) of the structure table that an anchor in `block` names, a 3.x one before a 2.x one.

    Raises InvalidHeader when there is none with a good checksum, on a boundary of 16 bytes.
    """
    found: tuple[int, int] | None = None
    for at in range(0, len(block) - 23, 16):
        if block[at : at + 5] == b"_SM3_" and not checksum(block[at : at + block[at + 6]]):
            length, address = unpack_from("<IQ", block, at + 12)
            return address, length
        if (
            found is None
            and at + 31 <= len(block)
            and block[at : at + 4] == b"_SM_"
            and not checksum(block[at : at + block[at + 5]])
        ):
            length, address = unpack_from("<HI", block, at + 22)
            found = address, length
    if found is None:
        raise InvalidHeader("no SMBIOS anchor with a good checksum in these bytes", field="anchor")
    return found


def read_smbios(table: Buffer) -> Iterator[Structure]:
    """Yield the structures of a table up to its end marker; raises InvalidHeader and ImageTruncated."""
    with memoryview(table) as raw, raw.cast("B") as view:
        data = bytes(view)
    at = 0
    for _ in range(MAX_STRUCTURES):
        if at + 4 > len(data):
            raise ImageTruncated(f"SMBIOS table ends at {len(data):#x} without its end marker", needed=at + 4)
        kind, length, handle = unpack_from("<BBH", data, at)
        if length < 4:
            raise InvalidHeader(f"structure at {at:#x} says it has {length} bytes", field="length", value=length)
        texts = at + length
        end = data.find(b"\0\0", texts)
        if texts > len(data) or end < 0:
            raise ImageTruncated(f"structure at {at:#x} ends behind the table", needed=texts + 2)
        # without strings there are two NULs; with strings the first NUL ends the last string
        strings = (
            tuple([text.decode("utf-8", "replace") for text in data[texts:end].split(b"\0")]) if end > texts else ()
        )
        yield Structure(kind, handle, data[at + 4 : texts], strings)
        if kind == END_OF_TABLE:
            return
        at = end + 2
    raise InvalidHeader(f"more than {MAX_STRUCTURES} structures", field="count")
