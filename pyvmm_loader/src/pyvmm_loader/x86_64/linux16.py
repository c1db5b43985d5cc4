"""The Linux boot protocol by its 16-bit entry: the kernel's own setup code runs first, in real mode.

Source: Documentation/x86/boot.rst, "Loading The Rest of The Kernel" to "Running the Kernel".
"""

from __future__ import annotations

from pyvmm_loader.plan.placement import KERNEL
from pyvmm_loader.x86_64 import bios, registers
from pyvmm_loader.x86_64.bootparam import HEADER_START
from pyvmm_loader.x86_64.layout import EBDA_START
from pyvmm_loader.x86_64.linux_boot import add_payload, cmdline_limit, initrd_limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_loader.images.bzimage import BzImageFile
    from pyvmm_loader.plan.layout import Layout
    from pyvmm_loader.x86_64.registers import Registers

SETUP_START = 0x90000
"""Where setup code has always been loaded."""
HEAP_END = 0xE000
"""Offset where heap and stack end: boot.rst's value for a command line anywhere below 0xa0000."""
CMDLINE_START = SETUP_START + HEAP_END
CAN_USE_HEAP = 1 << 7
OLD_CMDLINE, OLD_CMDLINE_MAGIC = 0x20, 0xA33F


def plan(boot: Layout, image: BzImageFile, cmdline: str) -> Registers:
    """Plan a bzImage by its setup code, with the BIOS services that such code calls."""
    header = image.header
    end = add_payload(boot, image)
    boot.add_cmdline(cmdline, min(cmdline_limit(header), EBDA_START - CMDLINE_START - 1), CMDLINE_START)
    header.type_of_loader = 0xFF
    initrd = boot.add_initrd(end, initrd_limit(header))
    if initrd is not None:
        header.ramdisk_image, header.ramdisk_size = initrd
    setup = bytearray(image.view[: image.setup_size])
    # "If the protocol version is 2.01 or higher, enable the heap": heap_end_ptr is the offset of its end, minus 0x200.
    if header.version >= 0x201:
        header.loadflags |= CAN_USE_HEAP
        header.heap_end_ptr = HEAP_END - 0x200
    if header.version >= 0x202:
        header.cmd_line_ptr = CMDLINE_START
    else:
        header.setup_move_size = HEAP_END + len(cmdline) + 1
        setup[OLD_CMDLINE : OLD_CMDLINE + 4] = OLD_CMDLINE_MAGIC.to_bytes(2, "little") + HEAP_END.to_bytes(2, "little")
    # What an older header does not have is code; only the fields that were read go back.
    raw = bytes(header)[: image.header_size]
    setup[HEADER_START : HEADER_START + len(raw)] = raw
    boot.add(
        SETUP_START, bytes(setup), "kernel setup", "real-mode code, entered at its second sector", HEAP_END, KERNEL
    )
    boot.e820 = boot.memory_map()
    bios.add(boot)
    # "gs = fs = ds = es = ss", "ip = 0, cs = seg + 0x20", "sp = heap_end"
    return registers.real_mode(SETUP_START + 0x200 >> 4, 0, SETUP_START >> 4, HEAP_END)
