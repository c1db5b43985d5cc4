"""What can go wrong with buses, resources, interrupts and saved state; every error carries its facts."""

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


class InvalidResource(DeviceError):
    """A resource or constraint contradicts itself, such as an alignment that is no power of two."""


class ResourceTaken(DeviceError):
    """What was asked for is held by somebody.

    Attributes:
        pool: the name of the pool.
        wanted: what was asked for, in words.
        holder: who has it.
    """

    def __init__(self, pool: str, wanted: str, holder: object) -> None:
        super().__init__(f"{pool}: {wanted} is held by {holder}")
        self.pool = pool
        self.wanted = wanted
        self.holder = holder


class ResourceExhausted(DeviceError):
    """A pool has nothing left that fits.

    Attributes:
        pool: the name of the pool.
        wanted: what was asked for, in words.
        holders: who has something of it.
    """

    def __init__(self, pool: str, wanted: str, holders: list[object]) -> None:
        names = list(dict.fromkeys(str(holder) for holder in holders))
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        super().__init__(f"{pool}: no room for {wanted}; held by {shown or 'nobody'}: free some or widen the pool")
        self.pool = pool
        self.wanted = wanted
        self.holders = holders


class InterruptError(DeviceError):
    """An interrupt source was used out of range or before it was configured."""


class PciError(DeviceError):
    """A PCI function was put together wrongly: a BAR, a capability, a slot."""


class DeviceStateError(DeviceError):
    """A saved state does not fit the device it is given to. The device is as it was.

    Attributes:
        device: the name of the class it was given to.
        reason: what does not fit.
    """

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(f"this is no state of {device}: {reason}")
        self.device = device
        self.reason = reason


def _show(span: tuple[int, int]) -> str:
    return f"{span[0]:#x}..{span[0] + span[1] - 1:#x}"
