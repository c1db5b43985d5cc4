"""The ring of coalesced writes, which KVM fills inside a vCPU's mapping (struct kvm_coalesced_mmio_ring)."""

from __future__ import annotations

import os
import struct

from pyvmm_kvm._kvm import lib

_ENTRY = struct.Struct("<QII8s")
_HEADER = 8


def read_next(page: memoryview) -> tuple[int, bytes, bool] | None:
    """Take the oldest entry; None when the ring is empty."""
    size = os.sysconf("SC_PAGESIZE")
    start = lib.KVM_COALESCED_MMIO_PAGE_OFFSET * size
    capacity = (size - _HEADER) // _ENTRY.size
    positions = page[start : start + _HEADER].cast("I")
    first = positions[0] % capacity
    if first == positions[1]:
        return None
    address, length, pio, data = _ENTRY.unpack_from(page, start + _HEADER + first * _ENTRY.size)
    # an aligned 4-byte store: the kernel sees the old or the new index
    positions[0] = (first + 1) % capacity
    return address, data[: min(length, 8)], bool(pio)
