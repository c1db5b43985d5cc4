"""What a loader is and what it answers: where the kernel begins and ends, and what its headers said."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, SupportsIndex

    from pyvmm_loader.images.source import ImageLike
    from pyvmm_loader.memory import GuestMemory
    from pyvmm_loader.x86_64.bootparam import SetupHeader

    class KernelLoader(Protocol):
        """What every loader is: a function that puts one file into memory, as linux-loader's trait of this name."""

        def __call__(
            self,
            memory: GuestMemory,
            kernel_offset: SupportsIndex | None,
            image: ImageLike,
            highmem_start: SupportsIndex | None = None,
        ) -> KernelLoaderResult:
            """Put `image` at `kernel_offset`, or where its headers ask, but not below `highmem_start`.

            Raises ImageError for the file, PlacementError where it does not fit.
            """
            ...


class PvhBootCapability:
    """Whether an ELF kernel offers the PVH entry, and where (`address`)."""

    __slots__ = ("address", "name")

    def __init__(self, name: str, address: int | None = None) -> None:
        self.name = name
        self.address = address

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PvhBootCapability):
            return NotImplemented
        return (self.name, self.address) == (other.name, other.address)

    def __hash__(self) -> int:
        return hash((self.name, self.address))

    def __bool__(self) -> bool:
        return self.address is not None

    def __repr__(self) -> str:
        return self.name if self.address is None else f"{self.name}({self.address:#x})"


def PvhEntryPresent(address: int) -> PvhBootCapability:  # noqa: N802 - the variant's name in linux-loader
    """Return the capability of a kernel with a PVH note that names `address`."""
    return PvhBootCapability("PvhEntryPresent", address)


PvhEntryNotPresent = PvhBootCapability("PvhEntryNotPresent")
PvhEntryIgnored = PvhBootCapability("PvhEntryIgnored")


class KernelLoaderResult:
    """Where the kernel went: first instruction or load address, end, and headers worth keeping."""

    __slots__ = ("kernel_end", "kernel_load", "pvh_boot_cap", "setup_header")

    def __init__(
        self,
        kernel_load: int,
        kernel_end: int,
        setup_header: SetupHeader | None = None,
        pvh_boot_cap: PvhBootCapability = PvhEntryNotPresent,
    ) -> None:
        self.kernel_load = kernel_load
        self.kernel_end = kernel_end
        self.setup_header = setup_header
        self.pvh_boot_cap = pvh_boot_cap

    def __repr__(self) -> str:
        return (
            f"KernelLoaderResult(kernel_load={self.kernel_load:#x}, kernel_end={self.kernel_end:#x}, "
            f"setup_header={self.setup_header!r}, pvh_boot_cap={self.pvh_boot_cap!r})"
        )
