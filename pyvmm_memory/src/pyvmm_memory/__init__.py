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

from pyvmm_memory.address import GuestAddress
from pyvmm_memory.errors import (
    GuestAddressOverflow,
    GuestMemoryError,
    HostAddressNotAvailable,
    HostRefused,
    InvalidBackendAddress,
    InvalidBuffer,
    InvalidGuestAddress,
    InvalidInteger,
    InvalidLength,
    InvalidOffsetLength,
    InvalidPointer,
    InvalidRegion,
    InvalidSnapshot,
    MapFixed,
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
from pyvmm_memory.guest_memory_mmap import GuestMemoryMmap
from pyvmm_memory.mmap_region import MmapRegion
from pyvmm_memory.permissions import Permissions
from pyvmm_memory.region import GuestRegionMmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_memory.address import MemoryRegionAddress
    from pyvmm_memory.advice import Advice, advise, prefault
    from pyvmm_memory.atomic import GuestMemoryAtomic
    from pyvmm_memory.bitmap import AtomicBitmap, BitmapSlice, PlainBitmap
    from pyvmm_memory.bytes import Bytes
    from pyvmm_memory.collection import GuestRegionCollection
    from pyvmm_memory.endian import Be16, Be32, Be64, BeSize, Le16, Le32, Le64, LeSize
    from pyvmm_memory.file_offset import FileOffset
    from pyvmm_memory.guest_memory import GuestMemory
    from pyvmm_memory.iommu import CannotResolve, Fragmented, Iommu, IommuError, IommuMemory, IommuMisconfigured
    from pyvmm_memory.iotlb import Iotlb, IotlbFails, IovaRange, MappedRange
    from pyvmm_memory.memfd import from_guest_memfd, from_memfd, guest_memfd_region, memfd_region
    from pyvmm_memory.mmap_builder import MmapRegionBuilder
    from pyvmm_memory.numa import Policy, bind, online_nodes, policy_of
    from pyvmm_memory.ordering import InvalidOrdering, Ordering, fence
    from pyvmm_memory.reservation import HostReservation, contiguous
    from pyvmm_memory.snapshot import Snapshot, dirty_ranges, save
    from pyvmm_memory.struct_view import StructView
    from pyvmm_memory.userfault import UserFault, UserFaultError
    from pyvmm_memory.volatile import PtrGuard, VolatileSlice
    from pyvmm_memory.volatile_ref import VolatileArrayRef, VolatileRef
    from pyvmm_memory.xen import MmapRange, MmapXenFlags

__version__ = "0.1.0"

# booting a kernel needs none of these, and each costs an import
_LAZY = {
    "address": "MemoryRegionAddress",
    "advice": "Advice advise prefault",
    "atomic": "GuestMemoryAtomic",
    "bitmap": "AtomicBitmap BitmapSlice PlainBitmap",
    "bytes": "Bytes",
    "collection": "GuestRegionCollection",
    "endian": "Be16 Be32 Be64 BeSize Le16 Le32 Le64 LeSize",
    "file_offset": "FileOffset",
    "iommu": "CannotResolve Fragmented Iommu IommuError IommuMemory IommuMisconfigured",
    "iotlb": "Iotlb IotlbFails IovaRange MappedRange",
    "memfd": "from_guest_memfd from_memfd guest_memfd_region memfd_region",
    "guest_memory": "GuestMemory",
    "mmap_builder": "MmapRegionBuilder",
    "numa": "Policy bind online_nodes policy_of",
    "ordering": "InvalidOrdering Ordering fence",
    "reservation": "HostReservation contiguous",
    "snapshot": "Snapshot dirty_ranges save",
    "struct_view": "StructView",
    "userfault": "UserFault UserFaultError",
    "volatile": "PtrGuard VolatileSlice",
    "volatile_ref": "VolatileArrayRef VolatileRef",
    "xen": "MmapRange MmapXenFlags",
}

__all__ = [
    "Advice",
    "AtomicBitmap",
    "Be16",
    "Be32",
    "Be64",
    "BeSize",
    "BitmapSlice",
    "Bytes",
    "CannotResolve",
    "FileOffset",
    "Fragmented",
    "GuestAddress",
    "GuestAddressOverflow",
    "GuestMemory",
    "GuestMemoryAtomic",
    "GuestMemoryError",
    "GuestMemoryMmap",
    "GuestRegionCollection",
    "GuestRegionMmap",
    "HostAddressNotAvailable",
    "HostRefused",
    "HostReservation",
    "InvalidBackendAddress",
    "InvalidBuffer",
    "InvalidGuestAddress",
    "InvalidInteger",
    "InvalidLength",
    "InvalidOffsetLength",
    "InvalidOrdering",
    "InvalidPointer",
    "InvalidRegion",
    "InvalidSnapshot",
    "Iommu",
    "IommuError",
    "IommuMemory",
    "IommuMisconfigured",
    "Iotlb",
    "IotlbFails",
    "IovaRange",
    "Le16",
    "Le32",
    "Le64",
    "LeSize",
    "MapFixed",
    "MappedRange",
    "MappingPastEof",
    "MemoryClosed",
    "MemoryInUse",
    "MemoryRegionAddress",
    "MemoryRegionOverlap",
    "Misaligned",
    "MmapFailed",
    "MmapRange",
    "MmapRegion",
    "MmapRegionBuilder",
    "MmapRegionError",
    "MmapXenFlags",
    "NoMemoryRegion",
    "Ordering",
    "OutOfBounds",
    "Overflow",
    "PartialBuffer",
    "Permissions",
    "PlainBitmap",
    "Policy",
    "PtrGuard",
    "ReadOnlyMemory",
    "Snapshot",
    "StructView",
    "TooBig",
    "UnexpectedEof",
    "UnsortedMemoryRegions",
    "UserFault",
    "UserFaultError",
    "VolatileArrayRef",
    "VolatileRef",
    "VolatileSlice",
    "advise",
    "bind",
    "contiguous",
    "dirty_ranges",
    "fence",
    "from_guest_memfd",
    "from_memfd",
    "guest_memfd_region",
    "memfd_region",
    "online_nodes",
    "policy_of",
    "prefault",
    "save",
]


def __getattr__(name: str) -> object:
    for module, names in _LAZY.items():
        if name in names.split():
            from importlib import import_module

            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
