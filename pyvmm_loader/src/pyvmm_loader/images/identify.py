"""Tell image formats by their first and last bytes, open what is known, and say what a wrong file is."""

from __future__ import annotations

from pyvmm_loader.errors import ImageTruncated, LoaderError, NotAKernel, WrongArchitecture

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class KernelImage(Protocol):
        """What every image that was opened and checked can say of itself; nothing is loaded yet."""

        @property
        def format(self) -> str:
            """The format's name, such as `bzimage`."""
            ...

        @property
        def arch(self) -> str:
            """The processor it runs on."""
            ...

        def entries(self) -> list[str]:
            """Return the boot protocols offered, the one to prefer first."""
            ...

        def refused(self) -> dict[str, str]:
            """Return those that one could expect of this format, each with the reason why it is not offered."""
            ...

        def version(self) -> str | None:
            """Return the release that the image names, where it does."""
            ...

        def facts(self) -> dict[str, Any]:
            """Return the fields of its own header."""
            ...

        def close(self) -> None:
            """Release what it holds of the file's memory."""
            ...


COMPRESSED = (
    (b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"\x5d\0\0", "lzma"), (b"BZh", "bzip2"),
    (b"\x02\x21\x4c\x18", "lz4"), (b"\x04\x22\x4d\x18", "lz4"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x89LZO", "lzo"),
)  # fmt: skip
COMPRESSIONS = tuple(sorted({name for _, name in COMPRESSED}))
ARM64_MAGIC, RISCV_MAGIC = b"ARM\x64", b"RSC\x05"
ENTRIES = (
    "auto", "pvh", "linux64", "linux32", "linux16", "multiboot", "multiboot2", "reset", "arm64", "riscv64",
    "flat16", "flat32", "flat64",
)  # fmt: skip
"""What `BootPlan` can be asked for."""
IMAGES = ("arm64-image", "riscv64-image")
BANNER_WITHIN = 128 << 20
"""More than a kernel with everything built in has in front of its debug information."""


def compression(view: memoryview) -> str | None:
    """Return the name of the compression, or None."""
    head = bytes(view[:6])
    for magic, name in COMPRESSED:
        if head.startswith(magic):
            return name
    return None


def identify(view: memoryview) -> str:
    """Return what the image is: `elf`, `bzimage`, `firmware`, a compression, ... or `unknown`."""
    if bytes(view[:4]) == b"\x7fELF":
        return "elf"
    if bytes(view[0x202:0x206]) == b"HdrS":
        return "bzimage"
    # Documentation/arm64/booting.rst and riscv/boot-image-header.rst keep their magic at 0x38.
    if bytes(view[0x38:0x3C]) == ARM64_MAGIC:
        return "arm64-image"
    if bytes(view[0x38:0x3C]) == RISCV_MAGIC:
        return "riscv64-image"
    if bytes(view[:2]) == b"MZ" and bytes(view[4:8]) == b"zimg":
        return "zboot"
    name = compression(view)
    if name is not None:
        return name
    return _rarer(view)


def _rarer(view: memoryview) -> str:
    from pyvmm_loader.images import firmware

    head = bytes(view[:512])
    if all(byte in b"\t\n\r\f" or 0x20 <= byte < 0x7F or byte >= 0x80 for byte in head):
        return "text"
    if firmware.is_variables(view):
        return "variables"
    if firmware.has_reset_vector(view):
        return "firmware"
    if head[:2] == b"MZ":
        return "efi"
    from pyvmm_loader.x86_64 import multiboot, multiboot2

    if multiboot2.find(view) is not None:
        return "multiboot2"
    if multiboot.find(view) is not None:
        return "multiboot"
    return "unknown"


def open_image(view: memoryview, name: str, kind: str | None = None) -> KernelImage:
    """Parse and check an image of a known format; raise the ImageError that says what is wrong with any other."""
    kind = identify(view) if kind is None else kind
    if kind == "elf":
        from pyvmm_loader.images.elf import ElfFile

        return ElfFile(view, name)
    if kind == "bzimage":
        from pyvmm_loader.images.bzimage import BzImageFile

        return BzImageFile(view, name)
    if kind in IMAGES:
        from pyvmm_loader.images.image import ImageFile

        return ImageFile(view, name)
    if kind == "firmware":
        from pyvmm_loader.images.firmware import FirmwareFile

        return FirmwareFile(view, name)
    if kind in ("multiboot", "multiboot2"):
        from pyvmm_loader.x86_64.multiboot_image import MultibootFile

        return MultibootFile(view, name)
    if kind == "flat":
        from pyvmm_loader.images.flat import FlatFile

        return FlatFile(view, name)
    if kind == "zboot":
        from pyvmm_loader.images.zboot import ZbootFile

        return ZbootFile(view, name)
    raise refuse(kind, name, len(view))


def refuse(kind: str, name: str, size: int) -> LoaderError:
    """Return the error that says why an image of this kind does not start a guest, and what would."""
    if kind in IMAGES:
        return refuse_arch(kind.removesuffix("-image"), name, "x86_64")
    if kind == "zboot":
        return NotAKernel(
            f"{name}: an EFI zboot image, which only EFI firmware starts; extract the Image inside "
            "(python -m pyvmm_loader extract) and pass that",
            path=name,
            kind=kind,
        )
    if kind == "efi":
        return NotAKernel(
            f"{name}: an EFI program, which only EFI firmware starts; pass a bzImage, a vmlinux, or firmware",
            path=name,
            kind=kind,
        )
    if kind == "variables":
        return NotAKernel(
            f"{name}: a variable store of UEFI firmware, not its code; pass the code, and this as its variables",
            path=name,
            kind=kind,
        )
    if kind == "text":
        return NotAKernel(f"{name}: a text file; pass a bzImage or vmlinux", path=name, kind=kind)
    if kind != "unknown":
        return NotAKernel(
            f"{name}: {kind}-compressed data, no kernel as it is; unpack it first (python -m pyvmm_loader extract)",
            path=name,
            kind=kind,
        )
    if size < 0x268:
        return ImageTruncated(
            f"{name}: {size} bytes and no known magic; was its download interrupted?",
            needed=0x268,
            available=size,
            kind=kind,
        )
    return NotAKernel(f"{name}: no known kernel format; pass a bzImage or vmlinux", path=name, kind=kind)


def refuse_magic(view: memoryview, name: str, reason: str) -> LoaderError:
    """Return the error for a file without the one magic that was wanted: it is compressed, or else `reason`."""
    packed = compression(view)
    return NotAKernel(f"{name}: {reason}", path=name) if packed is None else refuse(packed, name, len(view))


def refuse_arch(arch: str, name: str, guest: str) -> WrongArchitecture:
    """Return the error for a kernel that is for `arch` and not for the guest's."""
    need = "a bzImage or vmlinux for x86" if guest == "x86_64" else "an Image"
    return WrongArchitecture(f"{name}: a kernel for {arch}; a guest of {guest} needs {need}", path=name, arch=arch)


def banner(view: memoryview) -> str | None:
    """Return the release in a Linux kernel's `linux_banner`, searched in place.

    It is read-only data, which lies near the beginning; a sparse file of terabytes is not searched to its end.
    """
    import re

    # The version ends with a space; a format string with the same beginning ("Linux version %s") does not match.
    with view[:BANNER_WITHIN] as searched:
        found = re.search(rb"Linux version ([0-9][!-~]{0,127}) ", searched)
        return None if found is None else found[1].decode("ascii")
