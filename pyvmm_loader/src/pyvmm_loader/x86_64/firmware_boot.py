"""Start by reset: firmware in flash below 4 GiB, with its variables, takes over from the reset vector.

Sources: Intel SDM volume 3, 10.1.4 "First Instruction Executed"; QEMU's docs/system/i386/pc.rst for the copy below
1 MiB.
"""

from __future__ import annotations

from pyvmm_loader.errors import InvalidHeader
from pyvmm_loader.images.firmware import TOP, is_variables
from pyvmm_loader.plan.placement import KERNEL
from pyvmm_loader.x86_64 import registers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_loader.images.firmware import FirmwareFile
    from pyvmm_loader.plan.layout import Layout
    from pyvmm_loader.x86_64.registers import Registers

LEGACY_SIZE = 128 << 10
"""What a PC shows of its ROM's end below 1 MiB as well."""


def plan(boot: Layout, image: FirmwareFile, cmdline: str) -> Registers:
    """Plan a ROM below 4 GiB, its variables below it, and the copy of its end below 1 MiB."""
    boot.need_no_cmdline(cmdline)
    start = TOP - len(image.view)
    boot.add_rom(start, image.view, "kernel firmware", f"{image.family}: flash that ends at 4 GiB", KERNEL)
    if boot.variables is not None:
        view = boot.variables.view
        if not is_variables(view):
            raise InvalidHeader(f"{boot.variables.name}: no UEFI variable store; pass OVMF_VARS.fd", field="_FVH")
        # OVMF's build (OvmfPkg/OvmfPkgDefines.fdf.inc) puts the variables directly in front of the code.
        boot.add_rom(start - len(view), view, "variables", "UEFI variables: flash that the guest writes")
    size = min(len(image.view), LEGACY_SIZE)
    boot.add_slice(image.view[-size:], 0x100000 - size, "firmware copy", "a PC shows the ROM's end here, too", size)
    return registers.reset()
