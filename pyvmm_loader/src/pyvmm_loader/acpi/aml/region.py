"""Registers of the machine as AML sees them: operation regions and the fields in them.

Source: ACPI 6.5, 19.6.48, 19.6.102 and 20.2.5.2.
"""

from __future__ import annotations

from pyvmm_loader.acpi.aml.names import EXT, Named
from pyvmm_loader.acpi.aml.path import name_string, segment
from pyvmm_loader.acpi.aml.term import AmlError, Term, aml, bare_length, package

SPACES = {"SystemMemory": 0, "SystemIO": 1, "PCI_Config": 2, "EmbeddedControl": 3, "SMBus": 4, "CMOS": 5}
ACCESS = {"Any": 0, "Byte": 1, "Word": 2, "DWord": 3, "QWord": 4, "Buffer": 5}
UPDATE = {"Preserve": 0, "WriteAsOnes": 1, "WriteAsZeros": 2}


class OperationRegion(Named):
    """`OperationRegion (name, space, offset, length)`."""

    __slots__ = ()

    def __init__(self, name: str, space: str, offset: Term | int, length: Term | int) -> None:
        if space not in SPACES:
            raise AmlError(f"region {name}: no space {space!r}; there are {', '.join(SPACES)}", name=name)
        head = EXT + b"\x80" + name_string(name) + bytes([SPACES[space]])
        super().__init__(name, head + aml(offset) + aml(length))


def field_list(fields: tuple[tuple[str | None, int], ...]) -> bytes:
    """Encode (name, bits) pairs; without a name the bits are skipped."""
    if any(name is not None and bits < 1 for name, bits in fields):
        raise AmlError("a field of no bits; leave it out")
    return b"".join([(b"\0" if name is None else segment(name)) + bare_length(bits) for name, bits in fields])


def _flags(access: str, update: str, *, lock: bool) -> int:
    if access not in ACCESS or update not in UPDATE:
        raise AmlError(f"no field access {access!r}, {update!r}; there are {', '.join([*ACCESS, *UPDATE])}")
    return ACCESS[access] | lock << 4 | UPDATE[update] << 5


class Field(Term):
    """`Field (region, access, lock, update) {...}`: names for the bits of a region, from its start.

    >>> Field("PCST", "DWord", ("PCIU", 32), ("PCID", 32), (None, 64))
    <Field 21 bytes of AML>
    """

    __slots__ = ("declares",)

    def __init__(
        self,
        region: str,
        access: str,
        *fields: tuple[str | None, int],
        update: str = "Preserve",
        lock: bool = False,
    ) -> None:
        head = name_string(region) + bytes([_flags(access, update, lock=lock)])
        super().__init__(package(EXT + b"\x81", head + field_list(fields)))
        self.declares = tuple([name for name, _ in fields if name is not None])


class IndexField(Term):
    """`IndexField (index, data, ...)`: registers behind an index and a data register."""

    __slots__ = ("declares",)

    def __init__(
        self,
        index: str,
        data: str,
        access: str,
        *fields: tuple[str | None, int],
        update: str = "Preserve",
        lock: bool = False,
    ) -> None:
        head = name_string(index) + name_string(data) + bytes([_flags(access, update, lock=lock)])
        super().__init__(package(EXT + b"\x86", head + field_list(fields)))
        self.declares = tuple([name for name, _ in fields if name is not None])
