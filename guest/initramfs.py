"""The initramfs images: static C programs that say what they see, and busybox for people."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from guest.host import GuestError, cache_folder, install, locked, prepared, run, say

HERE = Path(__file__).resolve().parent
CC_FLAGS = (
    "-Os -Wall -Wextra -Werror -static -nostdlib -ffreestanding -fno-stack-protector "
    "-fno-asynchronous-unwind-tables -fno-pic -no-pie -Wl,--build-id=none -Wl,-z,noseparate-code -s"
).split()

THIS_MACHINE = os.uname().machine
CROSS_COMPILERS = {
    "aarch64": ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"),
    "riscv64": ("gcc-riscv64-linux-gnu", "libc6-dev-riscv64-cross"),
    "x86_64": ("gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"),
}

PREPARED = "initramfs/{name}.cpio"

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


def demo(architecture: str = THIS_MACHINE) -> Path:
    """Return the initramfs whose only file is ``init``, compiled from ``init.c``.

    Args:
        architecture: whose machine code it is: ``x86_64``, ``aarch64`` or ``riscv64``.

    Raises:
        GuestError: there is no compiler for that, or it could not be installed.
    """
    return _compiled("demo", HERE / "init.c", architecture)


def devices(architecture: str = THIS_MACHINE) -> Path:
    """Return the initramfs whose init says what Linux's drivers made of the machine's devices."""
    return _compiled("devices", HERE / "devices.c", architecture)


def virtio(architecture: str = THIS_MACHINE, modules: Sequence[bytes] = ()) -> Path:
    """Return the initramfs whose init uses virtio devices as programs do.

    Args:
        architecture: as for `demo`.
        modules: what it loads first, in this order, for a kernel whose drivers are not built in.
    """
    return _compiled("virtio", HERE / "virtio.c", architecture, modules)


def prepare(folder: Path) -> None:
    """Put those for this machine where another host takes them from (`host.prepared`)."""
    for make in (demo, devices, virtio, shell):
        name = make.__name__ if make is shell else f"{make.__name__}-{THIS_MACHINE}"
        into = folder / PREPARED.format(name=name)
        into.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(make(), into)


def _compiled(name: str, source: Path, architecture: str, modules: Sequence[bytes] = ()) -> Path:
    if not modules and (image := prepared(PREPARED.format(name=f"{name}-{architecture}"))):
        return image
    install(["cpio"], "which packs the guest's initramfs")
    ingredients = b"".join(path.read_bytes() for path in (source, *sorted(HERE.glob("*.h"))))

    def fill(folder: Path) -> None:
        compile_init(source, folder, architecture)
        for number, module in enumerate(modules):
            (folder / "modules").mkdir(exist_ok=True)
            (folder / f"modules/{number:02}.ko").write_bytes(module)

    return _cached(f"{name}-{architecture}", ingredients + b"".join(modules), fill)


def shell() -> Path:
    """Return the initramfs with a busybox shell."""
    if image := prepared(PREPARED.format(name="shell")):
        return image
    install(["busybox-static", "cpio"], "which make the guest's shell")
    busybox = Path("/bin/busybox").read_bytes()

    def fill(folder: Path) -> None:
        (folder / "bin").mkdir()
        (folder / "bin/busybox").write_bytes(busybox)
        (folder / "bin/busybox").chmod(0o755)
        (folder / "init").write_text(SHELL_INIT)
        (folder / "init").chmod(0o755)

    return _cached("shell", busybox + SHELL_INIT.encode(), fill)


def compile_init(source: Path, folder: Path, architecture: str = THIS_MACHINE) -> None:
    """Compile a C source without a C library into ``folder/init``.

    Raises:
        GuestError: there is no compiler for that architecture, or it could not be installed, or it refuses the source.
    """
    # libgcc has what the processor lacks an instruction for
    run([_compiler(architecture), *CC_FLAGS, "-o", folder / "init", source, "-lgcc"])


def _compiler(architecture: str) -> str:
    if architecture not in CROSS_COMPILERS:
        raise GuestError(f"no compiler for {architecture!r}: there are {', '.join(CROSS_COMPILERS)}")
    if architecture == THIS_MACHINE:
        install(["gcc", "libc6-dev"], "which compile the guest's init")
        return "gcc"
    install(CROSS_COMPILERS[architecture], f"which compile the guest's init for {architecture}")
    return f"{architecture}-linux-gnu-gcc"


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
