"""A flat binary: instructions without a header. The caller says where it goes and in which mode it starts."""

from __future__ import annotations

from pyvmm_loader.errors import ProtocolViolation
from pyvmm_loader.images.result import KernelLoaderResult
from pyvmm_loader.images.source import Source
from pyvmm_loader.memory import address, need_ram

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, SupportsIndex

    from pyvmm_loader.images.source import ImageLike
    from pyvmm_loader.memory import GuestMemory
    from pyvmm_loader.plan.plan import BootPlan
    from pyvmm_loader.x86_64.registers import Registers

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


class Flat:
    """Loads flat binaries."""

    @staticmethod
    def load(
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


def plan(boot: BootPlan, image: FlatFile, cmdline: str) -> Registers:
    """Plan a flat binary; its first byte is the first instruction."""
    from pyvmm_loader.x86_64 import layout, registers

    start = boot.load_address
    if start is None:
        start = BOOT_SECTOR if boot.entry == "flat16" else layout.HIMEM_START
    if boot.entry == "flat16" and start + len(image.view) > layout.HIMEM_START:
        raise ProtocolViolation(f"{image.name}: 16-bit code ends at 1 MiB at the latest; move it down", start=start)
    boot.add(start, image.view, "kernel", "the whole file; its first byte is the first instruction")
    boot.need_no_cmdline(cmdline)
    if boot.entry == "flat16":
        return registers.real_mode(start >> 4 & 0xF000, start & 0xFFFF)
    return registers.linux64(start) if boot.entry == "flat64" else registers.linux32(start)
