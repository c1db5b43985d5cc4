"""MmapRegionBuilder: a host mapping, one choice at a time."""

from __future__ import annotations

from pyvmm_memory.mmap_region import ANONYMOUS, MmapRegion

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from pyvmm_memory.bitmap import NewBitmap
    from pyvmm_memory.file_offset import FileOffset


class MmapRegionBuilder:
    """A mapping of `size` bytes: private, anonymous and without any right to touch it until told otherwise.

    >>> import mmap
    >>> with_rights = MmapRegionBuilder(0x1000).with_mmap_prot(mmap.PROT_READ | mmap.PROT_WRITE)
    >>> with_rights.with_hugetlbfs(False).build()
    <MmapRegion 0x1000 bytes anonymous>
    """

    __slots__ = ("_bitmap", "_file_offset", "_flags", "_hugetlbfs", "_prot", "_raw_ptr", "_size")

    def __init__(self, size: int, bitmap: NewBitmap | None = None) -> None:
        self._size = size
        self._bitmap = bitmap
        self._prot = 0
        self._flags = ANONYMOUS
        self._file_offset: FileOffset | None = None
        self._raw_ptr: int | None = None
        self._hugetlbfs: bool | None = None

    def with_mmap_prot(self, prot: int) -> Self:
        """Choose the protection, as of mmap(2)."""
        self._prot = prot
        return self

    def with_mmap_flags(self, flags: int) -> Self:
        """Choose the flags, as of mmap(2); MAP_FIXED is refused by `build`."""
        self._flags = flags
        return self

    def with_file_offset(self, file_offset: FileOffset) -> Self:
        """Choose the file, and where in it."""
        self._file_offset = file_offset
        return self

    def with_hugetlbfs(self, hugetlbfs: bool) -> Self:
        """Say whether huge pages of hugetlbfs are behind it."""
        self._hugetlbfs = hugetlbfs
        return self

    def with_raw_mmap_pointer(self, raw_ptr: int) -> Self:
        """Use what somebody else mapped at this host address, and will unmap."""
        self._raw_ptr = raw_ptr
        return self

    def build(self) -> MmapRegion:
        """Map. Raises what `MmapRegion.build` and `MmapRegion.build_raw` do."""
        if self._raw_ptr is not None:
            region = MmapRegion.build_raw(self._raw_ptr, self._size, self._prot, self._flags, self._bitmap)
        else:
            region = MmapRegion.build(self._file_offset, self._size, self._prot, self._flags, self._bitmap)
        if self._hugetlbfs is not None:
            region.set_hugetlbfs(self._hugetlbfs)
        return region
