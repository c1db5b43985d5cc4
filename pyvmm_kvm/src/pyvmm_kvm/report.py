"""A vCPU's last exits in words, from what native/functions.c noted about each."""

from __future__ import annotations

import errno
import struct

from pyvmm_kvm._kvm import lib
from pyvmm_kvm.exits.hot import PAYLOAD_SIZE, Hlt, Intr, IoOut, MmioRead, Shutdown, Unknown
from pyvmm_kvm.exits.rare import BY_REASON, MemoryFault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_kvm._kvm import CData

# the union in struct kvm_run: of `io` direction, size, port and count, of `mmio` address, data, length and is_write
_IO, _MMIO = struct.Struct("<BBHI"), struct.Struct("<Q8sIB")
_WORDS = struct.Struct("<4Q")
_IO_OUT = 1  # KVM_EXIT_IO_OUT
_SHOWN = 8
_WITHOUT_FIELDS = {kind.reason: kind() for kind in (Hlt, Shutdown, Intr)}


def describe_exits(state: CData) -> list[str]:
    """Return the ring of a `struct pyvmm_vcpu`, oldest first."""
    size = lib.PYVMM_RING
    total = state.exits
    return [_describe(state.ring[number % size]) for number in range(max(0, total - size), total)]


def _describe(record: CData) -> str:
    # KVM reports this one together with an errno
    if record.result and record.reason != MemoryFault.reason:
        return f"KVM_RUN returned {errno.errorcode.get(-record.result, str(-record.result))}"
    payload = _WORDS.pack(*record.words)
    if record.reason == IoOut.reason:
        return _port(payload)
    if record.reason == MmioRead.reason:
        return _memory(payload)
    return _other(record.reason, payload)


def _port(payload: bytes) -> str:
    direction, size, port, count = _IO.unpack_from(payload)
    if direction != _IO_OUT:
        return f"IoIn({port:#x}, {size * count} bytes)"
    # native/functions.c kept the first bytes of the data where the union has its offset
    shown = payload[16 : 16 + min(size * count, _SHOWN)].hex(" ")
    many = f" and {size * count - _SHOWN} more bytes" if size * count > _SHOWN else ""
    return f"IoOut({port:#x}, <{shown}>{many})"


def _memory(payload: bytes) -> str:
    address, data, length, write = _MMIO.unpack_from(payload)
    return (
        f"MmioWrite({address:#x}, <{data[:length].hex(' ')}>)" if write else f"MmioRead({address:#x}, {length} bytes)"
    )


def _other(reason: int, payload: bytes) -> str:
    kind = BY_REASON.get(reason)
    if kind is None:
        return repr(_WITHOUT_FIELDS.get(reason) or Unknown(reason, payload))
    # what lies behind the words that were kept reads as zero
    return repr(kind.decode(memoryview(bytearray(payload.ljust(PAYLOAD_SIZE, b"\0")))))
