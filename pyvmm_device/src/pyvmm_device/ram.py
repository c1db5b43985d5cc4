"""Bytes on a bus: scratch memory, or a ROM that ignores writes."""

from __future__ import annotations

from pyvmm_device.state import Stateful, blob


class Ram(Stateful):
    """A device that remembers what was written.

    Args:
        content: its size in bytes, or its first content.
        writable: whether the guest may change it.
    """

    def __init__(self, content: int | bytes | bytearray, *, writable: bool = True) -> None:
        self._content = bytearray(content)
        self._first = bytes(self._content)
        self._writable = writable
        self.STATE = {"content": blob(len(self._content))}  # type: ignore[misc]  # the size is the instance's

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read; beyond the end there are ones."""
        found = self._content[offset : offset + len(buffer)]
        buffer[:] = found.ljust(len(buffer), b"\xff")

    def write(self, offset: int, data: memoryview) -> None:
        """Write, as far as there is memory."""
        if self._writable:
            data = data[: max(0, len(self._content) - offset)]
            self._content[offset : offset + len(data)] = data

    def reset(self) -> None:
        """Have the first content again."""
        self._content[:] = self._first

    def __len__(self) -> int:
        return len(self._content)

    def __repr__(self) -> str:
        return f"<{'Ram' if self._writable else 'Rom'} of {len(self._content)} bytes>"
