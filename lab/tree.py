"""The root file system of a host: Debian packages unpacked as an archive that the kernel takes as its initramfs."""

import marshal
import stat
from importlib.util import MAGIC_NUMBER, source_hash
from pathlib import Path, PurePosixPath

from lab import debian
from pyvmm_loader import Initramfs

# merged into /usr by every Debian since 12, by a script that is not run here
MERGED = ("bin", "lib", "lib64", "sbin")
FOLDERS = ("dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "usr", *(f"usr/{name}" for name in MERGED), "var")
LEFT_OUT = (
    *(f"usr/share/{name}/" for name in "bash-completion bug doc doc-base info lintian locale man menu pixmaps".split()),
    *(f"usr/lib/{name}/" for name in "systemd udev valgrind".split()),
    "usr/share/zoneinfo/",
)
UNCHECKED = 0b01  # PEP 552: the hash of the source is not compared when it is imported


def bytecode(source: bytes, name: str) -> bytes:
    """Return what Python keeps of a compiled module (PEP 552), so that a slow host need not compile it."""
    code = compile(source, f"/{name}", "exec", dont_inherit=True)
    return MAGIC_NUMBER + UNCHECKED.to_bytes(4, "little") + source_hash(source) + marshal.dumps(code)


class Tree:
    """Collects files for an archive; a name that is there already is replaced.

    Args:
        python: the tag of the Python whose compiled modules go in beside their sources, such as ``cpython-311``; empty
            where this Python cannot make them.
    """

    def __init__(self, python: str = "") -> None:
        self.files: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
        self.python = python

    def base(self) -> None:
        """Add the folders, links and device nodes that everything else stands on."""
        for name in FOLDERS:
            self.files[name] = (0o040755, b"", (0, 0))
        for name in MERGED:
            self.files[name] = (0o120777, f"usr/{name}".encode(), (0, 0))
        self.files["tmp"] = (0o041777, b"", (0, 0))
        # the kernel opens it before anything can mount devtmpfs
        self.files["dev/console"] = (0o020600, b"", (5, 1))

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Add a file and the folders above it, with its compiled form where it is Python's."""
        self.parents(name)
        self.files[name] = (0o100000 | mode, data, (0, 0))
        if self.python and name.endswith(".py") and "/" in name:
            path = PurePosixPath(name)
            try:
                compiled = bytecode(data, name)
            except (SyntaxError, ValueError):
                return  # a template, or a test of the parser
            cached = path.parent / "__pycache__" / f"{path.stem}.{self.python}.pyc"
            self.parents(str(cached))
            self.files[str(cached)] = (0o100644, compiled, (0, 0))

    def parents(self, name: str) -> None:
        """Add the folders above a name."""
        for parent in list(PurePosixPath(name).parents)[:-1][::-1]:
            self.files.setdefault(str(parent), (0o040755, b"", (0, 0)))

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self.parents(name)
        self.files[name] = (0o120777, target.encode(), (0, 0))

    def package(self, archive: Path) -> None:
        """Add what a Debian package holds, but its documentation and translations."""
        for member, data in debian.members(archive):
            name = self.where(member.name)
            if name and not f"{name}/".startswith(LEFT_OUT):
                self.member(name, member.type, member.mode, member.linkname, data)

    def member(self, name: str, kind: bytes, mode: int, target: str, data: bytes) -> None:
        """Add one member of a package."""
        if kind == b"5":
            self.parents(name)
            self.files.setdefault(name, (0o040000 | mode, b"", (0, 0)))
        elif kind == b"2":
            self.link(name, target)
        else:
            self.file(name, data, mode)

    @staticmethod
    def where(name: str) -> str:
        """Return where a package's file goes in a system with a merged /usr."""
        name = name.removeprefix("./").rstrip("/")
        return f"usr/{name}" if name.partition("/")[0] in MERGED and "/" in name else "" if name in MERGED else name

    def folder(self, path: Path, name: str) -> None:
        """Add a folder of this machine, by another name."""
        for source in sorted(path.rglob("*")):
            where = f"{name}/{source.relative_to(path).as_posix()}"
            if source.is_symlink():
                self.link(where, str(source.readlink()))
            elif source.is_file() and source.suffix != ".pyc":
                self.file(where, source.read_bytes(), source.stat().st_mode & 0o777)

    def pack(self) -> bytes:
        """Return the archive."""
        fs = Initramfs()
        for name, (mode, data, device) in sorted(self.files.items()):
            if stat.S_ISDIR(mode):
                fs.directory(name, stat.S_IMODE(mode))
            elif stat.S_ISLNK(mode):
                fs.symlink(name, data.decode())
            elif stat.S_ISCHR(mode):
                fs.device(name, *device, mode=stat.S_IMODE(mode))
            else:
                fs.file(name, data, stat.S_IMODE(mode))
        return bytes(fs)
