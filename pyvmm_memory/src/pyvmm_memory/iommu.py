"""IommuMemory: guest memory by I/O virtual address, with rights for each mapping and a dirty bitmap of its own."""

from __future__ import annotations

from pyvmm_memory.address import as_int
from pyvmm_memory.errors import GuestMemoryError, InvalidBackendAddress, InvalidGuestAddress, InvalidLength, Overflow
from pyvmm_memory.guest_memory import GuestMemory
from pyvmm_memory.iotlb import Iotlb, IotlbFails, IovaRange
from pyvmm_memory.permissions import Permissions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Protocol, Self

    from pyvmm_memory.bitmap import Bitmap
    from pyvmm_memory.collection import GuestRegionCollection
    from pyvmm_memory.iotlb import MappedRange
    from pyvmm_memory.pinned_buffer import PinnedBuffer

    class Translator(Protocol):
        """Anything that translates: `Iommu` is one.

        One that takes mappings back has a `generation`, as `Iotlb` has; without it nothing is ever taken back.
        """

        def translate(self, iova: int, length: int, access: Permissions) -> Iterable[MappedRange]:
            """Return the physical ranges of a range, all of which allow `access`. Raises IommuError."""
            ...


class IommuError(GuestMemoryError, LookupError):
    """An I/O virtual address cannot be translated."""


class CannotResolve(IommuError, InvalidGuestAddress):
    """Part of `iova_range` is not mapped or may not be accessed so; `reason` says which."""

    def __init__(self, iova_range: IovaRange, reason: str) -> None:
        GuestMemoryError.__init__(self, f"cannot translate {iova_range.base:#x}+{iova_range.length:#x}: {reason}")
        self.iova_range = iova_range
        self.address = iova_range.base
        self.reason = reason


class Fragmented(IommuError, InvalidBackendAddress):
    """`iova_range` is mapped, but only its first `continuous_length` bytes lie together."""

    def __init__(self, iova_range: IovaRange, continuous_length: int) -> None:
        GuestMemoryError.__init__(
            self,
            f"{iova_range.base:#x}+{iova_range.length:#x} is mapped in pieces, the first of {continuous_length:#x} "
            "bytes: use get_slices, read or write",
        )
        self.iova_range = iova_range
        self.address, self.length = iova_range.base, iova_range.length
        self.continuous_length = continuous_length


class IommuMisconfigured(IommuError):
    """The IOMMU cannot translate at all."""


class Iommu:
    """An IOTLB, and how to fill it.

    `resolve(iotlb, fails, access)` is called with what is missing or forbidden, puts what the real IOMMU says into the
    IOTLB, and is asked once: what fails then is CannotResolve. Without it the IOTLB is all there is.
    """

    __slots__ = ("_before", "_iotlb", "resolve")

    def __init__(
        self, iotlb: Iotlb | None = None, resolve: Callable[[Iotlb, IotlbFails, Permissions], object] | None = None
    ) -> None:
        self._iotlb = Iotlb() if iotlb is None else iotlb
        #: the generations of the tables that were here before
        self._before = 0
        self.resolve = resolve

    @property
    def iotlb(self) -> Iotlb:
        """The table of mappings. Another one takes back all that this one said."""
        return self._iotlb

    @iotlb.setter
    def iotlb(self, iotlb: Iotlb) -> None:
        old, self._iotlb = self._iotlb, iotlb
        self._before += old.generation + 1

    @property
    def generation(self) -> int:
        """The number that moves when a mapping or a right is taken back."""
        return self._before + self._iotlb.generation

    def translate(self, iova: int, length: int, access: Permissions) -> Iterator[MappedRange]:
        """Return the physical ranges of `length` bytes at `iova`. Raises CannotResolve, InvalidLength."""
        try:
            try:
                return self.iotlb.lookup(iova, length, access)
            except IotlbFails as fails:
                if self.resolve is None:
                    raise
                self.resolve(self.iotlb, fails, access)
            return self.iotlb.lookup(iova, length, access)
        except (IotlbFails, Overflow) as error:
            raise CannotResolve(IovaRange(as_int(iova), as_int(length)), str(error)) from error

    def __repr__(self) -> str:
        return f"<Iommu with {self.iotlb!r}>"


class IommuMemory(GuestMemory):
    """`backend` as a device behind an IOMMU sees it: every access is translated and checked for its rights.

    With the IOMMU enabled writes are recorded in `bitmap`, by I/O virtual address, as vhost-user wants it; disabled,
    addresses are physical and the backend's own bitmaps record. `get_slice` and `get_slices` without permissions give
    what the mapping allows: writable views, or read-only ones.
    """

    __slots__ = ("_backend", "_bitmap", "_iommu", "_switched", "_use_iommu")

    def __init__(
        self, backend: GuestRegionCollection, iommu: Translator, use_iommu: bool = True, bitmap: Bitmap | None = None
    ) -> None:
        self._backend = backend
        self._iommu = iommu
        self._use_iommu = use_iommu
        #: how often translation was switched on or off
        self._switched = 0
        self._bitmap = bitmap

    def with_replaced_backend(self, new_backend: GuestRegionCollection) -> Self:
        """Return the same IOMMU and bitmap in front of other memory, as after hotplug."""
        return type(self)(new_backend, self._iommu, self._use_iommu, self._bitmap)

    def bitmap(self) -> Bitmap | None:
        """Return the dirty bitmap of I/O virtual addresses."""
        return self._bitmap

    def set_iommu_enabled(self, enabled: bool) -> None:
        """Translate, or pass every address through."""
        if enabled != self._use_iommu:
            self._use_iommu = enabled
            self._switched += 1

    def get_iommu_enabled(self) -> bool:
        """Say whether addresses are translated."""
        return self._use_iommu

    def iommu(self) -> Translator:
        """Return the IOMMU."""
        return self._iommu

    def get_backend(self) -> GuestRegionCollection:
        """Return the physical memory behind it."""
        return self._backend

    def physical_memory(self) -> GuestRegionCollection | None:
        """Return the physical memory where addresses are its own, None while they are translated."""
        return None if self._use_iommu else self._backend

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the physical memory. Raises MemoryInUse while slices live."""
        self._backend.close()

    # for `memory[a:b]`'s sake alone Python would try `memory[0]`, `memory[1]` and so on
    __iter__ = None

    def __repr__(self) -> str:
        return f"<IommuMemory {'through' if self._use_iommu else 'past'} {self._iommu!r} to {self._backend!r}>"

    @property
    def generation(self) -> int:  # type: ignore[override] # it follows the IOMMU
        """The number that moves when the IOMMU takes a mapping or a right back, or is switched on or off."""
        return self._switched + getattr(self._iommu, "generation", 0)

    @property
    def dirty_tracking(self) -> bool:  # type: ignore[override] # it follows the switch
        """Whether writes are recorded somewhere."""
        return self._bitmap is not None if self._use_iommu else self._backend.dirty_tracking

    def mark_dirty(self, addr: int, length: int) -> None:
        """Record a write of `length` bytes at `addr` through raw views."""
        if not self._use_iommu:
            self._backend.mark_dirty(addr, length)
        elif self._bitmap is not None:
            self._bitmap.mark_dirty(addr, length)

    def check_range(self, addr: int, length: int, permissions: Permissions = Permissions.No) -> bool:
        """Say whether all `length` bytes at `addr` may be accessed so."""
        if not self._use_iommu:
            return self._backend.check_range(addr, length, permissions)
        done = 0
        try:
            for mapping, _, count in self.pieces(addr, length, permissions):
                if not mapping.allows(permissions):
                    return False
                done += count
            return done == as_int(length)
        except (IommuError, InvalidGuestAddress, InvalidLength):
            return False

    def address_in_range(self, addr: int) -> bool:
        """Say whether `addr` is mapped."""
        return self.check_range(addr, 1)

    def _as_mapped(self, addr: int, length: int) -> Permissions:
        for permissions in (Permissions.ReadWrite, Permissions.Read):
            if self.check_range(addr, length, permissions):
                return permissions
        return Permissions.Write

    def get_slice(self, addr: int, length: int, permissions: Permissions | None = None) -> memoryview:
        """Return a view of `length` bytes that lie together.

        Raises CannotResolve where they are not mapped or not with these permissions, Fragmented where they are mapped
        in pieces, InvalidGuestAddress where the mapping leads nowhere.
        """
        views = self.get_slices(addr, length, permissions)
        if len(views) > 1:
            first = len(views[0])
            for view in views:
                view.release()
            raise Fragmented(IovaRange(as_int(addr), as_int(length)), first)
        return views[0] if views else memoryview(bytearray())

    def get_slices(self, addr: int, length: int, permissions: Permissions | None = None) -> list[memoryview]:
        """Return views that together cover `length` bytes, writable where `permissions` are. Raises CannotResolve."""
        return super().get_slices(addr, length, self._as_mapped(addr, length) if permissions is None else permissions)

    def bitmap_at(self, addr: int, mapping: PinnedBuffer, offset: int) -> Bitmap | None:
        """Return the bitmap of I/O virtual addresses from `addr` on; the mapping's own while none is translated."""
        if not self._use_iommu:
            return super().bitmap_at(addr, mapping, offset)
        return NOWHERE if self._bitmap is None else self._bitmap.slice_at(addr)

    def spans(self, addr: int, length: int, access: int) -> Iterator[tuple[PinnedBuffer, int, int]]:
        """Yield what lies behind each translated range, up to the first that leads nowhere. Raises CannotResolve."""
        if not self._use_iommu:
            yield from self._backend.spans(addr, length, access)
            return
        # all of it is translated before the first byte moves: a range with a forbidden part transfers nothing
        done = 0
        for target in list(self._iommu.translate(addr, length, Permissions(access))):
            left = target.length
            try:
                for mapping, offset, count in self._backend.spans(target.base, target.length, access):
                    done += count
                    left -= count
                    yield mapping, offset, count
            except InvalidGuestAddress:
                # the mapping leads nowhere, which is a hole where it was asked for
                if not done:
                    raise InvalidGuestAddress(addr) from None
            if left:
                return


class _Nowhere:
    """Records nothing: writes through an enabled IOMMU do not count as writes to the physical memory."""

    __slots__ = ()

    def mark_dirty(self, offset: int, length: int) -> None:
        """Record nothing."""

    def dirty_at(self, offset: int) -> bool:  # noqa: ARG002 - the same everywhere
        """Say that nothing was written."""
        return False

    def slice_at(self, offset: int) -> _Nowhere:  # noqa: ARG002 - the same everywhere
        """Return the same."""
        return self


NOWHERE = _Nowhere()
