"""bzImage: the compressed x86 kernel with its setup header.

Source: Documentation/x86/boot.rst, "The Real-Mode Kernel Header" and "Loading The Rest of The Kernel".
"""

from __future__ import annotations

from pyvmm_loader.compression.magic import compression
from pyvmm_loader.errors import ImageTruncated, InvalidHeader, ProtocolViolation
from pyvmm_loader.images.identify import refuse_magic
from pyvmm_loader.images.result import KernelLoaderResult
from pyvmm_loader.images.source import Source
from pyvmm_loader.memory import address, need_ram
from pyvmm_loader.x86_64.bootparam import SetupHeader
from pyvmm_loader.x86_64.layout import HIMEM_START

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, SupportsIndex

    from pyvmm_loader.images.result import KernelLoader
    from pyvmm_loader.images.source import ImageLike
    from pyvmm_loader.memory import GuestMemory

LOADED_HIGH = 1 << 0
XLF_KERNEL_64 = 1 << 0
XLF_CAN_BE_LOADED_ABOVE_4G = 1 << 1
SETUP_MAX = 0x8000
"""Real mode has room for this much setup code in front of its heap."""


class BzImageFile:
    """A checked bzImage: `header`, and `payload`, the protected-mode kernel."""

    __slots__ = ("header", "header_size", "name", "payload", "setup_size", "view")

    format = "bzimage"

    def __init__(self, view: memoryview, name: str = "<buffer>") -> None:
        self.view = view
        self.name = name
        if len(view) < 0x206 or bytes(view[0x202:0x206]) != b"HdrS":
            raise refuse_magic(view, name, "no setup header (HdrS at 0x202); pass a bzImage, or load a vmlinux as ELF")
        if len(view) < 0x268:
            raise ImageTruncated(
                f"{name}: ends inside the setup header; copy or build it again", needed=0x268, available=len(view)
            )
        self.header = header = SetupHeader.from_image(view)
        self.header_size = SetupHeader.size_in(view)
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

    @property
    def arch(self) -> str:
        """`x86_64` or `x86`."""
        return "x86_64" if self.has_64bit_entry else "x86"

    def entries(self) -> list[str]:
        """Return the boot protocols that it offers, the one to prefer first."""
        offered = ("linux64", self.has_64bit_entry), ("linux32", self.has_32bit_entry), ("linux16", self._setup_fits)
        return [name for name, has in offered if has]

    def refused(self) -> dict[str, str]:
        """Return which entry of a bzImage it does not have, and why."""
        reasons = {}
        if self.header.version < 0x20C:
            reasons["linux64"] = f"boot protocol {self.protocol} has no 64-bit entry; it came with 2.12"
        elif not self.has_64bit_entry:
            reasons["linux64"] = "xloadflags says that there is no 64-bit entry: a 32-bit kernel"
        if not self.has_32bit_entry:
            reasons["linux32"] = "code32_start is 0: its setup code decides where to go"
        if not self._setup_fits:
            reasons["linux16"] = f"its setup code of {self.setup_size} bytes does not fit into 32 KiB"
        return reasons

    @property
    def protocol(self) -> str:
        """The version of the boot protocol, as boot.rst writes it."""
        return f"{self.header.version >> 8}.{self.header.version & 0xFF:02}"

    def version(self) -> str | None:
        """Return the release string in the setup code."""
        at = self.header.kernel_version + 0x200
        if not self.header.kernel_version or at >= self.setup_size:
            return None
        return bytes(self.view[at : at + 128]).split(b"\0", 1)[0].decode("ascii", "replace")

    def facts(self) -> dict[str, Any]:
        """Return the fields of the setup header that decide how it is loaded."""
        header = self.header
        return {
            "protocol": self.protocol,
            "setup_size": self.setup_size,
            "relocatable": bool(header.relocatable_kernel),
            "alignment": header.kernel_alignment,
            "min_alignment": 1 << header.min_alignment if header.min_alignment < 64 else None,
            "code32_start": header.code32_start,
            "pref_address": header.pref_address,
            "init_size": header.init_size,
            "cmdline_size": header.cmdline_size,
            "initrd_addr_max": header.initrd_addr_max,
            "loadflags": header.loadflags,
            "xloadflags": header.xloadflags,
            "handover_offset": header.handover_offset,
            "payload_offset": header.payload_offset,
            "payload_length": header.payload_length,
            "payload_compression": self.compression,
        }

    @property
    def packed(self) -> memoryview | None:
        """The compressed vmlinux inside, where the header names one that lies in the file (protocol 2.08)."""
        start, size = self.header.payload_offset, self.header.payload_length
        if self.header.version < 0x208 or not size or start + size > len(self.payload):
            return None
        return self.payload[start : start + size]

    @property
    def compression(self) -> str | None:
        """How the vmlinux inside is compressed, or None."""
        packed = self.packed
        if packed is None:
            return None
        with packed:
            return compression(packed)

    def close(self) -> None:
        """Release the view of the payload."""
        self.payload.release()

    @property
    def _setup_fits(self) -> bool:
        return self.setup_size <= SETUP_MAX

    @property
    def has_64bit_entry(self) -> bool:
        """Is there an entry 0x200 behind the load address?"""
        return self.header.version >= 0x20C and bool(self.header.xloadflags & XLF_KERNEL_64)

    @property
    def has_32bit_entry(self) -> bool:
        """Does the header say where the protected-mode code begins? That of a boot loader in disguise may not."""
        return bool(self.header.code32_start)

    @property
    def load_address(self) -> int:
        """Where the protected-mode kernel goes: boot.rst says 0x100000 for a bzImage, code32_start may say another."""
        return self.header.code32_start or HIMEM_START

    @property
    def runtime(self) -> tuple[int, int]:
        """Where it will unpack itself when loaded at the default place: [start, end)."""
        header = self.header
        load = self.load_address
        start = max(load, header.pref_address) if header.version >= 0x20A else load
        size = header.init_size if header.version >= 0x20A else len(self.payload)
        return start, start + size


def load_bzimage(
    memory: GuestMemory,
    kernel_offset: SupportsIndex | None,
    image: ImageLike,
    highmem_start: SupportsIndex | None = None,
) -> KernelLoaderResult:
    """Put the protected-mode kernel at `kernel_offset`, or where its header asks (usually 1 MiB).

    The result's `setup_header` has `code32_start` set to that place, unless it lies above 4 GiB, where only the
    64-bit entry is, and only of kernels that allow it. The 64-bit entry is `kernel_load` + 0x200.
    Raises ImageError for the file, PlacementError where it does not fit.
    """
    with Source(image) as source:
        file = BzImageFile(source.view, source.name)
        header = file.header
        wanted = file.load_address
        if highmem_start is not None and wanted < address(highmem_start):
            file.close()
            raise ProtocolViolation(f"{file.name}: wants {wanted:#x}, below {address(highmem_start):#x}")
        start = wanted if kernel_offset is None else address(kernel_offset)
        if start >> 32 == 0:
            header.code32_start = start
        # "Bit 1 (read): XLF_CAN_BE_LOADED_ABOVE_4G"
        elif not header.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G:
            file.close()
            raise ProtocolViolation(f"{file.name}: must lie below 4 GiB, not at {start:#x}; move it", start=start)
        with file.payload as payload:
            need_ram(memory, start, len(payload), f"{file.name}: the kernel")
            source.write_to(memory, start, file.setup_size)
            return KernelLoaderResult(start, start + len(payload), header)


class BzImage:
    """Loads bzImages."""

    load: ClassVar[KernelLoader] = staticmethod(load_bzimage)
