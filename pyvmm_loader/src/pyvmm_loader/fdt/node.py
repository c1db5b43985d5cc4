"""A node of a device tree and its properties."""

from __future__ import annotations

from itertools import count

from pyvmm_loader.errors import InvalidHeader
from pyvmm_loader.fields import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeAlias

    Item: TypeAlias = "str | int | Node"
    Value: TypeAlias = "bytes | bool | Item | Sequence[str] | Sequence[int] | Sequence[Node] | Sequence[Item]"

NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789,._+-?#@")


def cells64(*values: int) -> bytes:
    """Return numbers of two cells each, as `reg` has them under `#address-cells = <2>`."""
    return pack(f">{len(values)}Q", *values)


class Node:
    """A node: `name`, `properties` (bytes by name) and `children`.

    Assigning a property encodes it: an int is a cell, a str ends with NUL, a node is its phandle, True is a property
    that has no value; a list holds several of these; bytes stay as they are.
    """

    __slots__ = ("_phandles", "children", "name", "properties")

    def __init__(self, name: str = "", phandles: Iterator[int] | None = None) -> None:
        if not NAME_CHARACTERS.issuperset(name):
            raise InvalidHeader(f"{name!r} is no name for a node of a device tree", field="name", value=name)
        self.name = name
        self.properties: dict[str, bytes] = {}
        self.children: list[Node] = []
        self._phandles = count(1) if phandles is None else phandles

    def add(self, name: str, **properties: Value) -> Node:
        """Add a child and return it; raises InvalidHeader where there is one of this name."""
        if any(child.name == name for child in self.children):
            raise InvalidHeader(f"{self.name or '/'} has a child {name!r} already", field="name", value=name)
        node = Node(name, self._phandles)
        self.children.append(node)
        for key, value in properties.items():
            node[key] = value
        return node

    @property
    def phandle(self) -> int:
        """The number that other nodes refer to this one by; it gets one when it is first asked for."""
        if "phandle" not in self.properties:
            self["phandle"] = next(self._phandles)
        return int.from_bytes(self.properties["phandle"], "big")

    def __setitem__(self, name: str, value: Value) -> None:
        if not name or not NAME_CHARACTERS.issuperset(name):
            raise InvalidHeader(f"{name!r} is no name for a property", field="name", value=name)
        if value is True:
            self.properties[name] = b""
        elif isinstance(value, (list, tuple)):
            self.properties[name] = b"".join([_encode(name, item) for item in value])
        else:
            self.properties[name] = _encode(name, value)

    def __getitem__(self, name: str) -> bytes:
        return self.properties[name]

    def __contains__(self, name: object) -> bool:
        return name in self.properties

    def cells(self, name: str) -> tuple[int, ...]:
        """Return a property as 32-bit numbers; raises InvalidHeader where it is none."""
        raw = self.properties[name]
        if len(raw) % 4:
            raise InvalidHeader(f"{self.name}: {name} has {len(raw)} bytes, which are no cells", field=name)
        return tuple([int.from_bytes(raw[at : at + 4], "big") for at in range(0, len(raw), 4)])

    def strings(self, name: str) -> list[str]:
        """Return a property as strings; raises InvalidHeader where it is none."""
        raw = self.properties[name]
        if not raw.endswith(b"\0"):
            raise InvalidHeader(f"{self.name}: {name} does not end with NUL", field=name)
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


def _encode(name: str, value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8") + b"\0"
    if isinstance(value, Node):
        value = value.phandle
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 32:
        raise InvalidHeader(f"{name}: {value!r} is no cell; use 0 to 2**32 - 1, or cells64", field=name, value=value)
    return value.to_bytes(4, "big")
