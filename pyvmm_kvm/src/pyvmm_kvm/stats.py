"""KVM's binary statistics, decoded to names and values (Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD)."""

from __future__ import annotations

import os
import struct

from pyvmm_kvm.errors import StateError
from pyvmm_kvm.fd import Fd

_HEADER = struct.Struct("<6I")
_DESCRIPTOR = struct.Struct("<IhHII")
_TYPES = ("cumulative", "instant", "peak", "linear histogram", "logarithmic histogram")
_UNITS = ("", "bytes", "seconds", "cycles", "boolean")
_MOST = 4096


class Statistic:
    """One counter's description: `unit` is scaled by `base ** exponent`; histograms have `count` values."""

    __slots__ = ("base", "bucket_size", "count", "exponent", "kind", "name", "offset", "unit")

    def __init__(self, name: str, flags: int, exponent: int, count: int, offset: int, bucket_size: int) -> None:
        self.name = name
        kind, unit, base = flags & 15, flags >> 4 & 15, flags >> 8 & 15
        self.kind = _TYPES[kind] if kind < len(_TYPES) else f"type {kind}"
        self.unit = _UNITS[unit] if unit < len(_UNITS) else f"unit {unit}"
        self.base = 2 if base else 10
        self.exponent = exponent
        self.count = count
        self.offset = offset
        self.bucket_size = bucket_size

    def __repr__(self) -> str:
        return f"<Statistic {self.name}: {self.kind} {self.unit} x{self.count}>"


class Stats(Fd):
    """The statistics of a VM or vCPU. `id` names it, `descriptors` describe the counters, `read()` takes a sample."""

    __slots__ = ("_data", "descriptors", "id")

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        _, name_size, count, id_offset, start, self._data = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
        if count > _MOST or name_size > _MOST:
            raise StateError(f"{count} statistics with names of {name_size} bytes are more than a kernel has")
        self.id = os.pread(fd, name_size, id_offset).split(b"\0")[0].decode()
        size = _DESCRIPTOR.size + name_size
        block = os.pread(fd, count * size, start)
        self.descriptors = []
        for at in range(0, count * size, size):
            flags, exponent, values, offset, bucket = _DESCRIPTOR.unpack_from(block, at)
            name = block[at + _DESCRIPTOR.size : at + size].split(b"\0")[0].decode()
            self.descriptors.append(Statistic(name, flags, exponent, values, offset, bucket))

    def read(self) -> dict[str, int | tuple[int, ...]]:
        """Return all values now, by name; histograms are tuples."""
        end = max((item.offset + 8 * item.count for item in self.descriptors), default=0)
        block = os.pread(self.fileno(), end, self._data)
        sample: dict[str, int | tuple[int, ...]] = {}
        for item in self.descriptors:
            values = struct.unpack_from(f"<{item.count}Q", block, item.offset)
            sample[item.name] = values[0] if item.count == 1 else values
        return sample
