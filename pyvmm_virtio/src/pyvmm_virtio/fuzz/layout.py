"""Where things lie in the memory of a guest that attacks: rings, then indirect tables, buffers, and nobody's bytes."""

from __future__ import annotations

MEMORY_SIZE = 768 << 10
BATCH = 16
"""How many chains are offered at once; each has a table and buffers of its own."""
TABLES, TABLE_ROOM = 0x40000, 0x1000
BUFFERS = TABLES + BATCH * TABLE_ROOM
END = MEMORY_SIZE - 0x10000
"""Buffers end here; what follows is nobody's."""
GAP = 32
"""Bytes nobody offered between any two buffers."""
