"""What puts a name into the namespace.

Source: ACPI 6.5, 20.2.5.1 and 20.2.5.2.
"""

from __future__ import annotations

from pyvmm_loader.acpi.aml.data import Buffer, Integer, Package, String
from pyvmm_loader.acpi.aml.path import name_string
from pyvmm_loader.acpi.aml.term import AmlError, Term, aml, body_of, package, raw_number

EXT = b"\x5b"
MAX_OBJECT_TYPE = 16
RESERVED: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("_CRS", "_PRS"), (Buffer, bytes)),
    **dict.fromkeys(("_PRT", "_S0", "_S1", "_S2", "_S3", "_S4", "_S5"), (Package,)),
    **dict.fromkeys(("_ADR", "_STA", "_BBN", "_SEG", "_CCA", "_SUN"), (Integer, int)),
    **dict.fromkeys(("_HID", "_UID"), (Integer, String, int, str)),
}
"""What the objects of these names are, by which systems and iasl know them."""


class Named(Term):
    """A term that declares a name, with what is in it where that is a place of its own."""

    __slots__ = ("declares", "inside", "name")

    def __init__(self, name: str, encoded: bytes, inside: tuple[Term, ...] = ()) -> None:
        if not name.strip("\\^") and type(self).__name__ != "Scope":
            raise AmlError(f"{name!r} is a place, and no name for something new", name=name)
        self.name = name
        self.declares: tuple[str, ...] = (name,)
        self.inside = inside
        super().__init__(encoded)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {len(self)} bytes>"


class Name(Named):
    """`Name (name, value)`."""

    __slots__ = ()

    def __init__(self, name: str, value: Term | int | str | bytes) -> None:
        wanted = RESERVED.get(name.rpartition("\\")[2])
        if wanted is not None and not isinstance(value, wanted):
            raise AmlError(
                f"{name} is {wanted[0].__name__}, not {type(value).__name__}; see ACPI 6.5, 5.6.8", name=name
            )
        if name == "_HID" and isinstance(value, str) and not (value.isalnum() and len(value) in (7, 8)):
            # ACPI 6.5, 6.1.5: "AAA####" of PNP, or "NNNN####" of ACPI
            raise AmlError(f"_HID {value!r:.40}: seven or eight letters and digits; or an EisaId", name=name)
        super().__init__(name, b"\x08" + name_string(name) + aml(value))


class Alias(Named):
    """`Alias (source, name)`: a second name."""

    __slots__ = ()

    def __init__(self, source: str, name: str) -> None:
        super().__init__(name, b"\x06" + name_string(source) + name_string(name))


class Scope(Named):
    """`Scope (name) {...}`: what follows belongs to a place that exists."""

    __slots__ = ()

    def __init__(self, name: str, *terms: Term) -> None:
        super().__init__(name, package(b"\x10", name_string(name) + body_of(terms)), terms)
        self.declares = ()  # the place exists


class Device(Named):
    """`Device (name) {...}`."""

    __slots__ = ()

    def __init__(self, name: str, *terms: Term) -> None:
        super().__init__(name, package(EXT + b"\x82", name_string(name) + body_of(terms)), terms)


class ThermalZone(Named):
    """`ThermalZone (name) {...}`."""

    __slots__ = ()

    def __init__(self, name: str, *terms: Term) -> None:
        super().__init__(name, package(EXT + b"\x85", name_string(name) + body_of(terms)), terms)


class PowerResource(Named):
    """`PowerResource (name, system level, order) {...}`."""

    __slots__ = ()

    def __init__(self, name: str, level: int, order: int, *terms: Term) -> None:
        head = name_string(name) + raw_number(level, 1, "system level") + raw_number(order, 2, "order")
        super().__init__(name, package(EXT + b"\x84", head + body_of(terms)), terms)


class Processor(Named):
    """`Processor (name, id, block address, block length) {...}`; deprecated for `Device` with ACPI0007."""

    __slots__ = ()

    def __init__(self, name: str, number: int, address: int, length: int, *terms: Term) -> None:
        block = raw_number(address, 4, "block address") + raw_number(length, 1, "block length")
        head = name_string(name) + raw_number(number, 1, "processor") + block
        super().__init__(name, package(EXT + b"\x83", head + body_of(terms)), terms)


class Method(Named):
    """`Method (name, arguments) {...}`; serialized methods are run by one thread at a time."""

    __slots__ = ()

    def __init__(self, name: str, arguments: int, *terms: Term, serialized: bool = False, sync_level: int = 0) -> None:
        if not 0 <= arguments <= 7 or not 0 <= sync_level <= 15:
            raise AmlError(f"method {name}: 0 to 7 arguments and a sync level of 0 to 15", name=name)
        flags = arguments | serialized << 3 | sync_level << 4
        super().__init__(name, package(b"\x14", name_string(name) + bytes([flags]) + body_of(terms)), terms)


class Mutex(Named):
    """`Mutex (name, sync level)`."""

    __slots__ = ()

    def __init__(self, name: str, sync_level: int = 0) -> None:
        if not 0 <= sync_level <= 15:
            raise AmlError(f"mutex {name}: a sync level is 0 to 15", name=name)
        super().__init__(name, EXT + b"\x01" + name_string(name) + bytes([sync_level]))


class Event(Named):
    """`Event (name)`."""

    __slots__ = ()

    def __init__(self, name: str) -> None:
        super().__init__(name, EXT + b"\x02" + name_string(name))


class External(Named):
    """`External (name, type, arguments)`: says that another table has it. ACPI 19.6.46 lists the types."""

    __slots__ = ()

    def __init__(self, name: str, kind: int = 0, arguments: int = 0) -> None:
        if not 0 <= kind <= MAX_OBJECT_TYPE or not 0 <= arguments <= 7:
            raise AmlError(f"external {name}: types are 0 to {MAX_OBJECT_TYPE}, arguments 0 to 7", name=name)
        super().__init__(name, b"\x15" + name_string(name) + bytes([kind, arguments]))
        self.declares = ()  # another table does


class _CreateField(Named):
    """`Create...Field (source, index, name)`: a view into a buffer."""

    __slots__ = ()
    OPCODE = b""

    def __init__(self, source: Term, index: Term | int, name: str) -> None:
        super().__init__(name, self.OPCODE + aml(source) + aml(index) + name_string(name))


class CreateBitField(_CreateField):
    """One bit; the index counts bits."""

    __slots__ = ()
    OPCODE = b"\x8d"


class CreateByteField(_CreateField):
    """One byte."""

    __slots__ = ()
    OPCODE = b"\x8c"


class CreateWordField(_CreateField):
    """Two bytes."""

    __slots__ = ()
    OPCODE = b"\x8b"


class CreateDWordField(_CreateField):
    """Four bytes."""

    __slots__ = ()
    OPCODE = b"\x8a"


class CreateQWordField(_CreateField):
    """Eight bytes."""

    __slots__ = ()
    OPCODE = b"\x8f"
