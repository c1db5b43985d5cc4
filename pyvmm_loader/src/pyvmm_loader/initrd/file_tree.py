"""The file system that the kernel makes of an archive, so far as it decides what of the archive is dropped.

Linux init/initramfs.c reads one entry behind the other. `clean_path` removes what has the name but another type (a
directory only while nothing is in it); then a file is opened and overwritten, a directory or device made where there is
none, a link made. Whatever fails is skipped, and nobody is told.
"""

from __future__ import annotations

import stat

from pyvmm_loader.errors import InvalidHeader

PATH_MAX, NAME_MAX = 4096, 255
KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
MAX_LINKS = 40
"""MAXSYMLINKS: more links on one path are a loop."""


class FileTree:
    """What an archive has made so far: the type of each name, and where symbolic links lead."""

    def __init__(self) -> None:
        self._kinds: dict[str, int] = {"": stat.S_IFDIR}
        self._targets: dict[str, str] = {}
        self._inside: dict[str, int] = {}
        self._linked: set[str] = set()

    def missing(self, name: str) -> list[str]:
        """Return the directories to be made before a file can be; raises InvalidHeader where none would help."""
        parent, absent = self._resolve(name.rpartition("/")[0], name)
        names = []
        for part in absent:
            parent = _join(parent, part)
            names.append(parent)
        return names

    def check(self, name: str, mode: int, data: bytes = b"", links: int = 1) -> None:
        """Raise InvalidHeader where the kernel would drop an entry, once what is missing before it was made."""
        _check_entry(name, mode, data)
        if not self.missing(name):
            self._place(name, mode, links)

    def add(self, name: str, mode: int, data: bytes = b"", links: int = 1) -> None:
        """Unpack an entry; raises InvalidHeader where the kernel would drop it."""
        _check_entry(name, mode, data)
        kind = stat.S_IFMT(mode)
        path = self._place(name, mode, links)
        if path not in self._kinds:
            above = path.rpartition("/")[0]
            self._inside[above] = self._inside.get(above, 0) + 1
        self._kinds[path] = kind
        if kind == stat.S_IFLNK:
            self._targets[path] = data.decode("utf-8", "surrogateescape")
        self._linked.discard(path)
        if links > 1 and kind == stat.S_IFREG:
            self._linked.add(path)

    def _place(self, name: str, mode: int, links: int) -> str:
        """Return where an entry goes."""
        above, _, last = name.rpartition("/")
        parent, absent = self._resolve(above, name)
        if absent:
            raise _dropped(name, f"the directory {_join(parent, absent[0])!r:.80} is not there; add it first")
        path = _join(parent, last)
        kind, there = stat.S_IFMT(mode), self._kinds.get(path)
        if there == stat.S_IFDIR and kind != stat.S_IFDIR and self._inside.get(path):
            raise _dropped(name, "there is a directory of this name with something in it")
        if there == kind and kind not in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK):
            raise _dropped(name, "it was added already")
        if kind == stat.S_IFREG and there == kind and (links > 1 or path in self._linked):
            raise _dropped(name, "a file with several names was added already, and would change under all of them")
        return path

    def _resolve(self, folder: str, name: str) -> tuple[str, list[str]]:
        """Follow a path, links too; return how far it leads, and what is not there."""
        if not self._targets and self._kinds.get(folder) == stat.S_IFDIR:
            return folder, []  # as most are: without links a path is what it says
        at, links = "", 0
        parts = folder.split("/") if folder else []
        parts.reverse()
        while parts:
            part = parts.pop()
            if part in ("", "."):
                continue
            if part == "..":
                at = at.rpartition("/")[0]
                continue
            path = _join(at, part)
            kind = self._kinds.get(path)
            if kind is None:
                rest = [part, *reversed(parts)]
                if any(each in ("", ".", "..") for each in rest) or max(map(_length, rest)) > NAME_MAX:
                    raise _dropped(name, f"{path!r:.80} is not there; add it first")
                return at, rest
            if kind == stat.S_IFLNK:
                links += 1
                target = self._targets[path]
                if links > MAX_LINKS:
                    raise _dropped(name, "its links lead round in a circle")
                if target.startswith("/"):
                    at = ""
                parts.extend(reversed(target.split("/")))
            elif kind == stat.S_IFDIR:
                at = path
            else:
                raise _dropped(name, f"{path!r:.80} is no directory")
        return at, []


def _check_entry(name: str, mode: int, data: bytes) -> None:
    last = name.rpartition("/")[2]
    if last in ("", ".", "..") or _length(last) > NAME_MAX:
        raise _dropped(name, f"{last!r:.80} is no name; use 1 to {NAME_MAX} bytes")
    kind = stat.S_IFMT(mode)
    if kind not in KINDS:
        raise _dropped(name, f"no file has the type {kind:#o}")
    if kind == stat.S_IFLNK and (not data or b"\0" in data or len(data) >= PATH_MAX):
        raise _dropped(name, f"links lead to 1 to {PATH_MAX - 1} bytes without NUL, this one to {len(data)}")


def _length(part: str) -> int:
    return len(part.encode("utf-8", "surrogateescape"))


def _join(parent: str, last: str) -> str:
    return f"{parent}/{last}" if parent else last


def _dropped(name: str, why: str) -> InvalidHeader:
    return InvalidHeader(f"{name!r:.80} would be dropped by the kernel: {why}", field="name", value=name)
