"""The images of a host: what Debian gives, kept between runs, and what this checkout gives, put on top of it."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import MAGIC_NUMBER
from pathlib import Path

from guest.host import cache_folder, install, locked, say, step

from lab import debian, native
from lab.architectures import COMMON, UNUSED, Architecture
from lab.errors import LabError
from lab.kernel import Kernel
from lab.tree import Tree

HERE = Path(__file__).resolve().parent
# pure Python: they run on any architecture
WHEELS = ("hypothesis", "pyelftools", "pytest", "typing-extensions")
WEEK = 7 * 24 * 3600
HEADERS = ("libpython3-dev", "linux-libc-dev")
# the kernel's first root can be no one's old root: passt, which wants another one, would refuse to start
INIT = """#!/bin/sh
mount -t proc proc /proc
mount --bind / /mnt
cd /mnt
mount --move . /
exec chroot . /lab/start
"""
START = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /dev/hugepages
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
ln -s /proc/self/fd /dev/fd
ip link set lo up
export HOME=/root PATH=/usr/local/bin:/usr/bin:/usr/sbin LANG=C.UTF-8
exec python3 /lab/agent.py
"""


def made(folder: Path, what: str, seconds: int, fill: Callable[[Path], None]) -> Path:
    """Return a folder that is whole: it is filled under another name and takes its own when all is there.

    Raises:
        LabError: it could not be filled; nothing is left of it.
    """
    with locked(f"lab-{folder.name}"):
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as name:
                    content = Path(name) / "content"
                    content.mkdir()
                    with step(f"lab: {what} (about {seconds} s)"):
                        fill(content)
                    content.rename(folder)
            except OSError as error:
                raise LabError(f"{what}: {error.strerror or error}; make room or correct it, and try again") from error
    return folder


def sources_key(architecture: Architecture) -> str:
    """Return what tells one recipe for a base image from another."""
    parts = (architecture.modules, architecture.more_modules, architecture.packages)
    recipe = [
        architecture.debian,
        architecture.suite,
        architecture.kernel,
        repr(parts),
        repr(COMMON),
        repr(sorted(UNUSED)),
        repr(WHEELS),
        repr(HEADERS),
        INIT + START,
    ]
    recipe += [(HERE / name).read_text() for name in ("tree.py", "kernel.py")]
    return hashlib.sha256("\0".join(recipe).encode() + MAGIC_NUMBER).hexdigest()[:12]


def packages(architecture: Architecture) -> Path:
    """Return the folder that apt keeps the fetched packages of an architecture in."""
    folder = cache_folder() / "lab" / f"apt-{architecture.debian}-{architecture.suite}"
    with locked(f"lab-apt-{architecture.debian}"):
        names = [*COMMON, *architecture.packages, architecture.kernel, *HEADERS]
        with step(f"lab: fetching Debian's packages for {architecture.name} (about 20 s)"):
            debian.fetch(folder, architecture.debian, architecture.suite, names)
    return folder


def base_folder(architecture: Architecture) -> Path:
    """Return where the base image of an architecture is kept."""
    return cache_folder() / "lab" / f"{architecture.name}-{sources_key(architecture)}"


def kept(architecture: Architecture) -> bool:
    """Say whether there is a base image of an architecture already."""
    return base_folder(architecture).is_dir()


def base(architecture: Architecture) -> Path:
    """Return the folder with a host's kernel, its root file system as an archive, and headers to compile against.

    Raises:
        LabError: it cannot be made.
    """
    folder = base_folder(architecture)
    made(folder, f"making a {architecture.name} host's image", 40, lambda into: fill(architecture, into))
    os.utime(folder)
    prune(folder.parent, f"{architecture.name}-*")
    return folder


def prune(folder: Path, pattern: str) -> None:
    """Remove what nobody has used for a week."""
    for old in folder.glob(pattern):
        if old.stat().st_mtime < time.time() - WEEK:
            shutil.rmtree(old)


def fill(architecture: Architecture, folder: Path) -> None:
    """Make a base image."""
    install(["kmod"], "which indexes kernel modules")
    archives = sorted((packages(architecture) / "cache/archives").glob("*.deb"))
    names = [debian.package_name(archive) for archive in archives]
    python = next(name for name in names if name.startswith("python3.") and "-" not in name)
    tree = Tree(bytecode_tag(python))
    tree.base()
    headers, kernels = [], []
    for archive, name in zip(archives, names, strict=True):
        if name.startswith("linux-image-"):
            kernels.append(archive)
        elif name.endswith("-dev") or name.startswith("linux-libc"):
            headers.append(archive)
        elif name not in UNUSED:
            tree.package(archive)
    kernel = Kernel(next(archive for archive in kernels if debian.package_name(archive) != architecture.kernel))
    load = kernel.install(tree, architecture.modules, architecture.more_modules)
    tree.file("lab/modules", "\n".join(load).encode())
    tree.file("lab/resolv.conf", b"nameserver 10.0.2.3\n")
    tree.file("lab/python", python.encode())
    tree.file("init", INIT.encode(), 0o755)
    tree.file("lab/start", START.encode(), 0o755)
    for name in ("passwd", "group"):
        tree.files[f"etc/{name}"] = tree.files[f"usr/share/base-passwd/{name}.master"]
    tree.file("etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n")
    add_wheels(tree, python)
    (folder / "vmlinuz").write_bytes(kernel.image)
    (folder / "root.cpio").write_bytes(tree.pack())
    (folder / "python").write_text(python)
    native.unpack_headers(headers, folder / "headers")


def bytecode_tag(python: str) -> str:
    """Return the tag of compiled modules that this Python can make for that of a host, or nothing."""
    major, minor = sys.version_info[:2]
    return f"cpython-{major}{minor}" if python == f"python{major}.{minor}" else ""


def add_wheels(tree: Tree, python: str) -> None:
    """Add the test tools, which are pure Python."""
    with tempfile.TemporaryDirectory() as name:
        command = [
            sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--target", name,
            "--only-binary=:all:", "--platform", "any", "--python-version", python.removeprefix("python"),
            "--no-compile", *WHEELS,
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise LabError(f"pip could not fetch {', '.join(WHEELS)}: {done.stderr.strip().splitlines()[-1]}")
        tree.folder(Path(name), f"usr/local/lib/{python}/dist-packages")


def modules(architecture: Architecture, base_image: Path) -> Path:
    """Return the folder with the packages' compiled modules for an architecture."""
    folder = cache_folder() / "lab" / f"native-{architecture.name}-{native.native_key(architecture)}"
    headers = base_image / "headers"
    return made(
        folder, f"compiling the packages' C for {architecture.name}", 20,
        lambda into: native.compile_modules(architecture, headers, into),
    )  # fmt: skip


def overlay(architecture: Architecture, base_image: Path) -> Path:
    """Return the archive with what goes over a base image: this checkout, its compiled modules and the agent.

    It is kept until the checkout changes; only the newest is.
    """
    python = (base_image / "python").read_text()
    compiled = modules(architecture, base_image)
    files = native.checkout()
    digest = hashlib.sha256(f"{compiled.name} {base_image.name}".encode())
    for path in files:
        digest.update(f"{path} ".encode() + path.read_bytes())
    archive = cache_folder() / "lab" / f"overlay-{architecture.name}-{digest.hexdigest()[:12]}.cpio"
    with locked(f"lab-overlay-{architecture.name}"):
        if not archive.exists():
            for old in archive.parent.glob(f"overlay-{architecture.name}-*"):
                old.unlink()
            tree = Tree(bytecode_tag(python))
            native.add_checkout(tree, files, python)
            for module in compiled.glob("pyvmm_*/*.so"):
                name = f"usr/local/lib/{python}/dist-packages/{module.parent.name}/{module.name}"
                tree.file(name, module.read_bytes())
            tree.file("lab/agent.py", (HERE / "agent.py").read_bytes())
            unfinished = archive.with_suffix(".unfinished")
            unfinished.write_bytes(tree.pack())
            unfinished.rename(archive)
    return archive


def write_initrd(architecture: Architecture, base_image: Path, path: Path) -> None:
    """Write a host's root file system: the base, and over it this checkout and the agent.

    Raises:
        LabError: there is no room for it.
    """
    try:
        parts = [base_image / "root.cpio", overlay(architecture, base_image)]
        with path.open("wb") as file:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file, 1 << 22)
    except OSError as error:
        raise LabError(f"{error.filename or path}: {error.strerror}; a host needs 300 MB there") from error


def forget(architecture: Architecture) -> None:
    """Remove every image of an architecture, so that the next is made of today's packages."""
    for folder in (cache_folder() / "lab").glob(f"*{architecture.name}-*"):
        shutil.rmtree(folder)
    say(f"lab: removed the images of {architecture.name}")
