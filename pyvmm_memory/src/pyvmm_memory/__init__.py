"""Guest physical memory: regions of host memory at guest addresses, and bounds-checked access to them.

`GuestMemoryMmap.from_ranges` maps memory and every access goes through it by guest address. A region exposes its
`buffer` to whoever maps it into a virtual machine. Views handed out keep a region mapped: release them, then close.
"""

from __future__ import annotations

from .address import GuestAddress
from .errors import (
    GuestAddressOverflow,
    GuestMemoryError,
    InvalidBackendAddress,
    InvalidGuestAddress,
    InvalidLength,
    InvalidRegion,
    MemoryClosed,
    MemoryInUse,
    MemoryRegionOverlap,
    Misaligned,
    NoMemoryRegion,
    PartialBuffer,
    UnsortedMemoryRegions,
)
from .guest_memory import GuestMemoryMmap
from .region import GuestRegionMmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .atomic import GuestMemoryAtomic
    from .ordering import fence

__version__ = "0.1.0"

__all__ = [
    "GuestAddress",
    "GuestAddressOverflow",
    "GuestMemoryAtomic",
    "GuestMemoryError",
    "GuestMemoryMmap",
    "GuestRegionMmap",
    "InvalidBackendAddress",
    "InvalidGuestAddress",
    "InvalidLength",
    "InvalidRegion",
    "MemoryClosed",
    "MemoryInUse",
    "MemoryRegionOverlap",
    "Misaligned",
    "NoMemoryRegion",
    "PartialBuffer",
    "UnsortedMemoryRegions",
    "fence",
]


def __getattr__(name: str) -> object:
    # booting a kernel needs neither, and each costs an import
    if name == "fence":
        from .ordering import fence

        return fence
    if name == "GuestMemoryAtomic":
        from .atomic import GuestMemoryAtomic

        return GuestMemoryAtomic
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
