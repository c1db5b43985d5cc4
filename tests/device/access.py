"""What tests of devices share: single accesses, and lines that remember."""

from __future__ import annotations

from typing import Protocol


class Accessible(Protocol):
    def read(self, offset: int, buffer: memoryview) -> None: ...
    def write(self, offset: int, data: memoryview) -> None: ...


def get(device: Accessible, offset: int, length: int = 1) -> int:
    buffer = memoryview(bytearray(length))
    device.read(offset, buffer)
    return int.from_bytes(buffer, "little")


def put(device: Accessible, offset: int, value: int, length: int = 1) -> None:
    device.write(offset, memoryview(value.to_bytes(length, "little")))


class Line:
    """A level interrupt that remembers its level and counts how often it rose."""

    def __init__(self) -> None:
        self.level = False
        self.rises = 0

    def assert_(self) -> None:
        self.rises += not self.level
        self.level = True

    def clear(self) -> None:
        self.level = False
