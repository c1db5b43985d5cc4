"""Open an image of any known format: parsed and checked, not loaded."""

from __future__ import annotations

from pyvmm_loader.images.identify import IMAGES, identify, refuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class KernelImage(Protocol):
        """What every image that was opened and checked can say of itself; nothing is loaded yet."""

        @property
        def format(self) -> str:
            """The format's name, such as `bzimage`."""
            ...

        @property
        def arch(self) -> str:
            """The processor it runs on."""
            ...

        def entries(self) -> list[str]:
            """Return the boot protocols offered, the one to prefer first."""
            ...

        def refused(self) -> dict[str, str]:
            """Return those that one could expect of this format, each with the reason why it is not offered."""
            ...

        def version(self) -> str | None:
            """Return the release that the image names, where it does."""
            ...

        def facts(self) -> dict[str, Any]:
            """Return the fields of its own header."""
            ...

        def close(self) -> None:
            """Release what it holds of the file's memory."""
            ...


def open_image(view: memoryview, name: str, kind: str | None = None) -> KernelImage:
    """Parse and check an image of a known format; raise the ImageError that says what is wrong with any other."""
    kind = identify(view) if kind is None else kind
    if kind == "elf":
        from pyvmm_loader.images.elf import ElfFile

        return ElfFile(view, name)
    if kind == "bzimage":
        from pyvmm_loader.images.bzimage import BzImageFile

        return BzImageFile(view, name)
    if kind in IMAGES:
        from pyvmm_loader.images.image import ImageFile

        return ImageFile(view, name)
    if kind == "firmware":
        from pyvmm_loader.images.firmware import FirmwareFile

        return FirmwareFile(view, name)
    if kind in ("multiboot", "multiboot2"):
        from pyvmm_loader.images.multiboot import MultibootFile

        return MultibootFile(view, name)
    if kind == "flat":
        from pyvmm_loader.images.flat import FlatFile

        return FlatFile(view, name)
    if kind == "zboot":
        from pyvmm_loader.images.zboot import ZbootFile

        return ZbootFile(view, name)
    raise refuse(kind, name, len(view))
