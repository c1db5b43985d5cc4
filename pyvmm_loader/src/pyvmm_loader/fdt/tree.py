"""A whole tree, and its flattened form, version 17.

Source: Devicetree Specification 0.4, 5.2 (header), 5.3 (reservations), 5.4 (structure block), 5.5 (strings).
"""

from __future__ import annotations

from struct import Struct

from pyvmm_loader.fdt.node import Node
from pyvmm_loader.fields import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

HEADER = Struct(">10I")
RESERVATION = Struct(">QQ")
MAGIC, VERSION, LAST_COMPATIBLE = 0xD00DFEED, 17, 16
BEGIN_NODE, END_NODE, PROP, NOP, END = 1, 2, 3, 4, 9


class Fdt:
    """A tree: its `root`, the memory `reservations` as (start, size) pairs, and the number of the boot processor."""

    def __init__(
        self, root: Node | None = None, reservations: Sequence[tuple[int, int]] = (), boot_cpu: int = 0
    ) -> None:
        self.root = Node() if root is None else root
        self.reservations = list(reservations)
        self.boot_cpu = boot_cpu

    def __bytes__(self) -> bytes:
        strings, structure = _Strings(), bytearray()
        self._node(self.root, structure, strings)
        structure += END.to_bytes(4, "big")
        reserved = b"".join([pack(RESERVATION.format, start, size) for start, size in [*self.reservations, (0, 0)]])
        at = HEADER.size
        structure_at = at + len(reserved)
        strings_at = structure_at + len(structure)
        total = strings_at + len(strings.block)
        header = pack(
            HEADER.format, MAGIC, total, structure_at, strings_at, at, VERSION, LAST_COMPATIBLE, self.boot_cpu,
            len(strings.block), len(structure),
        )  # fmt: skip
        return header + reserved + bytes(structure) + bytes(strings.block)

    def _node(self, node: Node, out: bytearray, strings: _Strings) -> None:
        name = node.name.encode("ascii") + b"\0"
        out += BEGIN_NODE.to_bytes(4, "big") + name + bytes(-len(name) % 4)
        for key, value in node.properties.items():
            out += PROP.to_bytes(4, "big") + len(value).to_bytes(4, "big") + strings.offset(key).to_bytes(4, "big")
            out += value + bytes(-len(value) % 4)
        for child in node.children:
            self._node(child, out, strings)
        out += END_NODE.to_bytes(4, "big")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fdt) and bytes(self) == bytes(other)

    __hash__ = None  # type: ignore[assignment]  # a tree changes

    def __repr__(self) -> str:
        return f"<Fdt {sum(1 for _ in self.root.walk())} nodes>"


class _Strings:
    """The names of properties, each once; a name that ends another one is not said again, as dtc does it."""

    def __init__(self) -> None:
        self.block = bytearray()

    def offset(self, name: str) -> int:
        raw = name.encode("ascii") + b"\0"
        found = self.block.find(raw)
        if found < 0:
            found = len(self.block)
            self.block += raw
        return found
