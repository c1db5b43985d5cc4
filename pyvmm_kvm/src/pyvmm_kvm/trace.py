"""Exits written to a compact file, and read back: a record of what a guest did."""

from __future__ import annotations

import struct
import time

from pyvmm_kvm.errors import StateError
from pyvmm_kvm.exits.hot import IoIn, IoOut, MmioRead, MmioWrite

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO, Self

    from pyvmm_kvm.exits.hot import VcpuExit
    from pyvmm_kvm.vcpu import VcpuFd

_MAGIC = b"pyvmmtr2"
_RECORD = struct.Struct("<QHHH")
_PORT, _ADDRESS = struct.Struct("<H"), struct.Struct("<Q")
_LONGEST = 4096 + 32

# in the reason's upper bits: which of the two directions it was, and that words follow instead of numbers
_WRITE, _TEXT, _REASON = 0x8000, 0x4000, 0x3FFF
_OTHER = 0x3FFF  # the exits that are an errno of KVM_RUN have no reason


class ExitTrace:
    """Writes each exit that it is shown, with the time; call `record` before the exit is handled.

    A port or memory access takes 14 bytes (nanoseconds, vCPU, reason, length), its port (2 bytes) or address (8), and
    its data, which for a read are not known yet: its width is kept. Any other exit takes 14 bytes and its `repr`.
    """

    __slots__ = ("_file", "_start")

    def __init__(self, path: str) -> None:
        self._file: BinaryIO = open(path, "wb", buffering=1 << 16)  # noqa: SIM115 - closed by close()
        self._file.write(_MAGIC)
        self._start = time.monotonic_ns()

    def record(self, vcpu: VcpuFd, exit_: VcpuExit) -> None:
        """Write one exit."""
        if isinstance(exit_, (IoOut, IoIn)):
            kind, body = exit_.reason, _PORT.pack(exit_.port)
        elif isinstance(exit_, (MmioWrite, MmioRead)):
            kind, body = exit_.reason, _ADDRESS.pack(exit_.addr)
        else:
            number = exit_.reason if 0 <= exit_.reason < _OTHER else _OTHER
            kind, body = number | _TEXT, repr(exit_).encode()[:_LONGEST]
        if isinstance(exit_, (IoOut, MmioWrite)):
            kind, body = kind | _WRITE, body + bytes(exit_.data)
        elif isinstance(exit_, (IoIn, MmioRead)):
            body += _PORT.pack(len(exit_.data))
        self._file.write(_RECORD.pack(time.monotonic_ns() - self._start, vcpu.id & 0xFFFF, kind, len(body)) + body)

    def close(self) -> None:
        """Write what is buffered and close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_trace(path: str) -> Iterator[tuple[int, int, int, str]]:
    """Yield each record as (nanoseconds since the start, vCPU, reason, text); `StateError` for a file that is no trace.

    The reason of the two exits that are an errno of KVM_RUN (`Intr`, `Again`) is -1, unless KVM gave one.
    """
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise StateError(f"{path} is not a trace of exits")
        while head := file.read(_RECORD.size):
            if len(head) < _RECORD.size:
                raise StateError(f"{path} ends inside a record")
            when, vcpu, kind, length = _RECORD.unpack(head)
            body = file.read(length)
            if len(body) < length:
                raise StateError(f"{path} ends inside a record")
            reason = kind & _REASON
            try:
                text = body.decode(errors="replace") if kind & _TEXT else _access(reason, bool(kind & _WRITE), body)
            except struct.error as error:
                raise StateError(f"{path} holds an access without its address") from error
            yield when, vcpu, -1 if reason == _OTHER else reason, text


def _access(reason: int, write: bool, body: bytes) -> str:
    where, name = (_PORT, "port") if reason == IoOut.reason else (_ADDRESS, "addr")
    place = where.unpack_from(body)[0]
    if reason == IoOut.reason:
        kind: type[VcpuExit] = IoOut if write else IoIn
    else:
        kind = MmioWrite if write else MmioRead
    rest = body[where.size :]
    what = f"data=<{rest.hex(' ')}>" if write else f"{_PORT.unpack(rest)[0]} bytes"
    return f"{kind.__name__}({name}={place:#x}, {what})"
