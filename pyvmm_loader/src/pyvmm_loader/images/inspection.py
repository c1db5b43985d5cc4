"""Say what an image is, without loading it."""

from __future__ import annotations

from pyvmm_loader.images.open import open_image
from pyvmm_loader.images.source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm_loader.images.source import ImageLike


def inspect(image: ImageLike) -> dict[str, Any]:
    """Return `format`, `arch`, `version`, `entries` and the format's own fields; raise ImageError for other files.

    `format` is bzimage, elf64, elf32, arm64-image, riscv64-image, multiboot or multiboot2 (where nothing else starts
    it), zboot or firmware. `entries` names the boot protocols the image offers, `refused` those that one might expect
    of the format, each with the reason. `compression` is how the file is packed around all that, or None.
    """
    with Source(image) as source:
        size = len(source.view)
        source.unpack()
        found = open_image(source.view, source.name)
        try:
            return {
                "path": source.name,
                "size": size,
                "compression": source.compression,
                "format": found.format,
                "arch": found.arch,
                "version": found.version(),
                "entries": found.entries(),
                "refused": found.refused(),
                **found.facts(),
            }
        finally:
            found.close()
