"""Where the Image of an arm64 or riscv64 guest goes, with its device tree and initrd.

Sources: Documentation/arm64/booting.rst, "Setup the device tree" and "Call the kernel image";
Documentation/riscv/boot.rst, "Kernel location".
"""

from __future__ import annotations

from pyvmm_loader.errors import MemoryTooSmall, ProtocolViolation
from pyvmm_loader.fdt.node import cells64
from pyvmm_loader.fdt.reader import read_fdt
from pyvmm_loader.images.image import ALIGNMENT
from pyvmm_loader.plan.placement import DEVICE_TREE, KERNEL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_loader.fdt.tree import Fdt
    from pyvmm_loader.images.image import ImageFile
    from pyvmm_loader.plan.layout import Layout

FDT_MAX = 0x200000
INITRD_WINDOW = 32 << 30
CMDLINE_SIZE = {"arm64": 2047, "riscv64": 1023}
"""COMMAND_LINE_SIZE without the NUL."""


def add_image(boot: Layout, image: ImageFile, cmdline: str) -> tuple[int, int, int]:
    """Plan kernel, device tree and initrd.

    Return the kernel's first instruction, the device tree's address, and the boot processor's number in it.
    """
    boot.parse_cmdline(cmdline, CMDLINE_SIZE[image.arch])
    ram, size = boot.ranges[0]
    start = -(-ram // ALIGNMENT) * ALIGNMENT + image.text_offset
    length = max(image.image_size, len(image.view))
    why = f"2 MiB aligned start of RAM plus text_offset {image.text_offset:#x}; BSS zeroed"
    boot.add_slice(image.view[:], start, "kernel", why, length, KERNEL)
    # "must be placed on an 8-byte boundary and must not exceed 2 megabytes in size"
    at = -(-(start + length) // ALIGNMENT) * ALIGNMENT
    if at + FDT_MAX > ram + size:
        raise MemoryTooSmall(
            f"{image.name}: kernel and device tree need {ram:#x}..{at + FDT_MAX:#x}; give the guest more memory",
            start=ram,
            end=at + FDT_MAX,
        )
    # "within a 1 GB-aligned physical memory window of up to 32 GB in size that fully covers the kernel Image as well"
    initrd = boot.add_initrd(at + FDT_MAX, (start >> 30 << 30) + INITRD_WINDOW - 1)
    tree = _virt_tree(boot) if boot.dtb is None else read_fdt(boot.dtb.view)
    complete(tree, boot.cmdline, initrd)
    blob = bytes(tree)
    if len(blob) > FDT_MAX:
        raise ProtocolViolation(f"a device tree of {len(blob)} bytes; the kernel maps {FDT_MAX}", size=len(blob))
    whose = "the virt machine's" if boot.dtb is None else boot.dtb.name
    why = f"{whose}, /chosen completed; {'x0' if image.arch == 'arm64' else 'a1'} points here"
    boot.add(at, blob, "device tree", why, role=DEVICE_TREE)
    return start, at, tree.boot_cpu


def _virt_tree(boot: Layout) -> Fdt:
    if boot.arch == "arm64":
        from pyvmm_loader.aarch64 import virt as arm64

        return arm64.virt_tree(boot.ranges, boot.vcpus)
    from pyvmm_loader.riscv64 import virt as riscv64

    return riscv64.virt_tree(boot.ranges, boot.vcpus, interrupts=boot.interrupts or "plic")


def complete(tree: Fdt, cmdline: str, initrd: tuple[int, int] | None = None) -> None:
    """Write into `/chosen` what a boot loader decides: the command line, unless empty, and where the initrd is.

    `initrd` is (address, size). What else is there stays.
    """
    try:
        chosen = tree.root.find("/chosen")
    except KeyError:
        chosen = tree.root.add("chosen")
    if cmdline or "bootargs" not in chosen:
        chosen["bootargs"] = cmdline
    if initrd is not None:
        start, size = initrd
        chosen["linux,initrd-start"] = cells64(start)
        chosen["linux,initrd-end"] = cells64(start + size)
