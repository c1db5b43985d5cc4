"""Guest physical memory: regions of host memory at guest addresses, and bounds-checked access to them.

`GuestMemoryMmap.from_ranges` maps anonymous memory, `from_ranges_with_files` files, memfds and hugetlbfs; every access
goes through it by guest address:

>>> from pyvmm_memory import GuestMemoryMmap
>>> with GuestMemoryMmap.from_ranges([(0, 0x1000), (0x1000, 0x1000)]) as memory:
...     memory.write_slice(b"across the border", 0xFF8)
...     memory.write_u32(7, 0x10)
...     memory.read_u32(0x10), memory[0xFF8:0x1002], memory.num_regions()
(7, b'across the', 2)

A collection never changes: memory hotplug makes a new one and publishes it through `GuestMemoryAtomic`. A region
exposes its `buffer` to whoever maps it into a virtual machine. Views handed out keep a region mapped: release them,
then close. With `bitmap=AtomicBitmap` every write is recorded by pages; `VolatileSlice`, `VolatileRef` and
`VolatileArrayRef` are parts that record their own writes; `IommuMemory` is the same memory by I/O virtual address.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_memory.address import GuestAddress as GuestAddress
    from pyvmm_memory.address import MemoryRegionAddress as MemoryRegionAddress
    from pyvmm_memory.advice import Advice as Advice
    from pyvmm_memory.advice import advise as advise
    from pyvmm_memory.advice import prefault as prefault
    from pyvmm_memory.atomic import GuestMemoryAtomic as GuestMemoryAtomic
    from pyvmm_memory.bitmap import AtomicBitmap as AtomicBitmap
    from pyvmm_memory.bitmap import BitmapSlice as BitmapSlice
    from pyvmm_memory.bitmap import PlainBitmap as PlainBitmap
    from pyvmm_memory.bytes import Bytes as Bytes
    from pyvmm_memory.collection import GuestRegionCollection as GuestRegionCollection
    from pyvmm_memory.endian import Be16 as Be16
    from pyvmm_memory.endian import Be32 as Be32
    from pyvmm_memory.endian import Be64 as Be64
    from pyvmm_memory.endian import BeSize as BeSize
    from pyvmm_memory.endian import Le16 as Le16
    from pyvmm_memory.endian import Le32 as Le32
    from pyvmm_memory.endian import Le64 as Le64
    from pyvmm_memory.endian import LeSize as LeSize
    from pyvmm_memory.errors import GuestAddressOverflow as GuestAddressOverflow
    from pyvmm_memory.errors import GuestMemoryError as GuestMemoryError
    from pyvmm_memory.errors import HostAddressNotAvailable as HostAddressNotAvailable
    from pyvmm_memory.errors import HostRefused as HostRefused
    from pyvmm_memory.errors import InvalidBackendAddress as InvalidBackendAddress
    from pyvmm_memory.errors import InvalidBuffer as InvalidBuffer
    from pyvmm_memory.errors import InvalidGuestAddress as InvalidGuestAddress
    from pyvmm_memory.errors import InvalidInteger as InvalidInteger
    from pyvmm_memory.errors import InvalidLength as InvalidLength
    from pyvmm_memory.errors import InvalidOffsetLength as InvalidOffsetLength
    from pyvmm_memory.errors import InvalidPointer as InvalidPointer
    from pyvmm_memory.errors import InvalidRegion as InvalidRegion
    from pyvmm_memory.errors import InvalidSlice as InvalidSlice
    from pyvmm_memory.errors import InvalidSnapshot as InvalidSnapshot
    from pyvmm_memory.errors import MapFixed as MapFixed
    from pyvmm_memory.errors import MappingPastEof as MappingPastEof
    from pyvmm_memory.errors import MemoryBusy as MemoryBusy
    from pyvmm_memory.errors import MemoryClosed as MemoryClosed
    from pyvmm_memory.errors import MemoryInUse as MemoryInUse
    from pyvmm_memory.errors import MemoryRegionOverlap as MemoryRegionOverlap
    from pyvmm_memory.errors import Misaligned as Misaligned
    from pyvmm_memory.errors import MmapFailed as MmapFailed
    from pyvmm_memory.errors import MmapRegionError as MmapRegionError
    from pyvmm_memory.errors import NoMemoryRegion as NoMemoryRegion
    from pyvmm_memory.errors import OutOfBounds as OutOfBounds
    from pyvmm_memory.errors import Overflow as Overflow
    from pyvmm_memory.errors import PartialBuffer as PartialBuffer
    from pyvmm_memory.errors import ReadOnlyMemory as ReadOnlyMemory
    from pyvmm_memory.errors import TooBig as TooBig
    from pyvmm_memory.errors import UnexpectedEof as UnexpectedEof
    from pyvmm_memory.errors import UnsortedMemoryRegions as UnsortedMemoryRegions
    from pyvmm_memory.file_offset import FileOffset as FileOffset
    from pyvmm_memory.guest_memory import GuestMemory as GuestMemory
    from pyvmm_memory.guest_memory_mmap import GuestMemoryMmap as GuestMemoryMmap
    from pyvmm_memory.iommu import CannotResolve as CannotResolve
    from pyvmm_memory.iommu import Fragmented as Fragmented
    from pyvmm_memory.iommu import Iommu as Iommu
    from pyvmm_memory.iommu import IommuError as IommuError
    from pyvmm_memory.iommu import IommuMemory as IommuMemory
    from pyvmm_memory.iommu import IommuMisconfigured as IommuMisconfigured
    from pyvmm_memory.iotlb import Iotlb as Iotlb
    from pyvmm_memory.iotlb import IotlbFails as IotlbFails
    from pyvmm_memory.iotlb import IovaRange as IovaRange
    from pyvmm_memory.iotlb import MappedRange as MappedRange
    from pyvmm_memory.memfd import from_guest_memfd as from_guest_memfd
    from pyvmm_memory.memfd import from_memfd as from_memfd
    from pyvmm_memory.memfd import guest_memfd_region as guest_memfd_region
    from pyvmm_memory.memfd import memfd_region as memfd_region
    from pyvmm_memory.mmap_builder import MmapRegionBuilder as MmapRegionBuilder
    from pyvmm_memory.mmap_region import MmapRegion as MmapRegion
    from pyvmm_memory.numa import Policy as Policy
    from pyvmm_memory.numa import bind as bind
    from pyvmm_memory.numa import online_nodes as online_nodes
    from pyvmm_memory.numa import policy_of as policy_of
    from pyvmm_memory.ordering import InvalidOrdering as InvalidOrdering
    from pyvmm_memory.ordering import Ordering as Ordering
    from pyvmm_memory.ordering import fence as fence
    from pyvmm_memory.permissions import Permissions as Permissions
    from pyvmm_memory.region import GuestRegionMmap as GuestRegionMmap
    from pyvmm_memory.reservation import HostReservation as HostReservation
    from pyvmm_memory.reservation import contiguous as contiguous
    from pyvmm_memory.snapshot import Snapshot as Snapshot
    from pyvmm_memory.snapshot import dirty_ranges as dirty_ranges
    from pyvmm_memory.snapshot import save as save
    from pyvmm_memory.struct_view import StructView as StructView
    from pyvmm_memory.userfault import UserFault as UserFault
    from pyvmm_memory.userfault import UserFaultError as UserFaultError
    from pyvmm_memory.volatile import PtrGuard as PtrGuard
    from pyvmm_memory.volatile import VolatileSlice as VolatileSlice
    from pyvmm_memory.volatile_ref import VolatileArrayRef as VolatileArrayRef
    from pyvmm_memory.volatile_ref import VolatileRef as VolatileRef
    from pyvmm_memory.xen import MmapRange as MmapRange
    from pyvmm_memory.xen import MmapXenFlags as MmapXenFlags

_HOMES = {
    "address": "GuestAddress MemoryRegionAddress",
    "advice": "Advice advise prefault",
    "atomic": "GuestMemoryAtomic",
    "bitmap": "AtomicBitmap BitmapSlice PlainBitmap",
    "bytes": "Bytes",
    "collection": "GuestRegionCollection",
    "endian": "Be16 Be32 Be64 BeSize Le16 Le32 Le64 LeSize",
    "errors": (
        "GuestAddressOverflow GuestMemoryError HostAddressNotAvailable HostRefused InvalidBackendAddress "
        "InvalidBuffer InvalidGuestAddress InvalidInteger InvalidLength InvalidOffsetLength InvalidPointer "
        "InvalidRegion InvalidSlice InvalidSnapshot MapFixed MappingPastEof MemoryBusy MemoryClosed MemoryInUse "
        "MemoryRegionOverlap Misaligned MmapFailed MmapRegionError NoMemoryRegion OutOfBounds Overflow PartialBuffer "
        "ReadOnlyMemory TooBig UnexpectedEof UnsortedMemoryRegions"
    ),
    "file_offset": "FileOffset",
    "guest_memory": "GuestMemory",
    "guest_memory_mmap": "GuestMemoryMmap",
    "iommu": "CannotResolve Fragmented Iommu IommuError IommuMemory IommuMisconfigured",
    "iotlb": "Iotlb IotlbFails IovaRange MappedRange",
    "memfd": "from_guest_memfd from_memfd guest_memfd_region memfd_region",
    "mmap_builder": "MmapRegionBuilder",
    "mmap_region": "MmapRegion",
    "numa": "Policy bind online_nodes policy_of",
    "ordering": "InvalidOrdering Ordering fence",
    "permissions": "Permissions",
    "region": "GuestRegionMmap",
    "reservation": "HostReservation contiguous",
    "snapshot": "Snapshot dirty_ranges save",
    "struct_view": "StructView",
    "userfault": "UserFault UserFaultError",
    "volatile": "PtrGuard VolatileSlice",
    "volatile_ref": "VolatileArrayRef VolatileRef",
    "xen": "MmapRange MmapXenFlags",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
