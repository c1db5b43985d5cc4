"""Tell image formats by their first bytes, and say what a wrong file is."""

from __future__ import annotations

from .errors import ImageTruncated, LoaderError, NotAKernel, WrongArchitecture

COMPRESSED = (
    (b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"\x5d\0\0", "lzma"), (b"BZh", "bzip2"),
    (b"\x02\x21\x4c\x18", "lz4"), (b"\x04\x22\x4d\x18", "lz4"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x89LZO", "lzo"),
)  # fmt: skip
ARM64_MAGIC, RISCV_MAGIC = b"ARM\x64", b"RSC\x05"


def compression(view: memoryview) -> str | None:
    """Return the name of the compression, or None."""
    head = bytes(view[:6])
    for magic, name in COMPRESSED:
        if head.startswith(magic):
            return name
    return None


def identify(view: memoryview) -> str:
    """Return `elf`, `bzimage`, `arm64-image`, `riscv64-image`, `zboot`, a compression, `text` or `unknown`."""
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
    head = bytes(view[:512])
    if all(byte in b"\t\n\r\f" or 0x20 <= byte < 0x7F or byte >= 0x80 for byte in head):
        return "text"
    return "unknown"


def refuse(kind: str, name: str, size: int) -> LoaderError:
    """Return the error that says why an image of this kind does not start an x86 guest."""
    if kind in ("arm64-image", "riscv64-image"):
        arch = kind.removesuffix("-image")
        return WrongArchitecture(
            f"{name}: a kernel for {arch}; an x86 guest needs a bzImage or vmlinux for x86", path=name, arch=arch
        )
    if kind == "zboot":
        return NotAKernel(
            f"{name}: an EFI zboot image, which only EFI firmware starts; use the Image inside", path=name
        )
    if kind == "text":
        return NotAKernel(f"{name}: a text file; pass a bzImage or vmlinux", path=name)
    if kind != "unknown":
        return NotAKernel(f"{name}: {kind}-compressed data, no kernel as it is; decompress it first", path=name)
    if size < 0x268:
        return ImageTruncated(
            f"{name}: {size} bytes and no known magic; was its download interrupted?", needed=0x268, available=size
        )
    return NotAKernel(f"{name}: no known kernel format; pass a bzImage or vmlinux", path=name)
