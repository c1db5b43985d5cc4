"""The Linux boot protocol of arm64.

Source: Documentation/arm64/booting.rst, "Call the kernel image".
"""

from __future__ import annotations

from pyvmm_loader.plan.image_boot import add_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_loader.images.image import ImageFile
    from pyvmm_loader.plan.layout import Layout

PSTATE = 0x3C5  # EL1h with debug, SError, IRQ and FIQ masked


def plan(boot: Layout, image: ImageFile, cmdline: str) -> dict[str, int]:
    """Plan an Image; x0 is the address of the device tree, x1 to x3 are zero."""
    start, tree, _ = add_image(boot, image, cmdline)
    return {"pc": start, "x0": tree, "x1": 0, "x2": 0, "x3": 0, "pstate": PSTATE}
