"""A node of a device tree and its properties."""

from __future__ import annotations

from pyvmm_loader.errors import InvalidHeader
from pyvmm_loader.fields import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self, TypeAlias

    Item: TypeAlias = "str | int | Node"
    Value: TypeAlias = "bytes | bool | Item | Sequence[str] | Sequence[int] | Sequence[Node] | Sequence[Item]"

LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
NODE_CHARACTERS = LETTERS | frozenset("0123456789,._+-")
PROPERTY_CHARACTERS = NODE_CHARACTERS | frozenset("?#")
NAME_CHARACTERS = PROPERTY_CHARACTERS | frozenset("@*")
"""What a name in a file may consist of: dtc lets `*` pass."""
MAX_NAME = 31
NO_PHANDLES = (0, 0xFFFFFFFF)
CELLS = ("phandle", "linux,phandle", "#address-cells", "#size-cells", "#interrupt-cells", "interrupt-parent")
"""Properties that are one number. Devicetree Specification 0.4, 2.3 and 2.4.1; dtc warns of others."""
STRINGS = ("compatible", "model", "status", "device_type", "bootargs", "stdout-path")


class FdtError(InvalidHeader):
    """Bytes that are no device tree (`offset` is where), or a tree that cannot become such bytes."""


class Phandles:
    """The numbers that nodes of one tree are referred to by, each given once."""

    __slots__ = ("_last", "_taken")

    def __init__(self) -> None:
        self._last = 0
        self._taken: set[int] = set()

    def take(self, number: int) -> None:
        """Learn that somebody chose a number by hand."""
        self._taken.add(number)

    def next(self) -> int:
        """Return the lowest number that nobody has, and never return it again."""
        self._last += 1
        while self._last in self._taken:
            self._last += 1
        return self._last


def cells64(*values: int) -> bytes:
    """Return numbers of two cells each, as `reg` has them under `#address-cells = <2>`."""
    return pack(f">{len(values)}Q", *values)


class Node:
    """A node: `name`, `properties` (bytes by name) and `children`.

    Assigning a property encodes it: an int is a cell, a str ends with NUL, a node is its phandle, True is a property
    that has no value; a list holds several of these; bytes stay as they are.
    """

    __slots__ = ("_name", "_phandles", "children", "properties")

    def __init__(self, name: str = "", phandles: Phandles | None = None) -> None:
        self.properties: dict[str, bytes] = {}
        self.children: list[Node] = []
        self._phandles = Phandles() if phandles is None else phandles
        self._name = ""
        if name:
            self.name = name

    @classmethod
    def from_file(cls, name: str, phandles: Phandles) -> Self:
        """Make a node of a tree that somebody else wrote, under the name it has there, be it longer than allowed."""
        node = cls("", phandles)
        node._name = name
        return node

    @property
    def name(self) -> str:
        """The name with its unit address, such as ``serial@9000000``; the root has none."""
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        # "The node-name shall start with a lower or uppercase character", and is "1 to 31 characters in length";
        # Devicetree Specification 0.4, 2.2.1
        base, at, unit = name.partition("@")
        good = 1 <= len(base) <= MAX_NAME and base[0] in LETTERS and NODE_CHARACTERS.issuperset(base)
        if not good or bool(at) != bool(unit) or not NODE_CHARACTERS.issuperset(unit) or len(unit) > MAX_NAME:
            raise FdtError(
                f"{name!r:.80} is no name for a node of a device tree; use name or name@unit, of letters, digits and "
                f",._+-, a letter first, with at most {MAX_NAME} of them",
                field="name",
                value=name,
            )
        self._name = name

    def add(self, name: str, **properties: Value) -> Node:
        """Add a child and return it; raises FdtError where there is one of this name."""
        node = Node("", self._phandles)
        node.name = name
        if any(child.name == name for child in self.children):
            raise FdtError(f"{self.name or '/'} has a child {name!r} already", field="name", value=name)
        for key, value in properties.items():
            node[key] = value
        self.children.append(node)
        return node

    @property
    def phandle(self) -> int:
        """The number that other nodes refer to this one by; it gets one when it is first asked for."""
        if "phandle" not in self.properties:
            self["phandle"] = self._phandles.next()
        return int.from_bytes(self.properties["phandle"], "big")

    def __setitem__(self, name: str, value: Value) -> None:
        if not 1 <= len(name) <= MAX_NAME or not PROPERTY_CHARACTERS.issuperset(name):
            raise FdtError(
                f"{name!r:.80} is no name for a property; use 1 to {MAX_NAME} letters, digits and ,._+?#-",
                field="name",
                value=name,
            )
        if value is True:
            raw = b""
        elif isinstance(value, (list, tuple)):
            raw = b"".join([_encode(name, item) for item in value])
        else:
            raw = _encode(name, value)
        check_property(self.name, name, raw)
        if name == "phandle":
            self._phandles.take(int.from_bytes(raw, "big"))
        self.properties[name] = raw

    def __getitem__(self, name: str) -> bytes:
        return self.properties[name]

    def __contains__(self, name: object) -> bool:
        return name in self.properties

    def cells(self, name: str) -> tuple[int, ...]:
        """Return a property as 32-bit numbers; raises FdtError where it is none."""
        raw = self.properties[name]
        if len(raw) % 4:
            raise FdtError(f"{self.name}: {name} has {len(raw)} bytes, which are no cells", field=name)
        return tuple([int.from_bytes(raw[at : at + 4], "big") for at in range(0, len(raw), 4)])

    def strings(self, name: str) -> list[str]:
        """Return a property as strings; raises FdtError where it is none."""
        raw = self.properties[name]
        if not raw.endswith(b"\0"):
            raise FdtError(f"{self.name}: {name} does not end with NUL", field=name)
        return [text.decode("utf-8", "replace") for text in raw[:-1].split(b"\0")]

    def find(self, path: str) -> Node:
        """Return the node at an absolute or relative path; raises KeyError."""
        node = self
        for part in path.strip("/").split("/"):
            if part:
                found = [child for child in node.children if child.name == part]
                if not found:
                    raise KeyError(path)
                node = found[0]
        return node

    def walk(self) -> Iterator[Node]:
        """Yield this node and all below it, parents first."""
        pending = [self]
        while pending:
            node = pending.pop()
            yield node
            pending.extend(reversed(node.children))

    def __repr__(self) -> str:
        return f"<Node {self.name or '/'} {len(self.properties)} properties, {len(self.children)} children>"


def check_property(node: str, name: str, raw: bytes) -> None:
    """Raise FdtError where a property of the specification is not of its own kind."""
    if name in CELLS and len(raw) != 4:
        raise FdtError(f"{node or '/'}: {name} has {len(raw)} bytes; it is one cell", field=name, value=raw)
    if name in ("phandle", "linux,phandle") and int.from_bytes(raw, "big") in NO_PHANDLES:
        raise FdtError(f"{node or '/'}: {name} is 0 or 0xffffffff, which refer to nothing", field=name, value=raw)
    if name in STRINGS and not raw.endswith(b"\0"):
        raise FdtError(f"{node or '/'}: {name} is text; give it as a str", field=name, value=raw)


def _encode(name: str, value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            raw = value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise FdtError(f"{name}: {value!r:.80} is no text ({error.reason})", field=name, value=value) from error
        if b"\0" in raw:
            raise FdtError(f"{name}: {value!r:.80} has a NUL, which ends a string; use a list", field=name, value=value)
        return raw + b"\0"
    if isinstance(value, Node):
        value = value.phandle
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 32:
        raise FdtError(
            f"{name}: {type(value).__name__} is no cell; use an int from 0 to 2**32 - 1, or cells64",
            field=name,
            value=value,
        )
    return value.to_bytes(4, "big")
