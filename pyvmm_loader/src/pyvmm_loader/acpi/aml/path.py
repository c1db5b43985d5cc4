r"""Names, and what stands for an object: paths, arguments, locals, invocations.

Source: ACPI 6.5, 20.2.2 (name objects) and 5.3 (how they are looked up).
"""

from __future__ import annotations

from pyvmm_loader.acpi.aml.term import AmlError, Term, body_of

LEAD = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ_")
REST = LEAD | frozenset("0123456789")
DUAL, MULTI = b"\x2e", b"\x2f"
MAX_SEGMENTS = 255


def segment(name: str) -> bytes:
    """Encode a NameSeg: one to four characters, padded with underscores.

    >>> segment("COM1"), segment("_SB")
    (b'COM1', b'_SB_')
    """
    if not 1 <= len(name) <= 4 or name[0] not in LEAD or not REST.issuperset(name):
        raise AmlError(f"{name!r} is no ACPI name: use 1 to 4 of A-Z, 0-9 and _, not a digit first", name=name)
    return name.ljust(4, "_").encode("ascii")


def name_string(name: str) -> bytes:
    r"""Encode a NameString such as `COM1`, `\_SB.PCI0` or `^^GED`."""
    rest = name.lstrip("^")
    prefix = name[: len(name) - len(rest)]
    if not prefix and rest.startswith("\\"):
        prefix, rest = "\\", rest[1:]
    if not rest:
        if not prefix:
            raise AmlError("an empty name; name the object", name=name)
        return prefix.encode() + b"\0"
    segments = [segment(part) for part in rest.split(".")]
    if len(segments) > MAX_SEGMENTS:
        raise AmlError(f"a path of {len(segments)} names; AML allows {MAX_SEGMENTS}", name=name)
    if len(segments) == 1:
        lead = b""
    elif len(segments) == 2:
        lead = DUAL
    else:
        lead = MULTI + bytes([len(segments)])
    return prefix.encode() + lead + b"".join(segments)


class Path(Term):
    """A reference to a named object."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(name_string(name))

    def __repr__(self) -> str:
        return f"<Path {self.name}>"


class Call(Term):
    """An invocation of a method. AML has no count of arguments: it must match the method's."""

    __slots__ = ()

    def __init__(self, name: str, *arguments: Term | int | str | bytes) -> None:
        super().__init__(name_string(name) + body_of(arguments))


class Local(Term):
    """`Local0` to `Local7`."""

    __slots__ = ()

    def __init__(self, number: int) -> None:
        if not 0 <= number <= 7:
            raise AmlError(f"Local{number}: there are Local0 to Local7", number=number)
        super().__init__(bytes([0x60 + number]))


class Arg(Term):
    """`Arg0` to `Arg6`."""

    __slots__ = ()

    def __init__(self, number: int) -> None:
        if not 0 <= number <= 6:
            raise AmlError(f"Arg{number}: there are Arg0 to Arg6", number=number)
        super().__init__(bytes([0x68 + number]))
