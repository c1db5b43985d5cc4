"""The Linux boot protocol by its 64-bit and 32-bit entries: kernel, zero page, command line, initrd.

Source: Documentation/x86/boot.rst, "64-bit Boot Protocol" and "32-bit Boot Protocol".
"""

from __future__ import annotations

from pyvmm_loader.errors import InvalidHeader
from pyvmm_loader.plan.placement import KERNEL
from pyvmm_loader.x86_64 import layout, registers
from pyvmm_loader.x86_64.bootparam import SetupHeader, zero_page

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_loader.images.bzimage import BzImageFile
    from pyvmm_loader.images.elf import ElfFile
    from pyvmm_loader.plan.layout import Layout

ENTRY_64_OFFSET = 0x200  # "the 64-bit entry point is at load address + 0x200"
INITRD_ADDR_MAX_BEFORE_2_03 = 0x37FFFFFF
CMDLINE_SIZE_BEFORE_2_06 = 255


def plan_elf(boot: Layout, elf: ElfFile, cmdline: str) -> registers.Registers:
    """Plan a vmlinux by its own entry e_entry: the 64-bit one, or of a 32-bit kernel the 32-bit one."""
    add_zero_page(boot, SetupHeader.for_elf(), cmdline, add_segments(boot, elf))
    entry = elf.physical_entry
    return registers.linux64(entry) if boot.entry == "linux64" else registers.linux32(entry)


def plan_bzimage(boot: Layout, image: BzImageFile, cmdline: str) -> registers.Registers:
    """Plan a bzImage by its entry `linux64` or `linux32`."""
    header = image.header
    add_zero_page(boot, header, cmdline, add_payload(boot, image))
    start = header.code32_start
    return registers.linux64(start + ENTRY_64_OFFSET) if boot.entry == "linux64" else registers.linux32(start)


def add_segments(boot: Layout, elf: ElfFile) -> int:
    """Put what an ELF file wants in memory; return where it ends."""
    if not elf.segments:
        raise InvalidHeader(f"{elf.name}: no segment to load; pass the linked kernel", field="e_phnum")
    for number, segment in enumerate(elf.segments):
        zeros = segment.memsz - segment.filesz
        why = f"PT_LOAD at its physical address{f', {zeros:#x} bytes of BSS zeroed' if zeros else ''}"
        data = elf.view[segment.offset : segment.offset + segment.filesz]
        boot.add_slice(data, segment.paddr, f"kernel segment {number}", why, segment.memsz, KERNEL)
    return max(placement.end for placement in boot.placements)


def add_payload(boot: Layout, image: BzImageFile) -> int:
    """Put a bzImage's protected-mode kernel and keep the memory that it unpacks itself into; return its end."""
    start = image.load_address
    boot.add(start, image.payload, "kernel", "bzImage payload where code32_start asks", role=KERNEL)
    low, high = image.runtime
    behind = start + len(image.payload)
    if high > behind:
        low = max(low, behind)
        boot.add(low, None, "kernel workspace", "init_size: the kernel unpacks itself here", high - low, KERNEL)
    return max(high, behind)


def cmdline_limit(header: SetupHeader) -> int:
    """Return how many characters the kernel reads: by boot.rst 255 before protocol 2.06, which has no cmdline_size."""
    return header.cmdline_size if header.version >= 0x206 else CMDLINE_SIZE_BEFORE_2_06


def initrd_limit(header: SetupHeader) -> int:
    """Return the highest address an initrd may occupy."""
    return header.initrd_addr_max if header.version >= 0x203 else INITRD_ADDR_MAX_BEFORE_2_03


def add_zero_page(boot: Layout, header: SetupHeader, cmdline: str, end: int) -> None:
    """Put command line, initrd, zero page and a stack for a kernel that ends at `end`."""
    boot.add_cmdline(cmdline, cmdline_limit(header))
    header.type_of_loader = 0xFF
    header.cmd_line_ptr = layout.CMDLINE_START
    initrd = boot.add_initrd(end, initrd_limit(header))
    boot.e820 = boot.memory_map()
    page = zero_page(header, boot.e820, initrd, boot.rsdp)
    boot.add(layout.ZERO_PAGE_START, page, "zero page", "struct boot_params: rsi points here")
    boot.add(layout.BOOT_STACK_START, None, "boot stack", "rsp at the entry", 0x1000)
