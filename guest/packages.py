"""Files out of Debian packages that are not installed: kernels, firmware and boot programs to try things on."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from guest.host import GuestError, cache_folder, locked, prepared, run, step

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def content(package: str) -> Path:
    """Return the folder with everything that a package of this host's distribution holds, fetched once.

    Raises:
        GuestError: apt knows no such package or cannot fetch it.
    """
    if there := prepared(f"packages/{package}"):
        return there
    folder = cache_folder() / "packages" / package
    with locked(f"package-{package}"):
        if not folder.is_dir():
            folder.parent.mkdir(exist_ok=True)
            with step(f"fetching {package} (about 5 s)"):
                _fetch(folder, package)
    return folder


def foreign_kernel(architecture: str, package: str, suite: str = "") -> Path:
    """Debian's kernel for any architecture, with package lists of our own: the host keeps its.

    `package` is the meta package that depends on it. `suite` is needed where the host's own has not the architecture.

    Raises:
        GuestError: the archive cannot be reached or has no such kernel.
    """
    folder = cache_folder() / "packages" / "-".join(word for word in (package, architecture, suite) if word)
    with locked(f"package-{folder.name}"):
        if not folder.is_dir():
            folder.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory() as name, step(f"fetching Debian's {package} (about 30 s)"):
                options = private_lists(Path(name), architecture, suite)
                run(["apt-get", *options, "update", "-qq"])
                depends = run(["apt-cache", *options, "depends", "--important", package])
                found = [word for word in depends.split() if word.startswith("linux-image-") and word != package]
                if not found:
                    raise GuestError(f"the archive has no {package} for {architecture}")
                _fetch(folder, found[0], options, keep="boot")
    kernels = sorted(folder.glob("boot/vmlinu[xz]*"))
    if not kernels:
        raise GuestError(f"{folder} holds no kernel; remove the folder to fetch it again")
    return kernels[0]


def private_lists(folder: Path, architecture: str, suite: str) -> list[str]:
    """Options that make apt keep lists for another architecture in `folder`."""
    folder.chmod(0o755)  # apt gives up root's rights before it fetches
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    values: dict[str, object] = {
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Dir::State::status": "/dev/null",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled": "false",
    }
    if suite:
        lines = run(["apt-get", "indextargets", "--format", "$(SITE) $(ORIGIN)", "Created-By: Packages"]).splitlines()
        sites = [line.split()[0] for line in lines if line.endswith(" Debian") and "security" not in line]
        if not sites:
            raise GuestError("apt on this host names no Debian archive: run 'apt-get update'")
        (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {sites[0]} {suite} main\n")
        values |= {"Dir::Etc::sourcelist": folder / "sources.list", "Dir::Etc::sourceparts": "/dev/null"}
    return [word for key, value in values.items() for word in ("-o", f"{key}={value}")]


def _fetch(folder: Path, package: str, options: Sequence[str] = (), keep: str = "") -> None:
    """Fill a folder with a package's files, or only with its folder `keep`."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        work = Path(name)
        run(["apt-get", *options, "-qq", "-o", "APT::Sandbox::User=root", "download", package], cwd=work)
        run(["dpkg-deb", "--extract", *work.glob("*.deb"), work / "content"])
        if keep:
            for path in (work / "content").iterdir():
                if path.name != keep and path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
        (work / "content").rename(folder)
