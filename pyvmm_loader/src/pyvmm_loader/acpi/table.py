"""What all ACPI tables share: the header of 36 bytes, its checksum, and register addresses.

Source: ACPI 6.5, 5.2.6 (header) and 5.2.3.2 (generic address structure).
"""

from __future__ import annotations

from pyvmm_loader.checksum import checksum
from pyvmm_loader.errors import ImageError
from pyvmm_loader.fields import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_loader.acpi.aml.term import Term

HEADER_SIZE = 36
LENGTH_AT, CHECKSUM_AT = 4, 9
OEM_ID, OEM_TABLE_ID, CREATOR = b"PYVMM ", b"PYVMM   ", b"PYVM"
SIGNATURE_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
MAX_ACCESS = 4
MEMORY, PORT = 0, 1
"""Address spaces of a `GenericAddress`."""


def table(signature: str, revision: int, body: bytes) -> bytes:
    """Return a table with its header; raises AcpiError for a signature that is none."""
    # ACPI 6.5, 5.2.6: "The ASCII string representation of the table identifier", of four characters
    if len(signature) != 4 or not SIGNATURE_CHARACTERS.issuperset(signature):
        raise AcpiError(f"{signature!r} is no signature of a table; use four of A-Z, 0-9 and _", signature=signature)
    block = bytearray(
        pack("<4sIBB6s8sI4sI", signature.encode("ascii"), 0, revision, 0, OEM_ID, OEM_TABLE_ID, 1, CREATOR, 1)
    )
    block += body
    block[LENGTH_AT : LENGTH_AT + 4] = pack("<I", len(block))
    block[CHECKSUM_AT] = checksum(block)
    return bytes(block)


class AcpiError(ImageError):
    """Bytes that are no ACPI table, `address` is where; or what no ACPI table can say."""


def definition_block(signature: str, *terms: Term) -> bytes:
    """Return a DSDT or SSDT. Its revision 2 makes integers 64 bits wide.

    Raises AmlError where a name is declared twice, for which Linux drops the whole table, or where a Scope of a DSDT is
    of a place that nothing has declared.
    """
    from pyvmm_loader.acpi.aml.namespace import check_names
    from pyvmm_loader.acpi.aml.term import body_of

    check_names(terms, alone=signature == "DSDT")
    return table(signature, 2, body_of(terms))


class GenericAddress:
    """A register: its `address`, the `space` it is in, its width in `bits`, and the size of an access.

    >>> GenericAddress(0xCF9, bits=8)
    <GenericAddress port 0xcf9, 8 bits>
    """

    __slots__ = ("access", "address", "bits", "space")

    def __init__(self, address: int, space: int = PORT, bits: int = 8, access: int | None = None) -> None:
        self.address = address
        self.space = space
        self.bits = bits
        # access sizes: 1 byte, 2 word, 3 dword, 4 qword; 0 is undefined, for legacy reasons
        self.access = {8: 1, 16: 2, 32: 3, 64: 4}.get(bits, 0) if access is None else access
        if not 0 <= self.access <= MAX_ACCESS:
            raise AcpiError(f"access size {self.access}; 0 to {MAX_ACCESS}", access=self.access)
        if space == PORT and not 0 <= address <= 0xFFFF:
            pack("<Q", address)
            raise AcpiError(f"port {address:#x}: there are 0 to 0xffff", address=address)
        bytes(self)  # what does not fit is refused here, where the caller is known

    def __bytes__(self) -> bytes:
        return pack("<BBBBQ", self.space, self.bits, 0, self.access, self.address)

    def __repr__(self) -> str:
        where = "port" if self.space == PORT else "memory" if self.space == MEMORY else f"space {self.space}"
        return f"<GenericAddress {where} {self.address:#x}, {self.bits} bits>"


NO_ADDRESS = bytes(12)
