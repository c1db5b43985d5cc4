"""The setup header and the page around it, `struct boot_params`, called zero page.

Source: Documentation/x86/boot.rst and zero-page.rst; arch/x86/include/uapi/asm/bootparam.h.
"""

from __future__ import annotations

from struct import Struct

from pyvmm_loader.fields import pack
from pyvmm_loader.x86_64 import e820 as e820_map

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pyvmm_loader.x86_64.e820 import E820Entry

HEADER_START = 0x1F1
HEADER_END = 0x26C  # to the end of kernel_info_offset (protocol 2.15)
HEADER_ENDS = (
    (0x200, 0x224), (0x201, 0x226), (0x202, 0x22C), (0x203, 0x230), (0x205, 0x238), (0x206, 0x23C), (0x207, 0x248),
    (0x208, 0x250), (0x209, 0x258), (0x20A, 0x264), (0x20B, 0x268), (0x20F, HEADER_END),
)  # fmt: skip
"""Since which protocol version the header has which end."""
FIELDS = (
    ("setup_sects", "B"), ("root_flags", "H"), ("syssize", "I"), ("ram_size", "H"), ("vid_mode", "H"),
    ("root_dev", "H"), ("boot_flag", "H"), ("jump", "H"), ("header", "I"), ("version", "H"),
    ("realmode_swtch", "I"), ("start_sys_seg", "H"), ("kernel_version", "H"), ("type_of_loader", "B"),
    ("loadflags", "B"), ("setup_move_size", "H"), ("code32_start", "I"), ("ramdisk_image", "I"),
    ("ramdisk_size", "I"), ("bootsect_kludge", "I"), ("heap_end_ptr", "H"), ("ext_loader_ver", "B"),
    ("ext_loader_type", "B"), ("cmd_line_ptr", "I"), ("initrd_addr_max", "I"), ("kernel_alignment", "I"),
    ("relocatable_kernel", "B"), ("min_alignment", "B"), ("xloadflags", "H"), ("cmdline_size", "I"),
    ("hardware_subarch", "I"), ("hardware_subarch_data", "Q"), ("payload_offset", "I"), ("payload_length", "I"),
    ("setup_data", "Q"), ("pref_address", "Q"), ("init_size", "I"), ("handover_offset", "I"),
    ("kernel_info_offset", "I"),
)  # fmt: skip
LAYOUT = Struct("<" + "".join([code for _, code in FIELDS]))
MAGIC = 0x53726448  # "HdrS"
BOOT_FLAG = 0xAA55

ACPI_RSDP_ADDR, EXT_RAMDISK_IMAGE, EXT_RAMDISK_SIZE, EXT_CMD_LINE_PTR = 0x70, 0xC0, 0xC4, 0xC8
E820_ENTRIES, E820_TABLE = 0x1E8, 0x2D0
ZERO_PAGE_SIZE = 4096


class SetupHeader:
    """`struct setup_header`, a field an attribute, names as in bootparam.h."""

    __slots__ = tuple(name for name, _ in FIELDS)

    if TYPE_CHECKING:
        setup_sects: int
        syssize: int
        boot_flag: int
        header: int
        version: int
        kernel_version: int
        type_of_loader: int
        loadflags: int
        setup_move_size: int
        code32_start: int
        ramdisk_image: int
        ramdisk_size: int
        heap_end_ptr: int
        cmd_line_ptr: int
        initrd_addr_max: int
        kernel_alignment: int
        relocatable_kernel: int
        min_alignment: int
        xloadflags: int
        cmdline_size: int
        payload_offset: int
        payload_length: int
        setup_data: int
        pref_address: int
        init_size: int
        handover_offset: int
        kernel_info_offset: int

    def __init__(self, raw: Buffer = bytes(LAYOUT.size)) -> None:
        for (name, _), value in zip(FIELDS, LAYOUT.unpack(raw), strict=True):
            setattr(self, name, value)

    @classmethod
    def from_image(cls, view: memoryview) -> SetupHeader:
        """Read the header of a bzImage.

        What the image's own header is too short for is 0.
        """
        raw = bytes(view[HEADER_START : HEADER_START + cls.size_in(view)])
        return cls(raw.ljust(LAYOUT.size, b"\0"))

    @staticmethod
    def size_in(view: memoryview) -> int:
        """Return how many bytes of header an image has.

        It ends where the jump at 0x200 lands (its length is the byte at 0x201), and at the latest where the fields
        of its protocol version end; behind them old kernels have code.
        """
        version = int.from_bytes(view[0x206:0x208], "little")
        end = max([end for since, end in HEADER_ENDS if since <= version], default=HEADER_START)
        return max(0, min(0x202 + view[0x201], end, len(view)) - HEADER_START)

    @classmethod
    def for_elf(cls) -> SetupHeader:
        """Return a header for a kernel that has none, a vmlinux entered by the 64-bit protocol."""
        header = cls()
        header.boot_flag = BOOT_FLAG
        header.header = MAGIC
        header.version = 0x20C
        header.kernel_alignment = 0x1000000
        header.cmdline_size = 2047
        header.initrd_addr_max = 0x7FFFFFFF
        return header

    def __bytes__(self) -> bytes:
        return pack(LAYOUT.format, *[getattr(self, name) for name, _ in FIELDS])

    def __repr__(self) -> str:
        return f"<SetupHeader {self.version >> 8}.{self.version & 0xFF:02} code32_start={self.code32_start:#x}>"


def zero_page(
    header: SetupHeader, entries: list[E820Entry], initrd: tuple[int, int] | None = None, rsdp: int = 0
) -> bytes:
    """Return the 4096 bytes of `struct boot_params`. `initrd` is (address, size), `rsdp` where ACPI begins or 0."""
    page = bytearray(ZERO_PAGE_SIZE)  # sentinel (0x1ef) stays 0: a loader that cleared the page, as it must
    if initrd is not None:
        start, size = initrd
        header.ramdisk_image, header.ramdisk_size = start & 0xFFFFFFFF, size & 0xFFFFFFFF
        page[EXT_RAMDISK_IMAGE : EXT_RAMDISK_IMAGE + 4] = pack("<I", start >> 32)
        page[EXT_RAMDISK_SIZE : EXT_RAMDISK_SIZE + 4] = pack("<I", size >> 32)
    page[HEADER_START : HEADER_START + LAYOUT.size] = bytes(header)
    page[ACPI_RSDP_ADDR : ACPI_RSDP_ADDR + 8] = pack("<Q", rsdp)
    table = e820_map.pack(entries)
    page[E820_ENTRIES] = len(entries)
    page[E820_TABLE : E820_TABLE + len(table)] = table
    return bytes(page)
