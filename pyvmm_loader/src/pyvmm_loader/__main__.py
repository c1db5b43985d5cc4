"""`python -m pyvmm_loader inspect|plan|extract|initramfs`: what an image is, where it would go, what is in it."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys

from . import BootPlan, Initramfs, LoaderError, extract, inspect, read_initramfs

UNITS = {"K": 10, "M": 20, "G": 30}


def size(text: str) -> int:
    """Read a size such as 256M."""
    unit = UNITS.get(text[-1:].upper())
    return int(text) if unit is None else int(text[:-1]) << unit


def pack(folder: str) -> bytes:
    """Return the initramfs of a folder: names sorted, owners root, times 0; the folder may hold any kind of file."""
    archive = Initramfs()
    inodes: dict[int, str] = {}
    for where, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = os.path.join(where, name)
            inside = os.path.relpath(path, folder)
            status = os.lstat(path)
            mode = stat.S_IMODE(status.st_mode)
            if stat.S_ISLNK(status.st_mode):
                archive.symlink(inside, os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                archive.directory(inside, mode)
            elif stat.S_ISREG(status.st_mode):
                if status.st_ino in inodes:
                    archive.hardlink(inside, inodes[status.st_ino])
                    continue
                inodes[status.st_ino] = inside
                with open(path, "rb") as file:
                    archive.file(inside, file.read(), mode)
            elif stat.S_ISFIFO(status.st_mode):
                archive.fifo(inside, mode)
            elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                device = status.st_rdev
                block = stat.S_ISBLK(status.st_mode)
                archive.device(inside, os.major(device), os.minor(device), mode, block=block)
    return bytes(archive)


def listing(path: str) -> str:
    """Return one line for each file of an initramfs."""
    with open(path, "rb") as file:
        entries = list(read_initramfs(file.read()))
    return "\n".join([f"{stat.filemode(entry.mode)} {len(entry.data):>9} {entry.name}" for entry in entries])


def write(path: str, data: bytes) -> str:
    """Write a file and say so."""
    with open(path, "wb") as file:
        file.write(data)
    return f"{path}: {len(data)} bytes"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status, 1 with one line on stderr for what cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m pyvmm_loader", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("inspect", help="say what an image is")
    look.add_argument("--json", action="store_true", help="print one JSON object")
    look.add_argument("path")
    plan = commands.add_parser("plan", help="show what would go where in guest memory")
    plan.add_argument("path")
    plan.add_argument("--memory", type=size, default=256 << 20, help="RAM, such as 256M (the default)")
    plan.add_argument("--cmdline", default="console=ttyS0")
    plan.add_argument("--initrd")
    plan.add_argument("--vcpus", type=int, default=1)
    plan.add_argument("--entry", default="auto", choices=["auto", "pvh", "linux64", "linux32"])
    unpack = commands.add_parser("extract", help="unpack the kernel inside a bzImage or a compressed file")
    unpack.add_argument("path")
    unpack.add_argument("output")
    archive = commands.add_parser("initramfs", help="pack a folder, or list an archive")
    archive.add_argument("--list", action="store_true")
    archive.add_argument("path")
    archive.add_argument("output", nargs="?", default="initramfs.cpio")
    options = parser.parse_args(arguments)
    try:
        if options.command == "plan":
            with BootPlan(
                options.path, options.memory, options.cmdline, options.initrd, options.vcpus, options.entry
            ) as layout:
                text = str(layout)
        elif options.command == "extract":
            text = write(options.output, extract(options.path))
        elif options.command == "initramfs":
            text = listing(options.path) if options.list else write(options.output, pack(options.path))
        else:
            found = inspect(options.path)
            if options.json:
                text = json.dumps(found)
            else:
                rows = [(key, hex(v) if type(v) is int and v > 9 else v) for key, v in found.items()]
                text = "\n".join([f"{key:<16} {' '.join(v) if isinstance(v, list) else v}" for key, v in rows])
    except (LoaderError, ValueError, OSError) as error:
        sys.stderr.write(f"pyvmm_loader: {error}\n")
        return 1
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
