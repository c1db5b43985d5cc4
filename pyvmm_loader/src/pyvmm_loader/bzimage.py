"""bzImage: the compressed x86 kernel with its setup header.

Source: Documentation/x86/boot.rst, "The Real-Mode Kernel Header" and "Loading The Rest of The Kernel".
"""

from __future__ import annotations

from .errors import ImageTruncated, InvalidHeader, NotAKernel, ProtocolViolation
from .memory import address, need_ram
from .result import KernelLoaderResult
from .source import Source
from .x86_64.bootparam import SetupHeader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import SupportsIndex

    from .memory import GuestMemory
    from .source import ImageLike

LOADED_HIGH = 1 << 0
XLF_KERNEL_64 = 1 << 0
XLF_CAN_BE_LOADED_ABOVE_4G = 1 << 1


class BzImageFile:
    """A checked bzImage: `header`, and `payload`, the protected-mode kernel."""

    __slots__ = ("header", "name", "payload", "setup_size", "view")

    def __init__(self, view: memoryview, name: str = "<buffer>") -> None:
        self.view = view
        self.name = name
        if len(view) < 0x206 or bytes(view[0x202:0x206]) != b"HdrS":
            raise NotAKernel(
                f"{name}: no setup header (HdrS at 0x202); pass a bzImage, or load a vmlinux as ELF", path=name
            )
        if len(view) < 0x268:
            raise ImageTruncated(
                f"{name}: ends inside the setup header; copy or build it again", needed=0x268, available=len(view)
            )
        self.header = header = SetupHeader.from_image(view)
        if header.version < 0x200:
            raise InvalidHeader(
                f"{name}: boot protocol {header.version:#x} is older than 2.00", field="version", value=header.version
            )
        if not header.loadflags & LOADED_HIGH:
            raise InvalidHeader(
                f"{name}: a zImage, loaded low; build a bzImage", field="loadflags", value=header.loadflags
            )
        # "For backwards compatibility, if the setup_sects field contains 0, the real value is 4."
        self.setup_size = ((header.setup_sects or 4) + 1) * 512
        if self.setup_size >= len(view):
            raise ImageTruncated(
                f"{name}: the kernel begins at {self.setup_size:#x}, the file ends at {len(view):#x}; build it again",
                path=name,
                needed=self.setup_size + 1,
                available=len(view),
            )
        self.payload = view[self.setup_size :]
        # syssize counts 16-byte paragraphs; since 2.04 it has 32 bits, before only 16 and cannot be trusted.
        need = self.setup_size + header.syssize * 16
        if header.version >= 0x204 and need - 15 > len(view):
            raise ImageTruncated(
                f"{name}: the kernel ends at {need:#x}, the file at {len(view):#x}; copy or build it again",
                path=name,
                needed=need,
                available=len(view),
            )

    def entries(self) -> list[str]:
        """Return the boot protocols that it offers, the one to prefer first."""
        return (["linux64"] if self.has_64bit_entry else []) + ["linux32"]

    @property
    def has_64bit_entry(self) -> bool:
        """Is there an entry 0x200 behind the load address?"""
        return self.header.version >= 0x20C and bool(self.header.xloadflags & XLF_KERNEL_64)

    @property
    def runtime(self) -> tuple[int, int]:
        """Where it will unpack itself when loaded at the default place: [start, end)."""
        header = self.header
        load = header.code32_start
        start = max(load, header.pref_address) if header.version >= 0x20A else load
        size = header.init_size if header.version >= 0x20A else len(self.payload)
        return start, start + size


class BzImage:
    """Loads bzImages."""

    @staticmethod
    def load(
        memory: GuestMemory,
        kernel_offset: SupportsIndex | None,
        image: ImageLike,
        highmem_start: SupportsIndex | None = None,
    ) -> KernelLoaderResult:
        """Put the protected-mode kernel at `kernel_offset`, or where its header asks (usually 1 MiB).

        The result's `setup_header` has `code32_start` set to that place. The 64-bit entry is `kernel_load` + 0x200.
        Raises ImageError for the file, PlacementError where it does not fit.
        """
        with Source(image) as source:
            file = BzImageFile(source.view, source.name)
            header = file.header
            if highmem_start is not None and header.code32_start < address(highmem_start):
                file.payload.release()
                raise ProtocolViolation(
                    f"{file.name}: wants {header.code32_start:#x}, below {address(highmem_start):#x}"
                )
            start = header.code32_start if kernel_offset is None else address(kernel_offset)
            header.code32_start = start & 0xFFFFFFFF
            with file.payload as payload:
                need_ram(memory, start, len(payload), f"{file.name}: the kernel")
                source.populate()
                memory.write_slice(payload, start)
                return KernelLoaderResult(start, start + len(payload), header)
