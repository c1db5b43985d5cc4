"""A small Linux kernel from Debian's source package, with our configuration and our patches, built once."""

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from guest.host import GuestError, cache_folder, install, locked, prepared, run, say, step

HERE = Path(__file__).resolve().parent
SOURCE = "linux-source-6.1"
PACKAGES = [SOURCE, "gcc", "libc6-dev", "make", "patch", "bc", "flex", "bison", "libelf-dev", "xz-utils", "lz4"]

# Sources of what the configurations leave out; unpacking the rest takes a quarter of the time.
# The Kconfig files and Makefiles in these folders stay, since others name them.
LEFT_OUT = [
    "Documentation/*/*",
    "arch/*/boot/dts/*",
    *(f"arch/{name}/*.[chS]" for name in ("arm", "arm64", "mips", "powerpc", "m68k", "sparc", "s390")),
    *(f"drivers/{name}/*.[ch]" for name in ("gpu", "media", "scsi", "staging", "infiniband", "usb", "iio", "mtd")),
    *(f"drivers/{name}/*.[ch]" for name in ("net/ethernet", "net/wireless", "misc/habanalabs")),
    "sound/*.[ch]",
    "tools/perf/*",
    "tools/testing/*",
]


PREPARED = "kernels/{flavour}"


class Flavour(NamedTuple):
    """One configuration of the kernel."""

    configs: tuple[str, ...]
    """Files in ``config/``, later ones override earlier ones."""
    steps: int
    """How many lines ``make`` prints, for the progress shown."""
    minutes: float
    """How long two cores need."""


FLAVOURS = {
    "boot": Flavour(("boot.config",), 1060, 2.5),
    "full": Flavour(("boot.config", "full.config"), 1900, 5),
}


class Kernel(NamedTuple):
    """A built kernel."""

    vmlinux: Path
    bzimage: Path
    system_map: Path


def build(flavour: str = "boot") -> Kernel:
    """Return the kernel of this flavour; build it first where nobody has.

    Raises:
        GuestError: a package could not be installed or the build failed.
    """
    if folder := prepared(PREPARED.format(flavour=flavour)):
        return Kernel(folder / "vmlinux", folder / "bzImage", folder / "System.map")
    install(PACKAGES, "which build the guest's kernel")
    version = run(["dpkg-query", "-W", "-f", "${Version}", SOURCE])
    name = f"{flavour}-{version.replace('~', '-')}-{_key(flavour, version)}"
    folder = cache_folder() / "kernels" / name
    kernel = Kernel(folder / "vmlinux", folder / "bzImage", folder / "System.map")
    with locked(f"kernel-{flavour}"):
        if not folder.is_dir():
            folder.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="building-", dir=folder.parent) as build_folder:
                built = _build(flavour, Path(build_folder))
                built.rename(folder)
            say(f"  kept in {folder}")
    return kernel


def prepare(folder: Path) -> None:
    """Put every flavour where another host takes it from (`host.prepared`)."""
    for flavour in FLAVOURS:
        into = folder / PREPARED.format(flavour=flavour)
        into.mkdir(parents=True)
        for path in build(flavour):
            shutil.copy(path, into)


def _key(flavour: str, version: str) -> str:
    """Return what went in: source version, configuration, patches, compiler."""
    ingredients = hashlib.sha256(version.encode())
    for path in [*(HERE / "config" / name for name in FLAVOURS[flavour].configs), *_patches()]:
        ingredients.update(path.read_bytes())
    ingredients.update(run(["gcc", "--version"]).partition("\n")[0].encode())
    return ingredients.hexdigest()[:12]


def _patches() -> list[Path]:
    return sorted((HERE / "patches").glob("*.patch"))


def _build(flavour: str, folder: Path) -> Path:
    """Build in a folder and return the folder within it that holds only what is kept."""
    source = folder / SOURCE
    with step(f"unpacking {SOURCE} (about 10 s)"):
        unwanted = [f"--exclude={SOURCE}/{pattern}" for pattern in LEFT_OUT]
        archive = f"/usr/src/{SOURCE}.tar.xz"
        run(["tar", "--extract", "--wildcards", *unwanted, "--file", archive, "--directory", folder])
    for patch in _patches():
        run(["patch", "--strip=1", "--forward", f"--input={patch}"], cwd=source)
    with step("configuring it (about 10 s)"):
        run(["make", "tinyconfig"], cwd=source)
        fragments = [str(HERE / "config" / name) for name in FLAVOURS[flavour].configs]
        run(["scripts/kconfig/merge_config.sh", "-m", ".config", *fragments], cwd=source)
        run(["make", "olddefconfig"], cwd=source)
    _make(source, FLAVOURS[flavour])
    kept = folder / "kept"
    kept.mkdir()
    for name in ("vmlinux", "System.map", ".config", "arch/x86/boot/bzImage"):
        shutil.copy(source / name, kept / Path(name).name.lstrip("."))
    return kept


def _make(source: Path, flavour: Flavour) -> None:
    """Compile with a sign of progress every tenth."""
    cores = os.cpu_count() or 1
    say(f"compiling the kernel on {cores} cores (about {flavour.minutes * 2 / cores:.1g} min, once) ...")
    start = time.monotonic()
    log = source / "build.log"
    with log.open("w") as output:
        command = ["make", f"-j{cores}", "vmlinux", "bzImage"]
        process = subprocess.Popen(command, cwd=source, stdout=output, stderr=subprocess.STDOUT)
        shown = 0
        try:
            while process.poll() is None:
                time.sleep(0.2)
                with log.open("rb") as lines:
                    done = min(99, 100 * sum(1 for _ in lines) // flavour.steps)
                if done >= shown + 10:
                    shown = done - done % 10
                    say(f"  {shown} % after {time.monotonic() - start:.0f} s")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise GuestError(f"the kernel did not build:\n{tail}")
    say(f"  done in {time.monotonic() - start:.0f} s")
