"""Start a flat binary at its first byte, in the mode that the caller asked for."""

from __future__ import annotations

from pyvmm_loader.errors import ProtocolViolation
from pyvmm_loader.images.flat import BOOT_SECTOR
from pyvmm_loader.plan.placement import KERNEL
from pyvmm_loader.x86_64 import registers
from pyvmm_loader.x86_64.layout import HIMEM_START

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_loader.images.flat import FlatFile
    from pyvmm_loader.plan.layout import Layout
    from pyvmm_loader.x86_64.registers import Registers


def plan(boot: Layout, image: FlatFile, cmdline: str) -> Registers:
    """Plan a flat binary; its first byte is the first instruction."""
    start = boot.load_address
    if start is None:
        start = BOOT_SECTOR if boot.entry == "flat16" else HIMEM_START
    if boot.entry == "flat16" and start + len(image.view) > HIMEM_START:
        raise ProtocolViolation(f"{image.name}: 16-bit code ends at 1 MiB at the latest; move it down", start=start)
    boot.add(start, image.view, "kernel", "the whole file; its first byte is the first instruction", role=KERNEL)
    boot.need_no_cmdline(cmdline)
    if boot.entry == "flat16":
        return registers.real_mode(start >> 4 & 0xF000, start & 0xFFFF)
    return registers.linux64(start) if boot.entry == "flat64" else registers.linux32(start)
