"""EFI zboot: a compressed kernel behind an EFI program that unpacks it; only EFI firmware starts it.

Source: drivers/firmware/efi/libstub/zboot-header.S of the kernel.
"""

from __future__ import annotations

from struct import Struct

from pyvmm_loader.errors import ImageTruncated, InvalidHeader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# "MZ", then "zimg", where the payload lies, how long it is, two reserved words, and how it is compressed
HEADER = Struct("<2s2x4sII8x32s")
COMPRESSIONS = {
    "gzip": "gzip",
    "lz4": "lz4",
    "lzma": "lzma",
    "lzo": "lzo",
    "xzkern": "xz",
    "zstd": "zstd",
    "zstd22": "zstd",
}
MACHINES = {0x8664: "x86_64", 0x014C: "x86", 0xAA64: "arm64", 0x5064: "riscv64", 0x6264: "loongarch64"}


class ZbootFile:
    """A checked header: `payload` is compressed by `compression`."""

    __slots__ = ("arch", "compression", "name", "offset", "size", "view")

    format = "zboot"

    def __init__(self, view: memoryview, name: str = "<buffer>") -> None:
        self.view = view
        self.name = name
        if len(view) < HEADER.size:
            raise ImageTruncated(f"{name}: ends inside its header; copy or build it again", needed=HEADER.size)
        _, _, self.offset, self.size, kind = HEADER.unpack_from(view)
        word = kind.split(b"\0", 1)[0].decode("ascii", "replace")
        if word not in COMPRESSIONS:
            raise InvalidHeader(f"{name}: payload compressed by {word!r}, which zboot does not know", field="comp_type")
        self.compression = COMPRESSIONS[word]
        if self.offset + self.size > len(view):
            raise ImageTruncated(
                f"{name}: the payload ends at {self.offset + self.size:#x}, the file at {len(view):#x}; copy it again",
                needed=self.offset + self.size,
                available=len(view),
            )
        # The offset of the PE header is at 0x3c; its machine follows the four bytes of its signature.
        at = int.from_bytes(view[0x3C:0x40], "little")
        self.arch = MACHINES.get(int.from_bytes(view[at + 4 : at + 6], "little"), "unknown")

    @property
    def payload(self) -> memoryview:
        """The compressed kernel."""
        return self.view[self.offset : self.offset + self.size]

    def entries(self) -> list[str]:
        """Return `efi`, which needs firmware."""
        return ["efi"]

    def refused(self) -> dict[str, str]:
        """Return why it is not started as an Image."""
        return {self.arch: "the kernel is compressed inside an EFI program; extract it and load the Image"}

    def version(self) -> str | None:
        """Return None: the release is inside the compressed part."""
        return None

    def facts(self) -> dict[str, Any]:
        """Return where the payload is."""
        return {"payload_offset": self.offset, "payload_length": self.size, "payload_compression": self.compression}

    def close(self) -> None:
        """Do nothing; the file's view belongs to the caller."""
