"""The one place that decides how an image is opened."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import PathLike

    from typing_extensions import Buffer

    from pyvmm_virtio.backends.block import BlockBackend


def open_disk(path: str, format: str = "raw", *, read_only: bool = False, lock: bool = True) -> BlockBackend:  # noqa: A002 - QEMU's word
    """Open an image: a raw file or block device by ourselves, all else through NBD.

    Args:
        path: of the image; or ``nbd:unix:PATH[:EXPORT]`` or ``nbd://HOST[:PORT][/EXPORT]`` for a server that runs.
        format: what the image is; it is never guessed.
        read_only: open it for reading only.
        lock: keep others from using it (raw images; QEMU locks the others itself).

    Raises:
        BackendError: what to do about it is in the message.
        OSError: it cannot be opened.
    """
    if path.startswith(("nbd:", "nbd+unix:")):
        from pyvmm_virtio.backends.nbd.client import NbdDisk

        address, export = nbd_address(path)
        return NbdDisk(address, export, read_only=read_only)
    if format != "raw":
        from pyvmm_virtio.backends.nbd.server import QemuNbdServer

        return QemuNbdServer(path, format, read_only=read_only).connect()
    from pyvmm_virtio.backends.raw import RawFile

    return RawFile(path, read_only=read_only, lock=lock)


def as_disk(disk: BlockBackend | str | PathLike[str] | Buffer) -> BlockBackend:
    """Return a back end as it is, for a path what `open_disk` returns, and for bytes a `MemoryDisk` of them.

    >>> as_disk(bytearray(4096))
    <MemoryDisk 4096 bytes>
    """
    # told apart by what they can do
    if isinstance(disk, str) or hasattr(disk, "__fspath__"):
        import os

        return open_disk(os.fspath(disk))  # type: ignore[arg-type]
    if hasattr(disk, "readv"):
        return disk  # type: ignore[return-value]
    from pyvmm_virtio.backends.memory import MemoryDisk

    return MemoryDisk(disk)


def nbd_address(uri: str) -> tuple[str | tuple[str, int], str]:
    """Take an NBD address apart: where the server is, and the export's name.

    >>> nbd_address("nbd:unix:/run/disk.sock:root")
    ('/run/disk.sock', 'root')
    >>> nbd_address("nbd://example.net/root")
    (('example.net', 10809), 'root')
    >>> nbd_address("nbd+unix:///root?socket=/run/disk.sock")
    ('/run/disk.sock', 'root')

    Raises:
        ValueError: it is none.
    """
    if uri.startswith("nbd:unix:"):
        path, _, export = uri[len("nbd:unix:") :].partition(":")
        if path:
            return path, export
    from urllib.parse import parse_qs, unquote, urlsplit

    parts = urlsplit(uri)
    export = unquote(parts.path.removeprefix("/"))
    if parts.scheme == "nbd" and parts.hostname:
        return (parts.hostname, parts.port or 10809), export
    sockets = parse_qs(parts.query).get("socket", [])
    if parts.scheme == "nbd+unix" and sockets:
        return sockets[0], export
    forms = "nbd:unix:PATH[:EXPORT], nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH"
    raise ValueError(f"{uri!r} is no address of an NBD server: give {forms}")
