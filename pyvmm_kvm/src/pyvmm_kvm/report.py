"""A vCPU's last exits in words, from what native/functions.c noted about each."""

from __future__ import annotations

import errno
import struct

from pyvmm_kvm._kvm import lib
from pyvmm_kvm.exits.hot import Unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_kvm._kvm import CData


def describe_exits(state: CData) -> list[str]:
    """The ring of a `struct pyvmm_vcpu`, oldest first."""
    size = lib.PYVMM_RING
    total = state.exits
    return [_describe(state.ring[number % size]) for number in range(max(0, total - size), total)]


def _describe(record: CData) -> str:
    words = tuple(record.words)
    if record.result:
        name = errno.errorcode.get(-record.result, str(-record.result))
        if record.reason != 39:
            return f"KVM_RUN returned {name}"
    if record.reason == 2:
        return _port(words)
    if record.reason == 6:
        address, data, rest = words[0], words[1], words[2]
        length, write = rest & 0xFFFFFFFF, rest >> 32 & 0xFF
        shown = struct.pack("<Q", data)[: min(length, 8)].hex(" ")
        return f"MmioWrite({address:#x}, <{shown}>)" if write else f"MmioRead({address:#x}, {length} bytes)"
    return _other(record.reason, words)


def _port(words: tuple[int, ...]) -> str:
    out, size, port, count = words[0] & 0xFF, words[0] >> 8 & 0xFF, words[0] >> 16 & 0xFFFF, words[0] >> 32
    shown = struct.pack("<Q", words[2])[: min(size * count, 8)].hex(" ")
    many = f" and {size * count - 8} more bytes" if size * count > 8 else ""
    return f"IoOut({port:#x}, <{shown}>{many})" if out else f"IoIn({port:#x}, {size * count} bytes)"


def _other(reason: int, words: tuple[int, ...]) -> str:
    from pyvmm_kvm.exits.rare import BY_REASON

    kind = BY_REASON.get(reason)
    if kind is None:
        simple = {5: "Hlt()", 8: "Shutdown()", 10: "Intr()"}
        return simple.get(reason) or repr(Unknown(reason, struct.pack("<4Q", *words)))
    # 32 bytes of the payload were kept; what lies behind reads as zero
    return repr(kind.decode(memoryview(bytearray(struct.pack("<4Q", *words) + bytes(224)))))
