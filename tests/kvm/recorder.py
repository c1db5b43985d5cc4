"""Stands in for the kernel where it cannot do what is asked: remembers the bytes of each call, and answers them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from pyvmm_kvm._kvm import ffi

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


class Recorder:
    """Replaces the two methods of a descriptor that make system calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes]] = []
        self.answer: Callable[[str, memoryview], int] = lambda name, argument: 0

    def install(self, monkeypatch: pytest.MonkeyPatch, *kinds: type) -> None:
        def ioctl(fd: object, name: str, argument: object = ffi.NULL) -> int:
            size = ffi.sizeof(ffi.typeof(argument).item)
            whole = memoryview(ffi.buffer(argument, size)).cast("B")
            self.calls.append((name, bytes(whole)))
            return self.answer(name, whole)

        def value(fd: object, name: str, number: int = 0) -> int:
            self.calls.append((name, struct.pack("<Q", number)))
            return self.answer(name, memoryview(b""))

        for kind in kinds:
            monkeypatch.setattr(kind, "ioctl", ioctl)
            monkeypatch.setattr(kind, "ioctl_value", value)

    def attributes(self) -> list[tuple[str, int, int, int]]:
        """(name, group, attr, address) of the device attribute calls."""
        return [(name, *struct.unpack("<4xIQQ", data)) for name, data in self.calls if "DEVICE_ATTR" in name]
