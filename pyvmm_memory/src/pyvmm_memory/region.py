"""GuestRegionMmap: a host mapping at a guest address."""

from __future__ import annotations

from pyvmm_memory.address import U64_MAX, GuestAddress, MemoryRegionAddress, as_int
from pyvmm_memory.bytes import Bytes
from pyvmm_memory.errors import InvalidBackendAddress, InvalidRegion, OutOfBounds
from pyvmm_memory.mmap_region import MmapRegion

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from typing_extensions import Buffer

    from pyvmm_memory.access import Window
    from pyvmm_memory.bitmap import Bitmap, NewBitmap
    from pyvmm_memory.file_offset import FileOffset
    from pyvmm_memory.pinned_buffer import PinnedBuffer
    from pyvmm_memory.volatile import VolatileSlice


_PLACE = "start", "size", "end"


class GuestRegionMmap(Bytes):
    """`size` bytes of memory at guest address `start`: zeroed, private and anonymous unless a mapping is given.

    `start`, `size` and `end` are plain integers, `end` exclusive. The access methods take offsets in the region.
    Raises InvalidRegion for a size of zero or less or an end beyond 64 bits, MmapFailed where the host refuses.
    """

    __slots__ = ("dirty_tracking", "end", "mapping", "size", "start")

    def __init__(
        self, start: int, size: int, mapping: MmapRegion | None = None, *, bitmap: NewBitmap | None = None
    ) -> None:
        start, size = as_int(start), as_int(size)
        if size <= 0 or start < 0 or start + size > U64_MAX + 1:
            raise InvalidRegion(f"{size} bytes at {start:#x} are no range of 64-bit addresses")
        if mapping is not None and mapping.size != size:
            raise InvalidRegion(f"a mapping of {mapping.size:#x} bytes is no region of {size:#x}")
        self.start = start
        self.size = size
        self.end = start + size
        self.mapping = MmapRegion.new(size, bitmap) if mapping is None else mapping
        #: whether writes are recorded in a bitmap
        self.dirty_tracking = self.mapping.bitmap is not None

    def __setattr__(self, name: str, value: object) -> None:
        if name in _PLACE and hasattr(self, name):
            raise AttributeError(f"a region stays where it is: its {name} cannot be set", name=name, obj=self)
        object.__setattr__(self, name, value)

    @classmethod
    def new(cls, mapping: MmapRegion, guest_base: int) -> Self:
        """Put `mapping` at `guest_base`; raises InvalidRegion where that leaves 64 bits."""
        return cls(guest_base, mapping.size, mapping)

    @classmethod
    def from_range(
        cls, addr: int, size: int, file: FileOffset | None = None, *, bitmap: NewBitmap | None = None
    ) -> Self:
        """Map anonymous memory, or `file`, shared. Raises InvalidRegion and MmapRegionError."""
        addr, size = as_int(addr), as_int(size)
        if file is None or size <= 0 or addr < 0 or addr + size > U64_MAX + 1:
            return cls(addr, size, bitmap=bitmap)
        return cls(addr, size, MmapRegion.from_file(file, size, bitmap))

    @property
    def buffer(self) -> Buffer:
        """The host mapping: a writable buffer, for `VmFd.set_user_memory_region`."""
        return self.mapping.buffer

    @property
    def view(self) -> memoryview:
        """All of it. Raises MemoryClosed, HostAddressNotAvailable."""
        return self.mapping.place(writing=False)

    @property
    def window(self) -> Window:
        """Its single accesses."""
        return self.mapping.window

    @property
    def closed(self) -> bool:
        """Whether it was unmapped."""
        return self.mapping.closed

    def __len__(self) -> int:
        return self.size

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<GuestRegionMmap {self.start:#x}-{self.end - 1:#x} {self.size:#x} bytes {self.mapping.kind}{state}>"

    def start_addr(self) -> GuestAddress:
        """Return the first guest address."""
        return GuestAddress(self.start)

    def last_addr(self) -> GuestAddress:
        """Return the last guest address (inclusive)."""
        return GuestAddress(self.end - 1)

    def get_mmap(self) -> MmapRegion:
        """Return the host mapping, which other regions may share."""
        return self.mapping

    def bitmap(self) -> Bitmap | None:
        """Return the dirty bitmap, if writes are tracked."""
        return self.mapping.bitmap

    def file_offset(self) -> FileOffset | None:
        """Return the file behind it, if there is one."""
        return self.mapping.file_offset()

    def is_hugetlbfs(self) -> bool | None:
        """Say whether huge pages of hugetlbfs are behind it: yes, no, or nobody said."""
        return self.mapping.is_hugetlbfs()

    def address_in_range(self, addr: int) -> bool:
        """Say whether the offset `addr` is in the region."""
        return 0 <= as_int(addr) < self.size

    def check_address(self, addr: int) -> MemoryRegionAddress | None:
        """Return the offset `addr`, or None where it is not in the region."""
        return MemoryRegionAddress(addr) if self.address_in_range(addr) else None

    def checked_offset(self, base: int, offset: int) -> MemoryRegionAddress | None:
        """Return `base + offset`, or None where that is not in the region."""
        return self.check_address(as_int(base) + as_int(offset))

    def to_region_addr(self, addr: int) -> MemoryRegionAddress | None:
        """Return the offset of a guest address, or None where it is not in the region."""
        return self.check_address(as_int(addr) - self.start)

    def get_host_address(self, addr: int) -> int:
        """Return where the byte at the offset `addr` is in this process. Raises InvalidBackendAddress, MemoryClosed."""
        if not self.address_in_range(addr):
            raise InvalidBackendAddress(as_int(addr), 1)
        return self.mapping.as_ptr() + as_int(addr)

    def as_volatile_slice(self) -> VolatileSlice:
        """Return all of it as a VolatileSlice."""
        return self.mapping.as_volatile_slice()

    def get_slice(self, offset: int, count: int) -> VolatileSlice:
        """Return `count` bytes at `offset` as a VolatileSlice. Raises OutOfBounds, Overflow."""
        return self.mapping.get_slice(offset, count)

    def mark_dirty(self, addr: int, length: int) -> None:
        """Record a write of `length` bytes at the offset `addr`."""
        bitmap = self.mapping.bitmap
        if bitmap is not None:
            bitmap.mark_dirty(addr, length)

    def spans(
        self,
        addr: int,
        length: int,
        access: int,  # noqa: ARG002 - only an IOMMU forbids anything
    ) -> Iterator[tuple[PinnedBuffer, int, int]]:
        """Yield what of the region comes at the offset `addr`. Raises OutOfBounds."""
        if not 0 <= addr < self.size:
            raise OutOfBounds(addr)
        yield self.mapping, addr, min(length, self.size - addr)

    def close(self) -> None:
        """Unmap; idempotent. Raises MemoryInUse, changing nothing, while slices of it live."""
        self.mapping.close()
