"""Open an image without reading it: paths and files are mapped, buffers are viewed."""

from __future__ import annotations

import mmap
import os
import stat
from io import BytesIO

from pyvmm_loader.errors import ImageEmpty, ImageNotFound, ImageTruncated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from types import TracebackType
    from typing import Protocol, Self

    from typing_extensions import Buffer

    from pyvmm_loader.memory import GuestMemory

    class HasFileno(Protocol):
        """An open file."""

        def fileno(self) -> int:
            """Return the descriptor."""
            ...

    ImageLike = str | os.PathLike[str] | Buffer | BytesIO | HasFileno

MADV_POPULATE_READ = 22  # linux/mman.h since 5.14; Python names it nowhere


class Source:
    """A read-only view of an image: `view`, its `name` for messages, and `close()`."""

    __slots__ = ("_fd", "_map", "_owned", "_pieces", "compression", "name", "view")

    def __init__(self, image: ImageLike) -> None:
        self._map: mmap.mmap | None = None
        self._pieces: Generator[bytes, None, None] | None = None
        self._fd = self._owned = -1
        self.compression: str | None = None
        if isinstance(image, (str, os.PathLike)):
            self.name = os.fspath(image)
            try:
                # without O_NONBLOCK, a FIFO would let the caller wait for somebody to write
                self._owned = os.open(self.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError as error:
                raise ImageNotFound(
                    f"{self.name}: {error.strerror}; name a file that this user can read", path=self.name
                ) from error
            try:
                self._open(self._owned)
            except BaseException:
                self._close_file()
                raise
        elif isinstance(image, BytesIO):
            self.name = "<buffer>"
            self.view = image.getbuffer()
            self._refuse_empty()
        elif hasattr(image, "fileno"):
            self.name = str(getattr(image, "name", "<file>"))
            self._open(image.fileno())
        else:
            self.name = "<buffer>"
            self.view = memoryview(image).cast("B")
            self._refuse_empty()

    def _open(self, fd: int) -> None:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise ImageNotFound(f"{self.name}: is a directory; name the kernel image inside it", path=self.name)
        if not stat.S_ISREG(status.st_mode):
            raise ImageNotFound(f"{self.name}: is no regular file; copy the image to one", path=self.name)
        size = status.st_size
        self.view = memoryview(b"")
        if size:
            try:
                self._map = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
            except OSError as error:
                raise ImageNotFound(f"{self.name}: cannot be mapped ({error.strerror}); name a regular file") from error
            self.view = memoryview(self._map)
            self._fd = fd
        self._refuse_empty()

    def _refuse_empty(self) -> None:
        if not len(self.view):
            raise ImageEmpty(f"{self.name}: the file is empty; was its build or download interrupted?", path=self.name)

    def unpack(self) -> None:
        """Replace a compressed file's view by that of its content and set `compression`; leave others as they are.

        The content may have 16 times the size of the file and 16 MiB. It lies in a mapping of its own, not on the heap.
        Raises InvalidHeader for damaged data and above the limit, UnsupportedCompression.
        """
        pieces = self.unpacked()
        if pieces is None:
            return
        from pyvmm_loader.compression.decompress import bound

        content = mmap.mmap(-1, bound(len(self.view)), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            for piece in pieces:
                content.write(piece)
            size = content.tell()
            if size:
                content.resize(size)
        except BaseException:
            content.close()
            raise
        self.close()
        self._map = content
        self.view = memoryview(content)[:size]
        self._refuse_empty()

    def unpacked(self) -> Iterator[bytes] | None:
        """Return the content of a compressed file, piece by piece, or None; sets `compression`, raises as `unpack`."""
        from pyvmm_loader.compression.magic import compression

        self.compression = compression(self.view)
        if self.compression is None:
            return None
        from pyvmm_loader.compression.decompress import bound, unpack

        self._pieces = unpack(self.view, self.compression, self.name, bound(len(self.view)))
        return self._pieces

    def write_to(self, memory: GuestMemory, start: int, offset: int = 0, size: int | None = None) -> None:
        """Write `size` bytes from `offset`, by default all, to the guest address `start`.

        A file is read into guest memory where the memory can do that: to map all pages of a kernel first takes longer
        than a tenth of the copy. Raises ImageTruncated where the file has become shorter.
        """
        size = len(self.view) - offset if size is None else size
        read = getattr(memory, "read_exact_volatile_from", None)
        if self._fd >= 0 and read is not None:
            read(start, _Reader(self._fd, offset, self.name), size)
            return
        self.populate()
        with self.view[offset : offset + size] as data:
            memory.write_slice(data, start)

    def populate(self) -> None:
        """Map all pages at once, which copies faster than one fault for every sixteen pages."""
        if self._map is not None:
            try:
                self._map.madvise(MADV_POPULATE_READ)
            except OSError:  # before Linux 5.14: the faults come one by one instead
                return

    def close(self) -> None:
        """Let go of file and mapping; the `view` is dead afterwards."""
        if self._pieces is not None:
            self._pieces.close()  # it has a view of the map
            self._pieces = None
        self.view.release()
        # The mapping ends with its last view; the traceback of an error on its way may hold one.
        self._map = None
        self._close_file()

    def _close_file(self) -> None:
        self._fd = -1
        if self._owned >= 0:
            os.close(self._owned)
            self._owned = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Source {self.name}>"


class _Reader:
    """A file from an offset on, for `read_exact_volatile_from`; its own position stays where it is."""

    __slots__ = ("fd", "name", "offset")

    def __init__(self, fd: int, offset: int, name: str) -> None:
        self.fd = fd
        self.offset = offset
        self.name = name

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill the buffer as far as one read goes."""
        count = os.preadv(self.fd, [buffer], self.offset)
        if not count:
            raise ImageTruncated(f"{self.name}: became shorter while it was loaded; copy it again", path=self.name)
        self.offset += count
        return count
