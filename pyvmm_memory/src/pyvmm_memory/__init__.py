"""Guest physical memory: regions of host memory at guest addresses, and bounds-checked access to them.

`GuestMemoryMmap.from_ranges` maps anonymous memory, `from_ranges_with_files` files, memfds and hugetlbfs; every access
goes through it by guest address:

>>> from pyvmm_memory import GuestMemoryMmap
>>> with GuestMemoryMmap.from_ranges([(0, 0x1000), (0x1000, 0x1000)]) as memory:
...     memory.write_slice(b"across the border", 0xFF8)
...     memory.write_u32(7, 0x10)
...     memory.read_u32(0x10), memory.check_range(0xFF8, 17), memory.num_regions()
(7, True, 2)

A collection never changes: memory hotplug makes a new one and publishes it through `GuestMemoryAtomic`. A region
exposes its `buffer` to whoever maps it into a virtual machine. Views handed out keep a region mapped: release them,
then close. With `bitmap=AtomicBitmap` every write is recorded by pages; `VolatileSlice`, `VolatileRef` and
`VolatileArrayRef` are parts that record their own writes; `IommuMemory` is the same memory by I/O virtual address.
"""

from __future__ import annotations

from .address import GuestAddress
from .errors import (
    GuestAddressOverflow,
    GuestMemoryError,
    HostAddressNotAvailable,
    InvalidBackendAddress,
    InvalidBuffer,
    InvalidGuestAddress,
    InvalidInteger,
    InvalidLength,
    InvalidOffsetLength,
    InvalidPointer,
    InvalidRegion,
    MapFixed,
    MappingOverlap,
    MappingPastEof,
    MemoryClosed,
    MemoryInUse,
    MemoryRegionOverlap,
    Misaligned,
    MmapFailed,
    MmapRegionError,
    NoMemoryRegion,
    OutOfBounds,
    Overflow,
    PartialBuffer,
    ReadOnlyMemory,
    TooBig,
    UnexpectedEof,
    UnsortedMemoryRegions,
)
from .guest_memory import GuestMemoryMmap
from .mmap_region import MmapRegion
from .permissions import Permissions
from .region import GuestRegionMmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .address import MemoryRegionAddress
    from .atomic import GuestMemoryAtomic
    from .bitmap import AtomicBitmap, BitmapSlice, PlainBitmap
    from .bytes import Bytes
    from .collection import GuestRegionCollection
    from .endian import Be16, Be32, Be64, BeSize, Le16, Le32, Le64, LeSize
    from .file_offset import FileOffset
    from .memory import GuestMemory
    from .ordering import InvalidOrdering, Ordering, fence
    from .volatile import PtrGuard, VolatileSlice
    from .volatile_ref import VolatileArrayRef, VolatileRef

__version__ = "0.1.0"

# booting a kernel needs none of these, and each costs an import
_LAZY = {
    "address": "MemoryRegionAddress",
    "atomic": "GuestMemoryAtomic",
    "bitmap": "AtomicBitmap BitmapSlice PlainBitmap",
    "bytes": "Bytes",
    "collection": "GuestRegionCollection",
    "endian": "Be16 Be32 Be64 BeSize Le16 Le32 Le64 LeSize",
    "file_offset": "FileOffset",
    "memory": "GuestMemory",
    "ordering": "InvalidOrdering Ordering fence",
    "volatile": "PtrGuard VolatileSlice",
    "volatile_ref": "VolatileArrayRef VolatileRef",
}

__all__ = [
    "AtomicBitmap",
    "Be16",
    "Be32",
    "Be64",
    "BeSize",
    "BitmapSlice",
    "Bytes",
    "FileOffset",
    "GuestAddress",
    "GuestAddressOverflow",
    "GuestMemory",
    "GuestMemoryAtomic",
    "GuestMemoryError",
    "GuestMemoryMmap",
    "GuestRegionCollection",
    "GuestRegionMmap",
    "HostAddressNotAvailable",
    "InvalidBackendAddress",
    "InvalidBuffer",
    "InvalidGuestAddress",
    "InvalidInteger",
    "InvalidLength",
    "InvalidOffsetLength",
    "InvalidOrdering",
    "InvalidPointer",
    "InvalidRegion",
    "Le16",
    "Le32",
    "Le64",
    "LeSize",
    "MapFixed",
    "MappingOverlap",
    "MappingPastEof",
    "MemoryClosed",
    "MemoryInUse",
    "MemoryRegionAddress",
    "MemoryRegionOverlap",
    "Misaligned",
    "MmapFailed",
    "MmapRegion",
    "MmapRegionError",
    "NoMemoryRegion",
    "Ordering",
    "OutOfBounds",
    "Overflow",
    "PartialBuffer",
    "Permissions",
    "PlainBitmap",
    "PtrGuard",
    "ReadOnlyMemory",
    "TooBig",
    "UnexpectedEof",
    "UnsortedMemoryRegions",
    "VolatileArrayRef",
    "VolatileRef",
    "VolatileSlice",
    "fence",
]


def __getattr__(name: str) -> object:
    for module, names in _LAZY.items():
        if name in names.split():
            from importlib import import_module

            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
