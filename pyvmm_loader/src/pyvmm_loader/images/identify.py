"""Tell image formats by their first and last bytes, and say what a wrong file is."""

from __future__ import annotations

from pyvmm_loader.compression.magic import compression
from pyvmm_loader.errors import ImageTruncated, LoaderError, NotAKernel, WrongArchitecture

ARM64_MAGIC, RISCV_MAGIC = b"ARM\x64", b"RSC\x05"
IMAGES = ("arm64-image", "riscv64-image")
BANNER_WITHIN = 128 << 20
"""More than a kernel with everything built in has in front of its debug information."""


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
    from pyvmm_loader.images import multiboot1_header, multiboot2_header

    if multiboot2_header.find(view) is not None:
        return "multiboot2"
    if multiboot1_header.find(view) is not None:
        return "multiboot"
    return "unknown"


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
