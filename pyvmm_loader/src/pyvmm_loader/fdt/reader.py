"""Read a flattened device tree of any origin; nothing in it is believed before it is checked.

Source: Devicetree Specification 0.4, chapter 5.
"""

from __future__ import annotations

from pyvmm_loader.fdt.node import NAME_CHARACTERS, Node, Phandles
from pyvmm_loader.fdt.node import FdtError as FdtError
from pyvmm_loader.fdt.tree import (
    BEGIN_NODE,
    END,
    END_NODE,
    HEADER,
    LAST_COMPATIBLE,
    MAGIC,
    MAX_DEPTH,
    MAX_NAME,
    MAX_NODES,
    MAX_RESERVATIONS,
    NOP,
    PROP,
    RESERVATION,
    VERSION,
    Fdt,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer


class _Words:
    """A block of big-endian words, read one behind the other."""

    def __init__(self, data: bytes, start: int, size: int) -> None:
        self.data = data
        self.at = start
        self.end = start + size

    def word(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def take(self, size: int) -> bytes:
        if size > self.end - self.at:
            raise FdtError(f"the structure block ends at {self.end:#x}, inside something", offset=self.at)
        raw = self.data[self.at : self.at + size]
        self.at += size + (-size & 3)
        return raw

    def name(self) -> str:
        stop = self.data.find(b"\0", self.at, min(self.end, self.at + MAX_NAME + 1))
        if stop < 0:
            raise FdtError(f"a node's name at {self.at:#x} has no end, or is longer than {MAX_NAME}", offset=self.at)
        return _name(self.take(stop + 1 - self.at)[:-1], self.at)


def _name(raw: bytes, at: int) -> str:
    text = raw.decode("ascii", "replace")
    if not NAME_CHARACTERS.issuperset(text):
        raise FdtError(f"a name at {at:#x} has characters that no name has", offset=at)
    return text


def read_fdt(blob: Buffer) -> Fdt:
    """Return the tree. Raises FdtError."""
    with memoryview(blob) as view:
        data = bytes(view)
    if len(data) < HEADER.size:
        raise FdtError(f"a device tree has a header of {HEADER.size} bytes, these are {len(data)}", offset=0)
    magic, total, structure, strings, reserved, version, compatible, boot_cpu, strings_size, size = HEADER.unpack_from(
        data
    )
    if magic != MAGIC:
        raise FdtError(f"no device tree: it begins with {magic:#x}, not {MAGIC:#x}", offset=0)
    if not version >= LAST_COMPATIBLE or compatible > VERSION:
        raise FdtError(f"version {version} (compatible with {compatible}); 16 and 17 are read here", offset=20)
    if version < VERSION:
        size = max(total - structure, 0)  # version 16 does not say; the block ends with its end token
    for name, start, length in (("tree", 0, total), ("structure", structure, size), ("strings", strings, strings_size)):
        if start + length > min(len(data), total):
            raise FdtError(f"the {name} block ends behind the file ({start + length:#x})", offset=start)
    if structure % 4 or reserved % 8:
        raise FdtError("its blocks are not aligned", offset=structure)
    names = data[strings : strings + strings_size]
    return Fdt(_read_nodes(_Words(data, structure, size), names), _reservations(data[:total], reserved), boot_cpu)


def _reservations(data: bytes, at: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    while at + RESERVATION.size <= len(data):
        start, size = RESERVATION.unpack_from(data, at)
        if not start and not size:
            return found
        if len(found) == MAX_RESERVATIONS:
            raise FdtError(f"more than {MAX_RESERVATIONS} memory reservations", offset=at)
        found.append((start, size))
        at += RESERVATION.size
    raise FdtError("the memory reservations have no end", offset=at)


def _read_nodes(words: _Words, names: bytes) -> Node:
    stack: list[Node] = []
    phandles = Phandles()
    root: Node | None = None
    count = 0
    while True:
        at = words.at
        token = words.word()
        if token == BEGIN_NODE:
            node = Node.from_file(words.name(), phandles)
            if stack:
                stack[-1].children.append(node)
            elif root is None:
                root = node
            else:
                raise FdtError(f"a second root at {at:#x}", offset=at)
            stack.append(node)
            count += 1
            if len(stack) > MAX_DEPTH or count > MAX_NODES:
                raise FdtError(f"nodes nested deeper than {MAX_DEPTH} or more than {MAX_NODES} at {at:#x}", offset=at)
        elif token == END_NODE and stack:
            stack.pop()
        elif token == PROP and stack:
            length, offset = words.word(), words.word()
            stop = names.find(b"\0", offset, offset + MAX_NAME + 1) if offset < len(names) else -1
            if stop < 0:
                raise FdtError(f"a property at {at:#x} without a name, or with one longer than {MAX_NAME}", offset=at)
            name, value = _name(names[offset:stop], at), words.take(length)
            stack[-1].properties[name] = value
            if name == "phandle" and length == 4:
                phandles.take(int.from_bytes(value, "big"))
        elif token == END and root is not None and not stack:
            return root
        elif token != NOP:
            raise FdtError(f"token {token} at {at:#x} where none such may be", offset=at)
