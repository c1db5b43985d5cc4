"""A whole tree, and its flattened form, version 17.

What the specification, dtc, Linux or the reader of this package refuses is refused here, when the tree becomes bytes.

Source: Devicetree Specification 0.4, 5.2 (header), 5.3 (reservations), 5.4 (structure block), 5.5 (strings).
"""

from __future__ import annotations

from struct import Struct

from pyvmm_loader.fdt.node import NAME_CHARACTERS, FdtError, Node, check_property
from pyvmm_loader.fields import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HEADER = Struct(">10I")
RESERVATION = Struct(">QQ")
MAGIC, VERSION, LAST_COMPATIBLE = 0xD00DFEED, 17, 16
BEGIN_NODE, END_NODE, PROP, NOP, END = 1, 2, 3, 4, 9
MAX_DEPTH = 63
"""With the root. Linux leaves out what is deeper: FDT_MAX_DEPTH is 64, and unflatten_dt_nodes keeps one for itself."""
MAX_NODES, MAX_RESERVATIONS = 1 << 16, 1 << 10
"""More than any machine has; without a limit a small file becomes a large tree."""
MAX_NAME = 255
"""The specification says 31. A name may be read once for each property, so its length must have a bound."""
MAX_SIZE = (1 << 31) - 1
"""libfdt, in dtc and in Linux, counts in signed numbers of 32 bits."""


class Fdt:
    """A tree: its `root`, the memory `reservations` as (start, size) pairs, and the number of the boot processor."""

    def __init__(
        self, root: Node | None = None, reservations: Sequence[tuple[int, int]] = (), boot_cpu: int = 0
    ) -> None:
        self.root = Node() if root is None else root
        self.reservations = list(reservations)
        self.boot_cpu = boot_cpu

    def __bytes__(self) -> bytes:
        """Return the flattened tree; raises FdtError for one that nobody would read, FieldRange for numbers."""
        _check_reservations(self.reservations)
        strings, structure, known = _Strings(), bytearray(), set[str]()
        for node, depth in _walk(self.root):
            if node is None:
                structure += END_NODE.to_bytes(4, "big")
                continue
            _check_node(node, depth, known)
            _write_node(node, structure, strings)
        _check_phandles(self.root)
        structure += END.to_bytes(4, "big")
        reserved = b"".join([pack(RESERVATION.format, start, size) for start, size in [*self.reservations, (0, 0)]])
        at = HEADER.size
        structure_at = at + len(reserved)
        strings_at = structure_at + len(structure)
        total = strings_at + len(strings.block)
        if total > MAX_SIZE:
            raise FdtError(f"a tree of {total} bytes; readers take {MAX_SIZE} at most", field="totalsize", value=total)
        header = pack(
            HEADER.format, MAGIC, total, structure_at, strings_at, at, VERSION, LAST_COMPATIBLE, self.boot_cpu,
            len(strings.block), len(structure),
        )  # fmt: skip
        return header + reserved + bytes(structure) + bytes(strings.block)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fdt) and bytes(self) == bytes(other)

    __hash__ = None  # type: ignore[assignment]  # a tree changes

    def __repr__(self) -> str:
        return f"<Fdt {sum(1 for _ in self.root.walk())} nodes>"


def _check_reservations(reservations: Sequence[tuple[int, int]]) -> None:
    # "The list is terminated with an entry where both address and size are equal to 0" (5.3.2). rust-vmm's vm-fdt
    # refuses those that are empty, overlap, or leave the address space.
    if len(reservations) > MAX_RESERVATIONS:
        raise FdtError(
            f"{len(reservations)} memory reservations; give {MAX_RESERVATIONS} at most", field="reservations"
        )
    end = 0
    for start, size in sorted(reservations):
        pack(RESERVATION.format, start, size)
        if not size or start + size > 1 << 64 or start < end:
            raise FdtError(
                f"the reservation of {size:#x} bytes at {start:#x} is empty, overlaps another or leaves 64 bits",
                field="reservations",
                value=(start, size),
            )
        end = start + size


def _walk(root: Node) -> Iterator[tuple[Node | None, int]]:
    """Yield each node with its depth, 1 for the root, and None where one ends."""
    pending: list[tuple[Node | None, int]] = [(root, 1)]
    count = 0
    while pending:
        node, depth = pending.pop()
        yield node, depth
        if node is None:
            continue
        count += 1
        # a node that is its own descendant is deeper than any
        if depth > MAX_DEPTH or count > MAX_NODES:
            raise FdtError(f"nodes nested deeper than {MAX_DEPTH} or more than {MAX_NODES}", field="depth", value=depth)
        pending.append((None, depth))
        pending.extend([(child, depth + 1) for child in reversed(node.children)])


def _check_node(node: Node, depth: int, known: set[str]) -> None:
    """Raise FdtError for a node that nobody would read; `known` are names that were looked at already."""
    # the root "does not have a node-name or unit-address" (2.2.1), every other has one
    if bool(node.name) != (depth > 1):
        raise FdtError(f"a node named {node.name!r} at depth {depth}; only the root has no name", field="name")
    _check_name(node.name, known)
    if len({child.name for child in node.children}) < len(node.children):
        raise FdtError(f"{node.name or '/'} has two children of one name", field="name")
    for name, value in node.properties.items():
        if not name or not isinstance(value, bytes):
            raise FdtError(f"{node.name or '/'}: {name!r} is {type(value).__name__}, not bytes", field=name)
        if name not in known:
            _check_name(name, known)
        if name in ("phandle", "linux,phandle"):
            check_property(node.name, name, value)
    if "name" in node.properties and node["name"] != node.name.partition("@")[0].encode("ascii") + b"\0":
        raise FdtError(f"{node.name}: its property 'name' says another one; leave it out", field="name")


def _check_name(name: str, known: set[str]) -> None:
    if len(name) > MAX_NAME or not NAME_CHARACTERS.issuperset(name):
        raise FdtError(f"{name!r:.80} is no name in a device tree", field="name", value=name)
    known.add(name)


def _check_phandles(root: Node) -> None:
    # "The value of the phandle property shall be ... unique within the devicetree" (2.3.3)
    taken: dict[bytes, Node] = {}
    for node in root.walk():
        if "phandle" not in node.properties and "linux,phandle" not in node.properties:
            continue
        numbers = {node.properties[name] for name in ("phandle", "linux,phandle") if name in node.properties}
        if len(numbers) > 1:
            raise FdtError(f"{node.name or '/'} has two phandles; linux,phandle must be the same", field="phandle")
        for number in numbers:
            if number in taken:
                raise FdtError(
                    f"{taken[number].name or '/'} and {node.name or '/'} have one phandle; let one of them be numbered",
                    field="phandle",
                    value=int.from_bytes(number, "big"),
                )
            taken[number] = node


def _write_node(node: Node, out: bytearray, strings: _Strings) -> None:
    name = node.name.encode("ascii") + b"\0"
    out += BEGIN_NODE.to_bytes(4, "big") + name + bytes(-len(name) % 4)
    for key, value in node.properties.items():
        out += PROP.to_bytes(4, "big") + pack(">II", len(value), strings.offset(key))
        out += value + bytes(-len(value) % 4)


class _Strings:
    """The names of properties, each once; a name that ends another one is not said again, as dtc does it."""

    def __init__(self) -> None:
        self.block = bytearray()
        self._found: dict[str, int] = {}

    def offset(self, name: str) -> int:
        if name in self._found:
            return self._found[name]
        raw = name.encode("ascii") + b"\0"
        found = self.block.find(raw)
        if found < 0:
            found = len(self.block)
            self.block += raw
        self._found[name] = found
        return found
