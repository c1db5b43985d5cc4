"""Say what an image is, without loading it."""

from __future__ import annotations

from .formats import identify, refuse
from .source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .source import ImageLike

MULTIBOOT1, MULTIBOOT2 = 0x1BADB002, 0xE85250D6


def inspect(image: ImageLike) -> dict[str, Any]:
    """Return `format`, `arch`, `version`, `entries` and the format's own fields; raise ImageError for other files.

    `format` is bzimage, elf64, elf32, arm64-image, riscv64-image, multiboot or multiboot2 (an ELF whose only entry
    that is); `entries` names the boot protocols the image offers.
    """
    with Source(image) as source:
        kind = identify(source.view)
        if kind == "bzimage":
            found = _bzimage(source)
        elif kind == "elf":
            found = _elf(source)
        elif kind in ("arm64-image", "riscv64-image"):
            found = _image(source, kind)
        else:
            raise refuse(kind, source.name, len(source.view))
        return {"path": source.name, "size": len(source.view), **found}


def _multiboot(view: memoryview, magic: int, window: int) -> bool:
    # Multiboot 1: "completely within the first 8192 bytes", 4-byte aligned; multiboot 2: 32768 and 8.
    step = 4 if magic == MULTIBOOT1 else 8
    words = 3 if magic == MULTIBOOT1 else 4
    head = bytes(view[:window])
    raw = magic.to_bytes(4, "little")
    at = head.find(raw)
    while at >= 0:
        if at % step == 0 and at + words * 4 <= len(head):
            fields = [int.from_bytes(head[at + 4 * n : at + 4 * n + 4], "little") for n in range(words)]
            if sum(fields) & 0xFFFFFFFF == 0:
                return True
        at = head.find(raw, at + 1)
    return False


def _elf(source: Source) -> dict[str, Any]:
    from .elf import EM_386, EM_X86_64, ElfFile

    elf = ElfFile(source.view, source.name)
    pvh = elf.pvh_entry() if elf.machine in (EM_386, EM_X86_64) else None
    entries = [] if pvh is None else ["pvh"]
    if _multiboot(source.view, MULTIBOOT1, 8192):
        entries.append("multiboot")
    if _multiboot(source.view, MULTIBOOT2, 32768):
        entries.append("multiboot2")
    kind = f"elf{elf.bits}"
    # Only Linux has the 64-bit entry; a kernel with a multiboot header and no PVH note is something else.
    if elf.machine == EM_X86_64 and elf.bits == 64 and elf.kind == 2 and not {"multiboot", "multiboot2"} & set(entries):
        entries.append("linux64")
    if entries and pvh is None and "linux64" not in entries:
        kind = entries[-1]
    segments = elf.segments
    return {
        "format": kind,
        "arch": elf.arch,
        "version": _banner(source.view),
        "entries": entries,
        "entry": elf.entry,
        "pvh_entry": pvh,
        "relocatable": elf.kind == 3,
        "start": min([segment.paddr for segment in segments], default=0),
        "end": max([segment.paddr + segment.memsz for segment in segments], default=0),
        "segments": len(segments),
    }


def _banner(view: memoryview) -> str | None:
    """Return the release in `linux_banner`, searched in the mapped file in place."""
    owner = view.obj
    find = getattr(owner, "find", None)
    at = find(b"Linux version ") if find is not None else -1
    while at >= 0:
        word = bytes(view[at + 14 : at + 14 + 80]).split(b" ", 1)[0]
        if word[:1].isdigit():
            return word.decode("ascii", "replace")
        at = find(b"Linux version ", at + 1) if find is not None else -1
    return None


def _bzimage(source: Source) -> dict[str, Any]:
    from .bzimage import BzImageFile

    image = BzImageFile(source.view, source.name)
    header = image.header
    entries = (["linux64"] if image.has_64bit_entry else []) + ["linux32", "linux16"]
    version = None
    if header.kernel_version:
        at = header.kernel_version + 0x200
        version = bytes(source.view[at : at + 128]).split(b"\0", 1)[0].decode("ascii", "replace")
    found = {
        "format": "bzimage",
        "arch": "x86_64" if image.has_64bit_entry else "x86",
        "version": version,
        "entries": entries,
        "protocol": f"{header.version >> 8}.{header.version & 0xFF:02}",
        "setup_size": image.setup_size,
        "relocatable": bool(header.relocatable_kernel),
        "alignment": header.kernel_alignment,
        "pref_address": header.pref_address,
        "init_size": header.init_size,
        "cmdline_size": header.cmdline_size,
        "initrd_addr_max": header.initrd_addr_max,
        "xloadflags": header.xloadflags,
        "payload_offset": header.payload_offset,
        "payload_length": header.payload_length,
    }
    image.payload.release()
    return found


def _image(source: Source, kind: str) -> dict[str, Any]:
    from .image import ALIGNMENT, ImageFile

    image = ImageFile(source.view, source.name)
    return {
        "format": kind,
        "arch": image.arch,
        "version": _banner(source.view),
        "entries": [image.arch],
        "text_offset": image.text_offset,
        "image_size": image.image_size,
        "flags": image.flags,
        "alignment": ALIGNMENT,
        "efi_stub": bytes(source.view[:2]) == b"MZ",
    }
