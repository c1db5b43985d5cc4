"""Where the Image of an arm64 or riscv64 guest goes, with its device tree and initrd.

Sources: Documentation/arm64/booting.rst, "Setup the device tree" and "Call the kernel image";
Documentation/riscv/boot.rst, "Kernel location".
"""

from __future__ import annotations

from .errors import InvalidHeader, MemoryTooSmall, ProtocolViolation
from .image import ALIGNMENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .image import ImageFile
    from .plan import BootPlan

FDT_MAGIC = b"\xd0\x0d\xfe\xed"
FDT_MAX = 0x200000
INITRD_WINDOW = 32 << 30


def add_image(boot: BootPlan, image: ImageFile, cmdline: str) -> tuple[int, int]:
    """Plan kernel, device tree and initrd; return the kernel's first instruction and the device tree's address."""
    if cmdline and boot.dtb is not None:
        raise ProtocolViolation(f"{image.name}: the command line belongs into /chosen/bootargs of the device tree")
    boot.cmdline = cmdline
    ram, size = boot.ranges[0]
    start = -(-ram // ALIGNMENT) * ALIGNMENT + image.text_offset
    length = max(image.image_size, len(image.view))
    why = f"2 MiB aligned start of RAM plus text_offset {image.text_offset:#x}; BSS zeroed"
    boot.add_slice(image.view[:], start, "kernel", why, length)
    # "must be placed on an 8-byte boundary and must not exceed 2 megabytes in size"
    tree = -(-(start + length) // ALIGNMENT) * ALIGNMENT
    if tree + FDT_MAX > ram + size:
        raise MemoryTooSmall(
            f"{image.name}: kernel and device tree need {ram:#x}..{tree + FDT_MAX:#x}; give the guest more memory",
            start=ram,
            end=tree + FDT_MAX,
        )
    # "within a 1 GB-aligned physical memory window of up to 32 GB in size that fully covers the kernel Image as well"
    boot.add_initrd(tree + FDT_MAX, (start >> 30 << 30) + INITRD_WINDOW - 1)
    if boot.dtb is None:
        boot.add(tree, None, "device tree", "room for the device tree, which is yours to write", FDT_MAX)
        return start, tree
    view = boot.dtb.view
    if bytes(view[:4]) != FDT_MAGIC or len(view) > FDT_MAX:
        raise InvalidHeader(f"{boot.dtb.name}: no device tree of at most 2 MiB; compile it with dtc", field="magic")
    boot.add(tree, view, "device tree", "the first register points here")
    return start, tree
