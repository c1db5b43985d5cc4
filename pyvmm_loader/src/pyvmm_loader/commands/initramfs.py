"""`python -m pyvmm_loader initramfs`: pack a folder, or list an archive of any origin."""

from __future__ import annotations

import os
import stat

from pyvmm_loader.compression.compress import FORMS, compress
from pyvmm_loader.errors import LoaderError
from pyvmm_loader.images.source import Source
from pyvmm_loader.initrd.initramfs import Initramfs
from pyvmm_loader.initrd.initramfs_reader import read_archives

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from pyvmm_loader.initrd.initramfs import Entry


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "initramfs",
        help="pack a folder into an initramfs, or list one",
        description="Pack a folder: names sorted, owners root, times 0, so that equal folders give equal archives. "
        "With --list, show what is in an archive, several archives in one file and compressed ones included.",
    )
    parser.add_argument("path", help="the folder, or the archive to list")
    parser.add_argument("output", nargs="?", default="initramfs.cpio", help="the archive to write (%(default)s)")
    parser.add_argument("--list", action="store_true", help="list the archive instead")
    parser.add_argument("--compress", choices=FORMS, help="compress it; the guest's kernel must know this form")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Do it; return what to print."""
    if options.list:
        with Source(options.path) as source:
            try:
                return "\n".join([describe(entry) for entry in read_archives(source.view)])
            except LoaderError as error:
                raise LoaderError(f"{options.path}: {error}") from error
    if os.path.isfile(options.output) and _inside(options.output, options.path):
        raise LoaderError(f"{options.output}: is in the folder to pack; name a file outside of it")
    data = bytes(pack(options.path))
    if options.compress:
        data = compress(data, options.compress)
    with open(options.output, "wb") as file:
        file.write(data)
    return f"{options.output}: {len(data)} bytes"


def describe(entry: Entry) -> str:
    """Return a line about a file, with the columns of `cpio -itv` but the time."""
    if stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode):
        size = "{}, {}".format(*entry.rdev)
    else:
        size = str(len(entry.data))
    target = f" -> {entry.data.decode(errors='replace')}" if stat.S_ISLNK(entry.mode) else ""
    owner = f"{entry.uid}:{entry.gid}"
    name = entry.name.replace("\n", "\\n")
    return f"{stat.filemode(entry.mode)} {entry.nlink:>3} {owner:<9} {size:>9} {name}{target}"


def pack(folder: str) -> Initramfs:
    """Return the archive of a folder, which may hold files of any kind."""
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"{folder}: no folder; name one to pack, or pass --list to see an archive")
    archive = Initramfs()
    inodes: dict[tuple[int, int], str] = {}
    for where, folders, files in os.walk(folder, onerror=_refuse):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = os.path.join(where, name)
            _add(archive, path, os.path.relpath(path, folder), inodes)
    return archive


def _refuse(error: OSError) -> None:
    """Let no folder that cannot be read be missing from the archive in silence."""
    raise error


def _inside(path: str, folder: str) -> bool:
    whole = os.path.realpath(folder)
    return os.path.commonpath((os.path.realpath(path), whole)) == whole


def _add(archive: Initramfs, path: str, inside: str, inodes: dict[tuple[int, int], str]) -> None:
    status = os.lstat(path)
    kind, mode = stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode)
    if kind == stat.S_IFLNK:
        archive.symlink(inside, os.readlink(path))
    elif kind == stat.S_IFDIR:
        archive.directory(inside, mode)
    elif kind == stat.S_IFREG:
        first = inodes.setdefault((status.st_dev, status.st_ino), inside)
        if first != inside:
            archive.hardlink(inside, first)
            return
        with open(path, "rb") as file:
            archive.file(inside, file.read(), mode)
    elif kind == stat.S_IFIFO:
        archive.fifo(inside, mode)
    elif kind == stat.S_IFSOCK:
        archive.socket(inside, mode)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        device = status.st_rdev
        archive.device(inside, os.major(device), os.minor(device), mode, block=kind == stat.S_IFBLK)
