"""arm64 and riscv64 `Image`: a flat kernel behind a 64-byte header.

Sources: Documentation/arm64/booting.rst, "Call the kernel image"; Documentation/riscv/boot-image-header.rst.
"""

from __future__ import annotations

from itertools import chain
from struct import Struct

from pyvmm_loader.errors import ImageTruncated, InvalidHeader, ProtocolViolation
from pyvmm_loader.images.identify import banner, identify, refuse
from pyvmm_loader.images.result import KernelLoaderResult
from pyvmm_loader.images.source import Source
from pyvmm_loader.memory import address, need_ram, write_zeros

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, SupportsIndex

    from pyvmm_loader.images.result import KernelLoader
    from pyvmm_loader.images.source import ImageLike
    from pyvmm_loader.memory import GuestMemory

HEADER = Struct("<IIQQQQQQII")
PAGE_SIZES = {1: 4096, 2: 16384, 3: 65536}  # arm64: bits 1 and 2 of the flags
ALIGNMENT = 0x200000  # "a 2MB aligned base address"; riscv64 asks for the same


class ImageFile:
    """A checked header: `arch`, `text_offset`, `image_size`, `flags`, `header_version` (riscv64)."""

    __slots__ = ("arch", "flags", "header_version", "image_size", "name", "text_offset", "view")

    def __init__(self, view: memoryview, name: str = "<buffer>") -> None:
        kind = identify(view)
        if kind not in ("arm64-image", "riscv64-image"):
            raise refuse(kind, name, len(view))
        self.view = view
        self.name = name
        self.arch = kind.removesuffix("-image")
        if len(view) < HEADER.size:
            raise ImageTruncated(
                f"{name}: ends inside its header; copy or build it again", needed=HEADER.size, available=len(view)
            )
        _, _, self.text_offset, self.image_size, self.flags, version, _, _, _, _ = HEADER.unpack_from(view)
        self.header_version = version & 0xFFFFFFFF if self.arch == "riscv64" else 0
        if self.flags & 1:
            raise InvalidHeader(f"{name}: a big-endian kernel; build it little-endian", field="flags", value=self.flags)
        if not self.image_size:
            if self.arch == "riscv64":
                raise InvalidHeader(
                    f"{name}: image_size is 0; the header says it is mandatory", field="image_size", value=0
                )
            # "Where image_size is zero, text_offset can be assumed to be 0x80000."
            self.text_offset = 0x80000
        elif self.image_size > 1 << 32:
            raise InvalidHeader(
                f"{name}: image_size {self.image_size:#x} is no kernel's", field="image_size", value=self.image_size
            )

    @property
    def format(self) -> str:
        """`arm64-image` or `riscv64-image`."""
        return f"{self.arch}-image"

    def entries(self) -> list[str]:
        """Return the one boot protocol of the architecture, called like it."""
        return [self.arch]

    def refused(self) -> dict[str, str]:
        """Return that EFI firmware is not here to call the stub that such an image may have."""
        return {"efi": "only EFI firmware enters by the stub"} if self.has_stub else {}

    @property
    def has_stub(self) -> bool:
        """Is it an EFI program as well?"""
        return bytes(self.view[:2]) == b"MZ"

    def version(self) -> str | None:
        """Return the release in `linux_banner`."""
        return banner(self.view)

    def facts(self) -> dict[str, Any]:
        """Return the fields of its header."""
        facts: dict[str, Any] = {
            "text_offset": self.text_offset,
            "image_size": self.image_size,
            "flags": self.flags,
            "alignment": ALIGNMENT,
            "relocatable": True,  # anywhere on that alignment; on arm64 near the start of RAM before 4.6 (flag bit 3)
            "efi_stub": self.has_stub,
        }
        if self.arch == "arm64":
            facts["page_size"] = PAGE_SIZES.get(self.flags >> 1 & 3)
            facts["anywhere"] = bool(self.flags & 8)
        else:
            facts["header_version"] = f"{self.header_version >> 16}.{self.header_version & 0xFFFF}"
        return facts

    def close(self) -> None:
        """Do nothing; the file's view belongs to the caller."""


def load_image(
    memory: GuestMemory,
    kernel_offset: SupportsIndex | None,
    image: ImageLike,
    highmem_start: SupportsIndex | None = None,
) -> KernelLoaderResult:
    """Put `image` at `kernel_offset` (2 MiB aligned; default 0) plus its text_offset, and zero what follows it.

    `image` may be compressed; it is unpacked into `memory` piece by piece, so that damage behind its header
    is found when a part of it is there already. `kernel_end` counts `image_size`, which includes the BSS.

    Raises ImageError for the file, PlacementError where it does not fit.
    """
    with Source(image) as source:
        pieces = source.unpacked()
        head = source.view if pieces is None else next(pieces, b"")
        with memoryview(head) as view:
            file = ImageFile(view, source.name)
            start = _start(file, kernel_offset, highmem_start)
            need_ram(memory, start, max(file.image_size, len(view)), f"{file.name}: the kernel")
        end = start
        if pieces is None:
            source.write_to(memory, start)
            end += len(source.view)
        else:
            for piece in chain((head,), pieces):
                need_ram(memory, end, len(piece), f"{file.name}: the kernel")
                memory.write_slice(piece, end)
                end += len(piece)
        write_zeros(memory, end, start + file.image_size - end)
        return KernelLoaderResult(start, max(end, start + file.image_size))


def _start(file: ImageFile, kernel_offset: SupportsIndex | None, highmem_start: SupportsIndex | None) -> int:
    """Return where the Image goes."""
    base = 0 if kernel_offset is None else address(kernel_offset)
    if base % ALIGNMENT:
        raise ProtocolViolation(f"{file.name}: base {base:#x} is not a multiple of 2 MiB; align it", base=base)
    start: int = base + file.text_offset
    if highmem_start is not None and start < address(highmem_start):
        raise ProtocolViolation(f"{file.name}: would lie at {start:#x}, below {address(highmem_start):#x}")
    return start


class Image:
    """Loads arm64 and riscv64 Images."""

    load: ClassVar[KernelLoader] = staticmethod(load_image)
