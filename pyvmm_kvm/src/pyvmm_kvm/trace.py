"""Exits written to a compact file, and read back: a record of what a guest did."""

from __future__ import annotations

import struct
import time

from .errors import StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO, Self

    from .exits import VcpuExit
    from .vcpu import VcpuFd

_MAGIC = b"pyvmmtr1"
_RECORD = struct.Struct("<QHHH")
_LONGEST = 4096 + 32


class ExitTrace:
    """Wraps a handler for `RunControl` and writes each exit before the handler sees it.

    Each record is 14 bytes (nanoseconds, vCPU, reason, length) and the text of the exit.
    """

    def __init__(self, path: str) -> None:
        self._file: BinaryIO = open(path, "wb", buffering=1 << 16)  # noqa: SIM115 - closed by close()
        self._file.write(_MAGIC)
        self._start = time.monotonic_ns()

    def record(self, vcpu: VcpuFd, exit_: VcpuExit) -> None:
        """Write one exit."""
        text = repr(exit_).encode()[:_LONGEST]
        self._file.write(
            _RECORD.pack(time.monotonic_ns() - self._start, vcpu.id, exit_.reason & 0xFFFF, len(text)) + text
        )

    def close(self) -> None:
        """Write what is buffered and close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_trace(path: str) -> Iterator[tuple[int, int, int, str]]:
    """Each record as (nanoseconds since the start, vCPU, reason, text); `StateError` for a file that is not one."""
    with open(path, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise StateError(f"{path} is not a trace of exits")
        while head := file.read(_RECORD.size):
            if len(head) < _RECORD.size:
                raise StateError(f"{path} ends inside a record")
            when, vcpu, reason, length = _RECORD.unpack(head)
            text = file.read(length)
            if len(text) < length:
                raise StateError(f"{path} ends inside a record")
            yield when, vcpu, reason, text.decode(errors="replace")
