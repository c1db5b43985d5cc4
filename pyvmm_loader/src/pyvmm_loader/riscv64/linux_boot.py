"""The Linux boot protocol of riscv64.

Source: Documentation/riscv/boot.rst, "Register state".
"""

from __future__ import annotations

from pyvmm_loader.plan.image_boot import add_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_loader.images.image import ImageFile
    from pyvmm_loader.plan.layout import Layout


def plan(boot: Layout, image: ImageFile, cmdline: str) -> dict[str, int]:
    """Plan an Image; a0 is the id of the hart, a1 the address of the device tree, and satp is zero."""
    start, tree, hart = add_image(boot, image, cmdline)
    return {"pc": start, "a0": hart, "a1": tree, "satp": 0}
