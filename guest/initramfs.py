"""The initramfs images: static C programs that say what they see, and busybox for people."""

import hashlib
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from guest.host import GuestError, cache_folder, install, locked, run, say

HERE = Path(__file__).resolve().parent
CC_FLAGS = (
    "-Os -Wall -Wextra -Werror -static -nostdlib -ffreestanding -fno-stack-protector "
    "-fno-asynchronous-unwind-tables -fno-pic -no-pie -Wl,--build-id=none -Wl,-z,noseparate-code -s"
).split()

SHELL_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
echo 'guest: a busybox shell; "poweroff -f" or Ctrl-A x ends it'
exec setsid cttyhack sh
"""


def demo() -> Path:
    """Return the initramfs whose only file is ``init``, compiled from ``init.c``."""
    return _compiled("demo", HERE / "init.c")


def devices() -> Path:
    """Return the initramfs whose init says what Linux's drivers made of the machine's devices."""
    return _compiled("devices", HERE / "devices.c")


def virtio() -> Path:
    """Return the initramfs whose init uses virtio devices as programs do."""
    return _compiled("virtio", HERE / "virtio.c")


def _compiled(name: str, source: Path) -> Path:
    install(["gcc", "libc6-dev", "cpio"], "which build the guest's initramfs")
    ingredients = b"".join(path.read_bytes() for path in (source, *sorted(HERE.glob("*.h"))))
    return _cached(name, ingredients, lambda folder: compile_init(source, folder))


def shell() -> Path:
    """Return the initramfs with a busybox shell."""
    install(["busybox-static", "cpio"], "which make the guest's shell")
    busybox = Path("/bin/busybox").read_bytes()

    def fill(folder: Path) -> None:
        (folder / "bin").mkdir()
        (folder / "bin/busybox").write_bytes(busybox)
        (folder / "bin/busybox").chmod(0o755)
        (folder / "init").write_text(SHELL_INIT)
        (folder / "init").chmod(0o755)

    return _cached("shell", busybox + SHELL_INIT.encode(), fill)


def compile_init(source: Path, folder: Path) -> None:
    """Compile a C source without a C library into ``folder/init``."""
    run(["gcc", *CC_FLAGS, "-o", folder / "init", source])


def archive(folder: Path) -> bytes:
    """Everything below a folder as a cpio archive in the format the kernel unpacks (newc), owned by root."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    command = ["cpio", "--create", "--quiet", "--format=newc", "--owner=0:0", "--reproducible"]
    done = subprocess.run(command, cwd=folder, input="\n".join(names).encode(), capture_output=True, check=False)
    if done.returncode:
        raise GuestError(f"cpio failed: {done.stderr.decode(errors='replace')}")
    return done.stdout


def _cached(name: str, ingredients: bytes, fill: Callable[[Path], None]) -> Path:
    key = hashlib.sha256(ingredients + " ".join(CC_FLAGS).encode()).hexdigest()[:12]
    image = cache_folder() / "initramfs" / f"{name}-{key}.cpio"
    with locked(f"initramfs-{name}"):
        if not image.exists():
            image.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=image.parent) as folder:
                content = Path(folder) / "content"
                content.mkdir()
                fill(content)
                finished = Path(folder) / "image"
                finished.write_bytes(archive(content))
                finished.rename(image)
            say(f"made {image}")
    return image
