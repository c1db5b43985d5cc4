"""What back ends raise: system errors that say what to do."""

from __future__ import annotations

from pyvmm_virtio.errors import VirtioError


class BackendError(VirtioError, OSError):
    """A back end could not be opened, or failed for good; the message has the cure where there is one."""


class ImageLocked(BackendError):
    """Another process uses the image; `holders` are those that could be found, as `(pid, name)`."""

    def __init__(self, errno: int, path: str, holders: list[tuple[int, str]], read_only: bool) -> None:
        who = ", ".join(f"{name} ({pid})" for pid, name in holders) or "another process"
        cure = "stop it first" if read_only else "stop it first, or open the image read-only in both"
        super().__init__(errno, f"{who} has locked it: {cure}; lock=False takes no lock and may destroy it", path)
        self.holders = holders


class BadImage(BackendError):
    """The file is no disk image that can be served as it is."""


class NbdError(BackendError):
    """The NBD server refused, broke the protocol or went away."""


class NetError(BackendError):
    """A network back end could not be set up."""
