"""What can go wrong on a bus; every error carries its facts."""

from __future__ import annotations


class DeviceError(Exception):
    """The root of this package's errors."""


class DeviceNotFound(DeviceError):
    """No device answers at an address, or an access leaves the one that does.

    Attributes:
        address: where the access begins.
        length: its length in bytes.
    """

    def __init__(self, address: int, length: int = 1) -> None:
        super().__init__(f"no device answers to {length} bytes at {address:#x}")
        self.address = address
        self.length = length


class DeviceOverlap(DeviceError):
    """A range to be registered covers addresses that another device has.

    Attributes:
        wanted: the range that was refused, as (base, size).
        taken: the range it collides with, likewise.
        holder: the device that has it.
    """

    def __init__(self, wanted: tuple[int, int], taken: tuple[int, int], holder: object) -> None:
        super().__init__(f"{_show(wanted)} overlaps {_show(taken)}, which {holder!r} has")
        self.wanted = wanted
        self.taken = taken
        self.holder = holder


class InvalidAccessLength(DeviceError):
    """An access runs past the last address, or has no length.

    Attributes:
        length: the length in bytes.
    """

    def __init__(self, length: int) -> None:
        super().__init__(f"{length} bytes are no access this bus can carry")
        self.length = length


class InvalidRange(DeviceError):
    """A range has no size or does not fit into the addresses of a bus.

    Attributes:
        base: its first address.
        size: its size in bytes.
    """

    def __init__(self, base: int, size: int) -> None:
        super().__init__(f"{size} bytes from {base:#x} are no range of addresses")
        self.base = base
        self.size = size


def _show(span: tuple[int, int]) -> str:
    return f"{span[0]:#x}..{span[0] + span[1] - 1:#x}"
