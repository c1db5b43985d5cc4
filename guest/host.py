"""What this host is and has: the kind of KVM, Debian packages, the cache folder, and a voice for progress."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

KVM_GET_API_VERSION = 0xAE00


class GuestError(Exception):
    """The guest could not be prepared; the message says why and what to do."""


class NotPrepared(GuestError):
    """This host takes what another machine prepared for it, and this is not part of it."""


def is_pvm() -> bool:
    """Whether KVM here works without hardware virtualization and emulates the guest's kernel mode."""
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    return Path("/sys/module/kvm_pvm").exists() and not {"vmx", "svm"} & set(flags)


def kvm_refusal() -> str:
    """Return why /dev/kvm is of no use, or nothing where it is."""
    try:
        with open("/dev/kvm", "r+b", buffering=0) as kvm:
            fcntl.ioctl(kvm, KVM_GET_API_VERSION)
    except OSError as error:
        return f"/dev/kvm does not open ({error.strerror})"
    return ""


def say(message: str) -> None:
    """Tell the person who waits; standard output belongs to the guest."""
    print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(message: str) -> Iterator[None]:
    """Announce what is being done and roughly how long it takes, then say how long it took."""
    say(f"{message} ...")
    start = time.monotonic()
    yield
    say(f"  done in {time.monotonic() - start:.0f} s")


def cache_folder() -> Path:
    """Where built guests are kept: ``$XDG_CACHE_HOME/pyvmm``, or ``~/.cache/pyvmm``."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyvmm"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def prepared(name: str) -> Path | None:
    """Return what another machine prepared for this one, which cannot build or fetch anything, or None.

    Args:
        name: of a file or folder below the one that the environment names in ``PYVMM_PREPARED``.

    Raises:
        NotPrepared: there is such a folder, and not this in it.
    """
    folder = os.environ.get("PYVMM_PREPARED")
    if folder is None:
        return None
    path = Path(folder) / name
    if not path.exists():
        raise NotPrepared(f"{name} was not prepared for this host")
    return path


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Keep a second process from preparing the same thing at the same time."""
    with (cache_folder() / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is preparing {name}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    """Run a command to its end and return what it printed.

    Raises:
        GuestError: it failed; its last lines are in the message.
    """
    try:
        done = subprocess.run(
            command, cwd=cwd, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except FileNotFoundError as error:
        raise GuestError(f"{command[0]} is not installed: {error.strerror}") from error
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise GuestError(f"'{' '.join(map(str, command))}' failed with status {done.returncode}:\n{tail}")
    return done.stdout


def installed(package: str) -> bool:
    """Whether a Debian package is installed."""
    query = ["dpkg-query", "-W", "-f", "${Status}", package]
    return "install ok installed" in subprocess.run(query, check=False, capture_output=True, text=True).stdout


def install(packages: Sequence[str], why: str) -> None:
    """Install those Debian packages that are missing, as root or with sudo.

    Raises:
        GuestError: apt-get failed, or this is no Debian.
    """
    if shutil.which("dpkg-query") is None:
        kind = NotPrepared if "PYVMM_PREPARED" in os.environ else GuestError
        raise kind(f"{' '.join(packages)}, {why}, cannot be installed: this host has no Debian packages")
    missing = [package for package in packages if not installed(package)]
    if not missing:
        return
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
    with step(f"installing {' '.join(missing)}, {why} (about 30 s)"):
        run([*sudo, "apt-get", "update", "-qq"])
        run([*sudo, *environment, "apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing])
