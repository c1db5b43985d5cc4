"""Firmware: a ROM image that ends at 4 GiB and takes over from the reset vector.

Recognised are SeaBIOS, qboot, OVMF, U-Boot and anything else with a jump at its reset vector.

Sources: Intel SDM volume 3, 10.1.4 "First Instruction Executed"; UEFI Platform Initialization 1.7, volume 3, 3.2.1
(firmware volume header).
"""

from __future__ import annotations

from pyvmm_loader.errors import MemoryTooSmall, NotAKernel
from pyvmm_loader.images.result import KernelLoaderResult
from pyvmm_loader.images.source import Source
from pyvmm_loader.memory import address, need_ram

TYPE_CHECKING = False
if TYPE_CHECKING:
    from re import Match
    from typing import Any, ClassVar, SupportsIndex

    from pyvmm_loader.images.result import KernelLoader
    from pyvmm_loader.images.source import ImageLike
    from pyvmm_loader.memory import GuestMemory

TOP = 1 << 32
RESET_VECTOR = 0xFFFFFFF0
MIN_SIZE, MAX_SIZE = 64 << 10, 16 << 20
"""The window below 4 GiB that chipsets decode for flash; the interrupt controllers lie below it."""
NVRAM_GUID = bytes.fromhex("8d2bf1ff96768b4ca9852747075b4f50")
JUMPS = (0xE9, 0xEA, 0xEB)
FILLERS = (0x90, 0xFA, 0xFC, 0x0F, 0x09)  # nop, cli, cld, wbinvd
MODE_TEST = bytes.fromhex("0f20c0 a801 74")  # mov eax, cr0; test al, 1; jz: OVMF, which may be entered in either mode


def has_reset_vector(view: memoryview) -> bool:
    """Say whether it looks like a ROM: whole 4 KiB pages, at least 64 KiB, a jump at 16 bytes before its end."""
    size = len(view)
    if size < MIN_SIZE or size % 0x1000 or size > MAX_SIZE:
        return False
    vector = bytes(view[size - 16 :])
    if vector.startswith(MODE_TEST):
        return True
    for byte in vector[:8]:
        if byte in JUMPS:
            return True
        if byte not in FILLERS:
            return False
    return False


def is_variables(view: memoryview) -> bool:
    """Say whether this is a UEFI firmware volume that holds variables, as OVMF_VARS.fd does."""
    return bytes(view[0x28:0x2C]) == b"_FVH" and bytes(view[0x10:0x20]) == NVRAM_GUID and not has_reset_vector(view)


class FirmwareFile:
    """A ROM with a reset vector; `family` is seabios, qboot, ovmf, u-boot or unknown."""

    __slots__ = ("arch", "family", "name", "view")

    format = "firmware"

    def __init__(self, view: memoryview, name: str = "<buffer>") -> None:
        if not has_reset_vector(view):
            raise NotAKernel(
                f"{name}: no firmware: it wants 64 KiB to 16 MiB in whole pages, a jump 16 bytes before its end",
                path=name,
            )
        self.view = view
        self.name = name
        self.arch = "x86_64"
        self.family = self._family()

    def _family(self) -> str:
        if self._find(rb"SeaBIOS \(version"):
            return "seabios"
        if self._find(rb"U-Boot [0-9]{4}\.") or bytes(self.view[-8:-4]) == b"BinM":
            return "u-boot"
        # PI 1.7 volume 3, 3.2.1.1: the signature of a firmware volume header is at 0x28.
        if bytes(self.view[0x28:0x2C]) == b"_FVH":
            return "ovmf"
        return "qboot" if self._find(rb"etc/table-loader") else "unknown"

    def _find(self, pattern: bytes) -> Match[bytes] | None:
        import re

        return re.search(pattern, self.view)

    def entries(self) -> list[str]:
        """Return the one place where a processor starts by itself."""
        return ["reset"]

    def refused(self) -> dict[str, str]:
        """Return nothing: firmware is started by a reset or not at all."""
        return {}

    def version(self) -> str | None:
        """Return the release that SeaBIOS and U-Boot write in clear."""
        found = self._find(rb"\0(?:rel-)?([0-9]+\.[0-9]+\.[0-9]+-[!-~]{1,63})\0") if self.family == "seabios" else None
        found = found or self._find(rb"U-Boot ([0-9]{4}\.[!-~]{1,63}) ")
        return found[1].decode("ascii") if found else None

    def facts(self) -> dict[str, Any]:
        """Return family and place."""
        return {"family": self.family, "start": TOP - len(self.view), "end": TOP, "reset_vector": RESET_VECTOR}

    def close(self) -> None:
        """Do nothing; the file's view belongs to the caller."""


def load_firmware(
    memory: GuestMemory,
    kernel_offset: SupportsIndex | None,
    image: ImageLike,
    highmem_start: SupportsIndex | None = None,
) -> KernelLoaderResult:
    """Put `image` so that it ends at 4 GiB (or at `kernel_offset`), in memory that must be there.

    `kernel_load` is the reset vector. `highmem_start` is the lowest address that it may reach.
    """
    with Source(image) as source:
        file = FirmwareFile(source.view, source.name)
        start = TOP - len(file.view) if kernel_offset is None else address(kernel_offset)
        if highmem_start is not None and start < address(highmem_start):
            raise MemoryTooSmall(f"{file.name}: would begin at {start:#x}, below {address(highmem_start):#x}")
        need_ram(memory, start, len(file.view), f"{file.name}: the ROM")
        source.write_to(memory, start)
        end = start + len(file.view)
        return KernelLoaderResult(end - (TOP - RESET_VECTOR), end)


class Firmware:
    """Loads firmware."""

    load: ClassVar[KernelLoader] = staticmethod(load_firmware)
