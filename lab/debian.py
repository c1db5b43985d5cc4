"""Debian packages of any architecture, without root and without touching what apt keeps of this machine."""

import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from tarfile import TarFile, TarInfo

from guest.host import GuestError, run
from guest.packages import private_lists

from lab.errors import LabError


def fetch(folder: Path, architecture: str, suite: str, packages: Sequence[str]) -> list[Path]:
    """Fetch packages and what they depend on into a folder of apt's own; what is there already stays.

    Raises:
        LabError: the archive cannot be reached or lacks one, or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        options = [*private_lists(folder, architecture, suite), "-o", "Debug::NoLocking=true"]
        run(["apt-get", *options, "-qq", "-o", "Acquire::Retries=3", "update"])
        run(["apt-get", *options, "-qq", "-y", "--no-install-recommends", "--download-only", "install", *packages])
    except GuestError as error:
        said = [line for line in str(error).splitlines() if line.startswith(("E:", "W:"))] or [str(error)]
        raise LabError(f"no packages for {architecture}: {said[-1]}; is there a network, and room?") from error
    archives = sorted((folder / "cache/archives").glob("*.deb"))
    if not archives:
        raise LabError(f"apt fetched nothing for {architecture}: remove {folder} and try again")
    return archives


def own_suite() -> str:
    """Return the code name of the Debian that runs here, or nothing."""
    try:
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        return ""


def package_name(archive: Path) -> str:
    """Return the package's name, which its file's name begins with."""
    return archive.name.partition("_")[0]


def members(archive: Path) -> Iterator[tuple[TarInfo, bytes]]:
    """Yield what a package holds: each member and its data (none for what is no file); links to files as files.

    Raises:
        LabError: the archive is damaged.
    """
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", os.fspath(archive)], check=False, capture_output=True)
    if done.returncode:
        archive.unlink(missing_ok=True)
        raise LabError(f"{archive.name} is damaged and was removed: try again ({done.stderr.decode().strip()})")
    with TarFile(fileobj=BytesIO(done.stdout)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() or member.islnk() else None
            yield member, file.read() if file else b""
