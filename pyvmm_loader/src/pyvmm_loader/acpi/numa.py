"""SRAT and SLIT: which processors and memory are near each other.

Source: ACPI 6.5, 5.2.16 and 5.2.17.
"""

from __future__ import annotations

from pyvmm_loader.acpi.madt import MAX_XAPIC_ID
from pyvmm_loader.acpi.table import AcpiError, table
from pyvmm_loader.fields import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ENABLED, HOTPLUGGABLE = 1, 2
LOCAL, REMOTE = 10, 20


class NumaNode:
    """A proximity domain: APIC ids, (start, size) pairs of memory, and the `distances` to all nodes.

    Without `distances` a node is at 10 from itself and at 20 from the others.
    """

    __slots__ = ("apic_ids", "distances", "memory")

    def __init__(
        self,
        apic_ids: Sequence[int] = (),
        memory: Sequence[tuple[int, int]] = (),
        distances: Sequence[int] | None = None,
    ) -> None:
        self.apic_ids = tuple(apic_ids)
        self.memory = tuple(memory)
        self.distances = None if distances is None else tuple(distances)

    def __repr__(self) -> str:
        size = sum([length for _, length in self.memory])
        return f"<NumaNode {len(self.apic_ids)} processors, {size:#x} bytes>"


def _processor(domain: int, apic_id: int) -> bytes:
    if apic_id <= MAX_XAPIC_ID:
        low, high = domain & 0xFF, (domain >> 8).to_bytes(3, "little")
        return pack("<BBBBIB3sI", 0, 16, low, apic_id, ENABLED, 0, high, 0)
    return pack("<BBHIIIII", 2, 24, 0, domain, apic_id, ENABLED, 0, 0)


def _memory(domain: int, start: int, size: int) -> bytes:
    return pack("<BBIHQQIIQ", 1, 40, domain, 0, start, size, 0, ENABLED, 0)


def _check(nodes: Sequence[NumaNode]) -> None:
    # Linux, numa_cleanup_meminfo and srat_disabled: with overlapping nodes it takes none of the table
    ids = [apic_id for node in nodes for apic_id in node.apic_ids]
    if len(set(ids)) < len(ids):
        raise AcpiError("a processor is in two nodes, or twice in one", ids=ids)
    end = 0
    for start, size in sorted(part for node in nodes for part in node.memory):
        pack("<QQ", start, size)
        if not size or start < end or start + size > 1 << 64:
            raise AcpiError(f"memory of {size:#x} bytes at {start:#x} is empty, overlaps other or leaves 64 bits")
        end = start + size


def srat(nodes: Sequence[NumaNode]) -> bytes:
    """Return the affinity of processors and memory."""
    entries = []
    _check(nodes)
    for domain, node in enumerate(nodes):
        entries.extend([_processor(domain, apic_id) for apic_id in node.apic_ids])
        entries.extend([_memory(domain, start, size) for start, size in node.memory])
    return table("SRAT", 3, pack("<IQ", 1, 0) + b"".join(entries))


def slit(nodes: Sequence[NumaNode]) -> bytes:
    """Return the distances. Raises ValueError where they are no distances: 10 to oneself, 11 to 255 to others."""
    count = len(nodes)
    matrix = bytearray()
    for number, node in enumerate(nodes):
        row = node.distances or [LOCAL if number == other else REMOTE for other in range(count)]
        good = [value == LOCAL if number == other else LOCAL < value <= 255 for other, value in enumerate(row)]
        if len(row) != count or not all(good):
            raise ValueError(
                f"node {number}: distances {list(row)}: give {count}, 10 to itself and 11 to 255 to others"
            )
        matrix += bytes(row)
    return table("SLIT", 1, pack("<Q", count) + bytes(matrix))
