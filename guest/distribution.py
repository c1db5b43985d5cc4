"""A distribution's kernel, for hardware KVM: nothing to build, nothing to wait for."""

import os
import platform
import tempfile
from pathlib import Path

from guest.host import GuestError, cache_folder, locked, run, say, step

PACKAGE = "linux-image-cloud-amd64"


def kernel() -> Path:
    """Return the host's own ``/boot/vmlinuz`` where it may be read, Debian's cloud kernel otherwise.

    Raises:
        GuestError: the package could not be fetched or holds no kernel.
    """
    own = Path(f"/boot/vmlinuz-{platform.release()}")
    if os.access(own, os.R_OK):
        return own
    return cloud_kernel()


def cloud_kernel() -> Path:
    """Debian's cloud kernel, taken out of its package (which is not installed) into the cache folder."""
    with locked("kernel-cloud"):
        package = _newest()
        image = cache_folder() / "kernels" / package.removeprefix("linux-image-") / "vmlinuz"
        if image.exists():
            return image
        image.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=image.parent) as name, step(f"fetching {package} (about 10 s)"):
            folder = Path(name)
            run(["apt-get", "download", package], cwd=folder)
            run(["dpkg-deb", "--extract", *folder.glob("*.deb"), folder / "content"])
            found = list((folder / "content/boot").glob("vmlinuz-*"))
            if not found:
                raise GuestError(f"{package} holds no /boot/vmlinuz; give a kernel of your own with --kernel")
            found[0].rename(image)
        say(f"  kept in {image}")
    return image


def _newest() -> str:
    """Return the package that the meta package depends on, which is the one with the kernel."""
    for line in run(["apt-cache", "depends", PACKAGE]).splitlines():
        relation, _, package = line.strip().partition(": ")
        if relation == "Depends" and package.startswith("linux-image-"):
            return package
    raise GuestError(f"apt knows no {PACKAGE}: run 'apt-get update', or give a kernel of your own with --kernel")
