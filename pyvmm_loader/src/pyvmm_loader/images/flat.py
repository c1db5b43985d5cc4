"""A flat binary: instructions without a header. The caller says where it goes and in which mode it starts."""

from __future__ import annotations

from pyvmm_loader.images.result import KernelLoaderResult
from pyvmm_loader.images.source import Source
from pyvmm_loader.memory import address, need_ram

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, SupportsIndex

    from pyvmm_loader.images.result import KernelLoader
    from pyvmm_loader.images.source import ImageLike
    from pyvmm_loader.memory import GuestMemory

ENTRIES = ("flat16", "flat32", "flat64")
BOOT_SECTOR = 0x7C00
"""Where a BIOS puts a boot sector, and so where 16-bit code without other wishes goes."""


class FlatFile:
    """Any bytes at all; nothing in them is checked, so it is never recognised and must be asked for."""

    __slots__ = ("name", "view")

    format = "flat"
    arch = "x86_64"

    def __init__(self, view: memoryview, name: str = "<buffer>") -> None:
        self.view = view
        self.name = name

    def entries(self) -> list[str]:
        """Return the modes that a flat binary can be started in."""
        return list(ENTRIES)

    def refused(self) -> dict[str, str]:
        """Return nothing: a flat binary promises nothing."""
        return {}

    def version(self) -> str | None:
        """Return None: there is no header to say it."""
        return None

    def facts(self) -> dict[str, Any]:
        """Return nothing: there is no header."""
        return {}

    def close(self) -> None:
        """Do nothing; the file's view belongs to the caller."""


def load_flat(
    memory: GuestMemory,
    kernel_offset: SupportsIndex | None,
    image: ImageLike,
    highmem_start: SupportsIndex | None = None,
) -> KernelLoaderResult:
    """Put all of `image` at `kernel_offset`, or at `highmem_start`, or at 0x7c00 like a boot sector."""
    with Source(image) as source:
        chosen = kernel_offset if kernel_offset is not None else highmem_start
        start = BOOT_SECTOR if chosen is None else address(chosen)
        need_ram(memory, start, len(source.view), f"{source.name}: the program")
        source.write_to(memory, start)
        return KernelLoaderResult(start, start + len(source.view))


class Flat:
    """Loads flat binaries."""

    load: ClassVar[KernelLoader] = staticmethod(load_flat)
