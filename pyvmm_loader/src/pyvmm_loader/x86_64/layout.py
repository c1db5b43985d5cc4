"""Where things lie in an x86 guest's memory.

Below 1 MiB the places are those that firmware-less VMMs share, so that a debugger's user finds them where expected.
"""

from __future__ import annotations

GDT_START = 0x500
BOOT_IDT_START = 0x520
PVH_INFO_START = 0x6000
PVH_MODLIST_START = 0x6040
PVH_MODLIST_MAX = 14
PVH_MEMMAP_START = 0x6200
PVH_MEMMAP_MAX = 149
ZERO_PAGE_START = 0x7000
BOOT_STACK_START, BOOT_STACK_POINTER = 0x8000, 0x8FF0
PML4_START = 0x9000
PDPT_START = 0xA000
PD_START = 0xB000  # four pages: 4 GiB in pages of 2 MiB
CMDLINE_START = 0x20000
CMDLINE_MAX_SIZE = 0x10000
EBDA_START = 0x9FC00
VGA_START = 0xA0000
ACPI_START = 0xE0000
MPTABLE_START = 0xF0000
SMBIOS_START = 0xF8000
HIMEM_START = 0x100000

MMIO_GAP_START = 0xC0000000
MMIO_GAP_END = 1 << 32
IOAPIC_ADDR = 0xFEC00000
APIC_ADDR = 0xFEE00000


def split_ram(size: int) -> list[tuple[int, int]]:
    """Split a RAM size into (start, size) pairs around the hole for devices between 3 and 4 GiB.

    >>> [(hex(start), hex(size)) for start, size in split_ram(4 << 30)]
    [('0x0', '0xc0000000'), ('0x100000000', '0x40000000')]
    """
    if size <= 0 or size % 4096:
        raise ValueError(f"RAM of {size} bytes: use a positive multiple of 4096")
    if size <= MMIO_GAP_START:
        return [(0, size)]
    return [(0, MMIO_GAP_START), (MMIO_GAP_END, size - MMIO_GAP_START)]
