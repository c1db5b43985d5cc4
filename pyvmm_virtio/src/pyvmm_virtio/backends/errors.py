"""What back ends raise: system errors that say what to do."""

from __future__ import annotations

import os

from pyvmm_virtio.errors import VirtioError


class BackendError(VirtioError, OSError):
    """A back end could not be opened, or failed for good; the message has the cure where there is one."""


class ImageLocked(BackendError):
    """Another process uses the image; `holders` are those that could be found, as `(pid, name)`."""

    def __init__(self, errno: int, path: str, holders: list[tuple[int, str]], read_only: bool) -> None:
        ours = [pid for pid, _ in holders] == [os.getpid()]
        who = ", ".join(f"{name} ({pid})" for pid, name in holders) or "another process"
        who, cure = ("this process itself", "give each disk its own image") if ours else (who, "stop it first")
        cure += "" if read_only else ", or open the image read-only in both"
        super().__init__(errno, f"{who} has locked it: {cure}", path)
        self.holders = holders


class BadImage(BackendError):
    """The file is no disk image that can be served as it is."""


class NbdError(BackendError):
    """The NBD server refused, broke the protocol or went away."""


class NetError(BackendError):
    """A network back end could not be set up."""
