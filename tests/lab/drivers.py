"""Kernel modules for guests of Debian's kernels, which have few drivers built in."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from guest.host import cache_folder
from lab import debian, image
from lab.architectures import Architecture
from lab.kernel import Kernel


def modules(architecture: Architecture, names: Sequence[str]) -> list[bytes]:
    """Return modules of the host's own kernel with what they need, in the order to load them in."""
    vmlinuz = (image.base(architecture) / "vmlinuz").read_bytes()
    key = hashlib.sha256(vmlinuz + " ".join(names).encode()).hexdigest()[:12]

    def fill(folder: Path) -> None:
        archives = (image.packages(architecture) / "cache/archives").glob("linux-image-*.deb")
        kernel = next(
            kernel
            for kernel in (Kernel(path) for path in archives if debian.package_name(path) != architecture.kernel)
            if kernel.image == vmlinuz
        )
        order = dict.fromkeys(module for name in names for module in kernel.needed(name))
        for number, module in enumerate(order):
            (folder / f"{number:02}-{module}.ko").write_bytes(kernel.modules[module][1])

    folder = cache_folder() / "lab" / f"modules-{architecture.name}-{key}"
    image.made(folder, f"taking {architecture.name}'s modules from its kernel", 10, fill)
    return [path.read_bytes() for path in sorted(folder.iterdir())]
