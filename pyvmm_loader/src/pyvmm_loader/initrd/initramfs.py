"""An initramfs, written and read: cpio in the `newc` format.

The same calls give the same bytes: times are 0 unless given, inode numbers count up.

The kernel drops what it cannot make, without a word: a file in a directory that is not there, a device where one is, a
name that is too long. So an archive is unpacked into a `FileTree` while it is written: a directory that is missing is
added before what is in it, and what the kernel would drop is refused.

Source: Documentation/driver-api/early-userspace/buffer-format.rst; Linux init/initramfs.c.
"""

from __future__ import annotations

import stat

from pyvmm_loader.errors import ImageTruncated, InvalidHeader
from pyvmm_loader.initrd.file_tree import PATH_MAX, FileTree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from typing_extensions import Buffer

MAGIC, MAGIC_CRC, HEADER_SIZE = b"070701", b"070702", 110
TRAILER = "TRAILER!!!"
MAX_NAME = PATH_MAX  # with its NUL; the kernel skips longer ones
MAX_MAJOR, MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1  # MKDEV of the kernel
U32 = 0xFFFFFFFF
HEXADECIMAL = frozenset(b"0123456789abcdefABCDEF")


class Entry:
    """A file of the archive: `name`, `mode` (type included), `data`, and the header's other fields."""

    __slots__ = ("data", "gid", "ino", "mode", "mtime", "name", "nlink", "rdev", "uid")

    def __init__(
        self,
        name: str,
        mode: int,
        data: bytes = b"",
        *,
        ino: int = 0,
        nlink: int = 1,
        uid: int = 0,
        gid: int = 0,
        mtime: int = 0,
        rdev: tuple[int, int] = (0, 0),
    ) -> None:
        self.name = name
        self.mode = mode
        self.data = data
        self.ino = ino
        self.nlink = nlink
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.rdev = rdev

    def __repr__(self) -> str:
        return f"<Entry {stat.filemode(self.mode)} {self.name} {len(self.data)} bytes>"


class Initramfs:
    """Collects entries and packs them.

    >>> fs = Initramfs()
    >>> fs.directory("dev")
    >>> fs.device("dev/console", 5, 1)
    >>> fs.file("init", b"...", 0o755)
    >>> [entry.name for entry in read_initramfs(bytes(fs))]
    ['dev', 'dev/console', 'init']
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._tree = FileTree()
        self._implied: dict[str, Entry] = {}

    def _add(self, entry: Entry) -> None:
        entry.name = _clean(entry.name)
        missing = self._tree.missing(entry.name)
        # all of it is tried before any of it is kept
        for name in missing:
            self._tree.check(name, stat.S_IFDIR)
        self._tree.check(entry.name, entry.mode, entry.data, entry.nlink)
        for name in missing:
            parent = Entry(name, stat.S_IFDIR | 0o755, nlink=2)
            self._implied[name] = parent
            self._append(parent)
        self._append(entry)

    def _append(self, entry: Entry) -> None:
        if not entry.ino:
            entry.ino = len(self.entries) + 1
        self._tree.add(entry.name, entry.mode, entry.data, entry.nlink)
        self.entries.append(entry)

    def file(self, name: str, data: Buffer, mode: int = 0o644, *, mtime: int = 0) -> None:
        """Add a regular file; one that is there already is overwritten, as the kernel does it."""
        content = bytes(data)
        if len(content) > U32:
            raise InvalidHeader(f"{name}: {len(content)} bytes; cpio holds files up to 4 GiB", field="filesize")
        self._add(Entry(name, stat.S_IFREG | _permissions(name, mode), content, mtime=mtime))

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Add a directory, or say the mode of one that was added for what is in it."""
        kind = stat.S_IFDIR | _permissions(name, mode)
        implied = self._implied.pop(_clean(name), None)
        if implied is not None:
            implied.mode = kind
        else:
            self._add(Entry(name, kind, nlink=2))

    def symlink(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(Entry(name, stat.S_IFLNK | 0o777, _encode(target)))

    def device(self, name: str, major: int, minor: int, mode: int = 0o600, *, block: bool = False) -> None:
        """Add a character or block device."""
        if not 0 <= major <= MAX_MAJOR or not 0 <= minor <= MAX_MINOR:
            raise InvalidHeader(
                f"{name}: device {major}, {minor}; Linux has 12 bits for the first number, 20 for the second",
                field="rdev",
                value=(major, minor),
            )
        kind = stat.S_IFBLK if block else stat.S_IFCHR
        self._add(Entry(name, kind | _permissions(name, mode), rdev=(major, minor)))

    def fifo(self, name: str, mode: int = 0o600) -> None:
        """Add a named pipe."""
        self._add(Entry(name, stat.S_IFIFO | _permissions(name, mode)))

    def socket(self, name: str, mode: int = 0o600) -> None:
        """Add a socket's name, as it is left over in a copied file system; nobody listens there."""
        self._add(Entry(name, stat.S_IFSOCK | _permissions(name, mode)))

    def hardlink(self, name: str, target: str) -> None:
        """Add another name of the regular file `target`, which was added before; raises InvalidHeader otherwise."""
        wanted = _clean(target)
        linked = [entry for entry in self.entries if entry.name == wanted and stat.S_ISREG(entry.mode)]
        if not linked:
            raise InvalidHeader(f"hard link {name!r}: no regular file {target!r} yet; add it first", field="name")
        first = linked[-1]
        group = [entry for entry in self.entries if entry.ino == first.ino]
        # The data goes with the last name; the kernel links the others to the first and fills it then.
        data = next((entry.data for entry in group if entry.data), b"")
        new = Entry(name, first.mode, data, ino=first.ino, nlink=len(group) + 1, mtime=first.mtime)
        self._add(new)
        for entry in group:
            entry.data = b""
        for entry in (*group, new):
            entry.nlink = len(group) + 1

    def __bytes__(self) -> bytes:
        """Return the archive; raises InvalidHeader for entries, changed by hand, that the kernel would drop."""
        tree = FileTree()
        for entry in self.entries:
            tree.add(entry.name, entry.mode, entry.data, entry.nlink)
        parts = [piece for entry in self.entries for piece in _pack(entry)]
        parts.extend(_pack(Entry(TRAILER, 0)))
        archive = b"".join(parts)
        return archive + bytes(-len(archive) % 512)


def _permissions(name: str, mode: int) -> int:
    if not isinstance(mode, int) or not 0 <= mode <= 0o7777:
        raise InvalidHeader(f"{name}: mode {mode!r}; give permissions, 0 to 0o7777", field="mode", value=mode)
    return mode


def _encode(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidHeader(f"{text!r:.80} is no name for a file ({error.reason})", field="name") from error


def _clean(name: str) -> str:
    """Return a name as the archive holds it: without what begins, doubles or ends its slashes."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    clean = "/".join(parts)
    if not parts or ".." in parts or "\0" in name or len(_encode(clean)) >= MAX_NAME or clean == TRAILER:
        raise InvalidHeader(
            f"{name!r:.80} is no name for a file; use a path of 1 to {MAX_NAME - 1} bytes without '..'", field="name"
        )
    return clean


def _pack(entry: Entry) -> tuple[bytes, bytes]:
    name = entry.name.encode("utf-8", "surrogateescape") + b"\0"
    fields = (
        entry.ino, entry.mode, entry.uid, entry.gid, entry.nlink, entry.mtime, len(entry.data), 0, 0,
        *entry.rdev, len(name), 0,
    )  # fmt: skip
    if not 0 <= min(fields) <= max(fields) <= U32:
        raise InvalidHeader(f"{entry.name}: cpio holds numbers of 32 bits; one of {fields} is none", field="header")
    head = MAGIC + b"".join([b"%08X" % field for field in fields]) + name
    return head + bytes(-len(head) % 4), entry.data + bytes(-len(entry.data) % 4)


def read_initramfs(archive: Buffer) -> Iterator[Entry]:
    """Yield the entries of a newc archive up to its trailer; raises InvalidHeader and ImageTruncated."""
    with memoryview(archive) as view:
        data = bytes(view)
    yield from read_archive(data, 0)


def read_archive(data: bytes, at: int) -> Generator[Entry, None, int]:
    """Yield the entries of the archive at an offset; return the offset behind its trailer."""
    while True:
        if at + HEADER_SIZE > len(data):
            raise ImageTruncated(
                f"archive ends at {len(data):#x} without a trailer; copy it again", needed=at + HEADER_SIZE
            )
        entry, checksum, body, size = _read_header(data, at)
        if body + size > len(data):
            raise ImageTruncated(f"file at {at:#x} ends behind the archive; copy it again", needed=body + size)
        if entry.name == TRAILER:
            return body + size
        entry.data = data[body : body + size]
        # only files have one: GNU cpio leaves 0 in the headers of links, and of all names but the last of a hard link
        if checksum is not None and size and stat.S_ISREG(entry.mode) and sum(entry.data) & U32 != checksum:
            raise InvalidHeader(f"{entry.name} adds up to {sum(entry.data) & U32:#x}, not {checksum:#x}", field="check")
        yield entry
        at = body + size + 3 & ~3


def _read_header(data: bytes, at: int) -> tuple[Entry, int | None, int, int]:
    """Return the entry without its data, its checksum if it has one, where its data is, and how much."""
    head = data[at : at + HEADER_SIZE]
    if head[:6] not in (MAGIC, MAGIC_CRC):
        raise InvalidHeader(f"no newc header at {at:#x}; is the archive compressed?", field="magic", value=head[:6])
    if not HEXADECIMAL.issuperset(head[6:]):
        raise InvalidHeader(f"header at {at:#x} has a field that is not hexadecimal", field="header")
    fields = [int(head[6 + 8 * n : 14 + 8 * n], 16) for n in range(13)]
    ino, mode, uid, gid, nlink, mtime, size, _, _, major, minor, namesize, check = fields
    if not 0 < namesize <= MAX_NAME:
        raise InvalidHeader(f"header at {at:#x} has a name of {namesize} bytes", field="namesize", value=namesize)
    raw = data[at + HEADER_SIZE : at + HEADER_SIZE + namesize].split(b"\0", 1)[0]
    entry = Entry(
        raw.decode("utf-8", "surrogateescape"), mode, ino=ino, nlink=nlink, uid=uid, gid=gid, mtime=mtime,
        rdev=(major, minor),
    )  # fmt: skip
    body = at + HEADER_SIZE + namesize + 3 & ~3
    return entry, check if head[:6] == MAGIC_CRC else None, body, size
